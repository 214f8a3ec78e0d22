"""How a score is phased in over the steps, and when its weights ask for resampling."""

from __future__ import annotations

import torch
from torch import Tensor

from ..smc.population import Population
from ..smc.tempering import adaptive


class Course:
    """The way of lambda from 0 to 1, and when resampling is due.

    Args:
        lambdas: ``[T]`` tempering exponents, in adaptive tempering their ceiling.
        allowed: steps at which resampling is allowed.
        threshold: ESS as a fraction of N; in adaptive tempering lambda goes as far as it is kept.
        adaptive: whether lambda follows the weights. groups: images G.
    """

    def __init__(self, lambdas: Tensor, allowed: set[int], threshold: float, adaptive: bool, groups: int):
        self.lambdas, self.allowed, self.threshold = lambdas, allowed, threshold
        self._adaptive = adaptive
        self._now = torch.zeros(groups, dtype=torch.float64)
        self._short = torch.zeros(groups, dtype=torch.bool)  # stopped below the ceiling

    def advance(self, i: int, pop: Population, alpha: Tensor) -> Tensor:
        """Tempering exponent of step i per group ``[G]``, for a population whose scores were just observed."""
        ceiling = float(self.lambdas[i])
        if not self._adaptive or i == len(self.lambdas) - 1:
            return self.lambdas[i].expand(pop.groups)
        past = pop.potential.log_past
        self._now = adaptive(pop.log_w, pop.score, alpha, past, self._now, ceiling, self.threshold)
        self._short = self._now < ceiling
        return self._now

    def to_resample(self, i: int, ess: Tensor, particles: int) -> Tensor:
        """Groups bool ``[G]`` that are resampled at step i, given their ESS ``[G]``."""
        if i not in self.allowed:
            return torch.zeros_like(ess, dtype=torch.bool)
        if not self._adaptive:
            return ess < self.threshold * particles
        due, self._short = self._short, torch.zeros_like(self._short)
        return due
