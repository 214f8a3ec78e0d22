"""What methods and tasks are called in pictures and tables, in the order in which they are listed."""

from __future__ import annotations

from ..samplers.run.trace import Trace

METHOD_NAMES = {
    "plain": "Plain sampling",
    "best_of_n": "Best-of-N",
    "random_search": "Random Search",
    "zero_order_search": "Zero-Order Search",
    "path_search": "Path Search",
    "importance_sampling": "Importance Sampling",
    "svdd": "SVDD",
    "smc": "SMC",
    "das": "DAS",
    "fk": "FK Steering",
    "rbf": "Rollover Budget Forcing",
    "beam_search": "Beam Search",
    "tts_var": "TTS-VAR",
    "ttgen": "TTGen",
    "ttgen_worst": "TTGen, worst choice",
    "svdd_reprompted": "SVDD, re-prompted",
    "svdd_ode": "SVDD, ODE",
    "svdd_linear": "SVDD, linear SDE",
    "svdd_vp": "SVDD, VP SDE",
    "smc_ode": "SMC, ODE",
    "smc_linear": "SMC, linear SDE",
    "smc_vp": "SMC, VP SDE",
    "rbf_linear": "RBF, linear SDE",
    "rbf_vp": "RBF, VP SDE",
}
TASK_NAMES = {
    "single_object": "One object",
    "two_object": "Two objects",
    "counting": "Counting",
    "colors": "Colour",
    "position": "Position",
    "color_attr": "Two colours",
}


def method_name(key: str) -> str:
    """The name of a method; the key itself, without underscores, where it has none."""
    return METHOD_NAMES.get(key, key.replace("_", " "))


def title_of(trace: Trace) -> str:
    """What the search of a trace is called: its title, in older traces the name of its method."""
    return str(trace.meta.get("title") or method_name(str(trace.meta.get("method", "search"))))


def task_name(key: str) -> str:
    """The name of a benchmark task, as ``method_name``."""
    return TASK_NAMES.get(key, key.replace("_", " "))
