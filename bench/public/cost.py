"""What a public benchmark will cost, before it is run: hours of one GPU.

    hours = images x N x (steps x branches x F + looks x (D + V)) / (rate x 3600)

F, D, V: TFLOP of a forward pass, a decode and a verification; rate: TFLOP per second that are reached, not the peak.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of model on a kind of GPU; estimates for an H100, corrected by the first measured pictures.

    Attributes:
        title: of the model. forward, decode: TFLOP. rate: TFLOP/s reached. steps, branches: forward passes of an image
            are their product.
    """

    title: str
    forward: float
    decode: float
    rate: float
    steps: int = 50
    branches: int = 2


KINDS = {
    "sd15": Kind("SD 1.5, 512 pixels", 0.8, 2.5, 250.0),
    "sdxl": Kind("SDXL, 1024 pixels", 6.0, 10.0, 350.0),
    "infinity-2b": Kind("Infinity-2B, 1024 pixels", 115.1, 9.85, 350.0, steps=1, branches=1),
}
IMAGE_REWARD = 0.13
"""TFLOP of a verification by ImageReward."""


def hours(kind: Kind, images: int, n: int, looks: int = 1, verify: float = IMAGE_REWARD) -> float:
    """Hours for ``images`` images at ``n`` candidates each."""
    one = kind.steps * kind.branches * kind.forward + looks * (kind.decode + verify)
    return images * n * one / (kind.rate * 3600)


def measured_hours(seconds_per_image: float, images: int, workers: int = 1) -> float:
    """Hours at a measured pace."""
    return seconds_per_image * images / (3600 * workers)


def in_words(value: float) -> str:
    """ "3 min", "1.6 h", "2.3 d"."""
    if value < 1:
        return f"{max(1, round(60 * value))} min"
    return f"{value:.1f} h" if value < 48 else f"{value / 24:.1f} d"
