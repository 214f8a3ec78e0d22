"""How well an image compresses: a reward with a known optimum, and no network to fool.

From DDPO (Black et al. 2023, section 4.1); SVDD and DAS use the same definition: kilobytes at JPEG quality 95.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ...samplers.protocols import ScoreContext, Verifier
from ..base import VerifierError, check_images

COMPRESSIBILITY, INCOMPRESSIBILITY = REWARDS = ("compressibility", "incompressibility")


class JPEGVerifier(Verifier):
    """Minus (or plus) the size of an image as JPEG, in kB of 1000 bytes.

    Args:
        reward: "compressibility" rewards small files (scores <= 0), "incompressibility" large ones (scores >= 0).
        quality: JPEG quality, 1..95.
        per_megapixel: divide by the image's megapixels, so that sizes compare. The published reward does not.

    An image with a NaN or infinite pixel scores NaN. Byte counts vary slightly between builds of libjpeg.
    """

    differentiable = False
    needs_prompt = False
    module = None

    def __init__(self, reward: str = COMPRESSIBILITY, quality: int = 95, per_megapixel: bool = False):
        if reward not in REWARDS:
            raise VerifierError(f"reward is {reward!r}: choose one of {', '.join(REWARDS)}")
        if not 1 <= quality <= 95:
            raise VerifierError(f"quality is {quality}: JPEG quality goes from 1 to 95")
        self.reward, self.quality, self.per_megapixel = reward, quality, per_megapixel
        self.name = f"jpeg_{reward}"
        self.default_scale = (-80.0 if reward == COMPRESSIBILITY else 80.0, 30.0)

    def score(self, images: Tensor, prompts: Sequence[str] | str = "", context: ScoreContext | None = None) -> Tensor:
        """Scores float64 ``[n]``; the prompts are not read."""
        images = check_images(images).detach()
        sign = -1.0 if self.reward == COMPRESSIBILITY else 1.0
        return torch.tensor([sign * self._size(image) for image in images], dtype=torch.float64)

    def _size(self, image: Tensor) -> float:
        if not torch.isfinite(image).all():
            return float("nan")
        pixels = (image.float() * 255.0).round().clamp(0, 255).to("cpu", torch.uint8).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=self.quality)
        kilobytes = file.tell() / 1000.0
        return kilobytes / (pixels.shape[0] * pixels.shape[1] / 1e6) if self.per_megapixel else kilobytes
