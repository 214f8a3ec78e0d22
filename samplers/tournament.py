"""Tournament: the best few finished images are compared with each other, two at a time, by a judge that can.

Grades of one image tie often at the top; a comparison is easier. Every pair is shown in both orders, because judges
prefer a place: with log-odds ``l(a, b) = q_a - q_b + bias`` half their difference is ``q_a - q_b`` whatever the bias.
(Cf. the final selection of Flash-BoN, which shows one order; both orders and log-odds are most of the gain.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import at_least
from .protocols import SearchError
from .verifier import Verifier

Ask = Callable[[Tensor, Tensor], Tensor]
"""``(first [m], second [m]) -> log-odds float64 [m]`` that candidate ``first`` is better, shown first."""
ROUNDS = 200
"""Iterations of Bradley-Terry's fit, which converges in some tens."""


@dataclass(frozen=True)
class Choice:
    """What a tournament came to.

    Attributes:
        order: int64 ``[n]``, best first. strength: float64 ``[n]``, NaN of those that did not take part.
        asked: comparisons. tied: nothing told the best two apart but their scores.
    """

    order: Tensor
    strength: Tensor
    asked: int
    tied: bool


@dataclass(frozen=True)
class Tournament:
    """All pairs of the ``finalists`` best, each in both orders.

    Attributes:
        judge: compares two pictures (``Verifier.pairwise``).
        finalists: k >= 2; ``k (k - 1)`` comparisons an image.
    """

    judge: Verifier
    finalists: int = 4

    def check_settings(self) -> None:
        """Raise SearchError for a judge that compares nothing, and for fewer than two finalists."""
        at_least(2, finalists=self.finalists)
        if not self.judge.pairwise:
            raise SearchError(
                f"verifier {self.judge.name!r} grades one image at a time: a tournament needs one that compares "
                f"two, such as VLM Verifier"
            )

    def comparisons(self, candidates: int) -> int:
        """Comparisons for an image with so many candidates."""
        k = min(self.finalists, candidates)
        return k * (k - 1)

    def choose(self, score: Tensor, ask: Ask) -> Choice:
        """Order ``n`` candidates of one image.

        Args:
            score: float64 ``[n]``; those that are not finite do not take part. ask: compares candidates by row.
        """
        clean = torch.where(torch.isfinite(score), score, -math.inf)
        order = torch.argsort(clean, descending=True, stable=True)
        rows = [row for row in order.tolist() if math.isfinite(float(clean[row]))][: self.finalists]
        strength = torch.full((len(score),), math.nan, dtype=torch.float64)
        if len(rows) < 2:
            return Choice(order, strength, 0, False)
        pairs = list(itertools.permutations(range(len(rows)), 2))
        first, second = (torch.tensor([rows[pair[side]] for pair in pairs]) for side in (0, 1))
        odds = torch.full((len(rows), len(rows)), math.nan, dtype=torch.float64)
        for (a, b), value in zip(pairs, ask(first, second).tolist(), strict=True):
            odds[a, b] = value
        told = strengths(odds)
        strength[torch.tensor(rows)] = told
        ranked = sorted(range(len(rows)), key=lambda k: (-float(told[k]), -float(clean[rows[k]]), rows[k]))
        best = [rows[k] for k in ranked]
        rest = [row for row in order.tolist() if row not in best]
        tied = float(told[ranked[0]]) == float(told[ranked[1]])
        return Choice(torch.tensor(best + rest), strength, len(pairs), tied)


def strengths(odds: Tensor) -> Tensor:
    """Strengths float64 ``[k]`` from log-odds ``[k, k]``: row a, column b, that a shown first is better than b.

    With log-odds throughout, the mean over opponents of ``(odds[a, b] - odds[b, a]) / 2``; else (words without a
    probability are +-inf, missing answers NaN) Bradley-Terry's of wins, where two orders that contradict each other,
    and no answer, count half a win each.
    """
    away = ~torch.eye(len(odds), dtype=torch.bool)
    if bool(torch.isfinite(odds[away]).all()):
        margin = torch.where(away, (odds - odds.T) / 2, 0.0)
        return margin.sum(1) / (len(odds) - 1)
    won = torch.where(torch.isnan(odds) | (odds == 0), 0.5, (odds > 0).double())
    lost = torch.where(torch.isnan(odds.T) | (odds.T == 0), 0.5, (odds.T < 0).double())
    return bradley_terry(torch.where(away, (won + lost) / 2, 0.0))


def bradley_terry(wins: Tensor) -> Tensor:
    """Log-strengths float64 ``[k]`` of Bradley and Terry (1952) from wins ``[k, k]`` of row against column.

    Fitted by minorisation (Hunter 2004). Everybody also wins and loses half a game against an average player, without
    which who never loses would be infinitely strong.
    """
    games = wins + wins.T
    strength = torch.ones(len(wins), dtype=torch.float64)
    for _ in range(ROUNDS):
        expected = (games / (strength[:, None] + strength[None])).sum(1) + 1.0 / (strength + 1.0)
        strength = (wins.sum(1) + 0.5) / expected
    return strength.log()


def asked_of(judge: Verifier, images: Callable[[Tensor], Tensor], prompts: Sequence[str], context) -> Ask:
    """Comparisons by a verifier, of candidates whose pictures ``images`` gives by row."""

    def ask(first: Tensor, second: Tensor) -> Tensor:
        rows = torch.unique(torch.cat([first, second]))
        shown = images(rows)
        place = {row: number for number, row in enumerate(rows.tolist())}
        a, b = (shown[[place[row] for row in side.tolist()]] for side in (first, second))
        return judge.prefer(a, b, [prompts[row] for row in first.tolist()], context(first)).detach().cpu().double()

    return ask
