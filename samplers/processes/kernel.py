"""The one transition kernel of every diffusion and flow model.

A model is trained on an interpolant ``x = a(sigma) x0 + b(sigma) eps``. Given the denoiser's clean estimate ``x0_hat``
the stochastic reverse move from ``sigma`` to ``sigma'`` is

    eps_hat = (x - a x0_hat) / b
    v       = eta^2 b'^2 (1 - (a b' / (a' b))^2)
    x'     ~ N( a' x0_hat + sqrt(b'^2 - v) eps_hat,  v I )

which is DDIM(eta) in variance-preserving coordinates (Song et al. 2021, eq. 12 and 16), k-diffusion's ancestral step
in variance-exploding ones, and the marginal-preserving SDE of a linear flow. ``eta = 0`` is the ODE (DDIM / Euler),
``eta = 1`` the ancestral SDE. A model family supplies (a, b) and nothing else.

The shifted proposal of DAS (Kim et al. 2025) moves the mean by ``h = v * gradient``; its importance log-ratio has the
closed form ``log p - log q = -<h, z> / sqrt(v) - |h|^2 / (2 v)``, which unlike the difference of two log-densities
keeps its digits in float32.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Interpolant(Protocol):
    """A noise path."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def coefficients(self, sigma: float) -> tuple[float, float]:
        """(a, b) of ``x = a x0 + b eps``."""
        ...


@dataclass(frozen=True)
class VE:
    """Variance exploding, k-diffusion's convention: ``x = x0 + sigma eps`` (eps-, v- and EDM-models in ComfyUI)."""

    name: str = "ve"

    def coefficients(self, sigma: float) -> tuple[float, float]:
        """(1, sigma) for sigma >= 0."""
        return 1.0, sigma


@dataclass(frozen=True)
class VP:
    """Variance preserving, DDPM's convention, indexed by the equivalent ``sigma = sqrt((1 - abar) / abar)``."""

    name: str = "vp"

    def coefficients(self, sigma: float) -> tuple[float, float]:
        """(sqrt(abar), sqrt(1 - abar)) for sigma >= 0."""
        a = 1.0 / math.sqrt(1.0 + sigma * sigma)
        return a, sigma * a


@dataclass(frozen=True)
class Flow:
    """Linear flow (rectified flow, ComfyUI's CONST): ``x = (1 - s) x0 + scale s eps`` for s in [0, 1].

    Attributes:
        scale: standard deviation of the noise that the model was trained with, > 0 (ComfyUI's ``noise_scale``; 8 for
            HiDream-O1, 1 for nearly all others).
    """

    name: str = "flow"
    scale: float = 1.0

    def __post_init__(self):
        if not (math.isfinite(self.scale) and self.scale > 0.0):
            raise ValueError(f"scale is {self.scale}: the noise of a flow needs a standard deviation above 0")

    def coefficients(self, sigma: float) -> tuple[float, float]:
        """(1 - s, scale s); raises ValueError outside [0, 1]."""
        if not 0.0 <= sigma <= 1.0 + 1e-6:
            raise ValueError(f"sigma is {sigma}: a flow model's schedule lies in [0, 1]")
        return max(1.0 - sigma, 0.0), self.scale * sigma


@dataclass(frozen=True)
class Transition:
    """A Gaussian reverse move ``N(mean, std^2 I)``.

    Attributes:
        mean: ``[n, ...]``.
        std: standard deviation, one number for all particles; 0 means a deterministic move.
    """

    mean: Tensor
    std: float

    def sample(self, noise: Tensor | None, gradient: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw the next state, optionally from the gradient-shifted proposal.

        Args:
            noise: standard normals ``[n, ...]``; may be None when ``std`` is 0.
            gradient: ``[n, ...]`` gradient of the log-potential with respect to x; non-finite rows count as zero.

        Returns:
            (next states ``[n, ...]``, ``log p - log q`` float64 ``[n]`` on the CPU, 0 where nothing was shifted).

        Raises:
            ValueError: no noise for a move that draws some.
        """
        n = self.mean.shape[0]
        if self.std == 0.0:
            return self.mean, torch.zeros(n, dtype=torch.float64)
        if noise is None:
            raise ValueError(f"noise is missing: this move has standard deviation {self.std:g}")
        drawn = self.mean + self.std * noise
        if gradient is None:
            return drawn, torch.zeros(n, dtype=torch.float64)
        finite = torch.isfinite(gradient).flatten(1).all(1)
        gradient = torch.where(finite.view(-1, *[1] * (gradient.dim() - 1)), gradient, torch.zeros_like(gradient))
        # the move stays on the device, its sums are float64 on the CPU: not every device has float64
        shift = (self.std * gradient.cpu().double()).flatten(1)  # h / sqrt(v): of order one even when v is tiny
        log_ratio = -(shift * noise.cpu().double().flatten(1)).sum(1) - 0.5 * (shift * shift).sum(1)
        return drawn + self.std**2 * gradient, log_ratio


class Noise(Protocol):
    """A rule for the variance that a reverse move injects (``processes.sde``). A number eta is the rule above."""

    @property
    def stochastic(self) -> bool:
        """Whether it injects any."""
        ...

    def variance(self, interpolant: Interpolant, sigma: float, sigma_next: float) -> float:
        """Variance v of the noise in the move between two levels, 0 .. b'^2."""
        ...


def is_stochastic(eta: float | Noise) -> bool:
    """Whether moves under ``eta`` draw noise."""
    return eta > 0 if isinstance(eta, int | float) else eta.stochastic


def transition_variance(interpolant: Interpolant, sigma: float, sigma_next: float, eta: float | Noise) -> float:
    """Variance ``v`` of the reverse move; 0 for ``eta = 0`` or ``sigma_next = 0``.

    Raises:
        ValueError: if ``eta`` is a number outside [0, 1] or the schedule does not decrease.
    """
    if not 0.0 <= sigma_next < sigma:
        raise ValueError(f"sigmas {sigma} -> {sigma_next}: a schedule must decrease and stay >= 0")
    if not isinstance(eta, int | float):
        return eta.variance(interpolant, sigma, sigma_next)
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}: it must lie in [0, 1] (0 = ODE, 1 = ancestral)")
    a, b = interpolant.coefficients(sigma)
    a_next, b_next = interpolant.coefficients(sigma_next)
    kept = (a * b_next / (a_next * b)) ** 2
    return min(max(eta * eta * b_next * b_next * (1.0 - kept), 0.0), b_next * b_next)


def transition(
    interpolant: Interpolant, x: Tensor, x0: Tensor, sigma: float, sigma_next: float, eta: float | Noise
) -> Transition:
    """Reverse move of ``x`` ``[n, ...]`` at ``sigma`` given clean estimates ``x0`` ``[n, ...]``.

    Finite for a flow at s = 1 (a = 0), where with eta = 1 the next state depends on x only through x0.
    """
    variance = transition_variance(interpolant, sigma, sigma_next, eta)
    if sigma_next == 0.0:
        return Transition(x0, 0.0)
    a, b = interpolant.coefficients(sigma)
    a_next, b_next = interpolant.coefficients(sigma_next)
    keep = math.sqrt(max(b_next * b_next - variance, 0.0)) / b
    mean = (a_next - keep * a) * x0 + keep * x
    return Transition(mean, math.sqrt(variance))


def renoise_coefficients(interpolant: Interpolant, sigma: float, sigma_next: float) -> tuple[float, float]:
    """Forward move to a noisier level: ``x' = scale x + std z`` with the interpolant's marginals (for rewinding).

    Raises:
        ValueError: if ``sigma_next`` is below ``sigma``, or ``sigma`` is a flow's s = 1.
    """
    if sigma_next < sigma:
        raise ValueError(f"sigmas {sigma} -> {sigma_next}: re-noising goes up")
    a, b = interpolant.coefficients(sigma)
    a_next, b_next = interpolant.coefficients(sigma_next)
    if a == 0.0:
        raise ValueError(f"sigma is {sigma}: pure noise of a flow model cannot be re-noised")
    scale = a_next / a
    return scale, math.sqrt(max(b_next * b_next - (scale * b) ** 2, 0.0))


def clean_jacobian(interpolant: Interpolant, sigma: float) -> float:
    """``d x0_hat / d x`` of the ideal denoiser of unit-variance Gaussian data: ``a / (a^2 + b^2)``.

    Stands in for the network's own Jacobian when a gradient is not taken through the denoiser. The usual shortcut
    (eps held constant, 1 / a) explodes at high noise; this one is exact for white data and finite for a flow at s = 1.
    """
    a, b = interpolant.coefficients(sigma)
    return a / (a * a + b * b)


def noise_scaling(
    interpolant: Interpolant, noise: Tensor, latent: Tensor | None, sigma: float, full_denoise: bool
) -> Tensor:
    """Initial state at ``sigma``: ``a latent + b noise``.

    ``full_denoise`` (sigma is the model's maximum) draws a VE state from the widened ``N(0, sigma^2 + 1)``, as
    ComfyUI does, because at finite sigma the data still adds its unit variance.
    """
    a, b = interpolant.coefficients(sigma)
    if full_denoise and isinstance(interpolant, VE):
        b = math.sqrt(1.0 + sigma * sigma)
    x = b * noise
    return x if latent is None else x + a * latent.to(x)


def check_sigmas(sigmas: Tensor) -> list[float]:
    """A schedule as floats. Raises ValueError unless it has at least two entries and strictly decreases to >= 0."""
    values = [float(s) for s in sigmas]
    if len(values) < 2:
        raise ValueError(f"the schedule has {len(values)} sigmas: at least one step (two sigmas) is needed")
    if any(not math.isfinite(s) or s < 0 for s in values):
        raise ValueError(f"sigmas {values}: all must be finite and >= 0")
    for i, (high, low) in enumerate(itertools.pairwise(values)):
        if low >= high:
            raise ValueError(f"sigmas[{i}] = {high} -> sigmas[{i + 1}] = {low}: the schedule must strictly decrease")
    return values


def as_float64_cpu(values: Tensor) -> Tensor:
    """Scores and weights live here: float64 on the CPU, because there are few of them and precision is free.

    They move first and are cast then: Apple's MPS has no float64.
    """
    return values.detach().cpu().to(torch.float64)
