"""The Shapes World benchmark: what each method makes of the same compute.

    python -m testtime.bench.shapes [--budgets 1 4 8 16] [--methods ...] [--prompts-per-task 40] [--model diffusion]

240 prompts of six tasks, one image each. Budgets are multiples of plain sampling's forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..models.tiny.loading import load_family
from ..models.tiny.pipeline import MODELS, SamplingSettings, shapes_process
from ..samplers.processes.diffusion import DiffusionProcess
from .command import main as run_command
from .presets import METHODS, search_for
from .suite import Row, Settings, Suite

CHOICES = {"model": MODELS, "gradient_through": ("denoiser", "decoder")}


@dataclass(frozen=True)
class ShapesSettings(Settings):
    """What a results file was measured with.

    Attributes:
        model, steps, cfg, eta: sampling, see ``SamplingSettings``.
        gradient_through: where DAS's gradient goes.
    """

    model: str = "diffusion"
    steps: int = 20
    cfg: float = 2.5
    eta: float = 1.0
    gradient_through: str = "decoder"


@dataclass(frozen=True)
class Shapes(Suite):
    """Methods on an embedded model, at multiples of plain sampling."""

    settings: ShapesSettings = field(default_factory=ShapesSettings)
    budgets: tuple[int, ...] = (1, 4, 8, 16)
    name: ClassVar[str] = "shapes"

    @property
    def file(self) -> str:
        """Name of the results file."""
        return f"shapes-{self.settings.model}.json"

    def rows(self) -> list[Row]:
        """Plain sampling has one budget; searches need more than one particle."""
        return [
            Row(method, budget, search_for(method, budget))
            for method in METHODS
            for budget in sorted(self.budgets)
            if (method == "plain") == (budget == 1)
        ]

    def process(self, row: Row, prompts: Sequence[str], first: int, batch: int) -> DiffusionProcess:
        """The embedded model."""
        settings = self.settings
        sampling = SamplingSettings(
            settings.model, settings.steps, settings.cfg, settings.eta, settings.seed, max_batch=batch,
            autocast=settings.autocast, gradient_through=settings.gradient_through, group_offset=first,
        )  # fmt: skip
        return shapes_process(prompts, sampling, load_family())


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(Shapes(), "shapes", __doc__, arguments, CHOICES)


if __name__ == "__main__":
    raise SystemExit(main())
