"""SVDD: at every step one parent tries M moves, and the one with the highest expected reward is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..protocols import Process, SearchError, SearchResult, State, Verifier
from ..run.session import Session
from ..run.trace import StepRecord, particle_entries
from ..smc.tempering import Alpha, AlphaScale
from ..smc.weights import best_index, gumbel_choice
from ..values import ValueFunction, check_value, values_of


@dataclass(frozen=True)
class SVDD:
    """Soft value-based decoding (Li et al. 2024, arXiv 2408.08252, alg. 1), posterior-mean variant SVDD-PM.

        for each transition that draws noise:
            draw M candidates from the same parent
            v_m = r(decode(D(candidate_m)))                 or a learned value (SVDD-MC)
            alpha = 0: argmax;   alpha > 0: index ~ softmax(v / alpha)

    The chosen candidate's clean estimate is kept for the next move, so an image costs ``1 + (T - 1) M`` denoiser calls
    and ``(T - 1) M`` verifications. M = 1 is plain ancestral sampling.

    Attributes:
        candidates: M >= 1.
        alpha: temperature of the choice, None or value 0 for argmax (the published code has only this one).
        start, end, every: branch only at steps ``start*T, +every, .. end*T`` (1.0: to the last one); others take one
            candidate.
        value_function: a learned value (SVDD-MC), replaces decode and verify on the way; see ``samplers.values``.
    """

    candidates: int = 4
    alpha: Alpha | None = None
    start: float = 0.0
    end: float = 1.0
    every: int = 1
    value_function: ValueFunction | None = None
    name: str = "svdd"
    width_field: ClassVar[str] = "candidates"

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for settings that cannot work."""
        self.check_settings()
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")
        if self.candidates > 1 and not process.stochastic:
            raise SearchError(f"eta is {process.eta}: all candidates of an ODE step are equal; use eta > 0")
        check_value(self.value_function, process)

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        if self.candidates < 1:
            raise SearchError(f"candidates is {self.candidates}: at least 1 is needed")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise SearchError(f"start {self.start} and end {self.end}: 0 <= start <= end <= 1 is needed")
        if self.every < 1:
            raise SearchError(f"every is {self.every}: it must be at least 1")

    def branching_steps(self, process: Process) -> set[int]:
        """Steps whose transition is branched."""
        first, last = math.ceil(self.start * process.steps), math.floor(self.end * process.steps)
        return {i for i in range(first, last + 1, self.every) if i < process.steps and process.branches(i)}

    def calls(self, process: Process) -> int:
        """Denoiser calls per image: one per candidate, shared with its next move; a learned value needs none."""
        if self.value_function is not None or self.candidates == 1:
            return process.steps
        branching = self.branching_steps(process)
        last = process.steps - 1 if process.ends_clean else process.steps
        return 1 + sum(self.candidates if i in branching else 1 for i in range(last))

    def looks(self, process: Process) -> int:
        """Decodes and verifications per image."""
        if self.value_function is not None or self.candidates == 1:
            return 1
        return self.candidates * len(self.branching_steps(process)) + 1

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring."""
        process, trace = session.process, session.trace
        groups, steps = process.groups, process.steps
        branching = self.branching_steps(process) if self.candidates > 1 else set()
        spread = self._last_choice(process, branching)
        scale = AlphaScale(self.alpha, groups) if self.alpha is not None else None

        state = process.predict(process.start(1))
        ids, parents = trace.new_ids(groups), [None] * groups
        reward, last_used = torch.full((groups,), -math.inf, dtype=torch.float64), None
        pick = torch.arange(groups)
        session.remember(state, None, ids)
        session.record(StepRecord(0, steps, process.sigmas[0], particle_entries(state, ids, parents)), state)
        for i in range(steps):
            m = self.candidates if i in branching else 1
            rows = torch.arange(len(state)).repeat_interleave(m)
            parents = [ids[row] for row in rows.tolist()]
            # A lone candidate draws from slot 0, so M = 1 is plain sampling to the bit.
            state, _ = process.advance(state.select(rows, slot=torch.arange(m).repeat(len(state))))
            ids, images = trace.new_ids(len(state)), None
            if m > 1:
                state, reward, images = self._values(session, state)
                pick = self._pick(process, reward.view(groups, m), scale, i)
                last_used = reward if i == spread else reward[pick]
            elif i < steps - 1:
                state = process.predict(state)
            if i == steps - 1:
                break
            entries = particle_entries(
                state,
                ids,
                parents,
                reward if m > 1 else None,
                selected=range(len(ids)) if i == spread else pick.tolist(),
            )
            temperature = [] if scale is None or m == 1 else (1.0 / scale.value()).tolist()
            record = StepRecord(i + 1, steps, process.sigmas[i + 1], entries, temperature=temperature)
            seen = state
            if m > 1 and i != spread:
                state, ids, reward = state.select(pick), [ids[row] for row in pick.tolist()], reward[pick]
                pick = torch.arange(groups)
            if state.x0 is not None:
                session.remember(state, reward if m > 1 else None, ids)
            session.record(record, seen, images)
            if state.x0 is None:  # a learned value chose without a denoiser call
                state = process.predict(state)
                session.remember(state, reward, ids)

        if spread is None:  # the finished image is not the last scored estimate
            state, values, images = session.evaluate(state)
            reward = values.reward
        session.remember(state, reward, ids)
        entries = particle_entries(state, ids, parents, reward, selected=pick.tolist())
        session.record(StepRecord(steps, steps, process.sigmas[-1], entries, phase="final"), state, images)
        optimism = 0.0
        if last_used is not None and torch.isfinite(last_used - reward).any():
            gap = last_used - reward
            optimism = float(gap[torch.isfinite(gap)].mean())
        return session.result(state, reward, ids, best=pick, optimism=optimism)

    def _last_choice(self, process: Process, branching: set[int]) -> int | None:
        """The branching step whose candidates are finished images already, so that all of them can be handed out."""
        if not branching or self.value_function is not None:
            return None
        last = process.steps - 2 if process.ends_clean else process.steps - 1
        return last if last in branching else None

    def _values(self, session: Session, state: State) -> tuple[State, Tensor, Tensor | None]:
        """Values float64 ``[n]`` of candidates; predicted states and previews where these were made."""
        if self.value_function is None:
            state, values, images = session.evaluate(state)
            return state, values.reward, images
        return state, values_of(session, self.value_function, state), None

    def _pick(self, process: Process, value: Tensor, scale: AlphaScale | None, step: int) -> Tensor:
        """Rows ``[G]`` of the chosen candidates, given values ``[G, M]``."""
        m = value.shape[1]
        offset = torch.arange(len(value)) * m
        if scale is None:
            return best_index(value) + offset
        log_w = value / scale.update(value)[:, None]
        uniforms = [process.streams.uniform(m, group=g, step=step, purpose="choice") for g in range(len(value))]
        return gumbel_choice(log_w, torch.stack(uniforms)) + offset
