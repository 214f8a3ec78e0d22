"""What the nodes of search methods have in common: their inputs, their schema, their output."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..samplers.method import SearchMethod
from ..samplers.methods.registry import row_of
from ..samplers.plan import Plan, as_plan
from ..samplers.smc.resampling import SCHEMES
from ..samplers.smc.tempering import TEMPERINGS
from .types import CATEGORY, SearchType, ValueType

METHOD_CATEGORY = f"{CATEGORY}/methods"
NOISE_CATEGORY = f"{CATEGORY}/methods/noise"
MODIFIER_CATEGORY = f"{CATEGORY}/modifiers"
RELATIVE, ABSOLUTE = "relative", "absolute"


def particles_input() -> io.Int.Input:
    """N."""
    return io.Int.Input(
        "particles",
        default=4,
        min=1,
        max=1024,
        tooltip="N: candidates per image. N candidates take about N times as long. They run in chunks that fit in "
        "memory; this does not change results.",
    )


def alpha_inputs(minimum: float = 0.001, default: float = 0.25, zero: str = "") -> list:
    """Alpha and its mode; ``zero`` is added to the tooltip where alpha may be 0."""
    return [
        io.Float.Input(
            "alpha",
            default=default,
            min=minimum,
            max=1000.0,
            step=0.01,
            tooltip="Temperature: low = chase the score, high = stay close to the model." + zero,
        ),
        io.Combo.Input(
            "alpha_mode",
            options=[RELATIVE, ABSOLUTE],
            default=RELATIVE,
            tooltip="relative: alpha is in standard deviations of the scores seen, so one value fits any verifier. "
            "absolute: alpha is in units of the score, as in the papers.",
        ),
    ]


def window_inputs(start: float, end: float, every: int, what: str) -> list:
    """At which steps ``what`` happens."""
    return [
        io.Float.Input(
            "start",
            default=start,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip=f"Fraction of the steps before the first {what}. Early previews are blurry.",
        ),
        io.Float.Input(
            "end",
            default=end,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip=f"No {what} after this fraction of the steps. Late copies hardly differ.",
        ),
        io.Int.Input(
            "every",
            default=0,
            min=0,
            max=1000,
            tooltip=f"Steps from one {what} to the next. Each costs a decode and a verification per candidate. "
            f"0 = auto: {every}, and with fewer than 12 steps where it pays.",
        ),
    ]


def scheme_input(default: str) -> io.Combo.Input:
    """The resampling scheme."""
    return io.Combo.Input(
        "resampling",
        options=list(SCHEMES),
        default=default,
        tooltip="How survivors are drawn by weight. All are unbiased; systematic and SSP add the least noise.",
    )


def tempering_inputs() -> list:
    """Tempering, and when to resample."""
    return [
        io.Combo.Input(
            "tempering",
            options=[*TEMPERINGS, "adaptive"],
            default="exponential",
            tooltip="How the score is phased in over the steps. adaptive: evenly, but no faster than the particles "
            "stand it (ess_threshold), resampling where they hold it back.",
        ),
        io.Float.Input(
            "ess_threshold",
            default=0.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="Resample when the effective number of particles falls below this fraction of N. 0 = a good value "
            "for N; above 1 = at every allowed step.",
        ),
    ]


def value_input() -> list:
    """A learned value in the place of the verifier."""
    return [
        ValueType.Input(
            "value_function",
            optional=True,
            tooltip="A value network. Replaces previews and verifier when choosing, without decoding. The verifier "
            "still scores the finished images.",
        )
    ]


def window_problem(start: float | None, end: float | None) -> bool | str:
    """Queue-time check of a window; None stands for a linked value that is not known yet."""
    for name, value in (("start", start), ("end", end)):
        if value is not None and not 0.0 <= value <= 1.0:
            return f"{name} is {value}: it must lie in 0..1 (a fraction of the steps)"
    if start is not None and end is not None and start > end:
        return f"start {start} lies after end {end}: 0 <= start <= end <= 1 is needed"
    return True


def search_output(method: SearchMethod | Plan, **modifiers) -> io.NodeOutput:
    """The node's output, a ``Plan``; raises SearchError for settings that are wrong by themselves."""
    plan = replace(as_plan(method), **modifiers)
    plan.check_settings()
    return io.NodeOutput(plan)


def method_schema(method: type[SearchMethod], description: str, inputs: list, **more) -> io.Schema:
    """The schema of a method's node; id and name are those of its row in the registry."""
    row = row_of(method)
    return search_schema(row.node, row.title, description, inputs, **more)


def search_schema(
    node_id: str,
    name: str,
    description: str,
    inputs: list,
    category: str = METHOD_CATEGORY,
    hidden: list | None = None,
) -> io.Schema:
    """What all nodes that give a search have in common."""
    return io.Schema(
        node_id=node_id,
        display_name=name,
        category=category,
        description=description,
        inputs=inputs,
        outputs=[SearchType.Output(display_name="search")],
        hidden=hidden or [],
    )


class Windowed(io.ComfyNode):
    """Methods with a window of steps: start and end are checked when the workflow is queued."""

    @classmethod
    def validate_inputs(cls, start=None, end=None):
        """See ``window_problem``."""
        return window_problem(start, end)
