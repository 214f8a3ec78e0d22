"""What follows from the family tree of a run: latest scores along a line, and by how much selections were misled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .trace import ParticleEntry


class Family:
    """Parents, latest scores, and scores that a particle was selected by, all by id."""

    def __init__(self):
        self._parent: dict[int, int] = {}
        self._latest: dict[int, float] = {}
        self._used: dict[int, float] = {}

    def note(
        self, entries: Sequence[ParticleEntry], scored: bool, chosen: Iterable[int], used: bool | Tensor = True
    ) -> None:
        """Take in a step.

        Args:
            entries: of the step. scored: whether somebody looked at them.
            chosen: rows that a selection let live on. used: whether by their scores, for all or bool ``[n]``.
        """
        for entry in entries:
            particle, parent = entry["id"], entry["parent"]
            if parent is not None:
                self._parent[particle] = parent
            if scored:
                self._latest[particle] = -math.inf if entry["score"] is None else entry["score"]
            elif parent in self._latest:
                self._latest[particle] = self._latest[parent]
        for row in set(chosen) if scored else ():
            if used if isinstance(used, bool) else bool(used[row]):
                self.use(entries[row]["id"], entries[row]["score"])

    def use(self, particle: int, score: float | None) -> None:
        """A particle was selected by this score."""
        self._used[particle] = math.nan if score is None else score

    def latest(self, node: Tensor) -> Tensor:
        """Latest score float64 ``[n]`` along the lines of particles ``[n]``, -inf where there is none."""
        return torch.tensor([self._latest.get(particle, -math.inf) for particle in node.tolist()], dtype=torch.float64)

    def selection_bias(self, node: Tensor, score: Tensor) -> float:
        """Mean of (score that the latest selection of an ancestor used - ``score`` ``[n]``) where both are known."""
        gaps = []
        for particle, final in zip(node.tolist(), score.tolist(), strict=True):
            ancestor = self._parent.get(particle)
            while ancestor is not None and ancestor not in self._used:
                ancestor = self._parent.get(ancestor)
            gap = math.nan if ancestor is None else self._used[ancestor] - final
            gaps += [gap] if math.isfinite(gap) else []
        return sum(gaps) / len(gaps) if gaps else 0.0
