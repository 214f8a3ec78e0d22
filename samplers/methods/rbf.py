"""Rollover Budget Forcing: move on as soon as a candidate is better, and give what was saved to the next step."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import at_least, one_of
from ..method import SearchMethod
from ..protocols import Outline, Process, SearchError, SearchResult, Verifier
from ..run.session import Session
from ..smc.weights import best_rows
from ..state import State
from .chains import Chain, worth_of_waiting

SLOTS_PER_CHAIN = 1 << 20  # noise streams set aside for one chain's candidates of one step
LAST_ROUNDS = 16  # rounds evaluated at once where no candidate can end the step early
MOST_DRAWS = 500  # beyond, waiting is worth about 3 standard deviations whatever is left

THRESHOLDS = ("global", "current", "level", "quantile", "stopping")
CHOICES = ("last_step", "best_seen")


@dataclass(frozen=True)
class RBF(SearchMethod):
    """Rollover Budget Forcing (Kim et al. 2025, arXiv 2503.19385, alg. 1), counts as in the authors' release.

        I fresh particles per chain, the best of them starts it;  q = (M - I B) // (N B), quota Q = q
        at each searched transition, one candidate per chain and round:
            candidate better than the chain's best ever  ->  go there at once,  Q = (Q - used) + q     (roll over)
            Q candidates and none better                 ->  go to the best of them,  Q = q
            the last searched transition never advances and takes all that is left of M
        then the moves that draw no noise (an ODE tail), and the finished images are scored again

    One denoiser call of one particle counts as 1, as in the paper; ``Ledger.nfe`` also counts guidance branches.

    Attributes:
        budget: M, denoiser calls per image, tail included.
        chains: B per image. initial: I per chain.
        threshold: what a candidate must beat: "global" (the best ever accepted, as released), "current" (the score of
            the chain's parent), "level" (``level``, in the verifier's units), "quantile" (the ``level`` quantile of the
            scores of its image's initial particles), or "stopping" (what waiting for the draws that are left is worth,
            see ``worth_of_waiting``; the first candidate of a step is never taken).
        level: see ``threshold``; a quantile lies in 0..1.
        min_gain: by how much a candidate must be better, against verifier noise.
        rollover_cap: most that a quota may hold, None for no limit.
        full_steps: divide by the N - 1 searched transitions instead of N (the release's N leaves the last transition
            two quotas).
        choice: what is finished: the best of the "last_step" (as released), or the "best_seen" of each chain.
    """

    name: ClassVar[str] = "rbf"
    title: ClassVar[str] = "Rollover Budget Forcing"
    width: ClassVar[str] = ""
    fixed_schedule: ClassVar[bool] = True
    holds_budget: ClassVar[bool] = True
    carries_on: ClassVar[bool] = True

    budget: int = 500
    chains: int = 2
    initial: int = 25
    threshold: str = "global"
    min_gain: float = 0.0
    rollover_cap: int | None = None
    full_steps: bool = False
    choice: str = "last_step"
    level: float = 0.5

    @property
    def needs(self) -> frozenset[str]:
        """Candidates must differ, and chains stand at different steps."""
        return frozenset({"can_branch", "can_join"})

    @property
    def population(self) -> int:
        """Particles per image that run at once, at most."""
        return self.chains * max(self.initial, LAST_ROUNDS)

    @property
    def beginners(self) -> int:
        """Fresh particles of all chains; the budget counts them."""
        return 1

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for a budget that does not pay for one candidate per step and chain."""
        self.quota(process)

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, budget=self.budget, chains=self.chains, initial=self.initial)
        at_least(0, min_gain=self.min_gain)
        one_of(THRESHOLDS, threshold=self.threshold)
        one_of(CHOICES, choice=self.choice)
        if self.threshold == "quantile" and not 0.0 <= self.level <= 1.0:
            raise SearchError(f"level is {self.level} with threshold 'quantile': a quantile lies in 0..1")
        if self.rollover_cap is not None:
            at_least(1, rollover_cap=self.rollover_cap)

    def searched(self, process: Outline) -> int:
        """Number of transitions that draw noise, which must come first."""
        branching = [process.branches(i) for i in range(process.steps)]
        count = sum(branching)
        if not all(branching[:count]):
            raise SearchError("the moves that draw no noise must come last: check the SDE and the schedule")
        return count

    def tail(self, process: Outline) -> int:
        """Denoiser calls per image after the search: the estimate at its end is known already.

        A tail that stops above 0 costs one more, to see the image.
        """
        moves = process.steps - self.searched(process)
        if moves == 0:
            return 0
        return self.chains * (moves if not process.capabilities.ends_clean else moves - 1)

    def quota(self, process: Outline) -> int:
        """q, candidates per transition and chain; raises SearchError where the budget does not pay for one."""
        transitions = self.searched(process)
        shares = transitions if self.full_steps else transitions + 1
        free = self.budget - self.initial * self.chains - self.tail(process)
        q = free // (shares * self.chains) if free > 0 else 0
        if q < 1:
            least = self.initial * self.chains + self.tail(process) + shares * self.chains
            raise SearchError(
                f"budget is {self.budget}: {self.chains} chains of {self.initial} initial particles and {transitions} "
                f"searched steps need at least {least} denoiser calls"
            )
        return q

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image, at most."""
        return self.budget

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image, at most."""
        return self.budget - self.tail(process) + self.chains

    def least_calls(self, process: Outline) -> int:
        """The smallest budget: one chain, one initial particle, one candidate per share."""
        single = replace(self, chains=1, initial=1)
        shares = self.searched(process) + (0 if self.full_steps else 1)
        return 1 + single.tail(process) + shares

    def within(self, calls: int, process: Outline) -> RBF | None:
        """The search with ``calls`` as its budget: a tenth of it at most on initial particles, one chain if need be.

        None where that does not pay for one candidate per step.
        """
        for chains in dict.fromkeys((self.chains, 1)):
            initial = max(1, min(self.initial, calls // (10 * chains)))
            found = replace(self, budget=calls, chains=chains, initial=initial)
            if calls >= 1 and found.affords(process):
                return found
        return None

    def affords(self, process: Outline) -> bool:
        """Whether the budget pays for a candidate per step and chain."""
        try:
            return self.quota(process) >= 1
        except SearchError:
            return False

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring; chains of all groups go in lockstep, each at its own step."""
        process = session.process
        q, last = self.quota(process), self.searched(process) - 1
        limit = self.budget - self.tail(process)
        chains = self._initial(session, q)
        spent = self.initial * self.chains
        while spent + self.chains < limit:
            rounds = 1
            if all(chain.state.step == last for chain in chains):
                rounds = min((limit - spent - 1) // self.chains, LAST_ROUNDS)
            spent += rounds * self.chains
            by_step: dict[int, list[Chain]] = {}
            for chain in chains:
                by_step.setdefault(chain.state.step, []).append(chain)
            for step, here in sorted(by_step.items()):
                for chain, score in self._candidates(session, here, rounds):
                    if step < last:
                        self._decide(session, chain, score, q)
                self._remember(session, chains)
        return self._finish(session, chains)

    def _initial(self, session: Session, q: int) -> list[Chain]:
        """Score ``initial`` fresh particles per chain and start each chain from its best."""
        state, values, images = session.evaluate(session.process.start(self.initial * self.chains))
        best = best_rows(values.score.view(-1, self.initial), 1)
        levels = [self._level(scores) for scores in values.score.view(-1, self.initial * self.chains)]
        state = session.step(state, values, images, selected=best)
        chains = []
        for number, row in enumerate(best.tolist()):
            particle, score = state.select(torch.tensor([row])), float(values.score[row])
            level = levels[number // self.chains]
            chains.append(Chain(number % self.chains, particle, score, score, q, particle, score, level))
        self._remember(session, chains)
        return chains

    def _candidates(self, session: Session, chains: list[Chain], rounds: int):
        """Draw ``rounds`` candidates of each chain (all at one step), score them, yield (chain, score) in order."""
        parents = State.joined([chain.state for chain in chains])
        rows = torch.arange(len(chains)).repeat_interleave(rounds)
        slot = torch.cat([torch.arange(rounds) + c.number * SLOTS_PER_CHAIN + c.used for c in chains])
        state, values, images = session.evaluate(session.move(parents.select(rows, slot=slot)))
        state = session.step(state, values, images, selected=[])
        for row, score in enumerate(values.score.tolist()):
            chain = chains[row // rounds]
            chain.take(state.select(torch.tensor([row])), score)
            yield chain, score

    def _decide(self, session: Session, chain: Chain, score: float, q: int) -> None:
        """Accept at once what beats the chain's best; otherwise go on, or end the step when its quota is spent."""
        if self._accepts(chain, score):
            chain.best = max(chain.best, score)
            quota = chain.quota - chain.used + q
            chain.advance(session, quota if self.rollover_cap is None else min(quota, self.rollover_cap))
        elif chain.used >= chain.quota:
            chain.advance(session, q)

    def _accepts(self, chain: Chain, score: float) -> bool:
        """Whether the candidate that was just noted ends the step."""
        if chain.level is not None:
            return score >= chain.level
        if self.threshold == "stopping":
            known, left = [s for s in chain.scores if math.isfinite(s)], chain.quota - chain.used
            if len(known) < 2 or left < 1:
                return False
            worth = worth_of_waiting(min(left, MOST_DRAWS))
            return score > statistics.fmean(known) + statistics.stdev(known) * worth
        return score > (chain.best if self.threshold == "global" else chain.score) + self.min_gain

    def _level(self, scores: Tensor) -> float | None:
        """The fixed bar of an image whose initial particles have ``scores`` ``[n]``; None where there is none."""
        if self.threshold == "level":
            return self.level
        if self.threshold != "quantile":
            return None
        known = scores[torch.isfinite(scores)]
        return float(known.quantile(self.level)) if len(known) else -math.inf

    def _chosen(self, chain: Chain) -> tuple[State, float]:
        """(state, score) of the particle that is to be finished."""
        if self.choice == "best_seen" or chain.leader is None:
            return chain.seen, chain.seen_score
        return chain.leader, chain.leader_score

    def _remember(self, session: Session, chains: list[Chain]) -> None:
        states = State.joined([replace(chain.seen, step=0) for chain in chains])
        session.remember(states, torch.tensor([chain.seen_score for chain in chains], dtype=torch.float64))

    def _finish(self, session: Session, chains: list[Chain]) -> SearchResult:
        """Run every chain's choice along the ODE to the end and score the finished images."""
        process = session.process
        chosen = [self._chosen(chain) for chain in chains]
        ending = self.searched(process)
        searched = [row for row, (state, _) in enumerate(chosen) if state.step == ending]
        # What was best before the search ended, or was reached when the budget ran out, is its own clean estimate.
        finished = {row: replace(state, x=state.clean, step=process.steps) for row, (state, _) in enumerate(chosen)}
        if searched:
            state, tail = State.joined([chosen[row][0] for row in searched]), process.variant(eta=0.0)
            while state.step < process.steps:
                state, _ = tail.advance(tail.predict(state))
            state = tail.predict(state)
            finished |= {row: state.select(torch.tensor([place])) for place, row in enumerate(searched)}
        state, values, images = session.evaluate(State.joined([finished[row] for row in range(len(chains))]))
        gap = torch.tensor([score for _, score in chosen], dtype=torch.float64) - values.score
        gap = gap[torch.isfinite(gap)]
        bias = float(gap.mean()) if len(gap) else 0.0
        return session.finish(state, values, images, selection_bias=bias)
