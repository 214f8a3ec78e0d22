"""DAS: tempered SMC whose proposal follows the gradient of the reward."""

from __future__ import annotations

from dataclasses import dataclass

from ..protocols import SearchError, SearchResult
from ..run.session import Session
from ..smc.engine import Engine


@dataclass(frozen=True)
class DAS(Engine):
    """Diffusion Alignment as Sampling (Kim et al. 2025, arXiv 2501.05803, alg. 1).

    The move is drawn from ``N(mean + v lambda_{i+1} grad r / alpha, v)``, the first-order locally optimal proposal, and
    weighed by the exact log-ratio. The published settings are T = 100, N = 4, gamma = .008, SSP resampling, tau = .5,
    alpha = .005 (aesthetic) in reward units. Needs a differentiable verifier.

    Cost per image: ``N T`` denoiser calls forward and as many backward (about 3 forward passes each).

    Attributes:
        gradient_through: "denoiser" (exact) or "decoder" (cheap), see ``DiffusionProcess``; None leaves the process's.
    """

    name: str = "das"
    guidance: float = 1.0
    scheme: str = "ssp"
    gradient_through: str | None = None

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        super().check_settings()
        if self.gradient_through not in (None, "denoiser", "decoder"):
            raise SearchError(f"gradient_through is {self.gradient_through!r}: choose 'denoiser' or 'decoder'")

    def run(self, session: Session) -> SearchResult:
        """The engine's run, on a process whose gradient goes where this search wants it."""
        if self.gradient_through is not None:
            session.process.gradient_through = self.gradient_through
        return super().run(session)
