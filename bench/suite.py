"""What a benchmark of searches declares: its settings, its rows, its prompts and its model; ``runner`` measures it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..samplers.method import SearchMethod
from ..samplers.plan import Plan, as_plan
from ..shapes_world.captions import Prompt
from ..shapes_world.suite import suite as shapes_prompts
from .measured import Measured

SUITE_SEED = 20240
PRECISIONS = ("float32", "bfloat16")
ROWS = "rows"
"""Name of the main table of a results file; other names are those of further tables (ablations)."""


@dataclass(frozen=True)
class Settings:
    """What a results file was measured with; a suite's own settings are fields of a subclass.

    Attributes:
        verifier: registry name of the judge that steers.
        held_out: of the one that only watches; where it is the same, the other embedded one takes its place.
        prompts_per_task: the suite's size.
        per_prompt: images made of every prompt.
        seed: of all noise.
        precision: "float32", or "bfloat16" for networks under autocast.
    """

    verifier: str = "shapes_preference"
    held_out: str = "shapes_clip"
    prompts_per_task: int = 40
    per_prompt: int = 1
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.held_out == self.verifier:
            other = "shapes_preference" if self.verifier == "shapes_clip" else "shapes_clip"
            object.__setattr__(self, "held_out", other)

    @property
    def autocast(self) -> torch.dtype | None:
        """Type for autocast, None for float32 throughout."""
        return torch.bfloat16 if self.precision == "bfloat16" else None


@dataclass(frozen=True)
class Row:
    """A search to be measured.

    Attributes:
        method: key of the row, see ``reports.names``.
        budget: in the unit of the suite.
        search: what is run.
        eta: noise of the moves, None for the suite's own.
        part: table of the results file that the row belongs to.
    """

    method: str
    budget: int
    search: SearchMethod | Plan
    eta: float | None = None
    part: str = ROWS

    @property
    def key(self) -> tuple[str, str, int]:
        """What no two rows of a suite have in common."""
        return self.part, self.method, self.budget


@dataclass(frozen=True)
class Suite(ABC):
    """A benchmark. Instances travel to other processes; ``rows`` must give the same rows there.

    Attributes:
        settings: see ``Settings``.
        budgets: of the rows, where the suite has a choice.
        name: written into the file.
        parts: tables and other figures that can be asked for, ``ROWS`` first.
        figure: what the suite compares, "overall" (correct images) or "reward".
        cost: key of the rows that budgets are compared by.
    """

    settings: Any
    budgets: tuple[int, ...] = ()
    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = (ROWS,)
    figure: ClassVar[str] = "overall"
    cost: ClassVar[str] = "nfe_per_image"

    @property
    @abstractmethod
    def file(self) -> str:
        """Name of the results file."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """Everything that has a row, in the order of the tables."""

    @abstractmethod
    def process(self, row: Row, prompts: Sequence[str], first: int, batch: int) -> Any:
        """The process of a group of images; ``first`` is the number of its first image, for the noise."""

    def width(self, row: Row) -> int:
        """Particles per image that run at once."""
        return as_plan(row.search).method.population

    def images(self, process: Any, latents: Tensor) -> Tensor:
        """Images ``[n, H, W, 3]`` in 0..1 of finished latents."""
        return process.to_pixels(process.decode(latents))

    def prompts(self, row: Row) -> list[Prompt]:
        """One prompt per image of a row."""
        once = shapes_prompts(self.settings.prompts_per_task, SUITE_SEED)
        return [prompt for prompt in once for _ in range(self.settings.per_prompt)]

    def features(self, row: Row, images: Tensor) -> Tensor | None:
        """Embeddings ``[n, d]`` of images, where ``more_figures`` needs them."""
        return None

    def more_figures(self, row: Row, found: Measured) -> dict[str, Any]:
        """Figures of this suite only, added to the row."""
        return {}

    def cannot(self, row: Row) -> str:
        """Why a row is left out, "" where it can be measured."""
        return ""

    def derived(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Tables that follow from the main one, written anew with every row."""
        return {}

    def extras(self) -> tuple[str, ...]:
        """Names "PART" or "PART:NAME" of figures that are no rows."""
        return ()

    def has_extra(self, name: str, body: dict[str, Any]) -> bool:
        """Whether a results file has an extra."""
        return name in body

    def extra(self, name: str, batch: int) -> dict[str, Any]:
        """Measure one; what is returned is merged into the results file."""
        raise NotImplementedError(name)
