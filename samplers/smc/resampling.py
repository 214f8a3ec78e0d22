"""Resampling schemes: normalised weights ``[N]`` -> M ancestor indices, all unbiased (``E[count] = M W``).

Every scheme is a small function ``(weights float64 [N], uniforms float64) -> int64 [M]``, ascending indices, registered
under its name. Weights live in float64 on the CPU; uniforms come from ``Streams``. Which to choose: systematic
(default) and SSP keep every count within one of ``M W``; multinomial is the textbook baseline with the largest
variance. Sources: Douc & Cappe 2005 (multinomial, residual, stratified, systematic); Gerber, Chopin & Whiteley
2019 (SSP, Srinivasan sampling process).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Scheme = Callable[[Tensor, Tensor, int], Tensor]
SCHEMES: dict[str, Scheme] = {}


def scheme(function: Scheme) -> Scheme:
    """Register a resampling scheme under its function name."""
    SCHEMES[function.__name__] = function
    return function


def uniforms_for(name: str, n: int, count: int) -> int:
    """How many uniforms a scheme takes to draw ``count`` ancestors among ``n``: SSP settles pairs of parents."""
    return n if name == "ssp" else count


def resample(name: str, weights: Tensor, uniforms: Tensor, count: int | None = None) -> Tensor:
    """Ancestors by the named scheme.

    Args:
        name: one of ``SCHEMES``.
        weights: float64 ``[N]``, >= 0, summing to one (1e-9).
        uniforms: float64 in [0, 1), ``uniforms_for`` many.
        count: M, ancestors wanted, default N.

    Returns:
        int64 ``[M]`` in 0 .. N-1, ascending, never an index of zero weight.
    """
    count = len(weights) if count is None else count
    if name not in SCHEMES:
        raise ValueError(f"resampling scheme is {name!r}: choose one of {', '.join(SCHEMES)}")
    if weights.dtype != torch.float64 or not bool((weights >= 0).all()) or abs(float(weights.sum()) - 1.0) > 1e-9:
        raise ValueError("weights must be float64, >= 0 and sum to one")
    return SCHEMES[name](weights, uniforms, count)


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """Inverse of the weights' cumulative distribution at ascending ``points``."""
    cumulative = torch.cumsum(weights, 0)
    # The last positive weight must catch every point that rounding left above the sum; zero weights never do.
    last = int(torch.nonzero(weights)[-1])
    cumulative[last:] = 1.0
    return torch.searchsorted(cumulative, points, right=True).clamp_(max=last)


@scheme
def multinomial(weights: Tensor, uniforms: Tensor, count: int) -> Tensor:
    """M independent draws."""
    return _invert(weights, uniforms[:count].sort().values)


@scheme
def stratified(weights: Tensor, uniforms: Tensor, count: int) -> Tensor:
    """One draw in each of M equal strata."""
    return _invert(weights, (torch.arange(count, dtype=torch.float64) + uniforms[:count]) / count)


@scheme
def systematic(weights: Tensor, uniforms: Tensor, count: int) -> Tensor:
    """A comb of M equally spaced points with one common random offset; uses the first uniform only."""
    return _invert(weights, (torch.arange(count, dtype=torch.float64) + uniforms[0]) / count)


@scheme
def residual(weights: Tensor, uniforms: Tensor, count: int) -> Tensor:
    """floor(M W) children for sure, the rest multinomial on the fractional parts."""
    n = len(weights)
    scaled = count * weights
    # M W of e.g. 2.9999999999999996 is 3: without the nudge a child would be left to chance for rounding alone.
    counts = torch.floor(scaled + 1e-12)
    rest = count - int(counts.sum())
    if rest > 0:
        fractions = (scaled - counts).clamp(min=0)
        drawn = _invert(fractions / fractions.sum(), uniforms[:rest].sort().values)
        counts += torch.bincount(drawn, minlength=n)
    return torch.repeat_interleave(torch.arange(n), counts.long())


@scheme
def ssp(weights: Tensor, uniforms: Tensor, count: int) -> Tensor:
    """Srinivasan sampling process: pairs of fractional parts push mass at each other until each is 0 or 1. O(N)."""
    n = len(weights)
    scaled = (count * weights).tolist()
    counts = [int(s + 1e-12) for s in scaled]
    fraction = [max(s - c, 0.0) for s, c in zip(scaled, counts, strict=True)]
    u = uniforms.tolist()
    i, j = 0, 1
    for k in range(n - 1):
        # Either i gives to j until one of them is settled, or the other way round; the odds keep both means.
        up_i = min(1.0 - fraction[i], fraction[j])
        up_j = min(fraction[i], 1.0 - fraction[j])
        total = up_i + up_j
        if total > 0 and u[k] * total < up_j:
            fraction[i], fraction[j] = fraction[i] + up_i, fraction[j] - up_i
        else:
            fraction[i], fraction[j] = fraction[i] - up_j, fraction[j] + up_j
        open_index = None
        for index in (i, j):
            if fraction[index] > 1.0 - 1e-12:
                counts[index] += 1
                fraction[index] = 0.0
            elif fraction[index] >= 1e-12 and open_index is None:
                open_index = index
        i = open_index if open_index is not None else i
        j = k + 2
    missing = count - sum(counts)
    if missing > 0:  # one child lost to rounding goes to the index that is still open, or to the heaviest one
        counts[i if fraction[i] > 0.5 else max(range(n), key=lambda m: weights[m])] += missing
    return torch.repeat_interleave(torch.arange(n), torch.tensor(counts))
