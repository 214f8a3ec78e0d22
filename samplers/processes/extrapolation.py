"""Clean estimates carried on along their own trend: the multistep samplers, as another target for the one kernel.

A multistep sampler (DPM-Solver++, RES, ER-SDE) does not move towards the clean estimate ``x0`` itself but towards

    D = x0 + sum_j c_j (x0 - x0_j),     x0_j: the estimates of the moves before, latest first

and is otherwise the kernel of ``processes.kernel``. The coefficients ``c_j`` depend on the noise levels alone, so the
move stays a Gaussian with known mean and variance. On the first move, and into ``sigma = 0``, ``D = x0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..state import MEMORY, SIGMA_PREV, X0_PREV, State
from .kernel import Flow, Interpolant

Clock = Callable[[Interpolant, float], float]


def log_sigma(_: Interpolant, sigma: float) -> float:
    """``-log sigma``, DPM-Solver++'s clock in k-diffusion, used for flows as well."""
    return -math.log(sigma)


def half_log_snr(interpolant: Interpolant, sigma: float) -> float:
    """``log(a / b)``; -inf for pure noise of a flow."""
    a, b = interpolant.coefficients(sigma)
    return -math.inf if a == 0.0 else math.log(a / b)


def noise_to_signal(interpolant: Interpolant, sigma: float) -> float:
    """``b / a`` for noise of standard deviation 1, as samplers count it; infinite for pure noise of a flow."""
    a, b = interpolant.coefficients(sigma)
    return math.inf if a == 0.0 else b / (a * unit_of(interpolant))


def unit_of(interpolant: Interpolant) -> float:
    """Standard deviation of the noise at the path's end: 1 but for flows with a scale of their own."""
    return interpolant.scale if isinstance(interpolant, Flow) else 1.0


class Extrapolation(Protocol):
    """A rule for the coefficients."""

    @property
    def memory(self) -> int:
        """Earlier estimates that it reads, at most ``len(X0_PREV)``."""
        ...

    def coefficients(
        self, interpolant: Interpolant, sigma: float, sigma_next: float, earlier: Sequence[float]
    ) -> Sequence[float]:
        """``c_j`` for the estimates that were made at noise levels ``earlier``, latest first; at most ``memory``.

        Fewer estimates than ``memory`` are the sampler's own first moves.
        """
        ...


@dataclass(frozen=True)
class TwoM:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, arXiv 2211.01095, alg. 2): ``c = h / (2 h_prev)`` on ``clock``."""

    clock: Clock
    memory: int = 1

    def coefficients(self, interpolant, sigma, sigma_next, earlier):
        """See ``Extrapolation``."""
        here = self.clock(interpolant, sigma)
        before = here - self.clock(interpolant, earlier[0])
        return [0.0 if math.isinf(before) else (self.clock(interpolant, sigma_next) - here) / (2.0 * before)]


@dataclass(frozen=True)
class Res:
    """Refined exponential solver, multistep (Zhang et al. 2023, arXiv 2308.02157), on ``-log sigma``.

    ``c = (h / h_prev) phi2(-h) / phi1(-h)`` with ``phi1(t) = (e^t - 1) / t`` and ``phi2(t) = (phi1(t) - 1) / t``.
    """

    memory: int = 1

    def coefficients(self, interpolant, sigma, sigma_next, earlier):
        """See ``Extrapolation``."""
        here = log_sigma(interpolant, sigma)
        h, before = log_sigma(interpolant, sigma_next) - here, here - log_sigma(interpolant, earlier[0])
        phi1 = math.expm1(-h) / -h
        phi2 = (phi1 - 1.0) / -h
        return [h / before * phi2 / phi1]


def er_scale(ratio: float) -> float:
    """ER-SDE's default noise scale ``g(q) = q (exp(q^0.3) + 10)``; infinite at infinity."""
    return math.inf if math.isinf(ratio) or ratio**0.3 > 700.0 else ratio * (math.exp(ratio**0.3) + 10.0)


@dataclass(frozen=True)
class Er:
    """VP ER-SDE-Solver-3 (Cui et al. 2023, arXiv 2309.06169) on ``q = b / a``, its integrals as sums over ``points``.

    Attributes:
        memory: stages less one: 2 is k-diffusion's default, 0 the first order alone.
    """

    memory: int = 2
    points: int = 200

    def coefficients(self, interpolant, sigma, sigma_next, earlier):
        """See ``Extrapolation``."""
        here, low = noise_to_signal(interpolant, sigma), noise_to_signal(interpolant, sigma_next)
        before = [noise_to_signal(interpolant, level) for level in earlier[: self.memory]]
        if not before or math.isinf(here) or math.isinf(before[0]):
            return [0.0] * len(before)
        step, scale = (here - low) / self.points, er_scale(low)
        at = [low + k * step for k in range(self.points)]
        fresh = 1.0 - scale / er_scale(here)
        second = (low - here + scale * step * math.fsum(1.0 / er_scale(q) for q in at)) / fresh
        first = [second / (here - before[0])]
        if len(before) == 1 or math.isinf(before[1]):
            return first + [0.0] * (len(before) - 1)
        third = 0.5 * (low - here) ** 2 + scale * step * math.fsum((q - here) / er_scale(q) for q in at)
        slope = 2.0 * third / fresh / (here - before[1])
        last = slope / (before[0] - before[1])
        return [first[0] + slope / (here - before[0]) + last, -last]


def extrapolated(
    rule: Extrapolation, interpolant: Interpolant, state: State, x0: Tensor, sigma: float, sigma_next: float
) -> Tensor:
    """The target D ``[n, ...]`` of the move from ``sigma``, from estimates ``x0`` and what ``state.extra`` remembers.

    Particles with a shorter memory than others get what the sampler does with so much.
    """
    if sigma_next == 0.0 or rule.memory == 0 or X0_PREV[0] not in state.extra:
        return x0
    levels = [state.extra[key].tolist() for key in SIGMA_PREV[: rule.memory] if key in state.extra]
    rows = [_until_none(row) for row in zip(*levels, strict=True)]
    known = {row: tuple(rule.coefficients(interpolant, sigma, sigma_next, row)) if row else () for row in set(rows)}
    target = x0
    for place in range(len(levels)):
        column = [known[row][place] if place < len(known[row]) else 0.0 for row in rows]
        if any(column):
            c = torch.tensor(column, dtype=torch.float64).to(x0).view(-1, *[1] * (x0.dim() - 1))
            target = target + c * (x0 - state.extra[X0_PREV[place]])
    return target


def remembering(rule: Extrapolation, state: State, x0: Tensor, sigma: float) -> dict[str, Tensor]:
    """``state.extra`` after a move from ``sigma`` that was made with estimates ``x0``."""
    extra = dict(state.extra)
    for place in range(rule.memory - 1, 0, -1):
        if X0_PREV[place - 1] in state.extra:
            extra[X0_PREV[place]], extra[SIGMA_PREV[place]] = (
                state.extra[X0_PREV[place - 1]],
                state.extra[SIGMA_PREV[place - 1]],
            )
    if rule.memory:
        extra[X0_PREV[0]] = x0
        extra[SIGMA_PREV[0]] = torch.full((len(state),), sigma, dtype=torch.float64)
    return extra


def forgetting(extra: dict[str, Tensor], rows: Tensor | None = None) -> dict[str, Tensor]:
    """``extra`` without the memory of earlier estimates: of all particles, or where ``rows`` (bool ``[n]``) says so."""
    if rows is None:
        return {key: value for key, value in extra.items() if key not in MEMORY}
    return {key: value.masked_fill(rows, 0.0) if key in SIGMA_PREV else value for key, value in extra.items()}


def _until_none(levels: tuple[float, ...]) -> tuple[float, ...]:
    """The levels before the first 0."""
    return levels[: levels.index(0.0)] if 0.0 in levels else levels
