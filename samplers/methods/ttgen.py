"""TTGen: at every early step the prompt is rewritten towards what the preview lacks; the best rewrite moves on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..protocols import Process, Rewriter, SearchError, SearchResult, State, Verifier
from ..rewriting import Inquiry, Rounds, check_can_reprompt, check_rewriting
from ..run.session import Session
from ..run.trace import StepRecord, particle_entries
from ..smc.weights import best_index

CHOICES = ("best", "worst")
AFTER = ("original", "last_best")


@dataclass(frozen=True)
class _Candidates:
    """Candidates of one step: trajectory, state, trace id and preview of each, and scores where they competed."""

    family: list[int]
    state: State
    ids: list[int]
    images: Tensor | None
    reward: Tensor | None = None


@dataclass(frozen=True)
class TTGen:
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
        keep_winner: whether the prompt that won last competes again, in the place of one of the M.
        choice: "best", or "worst" for the lower bound.
        after: prompt of the steps after K: "original", or "last_best" for the one that won last.
        patience: see ``Rounds``.
        particles: N trajectories side by side, each with its own noise and rewrites; the best finished image is taken.
        encoder: a host's text encoder, None where the process brings its own.
    """

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
    encoder: Any = None
    name: str = "ttgen"

    @property
    def population(self) -> int:
        """Particles per image that run at once."""
        return self.particles * (self.rewrites + 1)

    width_field: ClassVar[str] = "particles"

    def calls(self, process: Process) -> int:
        """Denoiser calls per image, at most: a rewriter that finds nothing missing costs fewer."""
        return self.particles * (process.steps + self._injections(process) * self.rewrites)

    def passes(self, process: Process, rows: int) -> int:
        """Forward passes per image, at most: candidates differ in their prompt only and share all other branches."""
        return self.particles * (process.steps * rows + self._injections(process) * self.rewrites)

    def looks(self, process: Process) -> int:
        """Decodes and verifications per image, at most."""
        return self.particles * (self._injections(process) * (self.rewrites + 1) + 1)

    def _injections(self, process: Process) -> int:
        return sum(self.rounds.within(i) for i in range(process.steps))

    @property
    def rounds(self) -> Rounds:
        """When the rewriter is asked."""
        return Rounds(self.start_step, self.injection_step, self.interval, self.patience)

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for settings that cannot work."""
        self.check_settings()
        if verifier is None:
            raise SearchError("verifier is missing: connect one, TTGen chooses between prompts by its score")

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        check_rewriting(self.rewriter, self.rewrites, self.rounds)
        if self.particles < 1:
            raise SearchError(f"particles is {self.particles}: at least 1 is needed")
        if self.choice not in CHOICES:
            raise SearchError(f"choice is {self.choice!r}: choose one of {', '.join(CHOICES)}")
        if self.after not in AFTER:
            raise SearchError(f"after is {self.after!r}: choose one of {', '.join(AFTER)}")

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring, for all trajectories at once."""
        process, n = session.process, self.particles
        check_can_reprompt(process)
        session.trace.meta["rewriter"] = self.rewriter.name
        count = process.groups * n
        inquiry = Inquiry(session, self.rewriter, self.rounds, self.rewrites, count)
        state = process.start(n)
        parents: list[int | None] = [None] * count
        winners: list[str | None] = [None] * count
        last_used = torch.full((count,), math.nan, dtype=torch.float64)
        for i in range(process.steps):
            base = winners if self.after == "last_best" and i + 1 > self.injection_step else [None] * count
            state = process.predict(process.reprompt(state, base))
            ids = session.trace.new_ids(count)
            session.remember(state, None, ids, hint=last_used.nan_to_num(-math.inf))
            images = process.preview(state) if inquiry.any_due(i) else None
            offers = self._offers(inquiry, i, state, images, winners) if self.rounds.within(i) else [[]] * count
            field = self._branched(session, _Candidates(list(range(count)), state, ids, images), offers)
            pick = self._pick(field, count)
            entries = particle_entries(
                field.state, field.ids, [parents[k] for k in field.family], field.reward, selected=pick.tolist()
            )
            if field.reward is not None:
                prompts = process.prompts_of(field.state)
                self._note(inquiry, i, field, prompts, offers)
                competed = torch.tensor([bool(offer) for offer in offers])
                last_used = torch.where(competed, field.reward[pick], last_used)
                winners = [prompts[row] if offers[k] else winners[k] for k, row in enumerate(pick.tolist())]
            state, parents = field.state.select(pick), [field.ids[row] for row in pick.tolist()]
            session.remember(state, None, parents, hint=last_used.nan_to_num(-math.inf))
            session.record(StepRecord(i, process.steps, process.sigmas[i], entries), field.state, field.images)
            state, _ = process.advance(state)
        return self._finish(session, state, parents, last_used)

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
        ids = [*plain.ids, *session.trace.new_ids(len(extra))]
        # By trajectory, the original first: it wins ties.
        order = sorted(range(len(family)), key=lambda row: family[row])
        if not self.keep_original:
            order = [row for row in order if row >= len(plain.family) or not offers[row]]
        index = torch.tensor(order)
        state, images = State.joined([plain.state, extra]).select(index), images[index.to(images.device)]
        reward = session.rate(state, images)
        return _Candidates([family[row] for row in order], state, [ids[row] for row in order], images, reward)

    def _pick(self, field: _Candidates, count: int) -> Tensor:
        """Row of the candidate that goes on, per trajectory int64 ``[count]``."""
        rows = [[row for row, k in enumerate(field.family) if k == trajectory] for trajectory in range(count)]
        if field.reward is None:
            return torch.tensor([mine[0] for mine in rows])
        value = field.reward
        if self.choice == "worst":  # a score that could not be had stays the last choice
            value = torch.where(torch.isneginf(value), value, -value)
        return torch.tensor([mine[int(best_index(value[torch.tensor(mine)][None])[0])] for mine in rows])

    @staticmethod
    def _note(
        inquiry: Inquiry, step: int, field: _Candidates, prompts: list[str | None], offers: list[list[str]]
    ) -> None:
        """Tell the rewriter how its prompts did."""
        for row, k in enumerate(field.family):
            if prompts[row] is not None and offers[k]:
                score = float(field.reward[row])
                inquiry.tried(k, step, prompts[row], score if math.isfinite(score) else None)

    def _finish(self, session: Session, state: State, parents: list[int | None], last_used: Tensor) -> SearchResult:
        """Scores of the finished images; the best of the trajectories wins."""
        process = session.process
        state, values, images = session.evaluate(state)
        ids, reward = session.trace.new_ids(len(state)), values.reward
        session.remember(state, reward, ids)
        best = best_index(reward.view(process.groups, -1)) + torch.arange(process.groups) * self.particles
        entries = particle_entries(state, ids, parents, reward, selected=best.tolist())
        final = StepRecord(process.steps, process.steps, process.sigmas[-1], entries, phase="final")
        session.record(final, state, images)
        gap = (last_used - reward)[torch.isfinite(last_used - reward)]
        return session.result(state, reward, ids, best=best, optimism=float(gap.mean()) if len(gap) else 0.0)
