"""How much noise a reverse move injects: the marginal-preserving SDEs of a model, as rules for the one kernel.

A model's clean estimate does not depend on the scale that its states are written in; only the signal-to-noise ratio
counts. In coordinates (x0_hat, eps_hat) every reverse move is ``x' = a' x0_hat + sqrt(b'^2 - v) eps_hat + sqrt(v) z``,
so an SDE of *another* interpolant is nothing but another variance ``v`` on another grid. Converting a flow model to the
variance-preserving path (Kim et al. 2025, "Inference-Time Scaling for Flow Models via Stochastic Generation and
Rollover Budget Forcing", section 4) therefore takes no conversion of velocities: one reads the clock of that path off
the ratio b / a, and scales the variance to the model's own coordinates.

For ``dx = [u - g^2 / 2 score] ds + g dW`` on a path with coefficients (alpha, sigma) the injected share of the noise is
``v / b'^2 = g(s)^2 (s - s') / sigma(s')^2``; above 1 the move replaces all of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .kernel import VE, VP, Flow, Interpolant, Noise

Coefficient = Callable[[float], float]

COEFFICIENTS: dict[str, Coefficient] = {
    "constant": lambda _: 1.0,
    "linear": lambda s: s,
    "square": lambda s: s * s,
    "sine": lambda s: math.sin(0.5 * math.pi * s),
}
"""Shapes of the diffusion coefficient g(s) / norm, s = 1 at pure noise; the published presets use "square"."""


class Clock(Protocol):
    """A noise path's own time: 1 at (almost) pure noise, 0 at data."""

    def at(self, ratio: float) -> float:
        """Time at which ``b / a`` of the path equals ``ratio``."""
        ...

    def noise_level(self, time: float) -> float:
        """``b`` of the path at ``time``."""
        ...


@dataclass(frozen=True)
class LinearClock:
    """The linear path ``(1 - t) x0 + t eps``."""

    def at(self, ratio: float) -> float:
        """``t = ratio / (1 + ratio)``."""
        return 1.0 if math.isinf(ratio) else ratio / (1.0 + ratio)

    def noise_level(self, time: float) -> float:
        """t itself."""
        return time

    def ratio(self, time: float) -> float:
        """``t / (1 - t)``, infinite at 1."""
        return math.inf if time >= 1.0 else time / (1.0 - time)


@dataclass(frozen=True)
class VPClock:
    """The variance-preserving path with ``beta(s) = low + (high - low) s`` (Song et al. 2021, appendix B).

    ``abar(s) = exp(-T / 2)`` and ``b^2 = 1 - exp(-T)`` with ``T = low s + (high - low) s^2 / 2``.
    """

    low: float = 0.1
    high: float = 20.0

    def at(self, ratio: float) -> float:
        """Time of a ratio; ratios above the path's end are its end, s = 1."""
        if math.isinf(ratio):
            return 1.0
        integral = math.log1p(ratio * ratio)
        rise = self.high - self.low
        return min((-self.low + math.sqrt(self.low * self.low + 2.0 * rise * integral)) / rise, 1.0)

    def noise_level(self, time: float) -> float:
        """``sqrt(1 - exp(-T))``."""
        return math.sqrt(-math.expm1(-self._integral(time)))

    def ratio(self, time: float) -> float:
        """``b / a = sqrt(exp(T) - 1)``."""
        return math.sqrt(math.expm1(self._integral(time)))

    def _integral(self, time: float) -> float:
        return self.low * time + 0.5 * (self.high - self.low) * time * time


CLOCKS: dict[str, LinearClock | VPClock] = {"linear": LinearClock(), "vp": VPClock()}


@dataclass(frozen=True)
class SDE:
    """Noise of the SDE ``g(s) = norm * coefficient(s)`` on the clock of ``path``.

    Attributes:
        path: "linear" or "vp": whose clock and noise level g belongs to.
        coefficient: a name of ``COEFFICIENTS``.
        norm: factor of g, >= 0; 0 is the ODE. The published presets: square, 3.
        until: no noise at ratios b / a below this one (an ODE tail that lets a model with curved paths finish).
    """

    path: str = "linear"
    coefficient: str = "square"
    norm: float = 3.0
    until: float = 0.0

    def __post_init__(self):
        for field, value, choices in (("path", self.path, CLOCKS), ("coefficient", self.coefficient, COEFFICIENTS)):
            if value not in choices:
                raise ValueError(f"{field} is {value!r}: choose one of {', '.join(choices)}")
        if not (math.isfinite(self.norm) and self.norm >= 0):
            raise ValueError(f"norm is {self.norm}: it must be a finite number >= 0 (0 = ODE)")

    @property
    def stochastic(self) -> bool:
        """Whether any move draws noise."""
        return self.norm > 0

    def variance(self, interpolant: Interpolant, sigma: float, sigma_next: float) -> float:
        """Variance v of the move from ``sigma`` to ``sigma_next`` in the coordinates of ``interpolant``."""
        high, low = ratio_of(interpolant, sigma), ratio_of(interpolant, sigma_next)
        if low <= self.until or low == 0.0:
            return 0.0
        clock = CLOCKS[self.path]
        time, time_next = clock.at(high), clock.at(low)
        g = self.norm * COEFFICIENTS[self.coefficient](time)
        share = g * g * (time - time_next) / clock.noise_level(time_next) ** 2
        return min(share, 1.0) * interpolant.coefficients(sigma_next)[1] ** 2


def ratio_of(interpolant: Interpolant, sigma: float) -> float:
    """Noise-to-signal ratio ``b / a`` at ``sigma``, infinite for pure noise."""
    a, b = interpolant.coefficients(sigma)
    return math.inf if a == 0.0 else b / a


def sigma_of(interpolant: Interpolant, ratio: float) -> float:
    """The sigma at which ``b / a`` equals ``ratio``: the inverse of ``ratio_of``.

    Raises:
        ValueError: for an interpolant that this module does not know.
    """
    if isinstance(interpolant, VE | VP):
        return ratio
    if isinstance(interpolant, Flow):
        return LinearClock().at(ratio / interpolant.scale)
    raise ValueError(f"interpolant is {interpolant!r}: only VE, VP and Flow can be inverted")


def clock_grid(
    interpolant: Interpolant, steps: int, path: str = "vp", spacing: str = "exp", tail: int = 0, top: float = math.inf
) -> Tensor:
    """Sigmas of a schedule that is regular on another path's clock.

    Args:
        interpolant: whose sigmas are wanted.
        steps: moves N >= 1 over ``s_0 = 1 .. s_N = 0``; without a tail the last of them goes straight to data.
        path: clock, "linear" or "vp".
        spacing: "uniform" ``s_i = 1 - i / N``, or "exp" ``s_i = sqrt(1 - (i / N)^2)``, the published adaptive grid:
            small steps at high noise, a long last one.
        tail: the last move is divided into this many, evenly spaced in linear time (0 or 1: it is not).
        top: largest sigma of the model; the grid begins there if the path's own beginning is noisier.

    Returns:
        float64 ``[steps + max(tail, 1)]``, decreasing, ending with 0.
    """
    if steps < 1 or tail < 0:
        raise ValueError(f"steps is {steps} and tail is {tail}: at least 1 and 0")
    if path not in CLOCKS:
        raise ValueError(f"path is {path!r}: choose one of {', '.join(CLOCKS)}")
    if spacing not in ("uniform", "exp"):
        raise ValueError(f"spacing is {spacing!r}: choose 'uniform' or 'exp'")
    if path == "linear" and isinstance(interpolant, VE | VP) and math.isinf(top):
        raise ValueError("the linear clock starts at pure noise, which a VE or VP schedule cannot: give `top`")
    share = torch.arange(steps, dtype=torch.float64) / steps
    times = 1.0 - share if spacing == "uniform" else (1.0 - share * share).sqrt()
    if math.isfinite(top):
        times = times * min(CLOCKS[path].at(ratio_of(interpolant, top)), 1.0)
    ratios = [CLOCKS[path].ratio(float(s)) for s in times]
    last = LinearClock().at(ratios[-1])
    linear = LinearClock()
    ratios += [linear.ratio(last * (1.0 - i / max(tail, 1))) for i in range(1, max(tail, 1))] + [0.0]
    return torch.tensor([sigma_of(interpolant, ratio) for ratio in ratios], dtype=torch.float64)


SPACINGS = ("uniform", "exp")


@dataclass(frozen=True)
class Schedule:
    """A grid that is regular on a path's clock, in the place of the sampler's own.

    Attributes:
        spacing: of ``clock_grid``. path: whose clock.
        levels: noise levels, >= 2. tail: ODE moves from the last of them to data, >= 1.
    """

    spacing: str = "exp"
    path: str = "vp"
    levels: int = 10
    tail: int = 10

    def __post_init__(self):
        for field, value, choices in (("spacing", self.spacing, SPACINGS), ("path", self.path, CLOCKS)):
            if value not in choices:
                raise ValueError(f"{field} is {value!r}: choose one of {', '.join(choices)}")
        if self.levels < 2 or self.tail < 1:
            raise ValueError(f"levels is {self.levels} and tail is {self.tail}: at least 2 and 1")

    def apply(
        self, interpolant: Interpolant, moves: float | Noise, top: float = math.inf
    ) -> tuple[list[float], float | Noise]:
        """(sigmas, noise of the moves) in the place of the sampler's; an SDE ends where the tail begins.

        Args:
            interpolant: of the model. moves: as the sampler has them.
            top: largest sigma of the model; VE and VP schedules cannot start at pure noise.
        """
        top = top if isinstance(interpolant, VE | VP) else math.inf
        grid = clock_grid(interpolant, self.levels, self.path, self.spacing, self.tail, top)
        # As the sampler would hand them over: float32 where it does, so that a path means the same grid everywhere.
        values = grid.float().tolist()
        last = ratio_of(interpolant, float(grid[self.levels - 1]))
        return values, replace(moves, until=last * (1 - 1e-9)) if isinstance(moves, SDE) else moves
