"""Bits and codes: sampling a scale's bits, and what they add to the image's code map.

A token is a vector of independent bits. ``bits -> codes``: bit b of d becomes ``(2 b - 1) / sqrt(d)``, so that every
code has length 1. The code maps of all scales, enlarged to the last grid, add up to ``F``, which is what the decoder
takes; the input of the next scale is ``F`` reduced to that scale's grid (Han et al. 2024, section 3.1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bit_probability(logits: Tensor, tau: float = 1.0, top_p: float = 0.0) -> Tensor:
    """Probability ``[...]`` of a one, from logits ``[..., 2]``.

    Args:
        logits: of a zero and of a one.
        tau: temperature, > 0.
        top_p: in 0..1; 0 switches it off. Nucleus sampling over two outcomes: the less likely one is dropped if its
            probability is at most ``1 - top_p``, so that a nearly certain bit becomes certain.
    """
    p = torch.sigmoid((logits[..., 1] - logits[..., 0]) / tau)
    if top_p > 0:
        rest = 1.0 - top_p
        # On a tie the published sort keeps the second of the two outcomes; it takes top_p <= 0.5 to matter.
        p = torch.where((p <= rest) & (p < 0.5), torch.zeros_like(p), p)
        p = torch.where((1.0 - p <= rest) & (p >= 0.5), torch.ones_like(p), p)
    return p


def sample_bits(logits: Tensor, uniforms: Tensor, tau: float = 1.0, top_p: float = 0.0) -> Tensor:
    """Bits uint8 ``[...]``: one where a uniform in [0, 1) ``[...]`` lies below ``bit_probability``."""
    return (uniforms < bit_probability(logits, tau, top_p)).to(torch.uint8)


def fold(x: Tensor, factor: int) -> Tensor:
    """Code map ``[n, d, factor h, factor w]`` -> token map ``[n, factor^2 d, h, w]``."""
    return x if factor == 1 else F.pixel_unshuffle(x, factor)


def unfold(x: Tensor, factor: int) -> Tensor:
    """Token map ``[n, factor^2 d, h, w]`` -> code map ``[n, d, factor h, factor w]``."""
    return x if factor == 1 else F.pixel_shuffle(x, factor)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, no antialiasing, in both directions: the published models were trained with exactly this."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def codes_of(bits: Tensor, grid: tuple[int, int], factor: int = 1) -> Tensor:
    """Code map float32 ``[n, d, factor h, factor w]`` of bits ``[n, h w, bits]``."""
    tokens = bits.transpose(1, 2).unflatten(2, grid).float()
    signs = unfold(tokens, factor) * 2 - 1
    return signs / signs.shape[1] ** 0.5


def bits_of(x: Tensor) -> Tensor:
    """Bits bool, shaped as ``x``: one where it is positive."""
    return x > 0


def add_scale(total: Tensor, bits: Tensor, grid: tuple[int, int], factor: int = 1) -> Tensor:
    """``F`` ``[n, d, H, W]`` after a scale with ``bits`` ``[n, h w, bits]`` on ``grid`` (tokens)."""
    return total + resize(codes_of(bits, grid, factor), tuple(total.shape[-2:]))


def bits_between(before: Tensor, after: Tensor, grid: tuple[int, int], factor: int = 1) -> Tensor:
    """Bits uint8 ``[n, h w, bits]`` of the scale that was added to ``before`` and gave ``after`` ``[n, d, H, W]``.

    Enlarging is linear and loses nothing, so the least-squares solution is the code map itself.
    """
    size = [factor * side for side in grid]
    codes = (after - before).float()
    for axis, (small, large) in enumerate(zip(size, codes.shape[-2:], strict=True)):
        if small == large:
            continue
        unit = torch.eye(small, device=codes.device).view(small, 1, small, 1)
        back = torch.linalg.pinv(resize(unit, (large, 1)).flatten(1).T)  # [small, large]
        codes = torch.einsum("sl,ndlw->ndsw" if axis == 0 else "sl,ndhl->ndhs", back, codes)
    return bits_of(fold(codes, factor)).flatten(2).transpose(1, 2).to(torch.uint8)


def scale_input(total: Tensor, grid: tuple[int, int], factor: int = 1) -> Tensor:
    """Input ``[n, h w, bits]`` of the scale on ``grid`` (tokens), from ``F`` ``[n, d, H, W]``."""
    h, w = grid
    return fold(resize(total, (factor * h, factor * w)), factor).flatten(2).transpose(1, 2)
