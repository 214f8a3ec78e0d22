"""Images for models that come with a preprocessing of their own: 8-bit pictures, and which of them can be judged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
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


def film_strips(clips: Tensor, numbers: Sequence[int], gap: int = 4) -> Tensor:
    """Frames of every clip in one picture, in rows from left to right, each with its number.

    Args:
        clips: ``[n, F, H, W, 3]`` in 0..1. numbers: of the F frames, counted from 0; they are written counted from 1.
        gap: white pixels between frames.

    Returns:
        ``[n, H', W', 3]`` in 0..1 on the CPU, about as wide as high.
    """
    count, height, width = clips.shape[1:4]
    columns = min(count, max(1, round(math.sqrt(count * height / width))))
    rows = math.ceil(count / columns)
    size = columns * (width + gap) - gap, rows * (height + gap) - gap
    strips = []
    for clip in clips:
        picture = Image.new("RGB", size, "white")
        pen = ImageDraw.Draw(picture)
        for place, frame in enumerate(to_pictures(to_bytes(clip))):
            left, top = place % columns * (width + gap), place // columns * (height + gap)
            picture.paste(frame, (left, top))
            label = str(numbers[place] + 1)
            pen.rectangle((left, top, left + 8 + 7 * len(label), top + 14), fill="white")
            pen.text((left + 4, top + 1), label, fill="black")
        strips.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3))
    return torch.stack(strips).float() / 255.0
