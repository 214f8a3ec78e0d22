"""DAS: tempered SMC whose proposal follows the gradient of the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..checks import one_of
from ..protocols import SearchResult
from ..run.session import Session
from .engine import Engine


@dataclass(frozen=True)
class DAS(Engine):
    """Diffusion Alignment as Sampling (Kim et al. 2025, arXiv 2501.05803, alg. 1).

    The move is drawn from ``N(mean + v lambda_{i+1} grad r / alpha, v)``, the first-order locally optimal proposal, and
    weighed by the exact log-ratio. The published settings are T = 100, N = 4, gamma = .008, SSP resampling, ESS
    threshold .5, alpha = .005 (aesthetic) in score units. Needs a differentiable verifier.

    Cost per image: ``N T`` denoiser calls forward and as many backward (about 3 forward passes each).

    Attributes:
        gradient_through: "denoiser" (exact) or "decoder" (cheap), see ``DiffusionProcess``; None leaves the process's.
    """

    name: ClassVar[str] = "das"
    title: ClassVar[str] = "DAS"

    guidance: float = 1.0
    resampling: str = "ssp"
    gradient_through: str | None = None

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        super().check_settings()
        if self.gradient_through is not None:
            one_of(("denoiser", "decoder"), gradient_through=self.gradient_through)

    def run(self, session: Session) -> SearchResult:
        """The engine's run, on a process whose gradient goes where this search wants it."""
        session.process = session.process.variant(gradient_through=self.gradient_through)
        return super().run(session)
