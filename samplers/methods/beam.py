"""Latent beam search with look-ahead: the best beams over all children, judged by where they lead."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..processes.sde import LinearClock, ratio_of, sigma_of
from ..protocols import Process, SearchError, SearchResult, State, Verifier
from ..run.session import Session
from ..run.trace import StepRecord, particle_entries
from ..smc.weights import best_index


@dataclass(frozen=True)
class BeamSearch:
    """Diffusion latent beam search (Oshima et al. 2025, arXiv 2501.19252).

        for each move that draws noise:
            K children of each of B beams
            from each child, L deterministic jumps over the rest of the time  ->  clean estimate  ->  score
            keep the best B of the B K children of an image

    The first jump needs the denoiser call that the child's own next move needs, so an image with T steps costs
    ``B + (T - 1) B K L`` calls.

    Attributes:
        beams: B >= 1. children: K >= 1. lookahead: L >= 1; 1 scores the child's own clean estimate.
        start, end: children are drawn in this window of the steps, outside it every beam has one.
    """

    beams: int = 4
    children: int = 2
    lookahead: int = 1
    start: float = 0.0
    end: float = 1.0
    name: str = "beam_search"
    width_field: ClassVar[str] = "beams"

    @property
    def population(self) -> int:
        """Particles per image that run at once."""
        return self.beams * self.children

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for settings that cannot work on ``process``."""
        self.check_settings()
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")
        if self.children > 1 and not process.stochastic:
            raise SearchError(f"eta is {process.eta}: all children of an ODE step are equal; use eta > 0 or an SDE")

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        for field in ("beams", "children", "lookahead"):
            if getattr(self, field) < 1:
                raise SearchError(f"{field} is {getattr(self, field)}: at least 1 is needed")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise SearchError(f"start {self.start} and end {self.end}: 0 <= start <= end <= 1 is needed")

    def width(self, process: Process, step: int) -> int:
        """Children of every beam at a step."""
        inside = self.start <= step / process.steps <= self.end
        return self.children if inside and process.branches(step) else 1

    def calls(self, process: Process) -> int:
        """Denoiser calls per image."""
        widths = [self.width(process, i) for i in range(process.steps - 1)]
        return self.beams * (1 + sum(k * (self.lookahead if k > 1 else 1) for k in widths))

    def looks(self, process: Process) -> int:
        """Decodes and verifications per image."""
        widths = [self.width(process, i) for i in range(process.steps - 1)]
        return self.beams * (1 + sum(k for k in widths if k > 1))

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring, for all groups at once."""
        process, b = session.process, self.beams
        steps, groups = process.steps, process.groups
        state = process.predict(process.start(b))
        ids = session.trace.new_ids(len(state))
        session.remember(state, None, ids)
        entries = particle_entries(state, ids, [None] * len(ids))
        session.record(StepRecord(0, steps, process.sigmas[0], entries), state)
        guess = None
        for i in range(steps - 1):
            k = self.width(process, i)
            rows = torch.arange(len(state)).repeat_interleave(k)
            parents = [ids[row] for row in rows.tolist()]
            state, _ = process.advance(state.select(rows, slot=torch.arange(b * k).repeat(groups)))
            state, ids, images = process.predict(state), session.trace.new_ids(len(state)), None
            if k > 1:
                ahead, values, images = session.evaluate(self._ahead(process, state))
                reward = values.reward.view(groups, b * k)
                # A stable sort keeps the earlier child on ties.
                kept = reward.sort(dim=1, descending=True, stable=True).indices[:, :b].sort(dim=1).values
                kept = (kept + torch.arange(groups)[:, None] * b * k).flatten()
                guess = values.reward[kept]
                entries = particle_entries(state, ids, parents, values.reward, selected=kept.tolist())
                # Cut short here, the images that got these scores are the best there is.
                survivors = [ids[row] for row in kept.tolist()]
                session.remember(ahead.select(kept), guess, survivors)
                session.record(StepRecord(i + 1, steps, process.sigmas[i + 1], entries), state, images)
                state, ids = state.select(kept), survivors
            else:
                session.remember(state, None, ids, hint=guess)
                entries = particle_entries(state, ids, parents)
                session.record(StepRecord(i + 1, steps, process.sigmas[i + 1], entries), state)
        return self._finish(session, state, ids, guess)

    def _finish(self, session: Session, state: State, parents: list[int], guess: Tensor | None) -> SearchResult:
        """The last, deterministic move, and the scores of the finished images."""
        process = session.process
        state, _ = process.advance(state)
        state, values, images = session.evaluate(state)
        ids, reward = session.trace.new_ids(len(state)), values.reward
        session.remember(state, reward, ids)
        best = best_index(reward.view(process.groups, -1)) + torch.arange(process.groups) * self.beams
        entries = particle_entries(state, ids, parents, reward, selected=best.tolist())
        final = StepRecord(process.steps, process.steps, process.sigmas[-1], entries, phase="final")
        session.record(final, state, images)
        optimism = 0.0
        if guess is not None:
            gap = (guess - reward)[torch.isfinite(guess - reward)]
            optimism = float(gap.mean()) if len(gap) else 0.0
        return session.result(state, reward, ids, best=best, optimism=optimism)

    def _ahead(self, process: Process, state: State) -> State:
        """The states with the clean estimates that ``lookahead`` deterministic jumps arrive at."""
        if self.lookahead == 1 or process.sigmas[state.step] == 0.0:
            return state
        interpolant, clock = process.interpolant, LinearClock()
        time = clock.at(ratio_of(interpolant, process.sigmas[state.step]))
        times = [time * j / self.lookahead for j in range(self.lookahead, -1, -1)]
        road = process.without_noise([sigma_of(interpolant, clock.ratio(t)) for t in times])
        ahead = replace(state, step=0)
        for _ in range(self.lookahead - 1):
            ahead, _ = road.advance(ahead)
            ahead = road.predict(ahead)
        return replace(state, x0=ahead.x0)
