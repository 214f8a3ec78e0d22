"""TTGen: at every early step the prompt is rewritten towards what the preview lacks; the best rewrite moves on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import at_least, one_of
from ..method import SearchMethod
from ..protocols import Outline, Rewriter, SearchResult, Values
from ..rewriting import Inquiry, Rounds, check_rewriting
from ..run.session import Session
from ..smc.weights import best_index
from ..state import State

CHOICES = ("best", "worst")
AFTER = ("original", "last_best")


@dataclass(frozen=True)
class _Candidates:
    """Candidates of one step: trajectory, state and preview of each, and values where they competed."""

    family: list[int]
    state: State
    images: Tensor | None
    values: Values | None = None


@dataclass(frozen=True)
class TTGen(SearchMethod):
    """Test-time generation by prompt rewriting (TTGen, Qiao et al., OPPO Research).

        for step i = 1 .. T at state x, original prompt q:
            x0_0 = D(x, q)
            if i <= K, every `interval` steps:
                missing, r_1 .. r_M = rewriter(decode(x0_0), q, history)
            x0_j = D(x, r_j)                      same state, all candidates of all trajectories in one batch
            s_j  = score(decode(x0_j), q)         against the ORIGINAL prompt, also for j = 0
            b    = argmax_j s_j                   (`worst`: argmin, the paper's lower bound)
            x   <- move(x, x0_b)                  eta = 0 as in the paper, or with noise

    Where the rewriter finds nothing missing, the step is a plain one. A trajectory costs at most ``T + K M`` denoiser
    calls (``2 T + K M`` forward passes under guidance: the unconditional one is shared), ``ceil(K / interval)`` calls
    of the rewriter and ``K (M + 1)`` decodes and verifications.

    Attributes:
        rewriter: who proposes prompts (``rewriters``).
        rewrites: M >= 1.
        injection_step: K, the last step with rewrites, counted from 1; the paper recommends 20 to 30 of 50.
        start_step: the first one, counted from 1; the very first previews show little.
        interval: steps between calls of the rewriter; in between, its last prompts compete again.
        keep_original: whether the original prompt competes.
        keep_winner: whether the prompt that won last competes again, instead of one of the M.
        choice: "best", or "worst" for the lower bound.
        after: prompt of the steps after K: "original", or "last_best" for the one that won last.
        patience: see ``Rounds``.
        particles: N trajectories side by side, each with its own noise and rewrites; the best finished image is taken.
    """

    name: ClassVar[str] = "ttgen"
    title: ClassVar[str] = "TTGen"
    width: ClassVar[str] = "particles"

    rewriter: Rewriter | None = None
    rewrites: int = 4
    injection_step: int = 20
    start_step: int = 1
    interval: int = 1
    keep_original: bool = True
    keep_winner: bool = True
    choice: str = "best"
    after: str = "original"
    patience: int = 3
    particles: int = 1

    @property
    def needs(self) -> frozenset[str]:
        """Prompts change on the way."""
        return frozenset({"can_reprompt"})

    @property
    def population(self) -> int:
        """Particles per image that run at once."""
        return self.particles * (self.rewrites + 1)

    @property
    def beginners(self) -> int:
        """The trajectories."""
        return self.particles

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image, at most: a rewriter that finds nothing missing costs fewer."""
        judged_above_zero = 0 if process.capabilities.ends_clean else 1
        return self.particles * (process.steps + judged_above_zero + self._injections(process) * self.rewrites)

    def nfe(self, process: Outline, per_call: int) -> int:
        """Forward passes per image, at most: candidates differ in their prompt only and share all other branches."""
        own = self.particles * self._injections(process) * self.rewrites
        return (self.denoiser_calls(process) - own) * per_call + own

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image, at most."""
        return self.particles * (self._injections(process) * (self.rewrites + 1) + 1)

    def _injections(self, process: Outline) -> int:
        return sum(self.rounds.within(i) for i in range(process.steps))

    @property
    def rounds(self) -> Rounds:
        """When the rewriter is asked."""
        return Rounds(self.start_step, self.injection_step, self.interval, self.patience)

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        check_rewriting(self.rewriter, self.rewrites, self.rounds)
        at_least(1, particles=self.particles)
        one_of(CHOICES, choice=self.choice)
        one_of(AFTER, after=self.after)

    def asking(self, change: Callable[[Rewriter], Rewriter]) -> TTGen:
        """The same settings with another rewriter, where there is one."""
        return self if self.rewriter is None else replace(self, rewriter=change(self.rewriter))

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring, for all trajectories at once."""
        process, count = session.process, session.process.groups * self.particles
        rewriter = check_rewriting(self.rewriter, self.rewrites, self.rounds)
        session.uses(rewriter)
        inquiry = Inquiry(session, rewriter, self.rounds, self.rewrites, count)
        state = process.start(self.particles)
        winners: list[str | None] = [None] * count
        for i in range(process.steps):
            base = winners if self.after == "last_best" and i + 1 > self.injection_step else [None] * count
            state = process.predict(process.reprompt(state, base))
            session.remember(state, None)
            images = process.preview(state) if inquiry.any_due(i) else None
            offers = self._offers(inquiry, i, state, images, winners) if self.rounds.within(i) else [[]] * count
            field = self._branched(session, _Candidates(list(range(count)), state, images), offers)
            pick = self._pick(field, count)
            competed = torch.tensor([bool(offers[k]) for k in field.family])
            state = session.step(field.state, field.values, field.images, selected=pick, used=competed).select(pick)
            if field.values is not None:
                winners = self._note(inquiry, i, field, offers, pick, winners)
            session.remember(state, None)
            state = session.move(state)
        return session.finish(state)

    def _offers(
        self, inquiry: Inquiry, step: int, state: State, images: Tensor | None, winners: list[str | None]
    ) -> list[list[str]]:
        """At most M prompts per trajectory that compete with the original."""
        if images is None:
            images = state.x.new_empty(len(state), 0)  # nobody is asked at this step
        offers = []
        for found, winner in zip(inquiry.prompts(step, state, images), winners, strict=True):
            kept = [winner] if found and self.keep_winner and winner is not None and self.rewrites > 1 else []
            offers.append(list(dict.fromkeys([*kept, *found]))[: self.rewrites])
        return offers

    def _branched(self, session: Session, plain: _Candidates, offers: list[list[str]]) -> _Candidates:
        """The candidates of a step: the given states under the original prompt, and under every offered one."""
        process = session.process
        branches = [(k, text) for k, offer in enumerate(offers) for text in offer]
        if not branches:
            return plain
        rows = [k for k, _ in branches]
        extra = plain.state.select(torch.tensor(rows))
        extra = process.predict(process.reprompt(extra, [text for _, text in branches]))
        images = process.preview(plain.state) if plain.images is None else plain.images
        images = torch.cat([images, process.preview(extra)])
        family = [*plain.family, *rows]
        # By trajectory, the original first: it wins ties.
        order = sorted(range(len(family)), key=lambda row: family[row])
        if not self.keep_original:
            order = [row for row in order if row >= len(plain.family) or not offers[row]]
        index = torch.tensor(order)
        state, images = State.joined([plain.state, extra]).select(index), images[index.to(images.device)]
        return _Candidates([family[row] for row in order], state, images, session.rate(state, images))

    def _pick(self, field: _Candidates, count: int) -> Tensor:
        """Row of the candidate that goes on, per trajectory int64 ``[count]``."""
        rows = [[row for row, k in enumerate(field.family) if k == trajectory] for trajectory in range(count)]
        if field.values is None:
            return torch.tensor([mine[0] for mine in rows])
        value = field.values.score
        if self.choice == "worst":  # a score that could not be had stays the last choice
            value = torch.where(torch.isneginf(value), value, -value)
        return torch.tensor([mine[int(best_index(value[torch.tensor(mine)][None])[0])] for mine in rows])

    @staticmethod
    def _note(
        inquiry: Inquiry,
        step: int,
        field: _Candidates,
        offers: list[list[str]],
        pick: Tensor,
        winners: list[str | None],
    ) -> list[str | None]:
        """Tell the rewriter how its prompts did; returns the prompt that won last of every trajectory."""
        prompts = inquiry.session.process.prompts_of(field.state) or [None] * len(field.family)
        for row, k in enumerate(field.family):
            prompt = prompts[row]
            if prompt is not None and offers[k] and field.values is not None:
                score = float(field.values.score[row])
                inquiry.tried(k, step, prompt, score if math.isfinite(score) else None)
        return [prompts[row] if offers[k] else winners[k] for k, row in enumerate(pick.tolist())]
