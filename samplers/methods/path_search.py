"""Search over paths: go back up in noise, come down again, and keep the paths that lead somewhere good."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..checks import at_least
from ..method import SearchMethod
from ..processes.extrapolation import forgetting
from ..processes.kernel import renoise_coefficients
from ..processes.sde import LinearClock, ratio_of, sigma_of
from ..protocols import Outline, Process, SearchError, SearchResult, Verifier
from ..run.session import Session
from ..smc.weights import best_rows
from ..state import State


@dataclass(frozen=True)
class PathSearch(SearchMethod):
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

    name: ClassVar[str] = "path_search"
    title: ClassVar[str] = "Path Search"
    unit: ClassVar[str] = "round"
    width: ClassVar[str] = "branches"
    fixed_schedule: ClassVar[bool] = True
    from_noise: ClassVar[bool] = True
    replayable: ClassVar[bool] = False

    paths: int = 2
    branches: int = 2
    start: float = 0.11
    forward: float = 0.78
    backward: float = 0.81
    steps: int = 4

    @property
    def needs(self) -> frozenset[str]:
        """Up and down in noise, to finished images."""
        return frozenset({"can_renoise"})

    @property
    def population(self) -> int:
        """Particles per image that run at once."""
        return self.paths * self.branches

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for a schedule that does not reach from the first time to finished images."""
        if not process.capabilities.ends_clean:
            raise SearchError("the schedule must end at 0: search over paths ends with finished images")
        top = LinearClock().at(ratio_of(process.interpolant, process.sigmas[0]))
        if self.start + self.forward > top:
            raise SearchError(
                f"start {self.start} + forward {self.forward} is above the schedule's first time {top:.3f}: lower them"
            )

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, paths=self.paths, branches=self.branches, steps=self.steps)
        if not 0.0 < self.start < 1.0 or not 0.0 < self.forward < self.backward or self.start + self.forward >= 1.0:
            raise SearchError(
                f"start {self.start}, forward {self.forward}, backward {self.backward}: needed are 0 < start, "
                f"0 < forward < backward and start + forward < 1"
            )

    def stops(self) -> list[float]:
        """Times at which paths are compared, from ``start`` down; the last descent ends at 0."""
        count = math.ceil(self.start / (self.backward - self.forward) - 1e-9)
        return [max(self.start - i * (self.backward - self.forward), 0.0) for i in range(count)] + [0.0]

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image: the first descent, then ``steps`` per return, and one where it stops."""
        rounds = len(self.stops()) - 1
        first = len(self._first(process))
        return self.paths * (first + self.branches * (rounds * (self.steps + 1) - 1))

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        return self.paths * self.branches * (len(self.stops()) - 1)

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring, all groups at once."""
        process, stops = session.process, self.stops()
        rounds = len(stops) - 1
        state = self._descend(process, process.start(self.paths), self._first(process))
        state = session.step(state, at=(0, len(stops)), sigma=self._sigma(process, stops[0]))
        for r, (here, there) in enumerate(itertools.pairwise(stops), start=1):
            state = self._renoise(process, state.branched(self.branches), here, r)
            state = self._descend(process, state, self._times(process, here, there))
            if r == rounds:
                break
            state, values, images = session.evaluate(state)
            kept = best_rows(values.score.view(process.groups, -1), self.paths)
            state = session.step(
                state, values, images, selected=kept, at=(r, rounds), sigma=self._sigma(process, there)
            ).select(kept)
        return session.finish(replace(state, step=process.steps), at=(rounds, rounds))

    def _times(self, process: Process, here: float, there: float) -> list[float]:
        """Sigmas of the way down from ``forward`` above ``here`` to ``there``."""
        top = here + self.forward
        return [self._sigma(process, top + (there - top) * j / self.steps) for j in range(self.steps + 1)]

    def _first(self, process: Outline) -> list[float]:
        """The process's own schedule down to ``start``."""
        stop = self._sigma(process, self.start)
        return [sigma for sigma in process.sigmas if sigma > stop * (1 + 1e-6)] + [stop]

    @staticmethod
    def _sigma(process: Outline, time: float) -> float:
        return sigma_of(process.interpolant, LinearClock().ratio(time))

    @staticmethod
    def _descend(process: Process, state: State, sigmas: list[float]) -> State:
        """Along the ODE over ``sigmas``; the result is predicted."""
        road = process.variant(eta=0.0, sigmas=sigmas)
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
        return replace(state, x=a * state.x + std * noise, x0=None, slot=slot, extra=forgetting(state.extra))
