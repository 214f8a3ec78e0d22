"""Temperatures: how strongly a score counts, and from when.

Target of every weighted method: ``p(x0) exp(r(x0) / alpha)``. ``Alpha`` says what alpha is, a tempering schedule
``lambda_i`` in [0, 1] phases the score in (DAS, Kim et al. 2025, section 4.1: early estimates are blurred guesses).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..protocols import SearchError, Verifier
from .weights import effective_sample_size

_LEAST_SPREAD = 1e-6
_PRIOR_WEIGHT = 2.0  # scores that the verifier's usual spread counts as


def usual_spread(verifier: Verifier | None) -> float | None:
    """Standard deviation of the scores that ``verifier`` says it usually gives, None where it says nothing."""
    if verifier is None or verifier.default_scale is Verifier.default_scale:
        return None
    spread = float(verifier.default_scale[1])
    return spread if math.isfinite(spread) and spread > 0 else None


@dataclass(frozen=True)
class Alpha:
    """Temperature of the target.

    Attributes:
        value: > 0. In score units ("absolute") or in standard deviations of the scores seen ("relative").
        mode: "absolute" keeps the fixed target of the papers; "relative" makes one default work with any verifier,
            at the price that the target depends on the run.
    """

    value: float = 0.25
    mode: str = "relative"

    def __post_init__(self):
        if not self.value > 0 or not math.isfinite(self.value):
            raise SearchError(f"alpha is {self.value}: it must be a finite number > 0")
        if self.mode not in ("absolute", "relative"):
            raise SearchError(f"alpha mode is {self.mode!r}: choose 'absolute' or 'relative'")


class AlphaScale:
    """Alpha in score units for every group, following the spread of the scores in relative mode.

    Of N scores with sum of squares SS around their mean the spread is ``sqrt((nu s^2 + SS) / (nu + N - 1))``: the usual
    estimate, steadied by ``nu = 2`` scores' worth of the spread ``s`` that the verifier is known to have. With a few
    particles the bare estimate would be a lottery (at N = 4 half of what is right in one run of ten). The largest value
    so far counts: selection shrinks the spread of survivors, and a temperature that shrank along with it would raise
    the pressure without end. Images are not pooled: the batch must not change an image.

    Args:
        alpha, groups: what is scaled, for how many images.
        usual: standard deviation that the verifier's scores usually have, None where nothing is known.
    """

    def __init__(self, alpha: Alpha, groups: int, usual: float | None = None):
        self.alpha = alpha
        self._spread = torch.zeros(groups, dtype=torch.float64)
        self._weight = 0.0 if usual is None else _PRIOR_WEIGHT
        self._usual = 0.0 if usual is None else usual

    def update(self, score: Tensor) -> Tensor:
        """Take in scores ``[G, N]`` (``-inf`` entries ignored); returns alpha ``[G]`` in score units."""
        if self.alpha.mode == "relative":
            for g, row in enumerate(score):
                finite = row[torch.isfinite(row)]
                if len(finite) > 1:
                    squares = float((finite - finite.mean()).square().sum()) + self._weight * self._usual**2
                    spread = math.sqrt(squares / (self._weight + len(finite) - 1))
                    self._spread[g] = max(float(self._spread[g]), spread)
        return self.value()

    def value(self) -> Tensor:
        """Alpha ``[G]``, float64, > 0."""
        if self.alpha.mode == "absolute":
            return torch.full_like(self._spread, self.alpha.value)
        return self.alpha.value * self._spread.clamp(min=_LEAST_SPREAD)

    def known(self) -> Tensor:
        """Whether alpha means anything yet, bool ``[G]``: scores that have all been equal give no relative scale."""
        if self.alpha.mode == "absolute":
            return torch.ones_like(self._spread, dtype=torch.bool)
        return self._spread > _LEAST_SPREAD


def exponential(steps: int, gamma: float | None = None, start: float = 0.0) -> Tensor:
    """DAS: ``lambda_i = min((1 + gamma)^(i - i0) - 1, 1)``, 0 before ``i0 = steps * start``; float64 ``[steps]``.

    ``gamma=None`` reaches 1 exactly at the last scored step: ``gamma = 2^(1 / K) - 1`` with ``K = steps - 1 - i0``.
    """
    first = int(steps * start)
    if gamma is None:
        gamma = 2.0 ** (1.0 / max(steps - 1 - first, 1)) - 1.0
    if gamma <= 0:
        raise ValueError(f"gamma is {gamma}: it must be > 0")
    i = torch.arange(steps, dtype=torch.float64) - first
    return torch.where(i < 0, torch.zeros_like(i), ((1 + gamma) ** i.clamp(min=0) - 1).clamp(max=1.0))


def linear(steps: int, _: float | None = None, start: float = 0.0) -> Tensor:
    """``lambda_i = min((i - i0) / K, 1)``; without gamma."""
    first = int(steps * start)
    i = torch.arange(steps, dtype=torch.float64) - first
    return (i / max(steps - 1 - first, 1)).clamp(0.0, 1.0)


def none(steps: int, _: float | None = None, start: float = 0.0) -> Tensor:
    """``lambda_i = 1`` from ``i0`` on: no tempering."""
    return (torch.arange(steps) >= int(steps * start)).double()


TEMPERINGS: dict[str, Callable[..., Tensor]] = {"exponential": exponential, "linear": linear, "none": none}


def adaptive(
    log_w: Tensor, score: Tensor, alpha: Tensor, log_past: Tensor, floor: Tensor, ceiling: float, target: float
) -> Tensor:
    """The largest lambda per group in ``floor .. ceiling`` that keeps ``ESS >= target * N``, else the floor: ``[G]``.

    Bisection, 40 halvings. (The published code moves lambda by Adam and can creep only .05 a step.) Without a ceiling
    it would be no tempering at all: early previews do not differ, so that any lambda keeps the ESS.

    Args:
        log_w: ``[G, N]`` weights before this step's increment.
        score: ``[G, N]``; alpha: ``[G]``; log_past: ``[G, N]`` log-potential already counted.
        floor: ``[G]`` lambda so far, below which it does not fall. ceiling: where it may get to by now.
        target: fraction of N; 1 or more allows no step at all.
    """
    n = log_w.shape[-1]

    def good(lam: Tensor) -> Tensor:
        twist = torch.where(torch.isneginf(score), score, lam[:, None] * score / alpha[:, None])
        return effective_sample_size(log_w + twist - log_past) >= target * n

    low, high = floor.clone(), torch.full_like(floor, ceiling).maximum(floor)
    accept = good(high)
    for _ in range(40):
        middle = (low + high) / 2
        fine = good(middle)
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    return torch.where(accept, torch.full_like(floor, ceiling).maximum(floor), low)
