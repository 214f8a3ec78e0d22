"""Run one particle of an earlier search again, alone, from its seed and its lineage."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..method import SearchMethod
from ..methods.registry import METHODS
from ..movers import PAUSES, STEPS
from ..processes.sde import SDE
from ..processes.stock import AtLevels, Noise, number_of
from ..protocols import Outline, Process, SearchError, SearchResult, Verifier
from ..run.session import Session
from ..run.trace import Lineage, Trace
from ..state import State

WINNER = -1


@dataclass(frozen=True)
class Replay(SearchMethod):
    """The path of one particle: the same noise, move by move, without its competitors.

    Noise is a function of (seed, group, slot, step), so the path is found again exactly up to what a model does
    differently for one row than for many (float32 rounding).

    Attributes:
        lineage: slots, guidance and prompts of the path, see ``Trace.lineage``.
        runs: how the host's sampler was run (``Trace.meta``), None where the kernel moved everything.
    """

    name: ClassVar[str] = "replay"
    title: ClassVar[str] = "Re-rendered particle"
    width: ClassVar[str] = ""
    fixed_schedule: ClassVar[bool] = True
    from_noise: ClassVar[bool] = True

    lineage: Lineage
    runs: dict[str, Any] | None = None

    @property
    def decides(self) -> str:
        """A run of a sampler is stopped where that of the search was."""
        return STEPS if self.runs is None else PAUSES

    def decisions(self, process: Outline) -> list[int]:
        """See ``SearchMethod.decisions``."""
        return [] if self.runs is None else list(self.runs.get("stops", ()))

    @property
    def guided(self) -> bool:
        """Whether some move followed a gradient, so that a verifier and a decoder are needed."""
        return any(scale > 0 for scale in self.lineage.gradient_scales)

    @property
    def needs(self) -> frozenset[str]:
        """What the particle's moves used."""
        needs = {"can_differentiate"} if self.guided else set()
        if self.runs is not None and self.runs.get("joints"):
            needs.add("can_branch")
        return frozenset(needs | ({"can_reprompt"} if self.lineage.prompts else set()))

    @property
    def needs_verifier(self) -> bool:
        """Never to choose; ``check`` asks for the one whose gradient is followed."""
        return False

    def denoiser_calls(self, process: Outline) -> int:
        """One per move."""
        return process.steps

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError if this process cannot have made the path."""
        if self.lineage.group >= process.groups:
            raise SearchError(
                f"the particle belongs to image {self.lineage.group} of its batch and this batch has {process.groups}: "
                f"use the latent batch of the search"
            )
        if self.guided and verifier is None:
            raise SearchError("the particle was guided by a gradient: connect the verifier (and vae) of that search")
        moves = len(self.lineage.slots) - 1
        noisy = sum(process.branches(i) for i in range(process.steps))
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
        for i in range(process.steps):
            gradient = None
            if path.prompts:
                state = process.reprompt(state, [prompts[i]])
            if scales[i] > 0:
                state, values, _ = session.evaluate(state, gradient=True)
                gradient = None if values.gradient is None else scales[i] * values.gradient
            else:
                state = process.predict(state)
            state = session.step(state)
            state, _ = process.advance(state.select(torch.tensor([0]), slot=torch.tensor([slots[i + 1]])), gradient)
        return self._result(session, state)

    def _result(self, session: Session, state: State) -> SearchResult:
        """The one particle, scored where there is a verifier; the other images of the batch are not made."""
        values, images = None, None
        score = torch.full((1,), -math.inf, dtype=torch.float64)
        if session.verifier is not None:
            state, values, images = session.evaluate(state)
            score = values.score
        process = session.process
        at = (process.steps, process.steps)
        state = session.step(state, values, images, selected=[0], at=at, phase="final")
        session.trace.meta["winners"] = state.node.tolist()
        latents = process.finish(state)
        return SearchResult(
            latents=latents,
            finalists=latents,
            scores=torch.where(torch.isneginf(score), torch.nan, score),
            group=torch.zeros(1, dtype=torch.int64),
            particles=state.node.tolist(),
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
    method = METHODS.get(trace.meta.get("method", ""))
    if method is not None and not method.method.replayable:
        raise SearchError(
            f"the trace is of {method.title}: its samples start from searched noises and cannot be rendered again yet"
        )
    if trace.meta.get("method") == "refine_by_edit":
        raise SearchError(
            "the trace is of Refine by Edit: its images were edited one after the other, and cannot be rendered again"
        )
    if trace.meta.get("rounds"):
        raise SearchError(
            f"the trace is of a search with rounds {trace.meta['rounds']}: its moves drew turned noises and cannot be "
            f"rendered again yet"
        )
    if not trace.records:
        raise SearchError("the trace is empty: run the search first")
    if particle == WINNER:
        winners = {entry["group"]: entry["id"] for entry in trace.winners()}
        if group not in winners:
            raise SearchError(f"image is {group}: the search made {len(winners)}, counted from 0")
        particle = winners[group]
    try:
        return Replay(trace.lineage(particle), trace.meta.get("runs"))
    except KeyError as error:
        known = [entry["id"] for entry in trace.records[-1].particles]
        raise SearchError(
            f"particle is {particle}: the trace has no such particle; finished ones are {known[0]} to {known[-1]}, "
            f"{WINNER} is the winner"
        ) from error


def check_same_run(trace: Trace, *, seed: int, sigmas: Sequence[float], eta: Any) -> None:
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
    if known is not None and known != number_of(eta):
        raise SearchError(f"eta is {number_of(eta)}: the search had {known}")


def moves_of(trace: Trace) -> float | Noise | None:
    """Noise of the moves of a search, from its trace; None for a sampler's own.

    Raises:
        SearchError: a rule that this version does not know.
    """
    known = trace.meta.get("eta")
    if not isinstance(known, str):
        return None if known is None else float(known)
    try:
        call = ast.parse(known, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            rule = {"SDE": SDE, "AtLevels": AtLevels}[call.func.id]
            return rule(**{str(part.arg): ast.literal_eval(part.value) for part in call.keywords})
    except (SyntaxError, ValueError, TypeError, KeyError):
        pass
    raise SearchError(f"eta of the search is {known!r}: this version does not know that rule")
