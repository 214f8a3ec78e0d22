"""The benchmark of next-scale models: what each method makes of N finished images, and what it costs in FLOPs.

    python -m testtime.bench.var [--parts rows ablations agreement] [--processes 2] [--prompts-per-task 40]

240 prompts of six tasks on the embedded next-scale model. The budget is N, as in the paper: TTS-VAR begins with 8 N
particles and finishes N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.infinity.flops import decode_flops
from ..models.infinity.process import ScalewiseProcess
from ..models.infinity.vae import BSQVae
from ..models.tiny.var import SCHEDULE
from ..models.tiny.var_pipeline import VarFamily, VarSettings, load_var_family, var_process
from ..samplers.clustering import PixelFeatures
from ..samplers.method import SearchMethod
from ..samplers.methods import SMC, TTSVAR, BestOfN, FKSteering, ImportanceSampling
from ..samplers.methods.population_plan import PLANS, PopulationPlan, default_plan, scores_plan
from ..shapes_world.captions import Prompt
from ..shapes_world.suite import suite as shapes_prompts
from ..verifiers.embedded import ShapesFeatures
from .agreement import agreements
from .command import main as run_command
from .foresight import by_plan, by_scale, grow
from .results_files import at_equal_cost
from .runner import judges_of
from .suite import ROWS, SUITE_SEED, Row, Settings, Suite

START = PLANS[len(SCHEDULE)].start
COMPARED = (ImportanceSampling, BestOfN, SMC, FKSteering)
ABLATED = 2  # N of the ablations
AGREEMENT_PROMPTS = 60
FORESEEN = (3, 5, 6)  # scales after which plans choose by score
COSTS = {"drawing_gflop_per_image": "GFLOP without decoding", "gflop_per_image": "GFLOP"}
SIDES = (4, 6)  # codes along one side that previews are decoded at, against all eight


@dataclass(frozen=True)
class VarBenchSettings(Settings):
    """What a results file was measured with.

    Attributes:
        cfg, tau, top_p: sampling, see ``VarSettings``.
        strength: lambda of TTS-VAR.
        preview_side: codes along one side that unfinished images are decoded at, 0 for all.
        ablation_prompts_per_task: the ablations see the first so many of each task.
        precision: "bfloat16" runs decoder and verifiers under autocast; the transformer computes in float32.
    """

    cfg: float = 3.0
    tau: float = 1.0
    top_p: float = 0.97
    strength: float = 10.0
    preview_side: int = VarSettings.preview_side
    ablation_prompts_per_task: int = 20

    def sampling(self, first: int, batch: int | None = None) -> VarSettings:
        """Settings of a process whose first prompt is number ``first`` of the suite."""
        return VarSettings(self.cfg, self.tau, self.top_p, self.seed, batch, self.preview_side, first)


@cache
def shapes_features() -> ShapesFeatures:
    """The verifier's features, loaded once."""
    return ShapesFeatures()


@cache
def pixel_features() -> PixelFeatures:
    """Average colours, the same instance every time, so that searches with them compare as equal."""
    return PixelFeatures()


def ablations(settings: VarBenchSettings) -> dict[str, SearchMethod]:
    """What each part of TTS-VAR brings, at N = ``ABLATED``."""
    features, plan = shapes_features(), PLANS[len(SCHEDULE)]

    def variant(**changes) -> TTSVAR:
        return TTSVAR(ABLATED, **{"extractor": features, "strength": settings.strength, **changes})

    return {
        "as it is": variant(),
        "no selection before the end": BestOfN(particles=ABLATED * START),
        "clusters only": variant(plan=PopulationPlan(START, {1: 6, 2: 4, 3: 2, 5: 1}, {})),
        "scores only": variant(plan=PopulationPlan(START, {}, plan.keep)),
        "clusters early": variant(plan=PopulationPlan(START, {0: 6, 1: 4}, {3: 2, 5: 1})),
        "scores early": variant(plan=PopulationPlan(START, {}, {1: 6, 2: 4, 3: 2, 4: 1})),
        "clusters late": variant(plan=PopulationPlan(START, {2: 6, 4: 4}, {5: 2, 6: 1})),
        "scores often": variant(plan=PopulationPlan(START, {1: 4}, {3: 3, 4: 2, 6: 1})),
        "scores late": variant(plan=PopulationPlan(START, {1: 6, 2: 4}, {5: 2, 6: 1})),
        **{f"potential {name}": variant(potential=name) for name in ("max", "sum", "diff")},
        "features pool": variant(features="pool"),
        "clusters by colour": variant(extractor=pixel_features()),
        **{f"clusters at {side} x {side} codes": variant(cluster_side=side) for side in SIDES},
        "colours at 4 x 4 codes": variant(extractor=pixel_features(), cluster_side=4),
        **{f"lambda {value:g}": variant(strength=value) for value in (1.0, 3.0, 30.0, 100.0)},
    }


class ReducedVae:
    """A decoder whose network runs in bfloat16."""

    def __init__(self, vae: BSQVae):
        self.config, self._vae = vae.config, vae

    def decode(self, total: Tensor) -> Tensor:
        """See ``BSQVae.decode``."""
        with torch.autocast(total.device.type, torch.bfloat16):
            return self._vae.decode(total).float()


@dataclass(frozen=True)
class Var(Suite):
    """Methods on the embedded next-scale model, at N finished images."""

    settings: VarBenchSettings = field(default_factory=VarBenchSettings)
    budgets: tuple[int, ...] = (1, 2, 4, 8)
    name: ClassVar[str] = "shapes"
    parts: ClassVar[tuple[str, ...]] = (ROWS, "ablations", "agreement", "foresight")
    cost: ClassVar[str] = "gflop_per_image"

    @property
    def file(self) -> str:
        """Name of the results file."""
        return "shapes-var.json"

    def rows(self) -> list[Row]:
        """The main table, and the ablations. At N = 1 all but TTS-VAR are plain sampling, which has no other N."""
        found = [Row("plain", 1, BestOfN(particles=1))]
        for n in sorted(self.budgets):
            if n > 1:
                found += [Row(kind.name, n, kind(particles=n)) for kind in COMPARED]
            ours = TTSVAR(n, extractor=shapes_features(), strength=self.settings.strength)
            found.append(Row(ours.name, n, ours))
        return found + [Row(k, ABLATED, search, part="ablations") for k, search in ablations(self.settings).items()]

    def prompts(self, row: Row) -> list[Prompt]:
        """The suite, or as much of it as the ablations see."""
        if row.part == "ablations":
            return shapes_prompts(self.settings.ablation_prompts_per_task, SUITE_SEED)
        return super().prompts(row)

    def family(self) -> VarFamily:
        """The networks in the precision of the settings."""
        family = load_var_family()
        if self.settings.autocast is None:
            return family
        return replace(family, vae=ReducedVae(family.vae))

    def process(self, row: Row, prompts: Sequence[str], first: int, batch: int) -> ScalewiseProcess:
        """The embedded next-scale model."""
        return var_process(prompts, self.settings.sampling(first, batch), self.family())

    def images(self, process: ScalewiseProcess, latents: Tensor) -> Tensor:
        """Images of finished code maps."""
        return self.family().decode(latents)

    def derived(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What Best-of-N brings for the FLOPs of each TTS-VAR row."""
        return {"equal": at_equal_cost(rows, "tts_var", ("best_of_n",), COSTS, "N = {}")}

    def costs(self, plan: PopulationPlan, n: int) -> tuple[float, float]:
        """(drawing, drawing and decoding) of TTS-VAR at N = ``n`` with clusters by codes, in images of Best-of-N."""
        process = self.process(self.rows()[0], ["a red circle"], 0, 1)
        method = TTSVAR(n, plan, cluster_by="codes", selection="top")
        scales = [process.scale_cost(scale) for scale in range(process.steps)]
        draw = sum(size * cost for size, cost in zip(method.populations(process.steps), scales, strict=True))
        decode = decode_flops(self.family().vae.config, *SCHEDULE.grids[-1])
        looks = method.verifications(process) * decode
        return draw / sum(scales), (draw + looks) / (sum(scales) + decode)

    def extras(self) -> tuple[str, ...]:
        """How well scores of unfinished images predict the final ones, and what plans and judges could find."""
        return ("agreement", "foresight")

    def has_extra(self, name: str, body: dict[str, Any]) -> bool:
        """Whether the file has them."""
        return ({"consistency", "previews"} if name == "agreement" else {"foresight", "plans"}) <= body.keys()

    def extra(self, name: str, batch: int) -> dict[str, Any]:
        """See ``agreement.agreements`` and ``foresight``."""
        prompts = shapes_prompts(self.settings.prompts_per_task, SUITE_SEED)
        some = prompts[:: max(1, len(prompts) // AGREEMENT_PROMPTS)]
        settings, family, steers = self.settings, self.family(), judges_of(self.settings)[0]

        def process_of(prompt: Prompt, number: int) -> ScalewiseProcess:
            return var_process([prompt.text], settings.sampling(number), family)

        if name == "foresight":
            trees = [grow(process_of(prompt, number), prompt, steers, FORESEEN) for number, prompt in enumerate(some)]
            sides = [grid[0] for grid in SCHEDULE.grids]
            return {"foresight": by_scale(trees, sides), "plans": by_plan(trees, plans(), self.costs)}
        consistency, previews = agreements(some, process_of, SCHEDULE, steers, SIDES)
        return {"consistency": consistency, "previews": previews}


def plans() -> dict[str, PopulationPlan]:
    """The plans whose outcome ``foresight`` tells."""
    late = PopulationPlan(START, {1: 6, 2: 4}, {5: 2, 6: 1})
    return {"published": default_plan(len(SCHEDULE)), "scores": scores_plan(len(SCHEDULE)), "late": late}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(Var(), "var", __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
