"""Bookkeeping of a weighted population: everything that must follow the ancestors, in one place.

The published DAS code permutes the states but not the gradients and twists; with a single ``reindex`` there is nothing
to forget.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..processes.streams import Streams
from .potentials import Potential
from .resampling import resample
from .weights import effective_sample_size, log_mean, normalise


class Population:
    """Weights and memory of G groups with N particles.

    Attributes (all ``[G, N]`` unless said otherwise):
        log_w: log-weights since the last resampling.
        score: latest ones, -inf where non-finite.
        barred: particles with a non-finite score in their past; they can never win.
        last_used: the score that the latest selection saw, NaN before the first.
        potential: path potential with its own memory.
        log_z: float64 ``[G]`` running estimate of log E[exp(r / alpha)].
        gradient_scale: float64 ``[G]`` guidance strength of the latest move.
    """

    def __init__(self, groups: int, particles: int, potential: str):
        shape = (groups, particles)
        self.groups, self.particles = shape
        self.log_w = torch.zeros(shape, dtype=torch.float64)
        self.score = torch.full(shape, -math.inf, dtype=torch.float64)
        self.barred = torch.zeros(shape, dtype=torch.bool)
        self.last_used = torch.full(shape, math.nan, dtype=torch.float64)
        self.potential = Potential(potential, groups, particles)
        self.log_z = torch.zeros(groups, dtype=torch.float64)
        self.gradient_scale = torch.zeros(groups, dtype=torch.float64)

    def observe(self, score: Tensor) -> bool:
        """Take in scores ``[G * N]``; returns False if no particle at all has a finite one."""
        self.score = score.view(self.groups, self.particles)
        self.barred |= torch.isneginf(self.score)
        return not bool(torch.isneginf(self.score).all())

    def add(self, increment: Tensor) -> None:
        """Add to the log-weights ``[G, N]``, except in groups that would lose every particle: there they stay."""
        updated = self.log_w + increment
        lost = torch.isneginf(updated).all(1, keepdim=True)
        self.log_w = torch.where(lost, self.log_w, updated)

    def ess(self) -> Tensor:
        """Effective sample size ``[G]``."""
        return effective_sample_size(self.log_w)

    def resample(self, groups: Tensor, scheme: str, streams: Streams, step: int) -> Tensor:
        """Resample the groups marked in ``groups`` (bool ``[G]``) by a scheme of ``resampling``; all memory follows.

        Returns:
            int64 ``[G * N]`` rows to select the states by (identity for groups that are not resampled).
        """
        ancestors = torch.arange(self.particles).repeat(self.groups, 1)
        for g in torch.nonzero(groups).flatten().tolist():
            uniforms = streams.uniform(self.particles, group=g, step=step, purpose="resample")
            ancestors[g] = resample(scheme, normalise(self.log_w[g]), uniforms)
        self.log_z = torch.where(groups, self.log_z + log_mean(self.log_w), self.log_z)
        self.log_w = torch.where(groups[:, None], torch.zeros_like(self.log_w), self.log_w)
        self.last_used = torch.where(groups[:, None], self.score, self.last_used)
        return self.reindex(ancestors)

    def reindex(self, ancestors: Tensor) -> Tensor:
        """Follow ``ancestors`` int64 ``[G, N]`` with everything but ``log_w``; returns flat rows ``[G * N]``."""
        self.score = self.score.gather(1, ancestors)
        self.barred = self.barred.gather(1, ancestors)
        self.last_used = self.last_used.gather(1, ancestors)
        self.potential.reindex(ancestors)
        return (ancestors + torch.arange(self.groups)[:, None] * self.particles).flatten()

    def winnable(self) -> Tensor:
        """Scores ``[G, N]`` with barred particles at -inf (unless a whole group is barred)."""
        hidden = self.score.masked_fill(self.barred, -math.inf)
        nothing_left = torch.isneginf(hidden).all(1, keepdim=True)
        return torch.where(nothing_left, self.score, hidden)

    def selection_bias(self) -> float:
        """Mean of (score used by the latest selection - final score) over particles that have both; 0 without any."""
        gap = self.last_used - self.score
        gap = gap[torch.isfinite(gap)]
        return float(gap.mean()) if len(gap) else 0.0
