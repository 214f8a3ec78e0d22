"""Zero-order search: hill climbing on the sphere of initial noises."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import at_least, between, one_of
from ..heredity import Heredity, check_turns, exponents, inheritance, neighbour
from ..method import SearchMethod
from ..movers import END
from ..protocols import Outline, Process, SearchResult, Values, Verifier
from ..run.session import Session
from ..run.turns import all_moves, turns_of
from ..smc.weights import best_index
from ..state import State

STUCK = ("restart", "retry", "shrink")
MUTATIONS = ("rotate", "recombine")
AUTO = -1.0
"""``cosine``: find it out."""
LADDER = (0.95, 0.3)
"""Closeness of the first and the last neighbour of a round that recombines."""
LEARNT = 0.7
"""Share of the learnt direction in a recombined one; the rest, in squares, is fresh."""


@dataclass
class _Pivots:
    """The pivots of all groups.

    Attributes:
        noise: ``[G, ...]``. score, cosine (closeness of the next neighbours): ``[G]``. node: ids ``[G]``.
        fresh: whether the next round starts anew, bool ``[G]``.
    """

    noise: Tensor
    score: Tensor
    node: Tensor
    cosine: Tensor
    fresh: Tensor


@dataclass
class _Archive:
    """Everything that was finished."""

    states: list[State] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)


class _Learnt:
    """The way up, from all noises that were tried: their combination, weighted by score minus mean score.

    Two running sums per image, not the noises themselves. Cf. the path-integral updates of ZeNO (arXiv 2605.11347).
    """

    def __init__(self, noise: Tensor, groups: int):
        self._weighted, self._sum = (torch.zeros(groups, *noise.shape[1:], dtype=torch.float64) for _ in range(2))
        self._score, self._count = (torch.zeros(groups, dtype=torch.float64) for _ in range(2))
        self._least, self._most = (torch.full((groups,), way * math.inf, dtype=torch.float64) for way in (1, -1))

    def add(self, noise: Tensor, score: Tensor, group: Tensor) -> None:
        """Note noises ``[n, ...]`` with scores and groups ``[n]``; scores that are not finite say nothing."""
        known = torch.isfinite(score)
        noise, score, group = noise.cpu().double()[known], score[known], group[known]
        column = score.view(-1, *[1] * (noise.dim() - 1))
        self._weighted.index_add_(0, group, column * noise)
        self._sum.index_add_(0, group, noise)
        self._score.index_add_(0, group, score)
        self._count.index_add_(0, group, torch.ones_like(score))
        for g in group.unique().tolist():
            mine = score[group == g]
            self._least[g] = torch.minimum(self._least[g], mine.min())
            self._most[g] = torch.maximum(self._most[g], mine.max())

    def direction(self, like: Tensor) -> Tensor:
        """Directions ``[G, ...]`` as long as the noises ``like`` ``[G, ...]``; 0 where all scores were equal."""
        mean = (self._score / self._count.clamp(min=1)).view(-1, *[1] * (like.dim() - 1))
        way = (self._weighted - mean * self._sum).flatten(1)
        way = torch.where((self._least == self._most)[:, None], 0.0, way)  # equal scores: rounding points anywhere
        length = like.flatten(1).cpu().double().norm(dim=1, keepdim=True)
        unit = way / way.norm(dim=1, keepdim=True)
        return torch.nan_to_num(length * unit, 0.0, 0.0, 0.0).view(like.shape).to(like)


@dataclass(frozen=True)
class ZeroOrderSearch(SearchMethod):
    """Zero-order search (Ma et al. 2025, arXiv 2501.09732, section 3.2): hill climbing on the sphere of initial noises.

        pivot: the best of S samples.   each round: N noises at angle arccos(c) from the pivot, sampled to the end and
        scored; the best of them becomes the pivot if it beats it, otherwise ``stuck`` says what happens

    The pivot's own score is kept and never paid for again: ``T (S + R N)`` denoiser calls per image. All samples of an
    image share the noise of the moves, so that only the initial noise differs; ``eta = 0`` works as well. With
    R = 0, and with c = 0, the samples are those of as many fresh noises.

    Attributes:
        neighbours: N >= 1. rounds: R >= 0.
        cosine: c in (-1, 1): 0.95 is 18 degrees, a fifth of the way to an unrelated noise; higher is closer.
            -1 (``AUTO``): every round takes what is best for what neighbours have inherited so far, see ``heredity``.
        stuck: when no neighbour wins: "restart" (the next round draws fresh noises), "retry" (other neighbours), or
            "shrink" (halve the angle, about; with ``AUTO`` as "retry").
        start: S >= 1, fresh noises before the first round. Published: 1.
        mutation: "rotate" (published: towards a fresh noise), or "recombine" (towards what all noises so far say is up,
            at closenesses from .95 to .3).
    """

    name: ClassVar[str] = "zero_order_search"
    title: ClassVar[str] = "Zero-Order Search"
    unit: ClassVar[str] = "round"
    width: ClassVar[str] = "rounds"
    from_noise: ClassVar[bool] = True
    compares_last: ClassVar[bool] = True
    replayable: ClassVar[bool] = False
    carries_on: ClassVar[bool] = True

    neighbours: int = 4
    rounds: int = 4
    cosine: float = AUTO
    stuck: str = "retry"
    start: int = 4
    mutation: str = "rotate"

    @property
    def decides(self) -> str:
        """Among finished images."""
        return END

    @property
    def needs(self) -> frozenset[str]:
        """A noise to climb on."""
        return frozenset({"has_initial_noise"})

    @property
    def population(self) -> int:
        """Particles per image that run at once."""
        return max(self.neighbours if self.rounds else 1, self.start)

    @property
    def beginners(self) -> int:
        """Fresh noises before the first round."""
        return self.start

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, neighbours=self.neighbours, start=self.start)
        at_least(0, rounds=self.rounds)
        if self.cosine != AUTO:
            between(-1, 1, cosine=self.cosine)
        one_of(STUCK, stuck=self.stuck)
        one_of(MUTATIONS, mutation=self.mutation)

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for noise that cannot be turned."""
        check_turns(process)

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image; a schedule that stops above 0 costs one more per sample, to see the image."""
        return (process.steps + (0 if process.capabilities.ends_clean else 1)) * self.verifications(process)

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        return self.start + self.rounds * self.neighbours

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring, all groups at once."""
        process, archive = session.process, _Archive()
        every, s = torch.arange(session.process.groups), self.start
        group, slot = every.repeat_interleave(s), torch.arange(s).repeat(len(every))
        noise = process.initial_noise(group, slot)
        state, score = self._sample(session, process.begin(noise, group, torch.zeros_like(group)), 0, archive)
        learnt, heredity = _Learnt(noise, len(every)), [Heredity() for _ in every]
        learnt.add(noise, score, group)
        for g in every.tolist():
            heredity[g].draw(score[group == g])
        best = best_index(score.view(-1, s)) + every * s
        # Selected rows are copies: pivots are written to, and the archive keeps the first samples as they were.
        pivots = _Pivots(noise[best], score[best], state.node[best], torch.full((len(every),), self.cosine),
                         torch.zeros(len(every), dtype=torch.bool))  # fmt: skip
        for r in range(1, self.rounds + 1):
            self._climb(session, r, pivots, archive, learnt, heredity)
        self._tell(session, heredity)
        rounds = (self.rounds + 1, self.rounds + 1)
        return session.finish(State.joined(archive.states), Values.joined(archive.values), at=rounds, known=True)

    def _climb(
        self, session: Session, r: int, pivots: _Pivots, archive: _Archive, learnt: _Learnt, heredity: list[Heredity]
    ) -> None:
        """One round: neighbours of every pivot, and the new pivots."""
        process, n = session.process, self.neighbours
        group = torch.arange(process.groups).repeat_interleave(n)
        cosine = self._cosines(pivots, heredity)
        noise = self._neighbours(session, r, pivots, group, cosine, learnt)
        start = process.begin(noise, group, torch.zeros_like(group))
        # Neighbours descend from their pivot; fresh noises from nobody.
        line = torch.where(pivots.fresh, -1, pivots.node)[group]
        state, score = self._sample(session, start, r, archive, line)
        learnt.add(noise, score, group)
        best = best_index(score.view(process.groups, n)) + torch.arange(process.groups) * n
        wins = (score[best] > pivots.score) | pivots.fresh
        for g in range(process.groups):
            if pivots.fresh[g] or not cosine[g].any():
                heredity[g].draw(score[group == g])
            elif self.mutation == "rotate":
                heredity[g].learn(float(pivots.score[g]), float(cosine[g, 0]), score[group == g])
        for g in torch.nonzero(wins).flatten().tolist():
            row = int(best[g])
            pivots.noise[g], pivots.score[g], pivots.node[g] = noise[row], score[row], state.node[row]
            pivots.cosine[g] = self.cosine
        pivots.fresh = ~wins & (self.stuck == "restart")
        if self.stuck == "shrink" and self.cosine != AUTO:
            pivots.cosine = torch.where(wins, pivots.cosine, ((1 + pivots.cosine) / 2).sqrt())

    def _cosines(self, pivots: _Pivots, heredity: list[Heredity]) -> Tensor:
        """Closeness of every neighbour of the next round to its pivot, ``[G, N]``."""
        if self.mutation == "recombine":
            return torch.linspace(*LADDER, self.neighbours).expand(len(heredity), -1)
        if self.cosine != AUTO:
            return pivots.cosine[:, None].expand(-1, self.neighbours)
        found = [one.cosine(float(score), self.neighbours) for one, score in zip(heredity, pivots.score, strict=True)]
        return torch.tensor(found)[:, None].expand(-1, self.neighbours)

    def _neighbours(
        self, session: Session, r: int, pivots: _Pivots, group: Tensor, cosine: Tensor, learnt: _Learnt
    ) -> Tensor:
        """Noises ``[G N, ...]`` of a round: near the pivots, or anew where a pivot is given up."""
        groups, n = session.process.groups, self.neighbours
        slot = torch.arange(self.start + (r - 1) * n, self.start + r * n).repeat(groups)
        fresh = session.process.initial_noise(group, slot)
        direction = fresh
        if self.mutation == "recombine":
            direction = LEARNT * learnt.direction(pivots.noise)[group] + (1 - LEARNT**2) ** 0.5 * fresh
        near = neighbour(pivots.noise[group], direction, cosine.reshape(-1))
        anew = pivots.fresh[group] | (cosine.reshape(-1) == 0.0)  # a right angle asks for no neighbour
        anew = anew.view(-1, *[1] * (fresh.dim() - 1)).to(fresh.device)
        return torch.where(anew, fresh, near)

    def _tell(self, session: Session, heredity: list[Heredity]) -> None:
        """Write down what neighbours inherited, and say so where climbing is of no use."""
        if not any(one.exponents for one in heredity):
            return
        session.trace.meta["heredity"] = exponents(heredity)
        if all(one.rough for one in heredity):
            session.warn(
                f"{inheritance(session.trace.meta['heredity'], 0.99)}: the noise space is rough for this model, "
                f"Best-of-N will do as well"
            )

    def _sample(
        self, session: Session, state: State, r: int, archive: _Archive, line: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """Sample to the end, score, file; returns the finished states and their scores ``[n]``.

        ``line``: int64 ``[n]`` ids of the pivots that the noises are neighbours of.
        """
        turns = turns_of(session, state)
        parts = [
            self._sample_turn(session, state.select(rows), r, archive, None if line is None else line[rows])
            for rows in turns
        ]
        back = torch.cat(turns).argsort()
        return State.joined([part for part, _ in parts]).select(back), torch.cat([score for _, score in parts])[back]

    @staticmethod
    def _seen(session: Session, state: State, archive: _Archive) -> State:
        """A state on the way of the first samples is all that there would be to hand out."""
        if not archive.states:
            session.remember(state, None)
        return state

    def _sample_turn(
        self, session: Session, state: State, r: int, archive: _Archive, line: Tensor | None
    ) -> tuple[State, Tensor]:
        process = session.process
        state = all_moves(session, state, lambda seen: self._seen(session, seen, archive))
        state, values, images = session.evaluate(state)
        if line is not None:
            state = state.descending_from(line)
        state = session.step(state, values, images, at=(r, self.rounds + 1), sigma=process.sigmas[-1])
        archive.states.append(state)
        archive.values.append(values)
        session.remember(State.joined(archive.states), Values.joined(archive.values).score)
        return state, values.score
