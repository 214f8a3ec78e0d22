"""Images for models that come with a preprocessing of their own: 8-bit pictures, and which of them can be judged."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def finite_rows(images: Tensor) -> Tensor:
    """bool ``[n]`` on the CPU: whether every pixel of an image is a number."""
    return torch.isfinite(images.detach()).flatten(1).all(1).cpu()


def to_bytes(images: Tensor) -> Tensor:
    """uint8 ``[n, H, W, 3]`` on the CPU of images in 0..1; what is not a number becomes grey."""
    return (images.detach().float().nan_to_num(0.5) * 255.0).round().clamp(0, 255).to(torch.uint8).cpu()


def to_pictures(pixels: Tensor, longest: int | None = None) -> list[Image.Image]:
    """PIL pictures of uint8 ``[n, H, W, 3]``, their longer side brought down to ``longest`` pixels where it is more."""
    made = [Image.fromarray(row.numpy()) for row in pixels]
    if longest is None:
        return made
    return [_shrunk(picture, longest) for picture in made]


def _shrunk(picture: Image.Image, longest: int) -> Image.Image:
    scale = longest / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
