"""Small JPEG pictures, as they go into trace files and pages."""

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
