"""Chains of Rollover Budget Forcing: where each one stands, and what waiting for a better candidate is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

from ..run.session import Session
from ..state import State


@dataclass(eq=False)
class Chain:
    """One chain of a group.

    Attributes:
        number: of the chain within its group; state: one predicted particle, the parent of all candidates.
        score: of the parent; best: what a candidate must beat; quota: candidates allowed at this step.
        used: candidates drawn at this step; leader, leader_score: the best of them.
        seen, seen_score: the best particle of the whole chain.
        level: what a candidate must beat whatever the chain did before, None where that depends on the chain.
        scores: of this step's candidates.
    """

    number: int
    state: State
    score: float
    best: float
    quota: int
    seen: State
    seen_score: float
    level: float | None = None
    used: int = 0
    leader: State | None = None
    leader_score: float = -math.inf
    scores: list[float] = field(default_factory=list)

    def take(self, state: State, score: float) -> None:
        """Note a candidate. The first one leads even when its score is -inf: a step must be able to end."""
        self.used += 1
        self.scores.append(score)
        if self.leader is None or score > self.leader_score:
            self.leader, self.leader_score = state, score
        if score > self.seen_score:
            self.seen, self.seen_score = state, score

    def advance(self, session: Session, quota: int) -> None:
        """Go to the best candidate of this step and start the next with ``quota``."""
        if self.leader is None:
            return
        session.select(self.leader.node.tolist())
        self.state, self.score = self.leader, self.leader_score
        self.quota, self.used = quota, 0
        self.leader, self.leader_score, self.scores = None, -math.inf, []


@cache
def worth_of_waiting(draws: int) -> float:
    """Expected score, in standard deviations above the mean, of who may still draw ``draws`` times and stops well.

    A candidate above it is worth taking (Moser 1956): -inf, 0, .3989, .6297, .7904, .9126 for 0 .. 5 draws left. The
    recursion is ``v' = v Phi(v) + phi(v)``.
    """
    if draws <= 0:
        return -math.inf
    if draws == 1:
        return 0.0
    v = worth_of_waiting(draws - 1)
    return v * 0.5 * (1 + math.erf(v / math.sqrt(2))) + math.exp(-v * v / 2) / math.sqrt(2 * math.pi)
