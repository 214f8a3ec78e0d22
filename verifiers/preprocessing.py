"""The one image preprocessing of all tower-based verifiers: tensors in, tensors out, differentiable.

Scoring and gradients use the same function, so that a gradient step and the score agree. It follows the published
Pillow pipelines (shorter side to n, bicubic with antialiasing, centre crop): resizing runs one axis at a time with a
clamp after each, as Pillow does between its passes, which keeps the two within 1.1/255 of each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import VerifierError, check_images

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """Settings of a tower's input.

    Attributes:
        size: pixels per side of the square that the tower sees.
        mean, std: normalisation per colour.
        crop: True = shorter side to ``size`` and centre crop; False = stretch to the square.
        clamp: keep bicubic overshoot inside 0..1 (HPSv2 does not).
        quantize: round to 8 bit as the published pipelines do, straight-through for gradients.
    """

    size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    crop: bool = True
    clamp: bool = True
    quantize: bool = False

    def __post_init__(self):
        if self.size < 1:
            raise VerifierError(f"size is {self.size}: a tower needs at least one pixel")
        if min(self.std) <= 0:
            raise VerifierError(f"std is {self.std}: every entry must be positive")

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``[n, H, W, 3]`` in 0..1 -> normalised ``[n, 3, size, size]``, float32 (float64 stays)."""
        x = check_images(images).movedim(-1, 1)
        # antialiased resizing does not exist for half precision on the CPU
        x = x if x.dtype == torch.float64 else x.float()
        if self.crop:
            x = resize(x, shorter_side(x.shape[-2:], self.size), self.clamp)
            x = centre_crop(x, self.size)
        else:
            x = resize(x, (self.size, self.size), self.clamp)
        if self.quantize:
            x = x + ((x * 255.0).round() / 255.0 - x).detach()
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std


def shorter_side(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) with the shorter side at ``size`` and the longer one at the floor of its scaled length."""
    height, width = shape
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def resize(x: Tensor, shape: tuple[int, int], clamp: bool = True) -> Tensor:
    """Antialiased bicubic resize of ``[n, c, h, w]``: width first, then height, clamped to 0..1 after each."""
    for target in ((x.shape[-2], shape[1]), tuple(shape)):
        if x.shape[-2:] == target:
            continue
        x = F.interpolate(x, size=target, mode="bicubic", antialias=True, align_corners=False)
        if clamp:
            x = x.clamp(0.0, 1.0)
    return x


def centre_crop(x: Tensor, size: int) -> Tensor:
    """Centre square of ``[n, c, h, w]``; the offset is rounded half to even, as torchvision does."""
    height, width = x.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return x[..., top : top + size, left : left + size]
