"""Run one particle of an earlier search again, alone, from its seed and its lineage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..protocols import Process, SearchError, SearchResult, State, Verifier
from ..run.session import Session
from ..run.trace import Lineage, StepRecord, Trace, particle_entries

# Methods whose particles do not come from one move after the other on the process's own schedule.
NOT_REPLAYABLE = ("zero_order_search", "path_search")
WINNER = -1


@dataclass(frozen=True)
class Replay:
    """The path of one particle: the same noise, move by move, without its competitors.

    Noise is a function of (seed, group, slot, step), so the path is found again exactly up to what a model does
    differently for one row than for many (float32 rounding).

    Attributes:
        lineage: slots, guidance and prompts of the path, see ``Trace.lineage``.
        encoder: a host's text encoder, for a path with rewritten prompts.
    """

    lineage: Lineage
    encoder: Any = None
    name: str = "replay"
    particles: int = 1
    needs_schedule: ClassVar[bool] = True

    @property
    def guidance(self) -> float:
        """Above 0 if some move followed a gradient, so that a verifier and a decoder are needed."""
        return max(self.lineage.gradient_scales, default=0.0)

    def check_settings(self) -> None:
        """A lineage comes from a trace; there is nothing to set."""

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError if this process cannot have made the path."""
        if self.lineage.group >= process.groups:
            raise SearchError(
                f"the particle belongs to image {self.lineage.group} of its batch and this batch has {process.groups}: "
                f"use the latent batch of the search"
            )
        if self.guidance > 0 and (verifier is None or not verifier.differentiable):
            raise SearchError("the particle was guided by a gradient: connect the verifier (and vae) of that search")
        if self.lineage.prompts and not getattr(process, "can_reprompt", False):
            raise SearchError("the particle went on under rewritten prompts: connect the clip of that search")
        moves = len(self.lineage.slots) - 1
        noisy = sum(process.branches(i) for i in range(process.steps)) if process.stochastic else 0
        if not noisy <= moves <= process.steps:
            raise SearchError(f"the particle made {moves} moves and this schedule has {process.steps}: use its steps")

    def run(self, session: Session) -> SearchResult:
        """Walk the path; the result holds the one particle."""
        process, path = session.process, self.lineage
        group = torch.tensor([path.group])
        slots = [*path.slots, *[0] * process.steps]
        scales = [*path.gradient_scales, *[0.0] * process.steps]
        prompts = [*path.prompts, *[None] * process.steps]
        slot = torch.tensor([slots[0]])
        state = process.begin(process.initial_noise(group, slot), group, slot)
        parents: list[int | None] = [None]
        for i in range(process.steps):
            gradient = None
            if path.prompts:
                state = process.reprompt(state, [prompts[i]])
            if scales[i] > 0:
                state, values, _ = session.evaluate(state, gradient=True)
                gradient = scales[i] * values.grad
            else:
                state = process.predict(state)
            ids = session.trace.new_ids(1)
            session.remember(state, None, ids)
            session.record(
                StepRecord(i, process.steps, process.sigmas[i], particle_entries(state, ids, parents)), state
            )
            state, _ = process.advance(state.select(torch.tensor([0]), slot=torch.tensor([slots[i + 1]])), gradient)
            parents = ids
        return self._result(session, state, parents)

    def _result(self, session: Session, state: State, parents: list[int | None]) -> SearchResult:
        process, images = session.process, None
        reward = torch.full((1,), -math.inf, dtype=torch.float64)
        if session.verifier is not None:
            state, values, images = session.evaluate(state)
            reward = values.reward
        ids = session.trace.new_ids(1)
        entries = particle_entries(state, ids, parents, reward)
        final = StepRecord(process.steps, process.steps, process.sigmas[-1], entries, phase="final")
        session.record(final, state, images)
        latents = process.finish(state)
        return SearchResult(
            latents=latents,
            finalists=latents,
            scores=torch.where(torch.isneginf(reward), torch.nan, reward),
            group=torch.zeros(1, dtype=torch.int64),
            particles=ids,
            status="complete",
            trace=session.trace,
            ledger=session.ledger,
            warnings=session.warnings,
        )


def replay_of(trace: Trace, particle: int = WINNER, group: int = 0) -> Replay:
    """The replay of a particle of ``trace``.

    Args:
        trace: of the search.
        particle: its id, or ``WINNER`` for the winner of image ``group``.
        group: image of the batch, counted from 0; only read for ``WINNER``.

    Raises:
        SearchError: no such particle or image, or a method whose paths cannot be replayed.
    """
    method = trace.meta.get("method")
    if method in NOT_REPLAYABLE:
        raise SearchError(
            f"the trace is of {method!r}: its samples start from searched noises and cannot be replayed yet"
        )
    if not trace.records:
        raise SearchError("the trace is empty: run the search first")
    if particle == WINNER:
        last = [entry for entry in trace.records[-1].particles if entry["group"] == group]
        if not last:
            count = 1 + max(entry["group"] for entry in trace.records[-1].particles)
            raise SearchError(f"image is {group}: the search made {count}, counted from 0")
        particle = max(last, key=lambda e: (e["selected"], -math.inf if e["score"] is None else e["score"]))["id"]
    try:
        return Replay(trace.lineage(particle))
    except KeyError as error:
        known = [entry["id"] for entry in trace.records[-1].particles]
        raise SearchError(
            f"particle is {particle}: the trace has no such particle; finished ones are {known[0]} to {known[-1]}, "
            f"{WINNER} is the winner"
        ) from error


def check_same_run(trace: Trace, *, seed: int, sigmas: list[float], eta: float) -> None:
    """Raise SearchError where the settings of a replay are not those of the search: the path would be another one."""
    if seed != trace.seed:
        raise SearchError(f"seed is {seed}: the search had {trace.seed}")
    wanted = trace.meta.get("sigmas")
    if wanted is not None:
        close = len(wanted) == len(sigmas) and all(
            abs(a - b) <= 1e-5 * max(abs(a), 1e-3) for a, b in zip(wanted, sigmas, strict=True)
        )
        if not close:
            raise SearchError(
                f"the schedule has {len(sigmas) - 1} steps from sigma {sigmas[0]:.4g}, the search had "
                f"{len(wanted) - 1} from {wanted[0]:.4g} (or others in between): use its steps, scheduler and denoise"
            )
    known = trace.meta.get("eta")
    if known is not None and known != (eta if isinstance(eta, int | float) else repr(eta)):
        raise SearchError(f"eta is {eta}: the search had {known}")
