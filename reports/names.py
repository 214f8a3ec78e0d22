"""What methods and tasks are called in pictures and tables, in the order in which they are listed."""

from __future__ import annotations

from ..samplers.methods.registry import METHODS
from ..samplers.run.trace import Trace

PLAIN = "plain"
PLAIN_TITLE = "Plain sampling"
VARIANTS = {
    "worst": "worst choice",
    "reprompted": "re-prompted",
    "ode": "ODE",
    "linear": "linear SDE",
    "vp": "VP SDE",
}
"""What a benchmark changed about a method, by the end of the row's key: "svdd_vp"."""
TASK_NAMES = {
    "single_object": "One object",
    "two_object": "Two objects",
    "counting": "Counting",
    "colors": "Colour",
    "position": "Position",
    "color_attr": "Two colours",
}


def method_name(key: str) -> str:
    """The title of a method, with what was changed about it; the key itself, without underscores, where it has none."""
    if key == PLAIN:
        return PLAIN_TITLE
    if key in METHODS:
        return METHODS[key].title
    base, _, variant = key.rpartition("_")
    if base in METHODS and variant in VARIANTS:
        return f"{METHODS[base].short or METHODS[base].title}, {VARIANTS[variant]}"
    return key.replace("_", " ")


def method_order(key: str) -> tuple[int, int, int]:
    """For sorting: plain sampling, methods as the registry has them, then variants, then what is not ours."""
    keys = (PLAIN, *METHODS)
    if key in keys:
        return 0, keys.index(key), 0
    base, _, variant = key.rpartition("_")
    if base in METHODS and variant in VARIANTS:
        return 1, keys.index(base), list(VARIANTS).index(variant)
    return 2, 0, 0


def title_of(trace: Trace) -> str:
    """What the search of a trace is called: its title, in older traces the name of its method."""
    return str(trace.meta.get("title") or method_name(str(trace.meta.get("method", "search"))))


def task_name(key: str) -> str:
    """The name of a benchmark task, as ``method_name``."""
    return TASK_NAMES.get(key, key.replace("_", " "))
