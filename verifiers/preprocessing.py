"""The one image preprocessing of all tower-based verifiers: tensors in, tensors out, differentiable.

Scoring and gradients use the same function, so that a gradient step and the score agree. It follows the published
Pillow pipelines: resizing runs one axis at a time, width first, with a clamp after each, as Pillow does between its
passes, which keeps the two within 1.1/255 of each other; with ``quantize`` they are the same to the byte. What the
published pipelines disagree about is a setting: which side is brought to size, what is cut off or padded, how an odd
margin is halved, what becomes of transparency. ``bench.parity`` compares every verifier with the function
that published them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import pillow
from .base import VerifierError, check_images

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FITS = ("crop", "pad", "stretch")
CENTRES = ("round", "floor")
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Preprocessing:
    """Settings of a tower's input.

    Attributes:
        size: pixels per side of the square that the tower sees.
        mean, std: normalisation per colour.
        fit: "crop" (shorter side to ``edge``, centre square), "pad" (longer side to ``size``, black around it, as
            HPSv2), or "stretch" (to the square).
        edge: of "crop", length of the shorter side before the square is cut out; None: ``size`` (DINOv2: 256 for 224).
        centre: of "crop", what becomes of half a pixel of the margin: "round" (half to even: torchvision and all that
            use it) or "floor" (image processors of transformers).
        interpolation: "bicubic" or "bilinear", with antialiasing.
        clamp: the published pipeline resizes 8-bit pictures, so overshoot is cut off after each pass. HPSv2 resizes
            floating point and lets it pass.
        quantize: round to 8 bit where the published pipeline does, straight-through for gradients: the picture itself
            and, with ``clamp``, after each pass.
        weigh_alpha: colours count by their opacity when a picture with four channels is resized, as Pillow does it;
            pipelines that convert to RGB only afterwards (torchvision's) see that. False drops transparency before.

    Raises:
        VerifierError: an unknown word, a size below 1, a standard deviation that is not positive.
    """

    size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    fit: str = "crop"
    edge: int | None = None
    centre: str = "round"
    interpolation: str = "bicubic"
    clamp: bool = True
    quantize: bool = False
    weigh_alpha: bool = False

    def __post_init__(self):
        if self.size < 1 or (self.edge is not None and self.edge < self.size):
            raise VerifierError(
                f"size is {self.size} and edge {self.edge}: size must be at least 1, edge at least size"
            )
        if min(self.std) <= 0:
            raise VerifierError(f"std is {self.std}: every entry must be positive")
        for name, known in (("fit", FITS), ("centre", CENTRES), ("interpolation", INTERPOLATIONS)):
            if getattr(self, name) not in known:
                raise VerifierError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(known)}")

    def __call__(self, images: Tensor, device: torch.device | str | None = None) -> Tensor:
        """Images ``[n, H, W, 3]`` in 0..1 -> normalised ``[n, 3, size, size]``, float32 (float64 stays).

        Args:
            images: as ``base.check_images`` takes them; they are checked here.
            device: where to work; None: where the images are.

        Raises:
            VerifierError: see ``base.check_images``.
        """
        x = check_images(images, alpha=self.weigh_alpha)
        x = x.to(x.device if device is None else device).movedim(-1, 1)
        # antialiased resizing does not exist for half precision on the CPU
        x = x if x.dtype == torch.float64 else x.float()
        # one image at a time stays in the CPU's cache; a graphics card is faster with all of them
        rows = x.split(1) if x.device.type == "cpu" else (x,)
        x = torch.cat([self._fitted(row) for row in rows])
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std

    def _fitted(self, x: Tensor) -> Tensor:
        """``[n, 3 or 4, H, W]`` in 0..1 -> ``[n, 3, size, size]``."""
        x = rounded(x) if self.quantize else x
        alpha = x.shape[1] == 4
        height, width = x.shape[-2:]
        if self.fit == "pad":
            shape = longer_side((height, width), self.size)
        elif self.fit == "crop":
            shape = shorter_side((height, width), self.edge or self.size)
        else:
            shape = (self.size, self.size)
        alpha = alpha and (height, width) != shape  # Pillow leaves alone what has its size
        x = self._premultiplied(x) if alpha else x[:, :3]
        x = self._pass(x, (height, shape[1]))
        if self.fit == "crop":
            x = x[..., self._middle(shape[1])]
        x = self._pass(x, (shape[0], x.shape[-1]))
        if self.fit == "crop":
            x = x[..., self._middle(shape[0]), :]
        x = self._divided(x) if alpha else x
        if self.fit == "pad":
            down, right = self.size - shape[0], self.size - shape[1]
            x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return x

    def _middle(self, length: int) -> slice:
        margin = length - self.size
        first = margin // 2 if self.centre == "floor" else round(margin / 2)
        return slice(first, first + self.size)

    def _pass(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """Resize to ``shape``, which differs along one axis at most."""
        if tuple(x.shape[-2:]) == shape:
            return x
        exact = pillow.resized(x, shape, self.interpolation) if self.clamp and self.quantize else None
        if exact is not None and not x.requires_grad:
            return exact
        x = F.interpolate(x, size=shape, mode=self.interpolation, antialias=True, align_corners=False)
        if self.clamp:
            x = x.clamp(0.0, 1.0) if x.requires_grad else x.clamp_(0.0, 1.0)
        return x if exact is None else x + (exact - x).detach()

    def _premultiplied(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
        return rounded(x) if self.quantize else x

    def _divided(self, x: Tensor) -> Tensor:
        colours, alpha = x[:, :3], x[:, 3:]
        # what is all but transparent has no colour that 8 bits could hold
        shown = (colours / alpha.clamp(min=1 / 510)).clamp(0.0, 1.0)
        if self.quantize:
            shown = shown + ((255.0 * shown + 1e-3).floor() / 255.0 - shown).detach()
        return torch.where(alpha > 0, shown, colours)


def rounded(x: Tensor) -> Tensor:
    """``x`` in 0..1 on the 8-bit grid; gradients pass as if it were not rounded."""
    return x + ((x * 255.0).round() / 255.0 - x).detach()


def shorter_side(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) with the shorter side at ``size`` and the longer one at the floor of its scaled length."""
    height, width = shape
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def longer_side(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) with the longer side at ``size`` and the shorter one rounded, at least one pixel."""
    scale = size / float(max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
