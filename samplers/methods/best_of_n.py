"""Best-of-N: independent samples, one look at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..checks import at_least
from ..method import SearchMethod, calls_of
from ..movers import END
from ..protocols import Outline, SearchResult
from ..run.session import Session
from ..run.turns import to_the_end


@dataclass(frozen=True)
class BestOfN(SearchMethod):
    """Draw N samples and keep the one that the verifier likes best.

    Cost per image: ``N T`` denoiser calls, N decodes and N verifications. With N = 1 this is plain sampling; a verifier
    is then optional and only reports.
    """

    name: ClassVar[str] = "best_of_n"
    title: ClassVar[str] = "Best-of-N"
    width: ClassVar[str] = "particles"
    compares_last: ClassVar[bool] = True

    particles: int = 4

    @property
    def decides(self) -> str:
        """Among finished images."""
        return END

    @property
    def needs_verifier(self) -> bool:
        """Only where there is something to choose."""
        return self.particles > 1

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, particles=self.particles)

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image; a schedule that stops above 0 costs one more, to see the image."""
        return calls_of(process, [self.particles] * process.steps)

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        return self.particles

    def run(self, session: Session) -> SearchResult:
        """Advance all, score once."""
        return to_the_end(session, session.process.start(self.particles))
