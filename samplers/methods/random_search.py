"""Random search over the initial noise, progressively halved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..checks import at_least
from ..method import SearchMethod, calls_of
from ..movers import PAUSES
from ..protocols import Outline, SearchError, SearchResult
from ..run.session import Session
from ..run.turns import to_the_end
from ..smc.weights import best_rows


@dataclass(frozen=True)
class RandomSearch(SearchMethod):
    """Best-of-N that drops the worse half partway through (random search of Ma et al. 2025, arXiv 2501.09732).

        N fresh noises;  at each fraction f of the steps, score the previews and keep the better half;  best at the end

    Attributes:
        particles: N >= 1.
        halvings: increasing fractions of the steps, each in 0..1; empty is Best-of-N.
    """

    name: ClassVar[str] = "random_search"
    title: ClassVar[str] = "Random Search"
    width: ClassVar[str] = "particles"
    from_noise: ClassVar[bool] = True
    compares_last: ClassVar[bool] = True

    particles: int = 8
    halvings: tuple[float, ...] = (0.5,)

    @property
    def decides(self) -> str:
        """At the halvings."""
        return PAUSES

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, particles=self.particles)
        if any(not 0.0 < f < 1.0 for f in self.halvings) or list(self.halvings) != sorted(set(self.halvings)):
            raise SearchError(f"halvings are {self.halvings}: increasing fractions of the steps between 0 and 1")

    def halving_steps(self, steps: int) -> set[int]:
        """Steps at which the worse half goes."""
        return {round(f * steps) for f in self.halvings}

    def decisions(self, process: Outline) -> list[int]:
        """See ``SearchMethod.decisions``."""
        return sorted(step for step in self.halving_steps(process.steps) if step < process.steps)

    def populations(self, steps: int) -> list[int]:
        """Particles per image that each step is made with."""
        halving, width, widths = self.halving_steps(steps), self.particles, []
        for i in range(steps):
            widths.append(width)
            width = (width + 1) // 2 if i in halving else width
        return widths

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image; a schedule that stops above 0 costs one more, to see the image."""
        widths = self.populations(process.steps)
        return calls_of(process, [*widths[1:], self._last(process.steps)], first=self.particles)

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        widths = self.populations(process.steps)
        looked = [widths[i] for i in self.halving_steps(process.steps) if i < process.steps and widths[i] > 1]
        return self._last(process.steps) + sum(looked)

    def _last(self, steps: int) -> int:
        """Particles per image that are finished."""
        width = self.populations(steps)[-1]
        return (width + 1) // 2 if steps - 1 in self.halving_steps(steps) else width

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring."""
        process = session.process
        halving, width = self.halving_steps(process.steps), self.particles
        last = max((i for i in halving if i < process.steps), default=-1)
        state = process.start(width)
        for i in range(last + 1):
            if i in halving and width > 1:
                state, values, images = session.evaluate(state)
                kept = best_rows(values.score.view(process.groups, width), (width + 1) // 2)
                state = session.step(state, values, images, selected=kept).select(kept)
                width = (width + 1) // 2
            else:
                state = session.step(process.predict(state))
            state = session.move(state)
        return to_the_end(session, state)
