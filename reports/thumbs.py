"""Small JPEG pictures and moving WebPs of clips, as they go into trace files, pages and the panel."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

SIDE = 160
QUALITY = 82


def thumbnail(
    image: np.ndarray,
    side: int = SIDE,
    quality: int = QUALITY,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> str:
    """JPEG, base64, of uint8 ``[H, W, 3]``, its longer side at most ``side`` pixels; never enlarged."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((side, side), resample)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode()


FILM_FRAMES = 8
FILM_SIDE = 160
FILM_QUALITY = 60
FILM_MILLISECONDS = 180  # a frame; a clip is shown by few, so its own pace says nothing


def film(frames: np.ndarray, side: int = FILM_SIDE, count: int = FILM_FRAMES) -> bytes:
    """Animated WebP of a clip uint8 ``[F, H, W, 3]``: at most ``count`` frames, evenly spaced, shrunk to ``side``."""
    last = len(frames) - 1
    wanted = range(len(frames)) if last < count else [round(k * last / (count - 1)) for k in range(count)]
    pictures = []
    for number in wanted:
        picture = Image.fromarray(np.ascontiguousarray(frames[number]))
        picture.thumbnail((side, side), Image.Resampling.BOX)
        pictures.append(picture)
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=FILM_MILLISECONDS,
        loop=0,
        quality=FILM_QUALITY,
        method=2,
    )
    return buffer.getvalue()
