"""DAS: tempered SMC whose proposal follows the gradient of the reward."""

from __future__ import annotations

from dataclasses import dataclass

from ..smc import Engine


@dataclass(frozen=True)
class DAS(Engine):
    """Diffusion Alignment as Sampling (Kim et al. 2025, arXiv 2501.05803, alg. 1).

    The move is drawn from ``N(mean + v lambda_{i+1} grad r / alpha, v)``, the first-order locally optimal proposal, and
    weighed by the exact log-ratio. The published settings are T = 100, N = 4, gamma = .008, SSP resampling, tau = .5,
    alpha = .005 (aesthetic) in reward units. Needs a differentiable verifier.

    Cost per image: ``N T`` denoiser calls forward and as many backward (about 3 forward passes each).
    """

    name: str = "das"
    guidance: float = 1.0
    scheme: str = "ssp"
