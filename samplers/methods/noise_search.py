"""Search over the initial noise: progressively halved random search, and zero-order search around a pivot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..protocols import Process, SearchError, SearchResult, State, Verifier
from ..run.session import Session
from ..run.trace import StepRecord, particle_entries
from ..smc.weights import best_index

STUCK = ("restart", "retry", "shrink")


@dataclass(frozen=True)
class RandomSearch:
    """Best-of-N that gives up on the worse half on the way (random search of Ma et al. 2025, arXiv 2501.09732).

        N fresh noises;  at each fraction f of the steps, score the previews and keep the better half;  best at the end

    Attributes:
        particles: N >= 1.
        halvings: increasing fractions of the steps, each in 0..1; empty is Best-of-N.
    """

    particles: int = 8
    halvings: tuple[float, ...] = (0.5,)
    name: str = "random_search"
    width_field: ClassVar[str] = "particles"

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for settings that cannot work."""
        self.check_settings()
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        if self.particles < 1:
            raise SearchError(f"particles is {self.particles}: at least 1 is needed")
        if any(not 0.0 < f < 1.0 for f in self.halvings) or list(self.halvings) != sorted(set(self.halvings)):
            raise SearchError(f"halvings are {self.halvings}: increasing fractions of the steps between 0 and 1")

    def widths(self, steps: int) -> list[int]:
        """Particles per image that each step is made with."""
        halving, width, widths = {round(f * steps) for f in self.halvings}, self.particles, []
        for i in range(steps):
            widths.append(width)
            width = (width + 1) // 2 if i in halving else width
        return [*widths, width]

    def calls(self, process: Process) -> int:
        """Denoiser calls per image."""
        return sum(self.widths(process.steps)[:-1])

    def looks(self, process: Process) -> int:
        """Decodes and verifications per image."""
        widths = self.widths(process.steps)
        halving = {round(f * process.steps) for f in self.halvings}
        return widths[-1] + sum(widths[i] for i in halving if i < process.steps and widths[i] > 1)

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring."""
        process, trace = session.process, session.trace
        steps, groups = process.steps, process.groups
        halving = {round(f * steps) for f in self.halvings}
        state, parents = process.start(self.particles), [None] * (groups * self.particles)
        guess = None
        for i in range(steps):
            ids, images, reward, kept = trace.new_ids(len(state)), None, None, None
            if i in halving and len(state) > groups:
                state, values, images = session.evaluate(state)
                reward = values.reward
                width = len(state) // groups
                kept = reward.view(groups, width).sort(dim=1, descending=True, stable=True).indices
                kept = kept[:, : (width + 1) // 2].sort(dim=1).values
                kept = (kept + torch.arange(groups)[:, None] * width).flatten()
            else:
                state = process.predict(state)
            session.remember(state, reward, ids)
            selected = None if kept is None else kept.tolist()
            entries = particle_entries(state, ids, parents, reward, selected=selected)
            session.record(StepRecord(i, steps, process.sigmas[i], entries), state, images)
            if kept is not None:
                state, ids, guess = state.select(kept), [ids[row] for row in selected], reward[kept]
            state, _ = process.advance(state)
            parents = ids
        state, values, images = session.evaluate(state)
        ids, reward = trace.new_ids(len(state)), values.reward
        session.remember(state, reward, ids)
        width = len(state) // groups
        best = best_index(reward.view(groups, width)) + torch.arange(groups) * width
        entries = particle_entries(state, ids, parents, reward, selected=best.tolist())
        session.record(StepRecord(steps, steps, process.sigmas[-1], entries, phase="final"), state, images)
        gap = torch.zeros(0) if guess is None else guess - reward
        gap = gap[torch.isfinite(gap)]
        return session.result(state, reward, ids, best=best, optimism=float(gap.mean()) if len(gap) else 0.0)


@dataclass
class _Pivots:
    """The pivots: noise ``[G, ...]``, score and closeness ``[G]``, ids, whether the next round starts anew ``[G]``."""

    noise: Tensor
    reward: Tensor
    ids: list[int]
    cosine: Tensor
    fresh: Tensor


@dataclass
class _Archive:
    """Everything that was finished."""

    states: list[State] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class ZeroOrderSearch:
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

    neighbours: int = 4
    rounds: int = 4
    cosine: float = 0.95
    stuck: str = "restart"
    name: str = "zero_order_search"
    width_field: ClassVar[str] = "rounds"

    @property
    def population(self) -> int:
        """Particles per image that run at once."""
        return self.neighbours

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for settings that cannot work."""
        self.check_settings()
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        for name in ("neighbours", "rounds"):
            if getattr(self, name) < 1:
                raise SearchError(f"{name} is {getattr(self, name)}: at least 1 is needed")
        if not -1.0 < self.cosine < 1.0:
            raise SearchError(f"cosine is {self.cosine}: between -1 and 1, e.g. 0.95 for near neighbours")
        if self.stuck not in STUCK:
            raise SearchError(f"stuck is {self.stuck!r}: choose one of {', '.join(STUCK)}")

    def calls(self, process: Process) -> int:
        """Denoiser calls per image."""
        return process.steps * self.looks(process)

    def looks(self, process: Process) -> int:
        """Decodes and verifications per image."""
        return 1 + self.rounds * self.neighbours

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring, all groups at once."""
        process, groups = session.process, session.process.groups
        archive = _Archive()
        every = torch.arange(groups)
        noise = process.initial_noise(every, torch.zeros(groups, dtype=torch.int64))
        reward, ids = self._sample(session, noise, every, [None] * groups, 0, archive)
        # Copies: pivots are written to, and the archive keeps the first sample as it was.
        still = torch.zeros(groups, dtype=torch.bool)
        pivots = _Pivots(noise.clone(), reward.clone(), list(ids), torch.full((groups,), self.cosine), still)
        for r in range(1, self.rounds + 1):
            self._round(session, r, pivots, archive)
        state, reward = _joined(archive.states), torch.cat(archive.rewards)
        best = self._best(reward, state.group, groups)
        entries = particle_entries(state, archive.ids, [None] * len(state), reward, selected=best.tolist())
        final = StepRecord(self.rounds + 1, self.rounds + 1, process.sigmas[-1], entries, phase="final")
        session.record(final, state)
        return session.result(state, reward, archive.ids, best=best)

    def _round(self, session: Session, r: int, pivots: _Pivots, archive: _Archive) -> None:
        """One round: neighbours of every pivot, and the new pivots."""
        process, n = session.process, self.neighbours
        groups = process.groups
        group = torch.arange(groups).repeat_interleave(n)
        slot = torch.arange(1 + (r - 1) * n, 1 + r * n).repeat(groups)
        fresh = process.initial_noise(group, slot)
        near = neighbour(pivots.noise[group], fresh, pivots.cosine[group])
        anew = pivots.fresh[group].view(-1, *[1] * (fresh.dim() - 1)).to(fresh.device)
        noise = torch.where(anew, fresh, near)
        parents = [None if pivots.fresh[g] else pivots.ids[g] for g in group.tolist()]
        reward, ids = self._sample(session, noise, group, parents, r, archive)
        best = best_index(reward.view(groups, n)) + torch.arange(groups) * n
        wins = (reward[best] > pivots.reward) | pivots.fresh
        for g in torch.nonzero(wins).flatten().tolist():
            row = int(best[g])
            pivots.noise[g], pivots.reward[g], pivots.ids[g] = noise[row], reward[row], ids[row]
            pivots.cosine[g] = self.cosine
        pivots.fresh = ~wins & (self.stuck == "restart")
        if self.stuck == "shrink":
            pivots.cosine = torch.where(wins, pivots.cosine, ((1 + pivots.cosine) / 2).sqrt())

    def _sample(self, session: Session, noise: Tensor, group: Tensor, parents, r: int, archive: _Archive):
        """Sample ``noise`` to the end, score, file; returns (scores ``[n]``, ids)."""
        process = session.process
        state = process.begin(noise, group, torch.zeros_like(group))
        while state.step < process.steps:
            state = process.predict(state)
            if r == 0:
                session.remember(state, None, [-1] * len(state))
            state, _ = process.advance(state)
        state, values, images = session.evaluate(state)
        ids = session.trace.new_ids(len(state))
        archive.states.append(state)
        archive.rewards.append(values.reward)
        archive.ids += ids
        session.remember(_joined(archive.states), torch.cat(archive.rewards), archive.ids)
        entries = particle_entries(state, ids, parents, values.reward)
        session.record(StepRecord(r, self.rounds + 1, process.sigmas[-1], entries), state, images)
        return values.reward, ids

    @staticmethod
    def _best(reward: Tensor, group: Tensor, groups: int) -> Tensor:
        """Row of the best sample of every group."""
        rows = torch.arange(len(reward))
        found = []
        for g in range(groups):
            mine = rows[group == g]
            found.append(mine[int(best_index(reward[mine][None])[0])])
        return torch.stack(found)


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


def _joined(states: list[State]) -> State:
    """Finished states of several rounds as one."""
    return State(
        x=torch.cat([s.x for s in states]),
        group=torch.cat([s.group for s in states]),
        slot=torch.cat([s.slot for s in states]),
        step=states[0].step,
        x0=torch.cat([s.x0 for s in states]),
    )
