"""One pass of Pillow's resize to the byte, for parity with figures that were published with it.

Pillow (``src/libImaging/Resample.c``) weighs the bytes under a filter with whole numbers of 2^-22 and rounds after each
axis. The same whole numbers are summed here in float64, which holds them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

_BITS = 22
_BICUBIC_SHARPNESS = -0.5


def _bilinear(x: float) -> float:
    return 1.0 - abs(x) if abs(x) < 1.0 else 0.0


def _bicubic(x: float) -> float:
    a, x = _BICUBIC_SHARPNESS, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}
"""Name -> function, and how far it reaches."""


@lru_cache(maxsize=32)
def weights(length: int, target: int, interpolation: str) -> Tensor:
    """float64 ``[target, length]`` of whole numbers: what each of ``length`` pixels adds, in 2^-22."""
    function, reach = FILTERS[interpolation]
    scale = length / target
    stretch = max(scale, 1.0)
    table = torch.zeros(target, length, dtype=torch.float64)
    for row in range(target):
        centre = (row + 0.5) * scale
        first = max(int(centre - reach * stretch + 0.5), 0)
        last = min(int(centre + reach * stretch + 0.5), length)
        found = [function((place - centre + 0.5) / stretch) for place in range(first, last)]
        total = sum(found)
        for place, value in enumerate(found, first):
            share = value / total if total else value
            table[row, place] = math.trunc(math.copysign(0.5, share) + share * (1 << _BITS))
    return table


def resized(x: Tensor, shape: tuple[int, int], interpolation: str) -> Tensor:
    """``[n, c, h, w]`` in 0..1 on the 8-bit grid, resized along the axes that differ, width first, as Pillow does it.

    Args:
        shape: (height, width) of the result.
        interpolation: a name in ``FILTERS``.

    Returns:
        Values on the 8-bit grid of 0..1, on the device and in the type of ``x``; no gradient.
    """
    # some devices have no float64: move first, cast then
    whole = (x.detach().cpu().double() * 255.0).round()
    height, width = shape
    if whole.shape[-1] != width:
        whole = _rounded(whole @ weights(whole.shape[-1], width, interpolation).T)
    if whole.shape[-2] != height:
        whole = _rounded(weights(whole.shape[-2], height, interpolation) @ whole)
    return (whole / 255.0).to(x.dtype).to(x.device)


def _rounded(sums: Tensor) -> Tensor:
    return ((sums + (1 << (_BITS - 1))) / (1 << _BITS)).floor().clamp(0, 255)
