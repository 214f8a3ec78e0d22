"""``SearchMethod``: the base class of the methods, with the defaults of ``protocols.Method``.

A method is a frozen dataclass of its settings with a ``run`` that reads like the algorithm of its paper;
``docs/methods.md`` says how to write one, with a template that a test runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .movers import STEPS
from .protocols import Outline, Process, Rewriter, SearchError, SearchResult, Verifier

if TYPE_CHECKING:
    from .run.session import Session


@dataclass(frozen=True)
class SearchMethod:
    """Settings of a method, and what the house wants to know of it.

    Attributes:
        name: key in the registry, the trace and on the command line.
        title: the method's name as a person knows it; default: ``name``.
        width: field that a budget may change (the number of particles, candidates, beams), "" for none.
        weighted: finalists have weights, so that ``Plan.output`` may be "weight" or "sample".
        fixed_schedule: the number of steps is not a budget's to change.
        holds_budget: the budget is a setting of the method itself, see ``within``.
        from_noise: chooses among starting noises, so it cannot go on from a particle.
        compares_last: candidates, or those that are left after a first choice, can be finished one after the other.
        unit: what a record of the trace is about: a "step", or a "round" of a search that goes over all steps.
        replayable: particles come from one move after the other on the process's own schedule.
        carries_on: goes on from particles of before where a whole population turned out to be NaN.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    width: ClassVar[str] = ""
    weighted: ClassVar[bool] = False
    fixed_schedule: ClassVar[bool] = False
    holds_budget: ClassVar[bool] = False
    from_noise: ClassVar[bool] = False
    replayable: ClassVar[bool] = True
    unit: ClassVar[str] = "step"
    compares_last: ClassVar[bool] = False
    carries_on: ClassVar[bool] = False

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "name" in vars(cls) and "title" not in vars(cls):
            cls.title = cls.name

    @property
    def needs(self) -> frozenset[str]:
        """Names of ``Capabilities`` that these settings cannot go without."""
        return frozenset()

    @property
    def decides(self) -> str:
        """``movers.END``, ``PAUSES`` or ``STEPS``: among finished images, at a few steps, or at every step."""
        return STEPS

    @property
    def needs_verifier(self) -> bool:
        """Whether a search without a judge makes no sense."""
        return True

    @property
    def population(self) -> int:
        """Particles per image that run at once, at most."""
        return int(getattr(self, self.width)) if self.width else 1

    @property
    def beginners(self) -> int:
        """Particles per image at the first step."""
        return self.population

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for what is special to this method on this process; ``needs`` are met already."""

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image, at most; one call of one particle counts as one."""
        raise SearchError(f"{self.title} has no automatic budget: set its particles and steps yourself")

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image, at most."""
        raise SearchError(f"{self.title} has no automatic budget: set its particles and steps yourself")

    def nfe(self, process: Outline, per_call: int) -> int:
        """Forward passes per image, at most, at ``per_call`` passes per denoiser call."""
        return self.denoiser_calls(process) * per_call

    def least_calls(self, process: Outline) -> int:
        """Denoiser calls of the smallest search; only where ``holds_budget``."""
        return self.denoiser_calls(process)

    def within(self, calls: int, process: Outline) -> SearchMethod | None:
        """These settings with a budget of ``calls``, None if that is too few; only where ``holds_budget``."""
        raise NotImplementedError

    def decisions(self, process: Outline) -> list[int]:
        """Steps at which particles are chosen on their way, in order; empty for a choice among finished images."""
        return []

    def populations(self, steps: int) -> list[int]:
        """Particles per image that each step is made with, to reserve memory."""
        return [self.population] * steps

    def unguided(self) -> SearchMethod:
        """These settings without gradients, where they have any."""
        return self

    def asking(self, change: Callable[[Rewriter], Rewriter]) -> SearchMethod:
        """These settings with the rewriter exchanged, where they have one."""
        return self

    def run(self, session: Session) -> SearchResult:
        """Search; see ``protocols.Method``."""
        raise NotImplementedError


def calls_of(
    process: Outline, moved: Sequence[int], seen: Sequence[int] | None = None, first: int | None = None
) -> int:
    """Denoiser calls per image of a population.

    Args:
        process: a diffusion model is asked before the first move and after every other one, after the last only where
            the schedule stops above 0; a next-scale model draws a scale by the one call.
        moved: particles that make every move ``[T]``. seen: of these, those that are asked of after it; default: all.
        first: asked of before the first move; default: as many as make it.
    """
    if process.capabilities.has_code_maps:
        return sum(moved)
    seen = moved if seen is None else seen
    last = 0 if process.capabilities.ends_clean else seen[-1]
    return (moved[0] if first is None else first) + sum(seen[:-1]) + last
