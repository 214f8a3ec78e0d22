"""Importance sampling by value: resample in proportion to exp(r / alpha) at given steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .engine import Engine


@dataclass(frozen=True)
class ImportanceSampling(Engine):
    """Importance resampling with the VALUE potential at given steps, the baseline of the TTS-VAR and FK papers.

    At every allowed step all particles are resampled by their present score alone; the last weights make up for what
    was counted before, so that the target stays ``p exp(r / alpha)``. ``start = end = 1`` leaves it out: then it
    is self-normalised importance sampling of finished images.
    """

    name: ClassVar[str] = "importance_sampling"
    title: ClassVar[str] = "Importance Sampling"

    tempering: str = "none"
    potential: str = "rt"
    start: float = 0.4
    end: float = 0.8
    every: int = 4
    ess_threshold: float | None = 1.01
    resampling: str = "multinomial"
