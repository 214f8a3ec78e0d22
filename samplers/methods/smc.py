"""Tempered sequential Monte Carlo without gradients: DAS with the bootstrap proposal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .engine import Engine


@dataclass(frozen=True)
class SMC(Engine):
    """Tempered SMC (Del Moral et al. 2006; DAS, Kim et al. 2025, alg. 1 with zero gradient).

    Cost per image: ``N T`` denoiser calls and one decode and verification per particle and allowed step.
    """

    name: ClassVar[str] = "smc"
    title: ClassVar[str] = "SMC"
