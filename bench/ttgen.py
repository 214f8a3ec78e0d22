"""The TTGen benchmark: what rewriting the prompt brings, when, and at what cost.

    python -m testtime.bench.ttgen [--steps 50] [--prompts-per-task 40] [--parts rows injection interval curves]

240 prompts of six tasks on the embedded diffusion model; the rewriter is the rule-based one. Direct sampling, TTGen and
its lower bound (worst) run on the ODE as in the paper; Best-of-N and SVDD get the same number of forward passes. The
rewriter reads previews with ShapesEval's detector, so ShapesEval is no independent judge of TTGen here: the verifier
that only watches is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..models.tiny.loading import load_family
from ..models.tiny.pipeline import SamplingSettings, shapes_process
from ..rewriters.shapes import ShapesRewriter
from ..samplers.methods import SVDD, BestOfN, TTGen
from ..samplers.plan import Plan
from ..samplers.processes.diffusion import DiffusionProcess
from ..samplers.rewriting import Rewriting, Rounds
from ..shapes_world.captions import Prompt
from ..shapes_world.drawing import draw
from ..shapes_world.sampling import sample_scene
from ..shapes_world.suite import suite as shapes_prompts
from .command import main as run_command
from .embeddings import features, frechet
from .measured import Measured
from .results_files import at_equal_cost
from .runner import judges_of, measure
from .suite import ROWS, SUITE_SEED, Row, Settings, Suite

INJECTIONS = (0.1, 0.2, 0.4, 0.6, 1.0)  # 5, 10, 20, 30 and 50 of 50 steps
INTERVALS = (1, 2, 5)
DRAWINGS = 8  # per prompt, as the reference of the Frechet distance
REWRITER = ShapesRewriter()


@dataclass(frozen=True)
class TTGenSettings(Settings):
    """What a results file was measured with.

    Attributes:
        model, steps, cfg: sampling, see ``SamplingSettings``.
        rewrites: M.
        injection: share of the steps with rewrites.
        curve_prompts: prompts of the curves, spread over the tasks.
    """

    model: str = "diffusion"
    steps: int = 50
    cfg: float = 2.5
    rewrites: int = 4
    injection: float = 0.4
    curve_prompts: int = 48


@dataclass(frozen=True)
class TTGenSuite(Suite):
    """TTGen against plain sampling and other searches, its ablations, and scores over the steps."""

    settings: TTGenSettings = field(default_factory=TTGenSettings)
    name: ClassVar[str] = "ttgen"
    parts: ClassVar[tuple[str, ...]] = (ROWS, "injection", "interval", "curves")

    @property
    def file(self) -> str:
        """Name of the results file."""
        return "ttgen.json"

    def ttgen(self, injection: float | None = None, **changes: Any) -> TTGen:
        """TTGen with rewrites in a share of the steps."""
        share = self.settings.injection if injection is None else injection
        last = round(share * self.settings.steps)
        return TTGen(REWRITER, **{"rewrites": self.settings.rewrites, "injection_step": last, **changes})

    def rows(self) -> list[Row]:
        """The main table, and TTGen with rewrites for longer and less often."""
        settings = self.settings
        rounds = Rounds(1, round(settings.injection * settings.steps))
        share = settings.injection * settings.rewrites / 2  # forward passes of rewrites over those of plain sampling
        once = max(2, round(1 + share))
        found = [
            Row("plain", 1, BestOfN(1), 0.0),
            Row("ttgen", once, self.ttgen(), 0.0),
            Row("ttgen_worst", once, self.ttgen(choice="worst"), 0.0),
            Row("ttgen", 2 * once, self.ttgen(particles=2), 0.0),
        ]
        for budget in (once, 2 * once):
            found.append(Row("best_of_n", budget, BestOfN(budget), 0.0))
            found.append(Row("svdd", budget, SVDD(budget), 1.0))
            reprompted = Plan(SVDD(budget), rewriting=Rewriting(REWRITER, budget - 1, rounds))
            found.append(Row("svdd_reprompted", budget, reprompted, 1.0))
        found.append(Row("best_of_n", 4 * once, BestOfN(4 * once), 0.0))  # what TTGen's seconds would pay for
        for part in INJECTIONS:
            budget = max(1, round(1 + part * settings.rewrites / 2))
            found.append(Row(f"until step {round(part * settings.steps)}", budget, self.ttgen(part), 0.0, "injection"))
        for every in INTERVALS:
            name = "every step" if every == 1 else f"every {every} steps"
            found.append(Row(name, once, self.ttgen(interval=every), 0.0, "interval"))
        return found

    def process(self, row: Row, prompts: Sequence[str], first: int, batch: int) -> DiffusionProcess:
        """The embedded model with the row's eta."""
        settings = self.settings
        sampling = SamplingSettings(
            settings.model, settings.steps, settings.cfg, row.eta or 0.0, settings.seed, max_batch=batch,
            autocast=settings.autocast, group_offset=first,
        )  # fmt: skip
        return shapes_process(prompts, sampling, load_family())

    def features(self, row: Row, images: Tensor) -> Tensor:
        """Embeddings for the Frechet distance."""
        return features(images)

    def more_figures(self, row: Row, found: Measured) -> dict[str, Any]:
        """The rewriter's part, and the Frechet distance to drawings of the same prompts."""
        figures = {
            "rewriter_calls_per_image": round(found.sums["rewriter_calls"] / len(found), 2),
            "rewriter_seconds_per_image": round(found.sums["rewriter_seconds"] / len(found), 4),
        }
        if found.features is not None:
            reference = drawn(self.settings.prompts_per_task, self.settings.seed)
            figures["frechet"] = round(frechet(found.features, reference), 5)
        return figures

    def derived(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What Best-of-N and SVDD bring for the forward passes and for the seconds of each TTGen row."""
        costs = {"nfe_per_image": "NFE", "seconds_per_image": "seconds"}
        return {"equal": at_equal_cost(rows, "ttgen", ("best_of_n", "svdd"), costs, "{}x")}

    def three_samplings(self) -> dict[str, Row]:
        """The paper's three: TTGen, direct and worst."""
        found = {row.method: row for row in reversed(self.rows()) if row.part == ROWS}
        return {"ttgen": found["ttgen"], "direct": found["plain"], "worst": found["ttgen_worst"]}

    def extras(self) -> tuple[str, ...]:
        """The scores over the steps, for each of the three samplings."""
        return tuple(f"curves:{name}" for name in self.three_samplings())

    def has_extra(self, name: str, body: dict[str, Any]) -> bool:
        """Whether the file has a curve."""
        return name.split(":")[1] in body.get("curves", {}).get("by_step", {})

    def extra(self, name: str, batch: int) -> dict[str, Any]:
        """Mean score of the chosen preview at every step, by both judges."""
        kind = name.split(":")[1]
        row = self.three_samplings()[kind]
        prompts = self.prompts(row)
        some = prompts[:: max(1, len(prompts) // self.settings.curve_prompts)]
        return {"curves": {"prompts": len(some), "by_step": {kind: self.curve(row, some, batch)}}}

    def curve(self, row: Row, prompts: Sequence[Prompt], batch: int) -> dict[str, list[float]]:
        """Judge -> mean score of the chosen preview at steps 0 .. T."""
        judges = judges_of(self.settings)
        sums = np.zeros((self.settings.steps + 1, len(judges)))

        def listener(process: Any, texts: list[str]) -> Any:
            def heard(record: Any, state: Any, images: Tensor | None) -> None:
                rows = torch.tensor([k for k, entry in enumerate(record.particles) if entry["selected"]])
                ledger, process.ledger = process.ledger, type(process.ledger)()  # looking costs the search nothing
                shown = process.preview(state.select(rows)) if images is None else images[rows]
                process.ledger = ledger
                asked = [texts[g] for g in state.group[rows].tolist()]
                sums[record.step] += [float(judge.score(shown, asked).sum()) for judge in judges]

            return heard

        each = max(1, batch // self.width(row))
        for first in range(0, len(prompts), each):
            measure(self, row, prompts[first : first + each], first, batch, listener)
        means = sums / len(prompts)
        return {judge.name: means[:, k].round(5).tolist() for k, judge in enumerate(judges)}


@cache
def drawn(prompts_per_task: int, seed: int) -> Tensor:
    """Features of ``DRAWINGS`` drawings of every prompt of a suite, the reference of the Frechet distance."""
    drawings = [
        torch.from_numpy(draw(sample_scene(seed + DRAWINGS * k + copy, prompt))).float() / 255
        for k, prompt in enumerate(shapes_prompts(prompts_per_task, SUITE_SEED))
        for copy in range(DRAWINGS)
    ]
    return features(drawings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(TTGenSuite(), "ttgen", __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
