"""Rollover Budget Forcing: move on as soon as a candidate is better, and give what was saved to the next step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..protocols import Process, SearchError, SearchResult, State, Verifier
from ..run.session import Session
from ..run.trace import StepRecord, particle_entries
from ..smc.weights import best_index

SLOTS_PER_CHAIN = 1 << 20  # noise streams set aside for one chain's candidates of one step
LAST_ROUNDS = 16  # rounds evaluated at once where no candidate can end the step early

THRESHOLDS = ("global", "current")
CHOICES = ("last_step", "best_seen")


@dataclass(eq=False)
class _Chain:
    """One chain of a group.

    Attributes:
        number: of the chain within its group; state: one predicted particle, the parent of all candidates.
        id, reward: of the parent; best: what a candidate must beat; quota: candidates allowed at this step.
        used: candidates drawn at this step; leader, leader_entry, leader_reward: the best of them.
        seen, seen_reward, seen_id: the best particle of the whole chain.
    """

    number: int
    state: State
    id: int
    reward: float
    best: float
    quota: int
    used: int = 0
    leader: State | None = None
    leader_entry: dict | None = None
    leader_reward: float = -math.inf
    seen: State | None = None
    seen_reward: float = -math.inf
    seen_id: int = -1

    def take(self, state: State, entry: dict, reward: float) -> None:
        """Note a candidate. The first one leads even when its score is -inf: a step must be able to end."""
        self.used += 1
        if self.leader is None or reward > self.leader_reward:
            self.leader, self.leader_entry, self.leader_reward = state, entry, reward
        if self.seen is None or reward > self.seen_reward:
            self.seen, self.seen_reward, self.seen_id = state, reward, entry["id"]

    def advance(self, quota: int) -> None:
        """Go to the best candidate of this step and start the next with ``quota``."""
        self.leader_entry["selected"] = True
        self.state, self.id, self.reward = self.leader, self.leader_entry["id"], self.leader_reward
        self.quota, self.used = quota, 0
        self.leader, self.leader_entry, self.leader_reward = None, None, -math.inf


@dataclass(frozen=True)
class RBF:
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
        threshold: "global" (the best ever accepted, as released) or "current" (the score of the chain's parent).
        min_gain: by how much a candidate must be better, against verifier noise.
        rollover_cap: most that a quota may hold, None for no limit.
        full_steps: divide by the N - 1 searched transitions instead of N (the release's N leaves the last transition
            two quotas).
        choice: what is finished: the best of the "last_step" (as released), or the "best_seen" of each chain.
    """

    budget: int = 500
    chains: int = 2
    initial: int = 25
    threshold: str = "global"
    min_gain: float = 0.0
    rollover_cap: int | None = None
    full_steps: bool = False
    choice: str = "last_step"
    name: str = "rbf"
    needs_schedule: ClassVar[bool] = True

    @property
    def population(self) -> int:
        """Particles per image that run at once, at most."""
        return self.chains * max(self.initial, LAST_ROUNDS)

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for settings that cannot work on ``process``."""
        self.check_settings()
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")
        if not process.stochastic:
            raise SearchError(f"eta is {process.eta}: all candidates of an ODE step are equal; use eta > 0 or an SDE")
        self.quota(process)

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        for field in ("budget", "chains", "initial"):
            if getattr(self, field) < 1:
                raise SearchError(f"{field} is {getattr(self, field)}: at least 1 is needed")
        for field, choices in (("threshold", THRESHOLDS), ("choice", CHOICES)):
            if getattr(self, field) not in choices:
                raise SearchError(f"{field} is {getattr(self, field)!r}: choose one of {', '.join(choices)}")
        if self.min_gain < 0:
            raise SearchError(f"min_gain is {self.min_gain}: it must be >= 0")
        if self.rollover_cap is not None and self.rollover_cap < 1:
            raise SearchError(f"rollover_cap is {self.rollover_cap}: at least 1, or empty for no limit")

    def searched(self, process: Process) -> int:
        """Number of transitions that draw noise, which must come first."""
        branching = [process.branches(i) for i in range(process.steps)]
        count = sum(branching)
        if not all(branching[:count]):
            raise SearchError("the moves that draw no noise must come last: check the SDE and the schedule")
        return count

    def tail(self, process: Process) -> int:
        """Denoiser calls per image after the search: the estimate at its end is known already."""
        return self.chains * max(process.steps - self.searched(process) - 1, 0)

    def quota(self, process: Process) -> int:
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

    def calls(self, process: Process) -> int:
        """Denoiser calls per image, at most."""
        return self.budget

    def looks(self, process: Process) -> int:
        """Decodes and verifications per image, at most."""
        return self.budget - self.tail(process) + self.chains

    def least_calls(self, process: Process) -> int:
        """The smallest budget: one chain, one initial particle, one candidate per share."""
        single = replace(self, chains=1, initial=1)
        shares = self.searched(process) + (0 if self.full_steps else 1)
        return 1 + single.tail(process) + shares

    def fitted(self, calls: int, process: Process) -> RBF | None:
        """The search with ``calls`` as its budget: a tenth of it at most on initial particles, one chain if need be.

        None where that does not pay for one candidate per step.
        """
        for chains in dict.fromkeys((self.chains, 1)):
            initial = max(1, min(self.initial, calls // (10 * chains)))
            found = replace(self, budget=calls, chains=chains, initial=initial)
            if calls >= 1 and found.affords(process):
                return found
        return None

    def affords(self, process: Process) -> bool:
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
            by_step: dict[int, list[_Chain]] = {}
            for chain in chains:
                by_step.setdefault(chain.state.step, []).append(chain)
            for step, here in sorted(by_step.items()):
                for chain, reward in self._candidates(session, here, rounds):
                    if step < last:
                        self._decide(chain, reward, q)
                self._remember(session, chains)
        return self._finish(session, chains)

    def _initial(self, session: Session, q: int) -> list[_Chain]:
        """Score ``initial`` fresh particles per chain and start each chain from its best."""
        process, width = session.process, self.initial * self.chains
        state, values, images = session.evaluate(process.start(width))
        ids = session.trace.new_ids(len(state))
        best = best_index(values.reward.view(-1, self.initial))
        best = best + torch.arange(len(best)) * self.initial
        entries = particle_entries(state, ids, [None] * len(ids), values.reward, selected=best.tolist())
        chains = []
        for number, row in enumerate(best.tolist()):
            reward = float(values.reward[row])
            parent = state.select(torch.tensor([row]))
            chain = _Chain(number % self.chains, parent, ids[row], reward, reward, q)
            chain.seen, chain.seen_reward, chain.seen_id = parent, reward, ids[row]
            chains.append(chain)
        self._remember(session, chains)
        session.record(StepRecord(0, process.steps, process.sigmas[0], entries), state, images)
        return chains

    def _candidates(self, session: Session, chains: list[_Chain], rounds: int):
        """Draw ``rounds`` candidates of each chain (all at one step), score them, yield (chain, reward) in order."""
        process = session.process
        parents = State.joined([chain.state for chain in chains])
        rows = torch.arange(len(chains)).repeat_interleave(rounds)
        slot = torch.cat([torch.arange(rounds) + c.number * SLOTS_PER_CHAIN + c.used for c in chains])
        state, _ = process.advance(parents.select(rows, slot=slot))
        state, values, images = session.evaluate(state)
        ids = session.trace.new_ids(len(state))
        parent_ids = [chains[row].id for row in rows.tolist()]
        entries = particle_entries(state, ids, parent_ids, values.reward, selected=[])
        session.record(StepRecord(state.step, process.steps, process.sigmas[state.step], entries), state, images)
        for row, reward in enumerate(values.reward.tolist()):
            chain = chains[row // rounds]
            chain.take(state.select(torch.tensor([row])), entries[row], reward)
            yield chain, reward

    def _decide(self, chain: _Chain, reward: float, q: int) -> None:
        """Accept at once what beats the chain's best; otherwise go on, or end the step when its quota is spent."""
        bar = chain.best if self.threshold == "global" else chain.reward
        if reward > bar + self.min_gain:
            chain.best = max(chain.best, reward)
            quota = chain.quota - chain.used + q
            chain.advance(quota if self.rollover_cap is None else min(quota, self.rollover_cap))
        elif chain.used >= chain.quota:
            chain.advance(q)

    def _chosen(self, chain: _Chain) -> tuple[State, float, int]:
        """(state, score, id) of the particle that is to be finished."""
        if self.choice == "best_seen" or chain.leader is None:
            return chain.seen, chain.seen_reward, chain.seen_id
        return chain.leader, chain.leader_reward, chain.leader_entry["id"]

    def _remember(self, session: Session, chains: list[_Chain]) -> None:
        states = State.joined([replace(chain.seen, step=0) for chain in chains])
        reward = torch.tensor([chain.seen_reward for chain in chains], dtype=torch.float64)
        session.remember(states, reward, [chain.seen_id for chain in chains])

    def _finish(self, session: Session, chains: list[_Chain]) -> SearchResult:
        """Run every chain's choice along the ODE to the end and score the finished images."""
        process = session.process
        chosen = [self._chosen(chain) for chain in chains]
        ending = self.searched(process)
        searched = [row for row, (state, _, _) in enumerate(chosen) if state.step == ending]
        # What was best before the search ended, or was reached when the budget ran out, is its own clean estimate.
        finished = {row: replace(state, x=state.x0, step=process.steps) for row, (state, _, _) in enumerate(chosen)}
        if searched:
            state, tail = State.joined([chosen[row][0] for row in searched]), process.without_noise()
            while state.step < process.steps:
                state, _ = tail.advance(tail.predict(state))
            finished |= {row: state.select(torch.tensor([place])) for place, row in enumerate(searched)}
        state = State.joined([replace(finished[row], x0=None) for row in range(len(chains))])
        state, values, images = session.evaluate(state)
        ids, reward = session.trace.new_ids(len(state)), values.reward
        session.remember(state, reward, ids)
        best = best_index(reward.view(process.groups, -1)) + torch.arange(process.groups) * self.chains
        entries = particle_entries(state, ids, [particle for _, _, particle in chosen], reward, selected=best.tolist())
        final = StepRecord(process.steps, process.steps, process.sigmas[-1], entries, phase="final")
        session.record(final, state, images)
        gap = torch.tensor([score for _, score, _ in chosen], dtype=torch.float64) - reward
        gap = gap[torch.isfinite(gap)]
        return session.result(state, reward, ids, best=best, optimism=float(gap.mean()) if len(gap) else 0.0)
