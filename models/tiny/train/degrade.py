"""Degradations that make drawings look like unfinished or imperfect generated images.

A preview of a half-finished sample is the mean of what the image may become: blurred, low in contrast, with ghosts of
other outcomes, wobbly outlines and residual noise. The verifiers must stay calibrated there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

CHUNK = 16
"""Images that share one degradation; both pictures of a pair fall into the same chunk."""


def degrade(images: torch.Tensor, rng: torch.Generator, clean: float = 0.25) -> torch.Tensor:
    """Degrade images, chunk by chunk.

    Args:
        images: float [B, 3, 128, 128] in 0..1.
        rng: source of all randomness.
        clean: probability that a chunk gets only a slight change of brightness.

    Returns:
        float [B, 3, 128, 128] in 0..1.
    """
    out = []
    for chunk in images.split(CHUNK):
        if _uniform(rng, 0, 1) >= clean:
            kinds = torch.randperm(len(_KINDS), generator=rng)[: 1 + int(_uniform(rng, 0, 2.5))]
            for kind in sorted(kinds.tolist()):
                chunk = _KINDS[kind](chunk, rng)
        shift = torch.randn(len(chunk), 3, 1, 1, generator=rng) * 0.015
        out.append((chunk + shift).clamp(0, 1))
    return torch.cat(out)


def blur(images: torch.Tensor, size: int) -> torch.Tensor:
    """Keep only what `size` x `size` pixels hold: antialiased down, then up again."""
    small = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, images.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)


def _warp(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    batch, cells = len(images), 4 + int(_uniform(rng, 0, 7))
    flow = torch.randn(batch, 2, cells, cells, generator=rng) * _uniform(rng, 0.5, 2.5) * 2 / images.shape[-1]
    flow = F.interpolate(flow, (32, 32), mode="bicubic", align_corners=True)
    flow = F.interpolate(flow, images.shape[-2:], mode="bilinear", align_corners=True)
    axis = torch.linspace(-1, 1, images.shape[-1])
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1) + flow.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True)


def _ghost(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    share = _uniform(rng, 0.03, 0.3)
    return torch.lerp(images, images.roll(1 + int(_uniform(rng, 0, len(images) - 1)), 0), share)


def _fade(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return torch.lerp(images, images.mean(dim=(2, 3), keepdim=True), _uniform(rng, 0.0, 0.5))


def _noise(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return images + torch.randn(images.shape, generator=rng) * _uniform(rng, 0.02, 0.3)


def _soften(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return blur(images, round(math.exp(_uniform(rng, math.log(10), math.log(72)))))


_KINDS = (_warp, _ghost, _fade, _noise, _soften)  # applied in this order: denoising comes after noise


def _uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))
