"""Searches that came with flow models: rollover budget forcing and beams; and the SDE they run on."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..samplers.methods import RBF, BeamSearch
from ..samplers.methods.rbf import CHOICES, THRESHOLDS
from ..samplers.outline import NoiseOutline
from ..samplers.plan import Plan, as_plan
from ..samplers.processes.kernel import Flow
from ..samplers.processes.sde import CLOCKS, COEFFICIENTS, SDE, Schedule
from .method_inputs import (
    MODIFIER_CATEGORY,
    method_schema,
    search_output,
    window_inputs,
    window_problem,
)
from .types import SearchType

SPACINGS = ("sampler", "uniform", "exp")


class RBFNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return method_schema(
            RBF,
            "Moves on as soon as a candidate beats the best so far and saves the rest of its budget for later steps "
            "(Kim et al. 2025). Made for flow models on an SDE (Set SDE).",
            [
                io.Int.Input(
                    "budget",
                    default=500,
                    min=2,
                    max=10_000_000,
                    tooltip="Denoiser calls per image, for all chains together and with the deterministic tail. "
                    "Never exceeded; a few calls may be left over.",
                ),
                io.Int.Input(
                    "chains",
                    default=2,
                    min=1,
                    max=256,
                    tooltip="Chains per image that share the budget and run side by side.",
                ),
                io.Int.Input(
                    "initial",
                    default=25,
                    min=1,
                    max=4096,
                    tooltip="Random starts per chain; it begins with the best.",
                ),
                io.Combo.Input(
                    "threshold",
                    options=list(THRESHOLDS),
                    default="global",
                    tooltip="What a candidate must beat. global: the chain's best score so far (as published). "
                    "current: the score of the particle that it comes from. level, quantile: see level. stopping: what "
                    "the draws that are left are expected to bring.",
                ),
                io.Combo.Input(
                    "choice",
                    options=list(CHOICES),
                    default="last_step",
                    tooltip="Which candidate becomes the image. last_step: the best of the last searched step (as "
                    "published). best_seen: the best of all steps.",
                ),
                io.Float.Input(
                    "level",
                    default=0.5,
                    min=-1e6,
                    max=1e6,
                    step=0.01,
                    tooltip="Read with threshold level: a score, in the verifier's units. With quantile: 0 to 1, among "
                    "the scores of the random starts.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, budget=None, chains=None, initial=None, threshold=None, level=None):
        if threshold == "quantile" and level is not None and not 0 <= level <= 1:
            return f"level is {level} with threshold quantile: a quantile lies in 0 to 1"
        for name, value, least in (("budget", budget, 2), ("chains", chains, 1), ("initial", initial, 1)):
            if value is not None and value < least:
                return f"{name} is {value}: at least {least} is needed"
        if None not in (budget, chains, initial) and budget < chains * (initial + 2):
            return (
                f"budget is {budget}: {chains} chains of {initial} initial particles need at least "
                f"{chains * (initial + 2)} denoiser calls, and more with more steps"
            )
        return True

    @classmethod
    def execute(cls, budget, chains, initial, threshold, choice, level=0.5) -> io.NodeOutput:
        return search_output(RBF(budget, chains, initial, threshold=threshold, choice=choice, level=level))


class BeamSearchNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return method_schema(
            BeamSearch,
            "Keeps the best B of all continuations, scored by a short look ahead (Oshima et al. 2025).",
            [
                io.Int.Input(
                    "beams", default=4, min=1, max=1024, tooltip="B: beams, the images that are kept after every step."
                ),
                io.Int.Input(
                    "children", default=2, min=1, max=1024, tooltip="K: continuations tried from each beam, per step."
                ),
                io.Int.Input(
                    "lookahead",
                    default=1,
                    min=1,
                    max=100,
                    tooltip="Deterministic steps ahead before a continuation is scored. 1 = score the plain preview. "
                    "Cost grows in proportion.",
                ),
                *window_inputs(0.0, 1.0, 1, "choice")[:2],
            ],
        )

    @classmethod
    def validate_inputs(cls, start=None, end=None):
        return window_problem(start, end)

    @classmethod
    def execute(cls, beams, children, lookahead, start, end) -> io.NodeOutput:
        return search_output(BeamSearch(beams, children, lookahead, start, end, auto=True))


class SetSDENode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeSetSDE",
            display_name="Set SDE",
            category=MODIFIER_CATEGORY,
            description="Runs a search on an SDE of a flow model: its own linear path or the variance-preserving one "
            "(Kim et al. 2025). Replaces eta and, if you ask for it, the scheduler's steps.",
            inputs=[
                SearchType.Input("search", tooltip="Any search method."),
                io.Combo.Input(
                    "path",
                    options=list(CLOCKS),
                    default="linear",
                    tooltip="linear: the flow's own path, for models that need many steps. vp: the variance-preserving "
                    "path, for step-distilled models.",
                ),
                io.Combo.Input(
                    "coefficient",
                    options=list(COEFFICIENTS),
                    default="square",
                    tooltip="How the noise falls over time, g(t). square (t squared) as published.",
                ),
                io.Float.Input(
                    "norm",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Strength of the noise. 3 as published; 0 = deterministic (ODE).",
                ),
                io.Combo.Input(
                    "spacing",
                    options=list(SPACINGS),
                    default="sampler",
                    tooltip="sampler: the scheduler's steps. exp: the published grid, with small steps at high "
                    "noise. uniform: even steps in the path's time.",
                ),
                io.Int.Input(
                    "levels", default=10, min=2, max=10_000, tooltip='Noise levels when spacing is not "sampler".'
                ),
                io.Int.Input(
                    "tail",
                    default=10,
                    min=1,
                    max=10_000,
                    tooltip='Deterministic steps at the end, when spacing is not "sampler". 1 is enough for '
                    "distilled models only.",
                ),
            ],
            outputs=[SearchType.Output(display_name="search")],
        )

    @classmethod
    def execute(cls, search, path, coefficient, norm, spacing, levels, tail) -> io.NodeOutput:
        schedule = None if spacing == "sampler" else Schedule(spacing, path, levels, tail)
        plan = replace(as_plan(search), moves=SDE(path, coefficient, norm), schedule=schedule)
        check_grid(plan)
        return io.NodeOutput(plan)


def check_grid(plan: Plan) -> None:
    """Raise SearchError where a method with a budget of its own cannot pay for the grid of its path.

    The grid of a flow model stands in for all: budgets depend on the number of levels only.
    """
    if plan.schedule is None or plan.moves is None or plan.budget is not None or not isinstance(plan.method, RBF):
        return
    sigmas, moves = plan.schedule.apply(Flow(), plan.moves)
    plan.method.quota(NoiseOutline(Flow(), sigmas, moves))


NODES = [
    RBFNode,
    BeamSearchNode,
    SetSDENode,
]
