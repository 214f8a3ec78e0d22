"""Search over paths: go back up in noise, come down again, and keep the paths that lead somewhere good."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..processes.kernel import renoise_coefficients
from ..processes.sde import LinearClock, ratio_of, sigma_of
from ..protocols import Process, SearchError, SearchResult, State, Verifier
from ..run.session import Session
from ..run.trace import StepRecord, particle_entries
from ..smc.weights import best_index


@dataclass(frozen=True)
class PathSearch:
    """Search over paths (Ma et al. 2025, arXiv 2501.09732, section 3.2).

        N noises, ODE down to time t;
        repeat: M fresh re-noisings of each, up by ``forward``;  ODE down by ``backward``;  score;  best N go on
        until t = 0;  best of the finished images

    Times are those of the linear path, ``t / (1 - t) = b / a``, so they mean the same noise level for every model.

    Attributes:
        paths: N >= 1. branches: M >= 1.
        start: t of the first stop. forward, backward: of a round, 0 < forward < backward.
        steps: ODE steps of a descent in a round.
    """

    paths: int = 2
    branches: int = 2
    start: float = 0.11
    forward: float = 0.78
    backward: float = 0.81
    steps: int = 4
    name: str = "path_search"
    width_field: ClassVar[str] = "branches"
    needs_schedule: ClassVar[bool] = True

    @property
    def population(self) -> int:
        """Particles per image that run at once."""
        return self.paths * self.branches

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for settings that cannot work on ``process``."""
        self.check_settings()
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")
        if not process.ends_clean:
            raise SearchError("the schedule must end at 0: search over paths ends with finished images")
        top = LinearClock().at(ratio_of(process.interpolant, process.sigmas[0]))
        if self.start + self.forward > top:
            raise SearchError(
                f"start {self.start} + forward {self.forward} is above the schedule's first time {top:.3f}: lower them"
            )

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        for name in ("paths", "branches", "steps"):
            if getattr(self, name) < 1:
                raise SearchError(f"{name} is {getattr(self, name)}: at least 1 is needed")
        if not 0.0 < self.start < 1.0 or not 0.0 < self.forward < self.backward or self.start + self.forward >= 1.0:
            raise SearchError(
                f"start {self.start}, forward {self.forward}, backward {self.backward}: needed are 0 < start, "
                f"0 < forward < backward and start + forward < 1"
            )

    def stops(self) -> list[float]:
        """Times at which paths are compared, from ``start`` down; the last descent ends at 0."""
        count = math.ceil(self.start / (self.backward - self.forward) - 1e-9)
        return [max(self.start - i * (self.backward - self.forward), 0.0) for i in range(count)] + [0.0]

    def calls(self, process: Process) -> int:
        """Denoiser calls per image: the first descent, then ``steps`` per return, and one where it stops."""
        rounds = len(self.stops()) - 1
        first = len(self._first(process))
        return self.paths * (first + self.branches * (rounds * (self.steps + 1) - 1))

    def looks(self, process: Process) -> int:
        """Decodes and verifications per image."""
        return self.paths * self.branches * (len(self.stops()) - 1)

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring, all groups at once."""
        process, groups, n = session.process, session.process.groups, self.paths
        stops = self.stops()
        state = self._descend(process, process.start(n), self._first(process))
        ids = session.trace.new_ids(len(state))
        session.remember(state, None, ids)
        entries = particle_entries(state, ids, [None] * len(ids))
        session.record(StepRecord(0, len(stops), self._sigma(process, stops[0]), entries), state)
        guess = None
        for r, (here, there) in enumerate(zip(stops, stops[1:], strict=False), start=1):
            rows = torch.arange(len(state)).repeat_interleave(self.branches)
            parents = [ids[row] for row in rows.tolist()]
            state = self._renoise(process, state.select(rows), here, r)
            times = [
                here + self.forward + (there - here - self.forward) * j / self.steps for j in range(self.steps + 1)
            ]
            state = self._descend(process, state, [self._sigma(process, t) for t in times])
            ids = session.trace.new_ids(len(state))
            state, values, images = session.evaluate(state)
            last = r == len(stops) - 1
            kept = self._best(values.reward.view(groups, -1), 1 if last else n)
            entries = particle_entries(state, ids, parents, values.reward, selected=kept.tolist())
            phase = "final" if last else "search"
            session.remember(state, values.reward, ids)
            session.record(
                StepRecord(r, len(stops) - 1, self._sigma(process, there), entries, phase=phase), state, images
            )
            if last:
                gap = torch.zeros(0) if guess is None else guess[rows] - values.reward
                gap = gap[torch.isfinite(gap)]
                optimism = float(gap.mean()) if len(gap) else 0.0
                finished = replace(state, step=process.steps)
                return session.result(finished, values.reward, ids, best=kept, optimism=optimism)
            state, ids, guess = state.select(kept), [ids[row] for row in kept.tolist()], values.reward[kept]
        raise AssertionError("unreachable: the last stop is time 0")

    def _best(self, reward: torch.Tensor, count: int) -> torch.Tensor:
        """Rows of the ``count`` best of every group, the first of them the best one when only one is asked for."""
        offset = torch.arange(len(reward))[:, None] * reward.shape[1]
        if count == 1:
            return best_index(reward) + offset[:, 0]
        kept = reward.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
        return (kept + offset).flatten()

    def _first(self, process: Process) -> list[float]:
        """The process's own schedule down to ``start``."""
        stop = self._sigma(process, self.start)
        return [sigma for sigma in process.sigmas if sigma > stop * (1 + 1e-6)] + [stop]

    @staticmethod
    def _sigma(process: Process, time: float) -> float:
        return sigma_of(process.interpolant, LinearClock().ratio(time))

    @staticmethod
    def _descend(process: Process, state: State, sigmas: list[float]) -> State:
        """Along the ODE over ``sigmas``; the result is predicted."""
        road = process.without_noise(sigmas)
        state = replace(state, step=0, x0=None)
        while state.step < road.steps:
            state, _ = road.advance(road.predict(state))
        return replace(road.predict(state), step=0)

    def _renoise(self, process: Process, state: State, time: float, r: int) -> State:
        """Forward in noise by ``forward``; every branch draws its own."""
        a, std = renoise_coefficients(
            process.interpolant, self._sigma(process, time), self._sigma(process, time + self.forward)
        )
        slot = torch.arange(len(state) // process.groups).repeat(process.groups)
        noise = process.streams.normals(process.shape, state.group, slot, step=r, purpose="renoise").to(state.x)
        return replace(state, x=a * state.x + std * noise, x0=None, slot=slot)
