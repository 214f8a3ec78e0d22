"""Feynman-Kac steering: resampling by potentials of the score history at a few steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .engine import Engine


@dataclass(frozen=True)
class FKSteering(Engine):
    """FK steering (Singhal et al. 2025, arXiv 2501.06848, alg. 1) on the corrected weights of ``smc.Engine``.

    Potentials "diff" (default), "max", "rt"; "sum" is experimental (heavy-tailed weights). The published lambda is
    ``1 / alpha``. Published run: N = 4, T = 100, lambda = 10, "max", resampling at 20, 40, 60, 80 % of the steps.

    Cost per image: ``N T`` denoiser calls, one verification per particle and resampling step, and the last one.
    """

    name: ClassVar[str] = "fk"
    title: ClassVar[str] = "FK Steering"

    tempering: str = "none"
    potential: str = "diff"
    start: float = 0.2
    end: float = 0.8
    every: int = 4
    ess_threshold: float | None = 1.01
    resampling: str = "multinomial"
