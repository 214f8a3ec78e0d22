"""SVDD: at every step one parent tries M moves, and the one with the highest expected reward is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import few_steps
from ..checks import at_least, window
from ..method import SearchMethod
from ..protocols import Outline, Process, SearchResult, Values, Verifier
from ..run.session import Session
from ..smc.tempering import Alpha, AlphaScale, usual_spread
from ..smc.weights import best_index, gumbel_choice
from ..state import State
from ..values import AnyValue, as_value, values_of


@dataclass(frozen=True)
class SVDD(SearchMethod):
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
            candidate. every = 0: at every step, and below 12 steps at ``few_steps.branching``.
        value_function: a learned value (SVDD-MC), replaces decode and verify on the way; see ``samplers.values``.
    """

    name: ClassVar[str] = "svdd"
    title: ClassVar[str] = "SVDD"
    width: ClassVar[str] = "candidates"

    candidates: int = 4
    alpha: Alpha | None = None
    start: float = 0.0
    end: float = 1.0
    every: int = 1
    value_function: AnyValue | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Candidates must differ."""
        return frozenset({"can_branch"} if self.candidates > 1 else ())

    @property
    def beginners(self) -> int:
        """One parent per image."""
        return 1

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for a value function that was made for another model."""
        if self.value_function is not None:
            as_value(self.value_function).check(process)

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, candidates=self.candidates)
        at_least(0, every=self.every)
        window(self.start, self.end)

    def branching_steps(self, process: Outline) -> set[int]:
        """Steps whose transition is branched."""
        if self.candidates == 1:
            return set()
        return {i for i in self.decisions(process) if process.branches(i)}

    def decisions(self, process: Outline) -> list[int]:
        """See ``SearchMethod.decisions``: steps at which candidates are drawn, where the move draws noise."""
        steps = process.steps
        if self.every == 0 and steps < few_steps.MANY:
            window = None if (self.start, self.end) == (type(self).start, type(self).end) else (self.start, self.end)
            return few_steps.chosen(few_steps.branching(steps), window, steps)
        first, last = math.ceil(self.start * steps), math.floor(self.end * steps)
        return [i for i in range(first, last + 1, self.every or 1) if i < steps]

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image: one per candidate, shared with its next move; a learned value needs none."""
        judged_above_zero = 0 if process.capabilities.ends_clean else 1
        if self.value_function is not None or self.candidates == 1:
            return process.steps + judged_above_zero
        branching = self.branching_steps(process)
        return 1 + sum(self.candidates if i in branching else 1 for i in range(process.steps - 1 + judged_above_zero))

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        if self.value_function is not None:
            return 1
        return self.candidates * len(self.branching_steps(process)) + 1

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring."""
        process = session.process
        branching = self.branching_steps(process)
        spread = self._last_choice(process, branching)
        scale = self._scale(session)
        state = session.step(process.predict(process.start(1)))
        values: Values | None = None
        best: Tensor | None = None
        for i in range(process.steps):
            m, last = (self.candidates if i in branching else 1), i == process.steps - 1
            # A lone candidate draws from slot 0, so M = 1 is plain sampling to the bit.
            state = session.move(state.branched(m))
            if m > 1:
                state, values, images = self._look(session, state)
                best = self._pick(process, values.score.view(process.groups, m), scale, i)
            elif not last:
                state, values, images = process.predict(state), None, None
            if last:
                break
            pick = torch.arange(len(state)) if values is None or best is None or i == spread else best
            chosen = None if values is None else pick
            beta = None if scale is None or values is None else 1.0 / scale.value()
            state = session.step(state, values, images, selected=chosen, inverse_temperature=beta)
            state = process.predict(state.select(pick))  # known already, but where a learned value chose
            values = None if values is None else values.select(pick)
            session.remember(state, None if values is None else values.score)
        # The finished image is the last scored estimate, unless nothing was scored that late.
        return session.finish(state) if spread is None else session.finish(state, values, best=best)

    def _scale(self, session: Session) -> AlphaScale | None:
        """What alpha means in score units; None for argmax."""
        if self.alpha is None:
            return None
        return AlphaScale(self.alpha, session.process.groups, usual_spread(session.verifier))

    def _last_choice(self, process: Process, branching: set[int]) -> int | None:
        """The branching step whose candidates are finished images already, so that all of them can be handed out."""
        if not branching or self.value_function is not None:
            return None
        last = process.steps - 2 if process.capabilities.ends_clean else process.steps - 1
        return last if last in branching else None

    def _look(self, session: Session, state: State) -> tuple[State, Values, Tensor | None]:
        """Values of candidates; predicted states and previews where these were made."""
        if self.value_function is None:
            return session.evaluate(state)
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
