"""Flow models at a fixed budget: what each method makes of the same forward passes, on the ODE and on two SDEs.

    python -m testtime.bench.flow [--budgets 1 2 .. 10] [--methods ...] [--prompts-per-task 40] [--verifier ...]

The embedded flow model on the counting and position tasks, as the paper of RBF compares methods (Kim et al. 2025, table
1): at 500 forward passes per image, which are ten times plain sampling here, and at every tenth of it for the curve.
Every prompt is made several times, for the diversity: the mean distance (1 - cosine) between the CLIP embeddings of its
images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..models.tiny.loading import load_family
from ..models.tiny.pipeline import SamplingSettings, shapes_process
from ..samplers.budget import Budget
from ..samplers.method import SearchMethod
from ..samplers.methods import RBF, SMC, SVDD, BestOfN
from ..samplers.plan import Plan, as_plan
from ..samplers.prepare import prepare_on
from ..samplers.processes.diffusion import DiffusionProcess
from ..samplers.processes.sde import SDE, Schedule
from ..samplers.protocols import SearchError
from ..shapes_world.captions import Prompt
from ..shapes_world.intervals import mean_interval
from .command import main as run_command
from .embeddings import features
from .measured import Measured, bounds
from .suite import Row, Settings, Suite

TASKS = ("counting", "position")
ALMOST_ODE = 1e-3  # norm of the noise that stands for the ODE: on none at all clones could not be told apart
LEVELS = 10  # of the published grid; the rest of the steps is its ODE tail


@dataclass(frozen=True)
class FlowSettings(Settings):
    """What a results file was measured with.

    Attributes:
        model: "flow".
        steps, cfg: of plain sampling. A budget of 1 is one plain image: ``steps`` times the guidance branches.
    """

    model: str = "flow"
    steps: int = 25
    cfg: float = 2.5
    per_prompt: int = 2


def _on(path: str, method: SearchMethod, steps: int) -> Plan:
    """A method on the almost-ODE, the linear or the VP path, over as many steps as plain sampling has."""
    if path == "ode":
        return Plan(method, moves=SDE("linear", norm=ALMOST_ODE))
    if path == "linear":
        return Plan(method, moves=SDE("linear"))
    levels = min(LEVELS, steps - 1)
    return Plan(method, moves=SDE("vp"), schedule=Schedule("exp", "vp", levels, max(steps - levels + 1, 1)))


METHODS: dict[str, Callable[[int], Any]] = {
    "plain": lambda _: BestOfN(1),
    "best_of_n": lambda _: BestOfN(),
    **{f"svdd_{path}": partial(_on, path, SVDD()) for path in ("ode", "linear", "vp")},
    **{f"smc_{path}": partial(_on, path, SMC()) for path in ("ode", "linear", "vp")},
    **{f"rbf_{path}": partial(_on, path, RBF()) for path in ("linear", "vp")},
}
"""Methods of the comparison; the number of particles comes from the budget."""


@dataclass(frozen=True)
class FlowSuite(Suite):
    """Methods on three paths, at multiples of plain sampling."""

    settings: FlowSettings = field(default_factory=FlowSettings)
    budgets: tuple[int, ...] = tuple(range(1, 11))
    name: ClassVar[str] = "shapes"
    figure: ClassVar[str] = "reward"

    @property
    def file(self) -> str:
        """Name of the results file."""
        usual = self.settings.verifier == Settings.verifier
        return f"shapes-flow{'' if usual else '-' + self.settings.verifier.replace('_', '-')}.json"

    def rows(self) -> list[Row]:
        """Every method at every budget; plain sampling has one."""
        passes = self.settings.steps * (1 if self.settings.cfg == 1.0 else 2)
        found = []
        for method, make in METHODS.items():
            search = make(self.settings.steps)
            if method == "plain":
                found.append(Row(method, 1, search, 0.0))
                continue
            found += [
                Row(method, budget, replace(as_plan(search), budget=Budget(budget * passes, steps="keep", least=1)))
                for budget in sorted(self.budgets)
            ]
        return found

    def prompts(self, row: Row) -> list[Prompt]:
        """Those of the two tasks."""
        return [prompt for prompt in super().prompts(row) if prompt.task in TASKS]

    def process(self, row: Row, prompts: Sequence[str], first: int, batch: int) -> DiffusionProcess:
        """The embedded flow model; the plan of the row sets its path."""
        settings = self.settings
        sampling = SamplingSettings(
            settings.model, settings.steps, settings.cfg, 0.0, settings.seed, max_batch=batch,
            autocast=settings.autocast, group_offset=first,
        )  # fmt: skip
        return shapes_process(prompts, sampling, load_family())

    def width(self, row: Row) -> int:
        """Particles per image that run at once."""
        prepared = prepare_on(as_plan(row.search), self.process(row, ["a red star"], 0, 1), None, ["a red star"])
        return prepared.plan.method.population

    def cannot(self, row: Row) -> str:
        """Whether a budget pays for a method at all: one plain image does not pay for RBF on every step."""
        try:
            self.width(row)
        except SearchError as error:
            return str(error)
        return ""

    def features(self, row: Row, images: Tensor) -> Tensor | None:
        """Embeddings for the diversity."""
        return features(images) if self.settings.per_prompt > 1 else None

    def more_figures(self, row: Row, found: Measured) -> dict[str, Any]:
        """Diversity, with its interval."""
        if found.features is None:
            return {}
        values = diversities(found.features, self.settings.per_prompt)
        interval = mean_interval(list(np.array(values).reshape(len(TASKS), -1)))
        return {"diversity": round(interval.estimate, 5), "diversity_ci": bounds(interval, 5)}


def diversities(embeddings: Tensor, per_prompt: int) -> list[float]:
    """Mean pairwise ``1 - cosine`` of the images of every prompt, from embeddings ``[prompts * per_prompt, D]``."""
    if per_prompt < 2:
        return []
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1).view(-1, per_prompt, embeddings.shape[1])
    cosine = unit @ unit.transpose(1, 2)
    return (1.0 - (cosine.sum((1, 2)) - per_prompt) / (per_prompt * (per_prompt - 1))).tolist()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(FlowSuite(), "flow", __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
