"""Search over the initial noise: progressively halved random search, and zero-order search around a pivot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import at_least, between, one_of
from ..method import SearchMethod
from ..movers import END, PAUSES
from ..protocols import Outline, SearchError, SearchResult, Values
from ..run.session import Session
from ..run.turns import to_the_end, turns_of
from ..smc.weights import best_index, best_rows
from ..state import State

STUCK = ("restart", "retry", "shrink")


@dataclass(frozen=True)
class RandomSearch(SearchMethod):
    """Best-of-N that drops the worse half partway through (random search of Ma et al. 2025, arXiv 2501.09732).

        N fresh noises;  at each fraction f of the steps, score the previews and keep the better half;  best at the end

    Attributes:
        particles: N >= 1.
        halvings: increasing fractions of the steps, each in 0..1; empty is Best-of-N.
    """

    name: ClassVar[str] = "random_search"
    title: ClassVar[str] = "Random Search"
    width: ClassVar[str] = "particles"
    from_noise: ClassVar[bool] = True
    compares_last: ClassVar[bool] = True

    particles: int = 8
    halvings: tuple[float, ...] = (0.5,)

    @property
    def decides(self) -> str:
        """At the halvings."""
        return PAUSES

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, particles=self.particles)
        if any(not 0.0 < f < 1.0 for f in self.halvings) or list(self.halvings) != sorted(set(self.halvings)):
            raise SearchError(f"halvings are {self.halvings}: increasing fractions of the steps between 0 and 1")

    def halving_steps(self, steps: int) -> set[int]:
        """Steps at which the worse half goes."""
        return {round(f * steps) for f in self.halvings}

    def decisions(self, process: Outline) -> list[int]:
        """See ``SearchMethod.decisions``."""
        return sorted(step for step in self.halving_steps(process.steps) if step < process.steps)

    def populations(self, steps: int) -> list[int]:
        """Particles per image that each step is made with."""
        halving, width, widths = self.halving_steps(steps), self.particles, []
        for i in range(steps):
            widths.append(width)
            width = (width + 1) // 2 if i in halving else width
        return widths

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image; a schedule that stops above 0 costs one more, to see the image."""
        widths = self.populations(process.steps)
        return sum(widths) + (0 if process.capabilities.ends_clean else self._last(process.steps))

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        widths = self.populations(process.steps)
        looked = [widths[i] for i in self.halving_steps(process.steps) if i < process.steps and widths[i] > 1]
        return self._last(process.steps) + sum(looked)

    def _last(self, steps: int) -> int:
        """Particles per image that are finished."""
        width = self.populations(steps)[-1]
        return (width + 1) // 2 if steps - 1 in self.halving_steps(steps) else width

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring."""
        process = session.process
        halving, width = self.halving_steps(process.steps), self.particles
        last = max((i for i in halving if i < process.steps), default=-1)
        state = process.start(width)
        for i in range(last + 1):
            if i in halving and width > 1:
                state, values, images = session.evaluate(state)
                kept = best_rows(values.score.view(process.groups, width), (width + 1) // 2)
                state = session.step(state, values, images, selected=kept).select(kept)
                width = (width + 1) // 2
            else:
                state = session.step(process.predict(state))
            state = session.move(state)
        return to_the_end(session, state)


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


@dataclass(frozen=True)
class ZeroOrderSearch(SearchMethod):
    """Zero-order search (Ma et al. 2025, section 3.2): hill climbing on the sphere of initial noises.

        pivot: one sample.   each round: N noises at angle arccos(c) from the pivot, sampled to the end and scored;
        the best of them becomes the pivot if it beats it, otherwise ``stuck`` says what happens

    The pivot's own score is kept and never paid for again: ``T (1 + R N)`` denoiser calls per image. All samples of an
    image share the noise of the moves, so that only the initial noise differs; ``eta = 0`` works as well.

    Attributes:
        neighbours: N >= 1. rounds: R >= 1.
        cosine: c in (-1, 1): 0.95 is 18 degrees, a fifth of the way to an unrelated noise; higher is closer.
        stuck: when no neighbour wins: "restart" (the next round draws fresh noises), "retry" (other neighbours), or
            "shrink" (halve the angle, about).
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
    cosine: float = 0.95
    stuck: str = "restart"

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
        return self.neighbours

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, neighbours=self.neighbours, rounds=self.rounds)
        between(-1, 1, cosine=self.cosine)
        one_of(STUCK, stuck=self.stuck)

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image; a schedule that stops above 0 costs one more per sample, to see the image."""
        return (process.steps + (0 if process.capabilities.ends_clean else 1)) * self.verifications(process)

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        return 1 + self.rounds * self.neighbours

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring, all groups at once."""
        process, archive, every = session.process, _Archive(), torch.arange(session.process.groups)
        noise = process.initial_noise(every, torch.zeros_like(every))
        state, score = self._sample(session, process.begin(noise, every, torch.zeros_like(every)), 0, archive)
        # Copies: pivots are written to, and the archive keeps the first sample as it was.
        pivots = _Pivots(
            noise.clone(),
            score.clone(),
            state.node.clone(),
            torch.full((len(every),), self.cosine),
            torch.zeros(len(every), dtype=torch.bool),
        )
        for r in range(1, self.rounds + 1):
            self._climb(session, r, pivots, archive)
        rounds = (self.rounds + 1, self.rounds + 1)
        return session.finish(State.joined(archive.states), Values.joined(archive.values), at=rounds, known=True)

    def _climb(self, session: Session, r: int, pivots: _Pivots, archive: _Archive) -> None:
        """One round: neighbours of every pivot, and the new pivots."""
        process, n = session.process, self.neighbours
        group = torch.arange(process.groups).repeat_interleave(n)
        noise = self._neighbours(session, r, pivots, group)
        start = process.begin(noise, group, torch.zeros_like(group))
        # Neighbours descend from their pivot; fresh noises from nobody.
        line = torch.where(pivots.fresh, -1, pivots.node)[group]
        state, score = self._sample(session, start, r, archive, line)
        best = best_index(score.view(process.groups, n)) + torch.arange(process.groups) * n
        wins = (score[best] > pivots.score) | pivots.fresh
        for g in torch.nonzero(wins).flatten().tolist():
            row = int(best[g])
            pivots.noise[g], pivots.score[g], pivots.node[g] = noise[row], score[row], state.node[row]
            pivots.cosine[g] = self.cosine
        pivots.fresh = ~wins & (self.stuck == "restart")
        if self.stuck == "shrink":
            pivots.cosine = torch.where(wins, pivots.cosine, ((1 + pivots.cosine) / 2).sqrt())

    def _neighbours(self, session: Session, r: int, pivots: _Pivots, group: Tensor) -> Tensor:
        """Noises ``[G N, ...]`` of a round: near the pivots, or anew where a pivot is given up."""
        groups, n = session.process.groups, self.neighbours
        slot = torch.arange(1 + (r - 1) * n, 1 + r * n).repeat(groups)
        fresh = session.process.initial_noise(group, slot)
        near = neighbour(pivots.noise[group], fresh, pivots.cosine[group])
        anew = pivots.fresh[group].view(-1, *[1] * (fresh.dim() - 1)).to(fresh.device)
        return torch.where(anew, fresh, near)

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

    def _sample_turn(
        self, session: Session, state: State, r: int, archive: _Archive, line: Tensor | None
    ) -> tuple[State, Tensor]:
        process = session.process
        while state.step < process.steps:
            state = process.predict(state)
            if r == 0:
                session.remember(state, None)
            state = session.move(state)
        state, values, images = session.evaluate(state)
        if line is not None:
            state = state.descending_from(line)
        state = session.step(state, values, images, at=(r, self.rounds + 1), sigma=process.sigmas[-1])
        archive.states.append(state)
        archive.values.append(values)
        session.remember(State.joined(archive.states), Values.joined(archive.values).score)
        return state, values.score


def neighbour(pivot: Tensor, direction: Tensor, cosine: Tensor) -> Tensor:
    """Noises at angle ``arccos(cosine)`` from ``pivot``, of its length.

    Args:
        pivot, direction: ``[n, ...]``; only the part of ``direction`` that is orthogonal to the pivot counts.
        cosine: ``[n]`` in -1..1.

    Returns:
        ``y = |p| (c u + sqrt(1 - c^2) w)`` with ``u = p / |p|`` and w the unit vector of that part, ``[n, ...]``.
    """
    p, d = pivot.flatten(1).cpu().double(), direction.flatten(1).cpu().double()  # not every device has float64
    length = p.norm(dim=1, keepdim=True)
    u = p / length
    w = d - (d * u).sum(1, keepdim=True) * u
    w = w / w.norm(dim=1, keepdim=True)
    c = cosine.cpu().double()[:, None]
    return (length * (c * u + (1 - c * c).sqrt() * w)).to(pivot.dtype).to(pivot.device).view_as(pivot)


def angle(cosine: float) -> float:
    """Degrees between neighbours of a given cosine."""
    return math.degrees(math.acos(cosine))
