"""One node per search method; each gives a SEARCH. Widgets are the fields of the classes in ``samplers.methods``."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..samplers.method import SearchMethod
from ..samplers.methods import DAS, SMC, SVDD, BestOfN, FKSteering
from ..samplers.methods.registry import row_of
from ..samplers.plan import Plan, as_plan
from ..samplers.smc.resampling import SCHEMES
from ..samplers.smc.tempering import TEMPERINGS, Alpha
from . import guidance_check
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


class _Windowed(io.ComfyNode):
    """Methods with a window of steps: start and end are checked when the workflow is queued."""

    @classmethod
    def validate_inputs(cls, start=None, end=None):
        return window_problem(start, end)


class BestOfNNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return method_schema(
            BestOfN,
            "Makes N images and keeps the one with the best score. Works with any eta.",
            [particles_input()],
        )

    @classmethod
    def execute(cls, particles) -> io.NodeOutput:
        return search_output(BestOfN(particles=particles))


class SVDDNode(_Windowed):
    @classmethod
    def define_schema(cls):
        return method_schema(
            SVDD,
            "Tries M continuations at every step and goes on with the most promising one (Li et al. 2024). Pushes "
            "the score harder than any other method, and is the greediest.",
            [
                io.Int.Input(
                    "candidates",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="M: continuations tried per step (5 to 20 in the paper). M continuations take about M "
                    "times as long.",
                ),
                *alpha_inputs(0.0, 0.0, " 0 = always take the best, as the published code does."),
                *window_inputs(0.0, 1.0, 1, "choice"),
                io.Int.Input(
                    "rounds",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="After the M continuations of a step, this many times M more that vary the best one's "
                    "noise. Finds higher scores for the same number of continuations, and weak spots of the verifier.",
                ),
                io.Int.Input(
                    "block",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Steps that continuations go on alone before they are compared. 1 = compare at every step. "
                    "More = fewer decodes, and a weaker search. As many as there are steps = Best-of-N.",
                ),
                *value_input(),
            ],
        )

    @classmethod
    def execute(
        cls, candidates, alpha, alpha_mode, start, end, every, rounds=0, block=1, value_function=None
    ) -> io.NodeOutput:
        temperature = Alpha(alpha, alpha_mode) if alpha > 0 else None
        return search_output(
            SVDD(
                candidates=candidates,
                alpha=temperature,
                start=start,
                end=end,
                every=every,
                value_function=value_function,
                rounds=rounds,
                block=block,
            )
        )


class SMCNode(_Windowed):
    @classmethod
    def define_schema(cls):
        return method_schema(
            SMC,
            "Sequential Monte Carlo: phases the score in over the steps and resamples when a few particles carry "
            "most of the weight. Stays closest to what the model itself would make.",
            [
                particles_input(),
                *alpha_inputs(),
                *tempering_inputs(),
                *window_inputs(0.0, 0.9, 1, "resampling"),
                scheme_input("systematic"),
                *value_input(),
            ],
        )

    @classmethod
    def execute(
        cls, particles, alpha, alpha_mode, tempering, ess_threshold, start, end, every, resampling, value_function=None
    ) -> io.NodeOutput:
        return search_output(
            SMC(
                value_function=value_function,
                particles=particles,
                alpha=Alpha(alpha, alpha_mode),
                tempering=tempering,
                ess_threshold=ess_threshold or None,
                start=start,
                end=end,
                every=every,
                resampling=resampling,
            )
        )


class DASNode(_Windowed):
    @classmethod
    def define_schema(cls):
        return method_schema(
            DAS,
            "SMC whose steps follow the gradient of the score (Kim et al. 2025). Needs a differentiable verifier. If "
            "the model has no gradient, it runs without guidance and warns.",
            [
                particles_input(),
                *alpha_inputs(),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Strength of the gradient: 1 as derived, 0 is SMC. Any value is corrected for by the "
                    "weights.",
                ),
                io.Combo.Input(
                    "gradient_through",
                    options=["denoiser", "decoder"],
                    default="denoiser",
                    tooltip="denoiser: exact gradient, about three times the cost, needs a lot of memory. decoder: "
                    "through verifier and VAE only; cheap, approximate.",
                ),
                *tempering_inputs(),
                *window_inputs(0.0, 0.9, 1, "resampling"),
                scheme_input("ssp"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, guidance=None, start=None, end=None):
        # Naming an input here switches the host's own check of it off.
        if guidance is not None and not 0.0 <= guidance <= 100.0:
            return f"guidance is {guidance}: it must lie in 0 (SMC) .. 100"
        if guidance is None or guidance > 0:
            node = getattr(getattr(cls, "hidden", None), "unique_id", None)
            reason = guidance_check.problem(node, guidance_check.queued())
            if reason:
                return reason
        return window_problem(start, end)

    @classmethod
    def execute(
        cls,
        particles,
        alpha,
        alpha_mode,
        guidance,
        gradient_through,
        tempering,
        ess_threshold,
        start,
        end,
        every,
        resampling,
    ) -> io.NodeOutput:
        return search_output(
            DAS(
                particles=particles,
                alpha=Alpha(alpha, alpha_mode),
                guidance=guidance,
                gradient_through=gradient_through,
                tempering=tempering,
                ess_threshold=ess_threshold or None,
                start=start,
                end=end,
                every=every,
                resampling=resampling,
            )
        )


class FKSteeringNode(_Windowed):
    @classmethod
    def define_schema(cls):
        return method_schema(
            FKSteering,
            "Resamples the particles at a few steps by a potential of their scores so far (Feynman-Kac steering, "
            "Singhal et al. 2025). With the potential rt it is importance sampling by the present score.",
            [
                particles_input(),
                *alpha_inputs(),
                io.Combo.Input(
                    "potential",
                    options=["diff", "max", "rt", "sum"],
                    default="diff",
                    tooltip="What particles are resampled by. diff: how much the score rose. max: the best score so "
                    "far. rt: the present score (importance sampling). sum: all scores added up (heavy-tailed, "
                    "experimental). The paper's lambda is 1 / alpha.",
                ),
                *window_inputs(0.2, 0.8, 4, "resampling"),
                scheme_input("multinomial"),
            ],
        )

    @classmethod
    def execute(cls, particles, alpha, alpha_mode, potential, start, end, every, resampling) -> io.NodeOutput:
        return search_output(
            FKSteering(
                particles=particles,
                alpha=Alpha(alpha, alpha_mode),
                potential=potential,
                start=start,
                end=end,
                every=every,
                resampling=resampling,
            )
        )


NODES = [BestOfNNode, SVDDNode, SMCNode, DASNode, FKSteeringNode]
