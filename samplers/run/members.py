"""The scores that a judge made of several parts gives beside its verdict, on their way into the trace.

An ensemble keeps every member's own scores of its last call in ``last_scores`` (name -> ``[n]``), a rubric every axis.
Calls come in chunks; a record of the trace comes later, for the population that was scored.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


class MemberScores:
    """Collects ``last_scores`` call by call, and writes them into the entries of the population they belong to."""

    def __init__(self):
        self._rows: list[dict[str, float]] = []
        self._verdict: list[float | None] = []

    def begin(self) -> None:
        """A new population is about to be scored."""
        self._rows, self._verdict = [], []

    def add(self, judge: Any, n: int) -> None:
        """Take over what ``judge`` said of the ``n`` images of its last call; most judges have one number only."""
        parts: dict[str, Tensor] = getattr(judge, "last_scores", None) or {}
        table = {name: _finite(values) for name, values in parts.items() if len(values) == n}
        self._rows += [{name: values[row] for name, values in table.items()} for row in range(n)]

    def end(self, reward: Tensor) -> None:
        """All of the population is scored, with these rewards ``[n]``."""
        self._verdict = _finite(reward.reshape(-1))
        if len(self._rows) != len(self._verdict):
            self.begin()

    def write(self, entries: list[dict[str, Any]]) -> None:
        """Add ``members`` (name -> score or None) to entries whose scores are those of the population, row by row."""
        if len(entries) == len(self._rows) and [entry["score"] for entry in entries] == self._verdict:
            for entry, row in zip(entries, self._rows, strict=True):
                if row:
                    entry["members"] = row


def _finite(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.detach().double().cpu().tolist()]
