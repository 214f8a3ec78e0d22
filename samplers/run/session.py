"""The books of one run: a method moves and chooses, the session records, remembers and hands out.

A method talks to three calls. ``evaluate`` predicts, previews and scores a population; ``step`` writes it down, and
gives back the same population with its place in the family tree; ``finish`` scores the finished images, picks the
winners and makes the result. Who descends from whom, what the best so far is should the run be cut short, and by how
much selections were misled all follow from that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..diversity import diversity_of
from ..ledger import Ledger
from ..processes.streams import GivenMoves
from ..protocols import Process, Rewriter, SearchError, SearchResult, Values, Verifier
from ..state import UNRECORDED, State
from .family import Family
from .handing import HandingOut
from .keeping import Kept
from .trace import ParticleEntry, RewriteEntry, StepRecord, Trace, finite

if TYPE_CHECKING:
    from ..after.origin import Walked
    from ..rewriting import ActiveRewriting
    from .finished import FinishedCandidates
    from .journal import Journal


class Session(HandingOut):
    """What a method works with: the process, the judge, the books.

    Attributes:
        process, verifier, prompts: what is searched, by whom judged, for which prompt per group (``[G]`` strings).
        ledger, trace: the books.
        held_out: a verifier that is reported and never steers, or None.
        output: rule for the winners, one of ``plan.OUTPUTS``.
        rewriter: asked for prompts, where the search has one.
        rewriting: re-prompts particles after their moves, or None.
        kept: what could be handed out now. journal: written as the run goes, or None.
        finished: candidates of an earlier run of the same that was cut short, or None.
        walked: the way to the particle that the search goes on from, or None.
        warnings: sentences for the user, each once.
    """

    def __init__(
        self,
        process: Process,
        verifier: Verifier | None,
        prompts: Sequence[str],
        ledger: Ledger | None = None,
        trace: Trace | None = None,
        held_out: Verifier | None = None,
        output: str = "score",
    ):
        if len(prompts) != process.groups:
            raise SearchError(f"{len(prompts)} prompts for {process.groups} images: give one prompt per image")
        super().__init__(process, verifier, prompts, ledger or Ledger(), trace or Trace(), held_out, output)
        self.rewriting: ActiveRewriting | None = None
        self.walked: Walked | None = None
        self.journal: Journal | None = None
        self.finished: FinishedCandidates | None = None
        self._rewrites: list[RewriteEntry] = []  # of the step that is recorded next
        self._family = Family()
        process.ledger = self.ledger

    # ---------------------------------------------------------------------------------------------- moving

    def advance(
        self, state: State, gradient: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """One move of a predicted population, and new prompts for where it leads where the search rewrites.

        See ``Process.advance``; ``noise`` ``[n, ...]`` is what the move draws, None for the particles' own.
        """
        process = (
            self.process if noise is None else self.process.variant(streams=GivenMoves(self.process.streams, noise))
        )
        moved, log_ratio = process.advance(state, gradient)
        return (moved if self.rewriting is None else self.rewriting.after(state, moved)), log_ratio

    def move(self, state: State, noise: Tensor | None = None) -> State:
        """``advance`` without guidance."""
        return self.advance(state, noise=noise)[0]

    # ---------------------------------------------------------------------------------------------- writing down

    def step(
        self,
        state: State,
        values: Values | None = None,
        images: Tensor | None = None,
        *,
        selected: Tensor | Sequence[int] | None = None,
        used: bool | Tensor = True,
        at: tuple[int, int] | None = None,
        sigma: float | None = None,
        log_weight: Tensor | None = None,
        gradient_scale: Tensor | None = None,
        ess: Tensor | None = None,
        resampled: Tensor | None = None,
        inverse_temperature: Tensor | None = None,
        strength: Tensor | None = None,
        score: Tensor | None = None,
        remember: State | None = None,
        keep: bool = True,
        known: bool = False,
        path: bool = False,
        phase: str = "search",
    ) -> Any:
        """Write a population down: a record of the trace, told to the listener; remembered as the best so far.

        Args:
            state: ``n`` particles.
            values: their scores, None where nobody looked.
            images: their previews, for the listener.
            selected: rows that live on; None for all. Scores that they were selected by count for the selection bias.
            used: whether scores decided that, for all or bool ``[n]``; False where selection was by something else.
            at: (step, of how many); default: where ``state`` is on the process's schedule.
            sigma: noise level; default: of ``state``.
            strength: float64 ``[n]`` in a tournament, NaN of those that did not take part.
            log_weight, gradient_scale: float64 ``[n]`` and ``[G]``. ess, resampled, inverse_temperature: ``[G]``.
            score: float64 ``[n]`` to choose the best so far by (barred particles at -inf); default: ``values.score``,
                or the latest scores of the ancestors where nobody looked.
            remember: what would be handed out, default ``state``; it must have ``x0`` and the same rows.
            keep: whether it may be the best so far; False where better is kept already.
            known: the particles stand in the trace already and keep their ids.
            path: known particles keep their parents, too, so that the way to them can be walked again.
            phase: "search" or "final".

        Returns:
            ``state`` with ``node`` at the new entries.
        """
        if state.x0 is not None and phase != "final":
            self.check_sound(state)
        number, of = at or (state.step, self.process.steps)
        entries = self._entries(state, values, log_weight, gradient_scale, known, path)
        for entry, value in zip(entries, [] if strength is None else finite(strength), strict=False):
            if value is not None:
                entry["strength"] = value
        ids = [entry["id"] for entry in entries]
        chosen = range(len(ids)) if selected is None else torch.as_tensor(selected).tolist()
        for row in set(chosen):
            entries[row]["selected"] = True
        self._family.note(entries, values is not None, [] if selected is None else chosen, used)
        state = replace(state, node=torch.tensor(ids, dtype=torch.int64))
        kept = state if remember is None else replace(remember, node=state.node)
        if keep and kept.x0 is not None:
            ranking = score if score is not None or values is None else values.score
            self.remember(kept, None if values is None else ranking, hint=ranking)
        offset = 0 if self.walked is None else self.walked.steps
        record = StepRecord(
            number + offset,
            of + offset,
            float(self.process.sigmas[state.step] if sigma is None else sigma),
            entries,
            ess=_listed(ess),
            resampled=_listed(resampled),
            inverse_temperature=_listed(inverse_temperature),
            nfe=self.ledger.nfe,
            seconds=round(self.ledger.total_seconds, 4),
            phase=phase,
            rewrites=self._rewrites,
        )
        self._rewrites = []
        if self.journal is not None:
            self.journal.add(record, self.best_so_far)
        self.trace.add(record, state, images)
        return state

    def select(self, entries: Iterable[int]) -> None:
        """Mark particles (ids) as selected after their step was written down."""
        wanted = set(entries)
        if self.journal is not None:
            self.journal.select(sorted(wanted))
        for record in reversed(self.trace.records):
            for entry in record.particles:
                if entry["id"] in wanted:
                    entry["selected"] = True
                    wanted.discard(entry["id"])
                    self._family.use(entry["id"], entry["score"])
            if not wanted:
                return

    def remember(self, state: State, score: Tensor | None, hint: Tensor | None = None) -> None:
        """Note a population with ``x0`` as the best so far, in case the run is cut short."""
        score, hint = (None if value is None else value.reshape(-1) for value in (score, hint))
        self.kept.remember(Kept(state, score, self._family.latest(state.node) if hint is None else hint))

    def rewrote(self, entries: Sequence[RewriteEntry]) -> None:
        """Questions to the rewriter and its answers, for the step that is written down next."""
        self._rewrites = [*self._rewrites, *entries]

    def uses(self, rewriter: Rewriter) -> None:
        """Name the rewriter in the trace."""
        self.trace.meta["rewriter"] = rewriter.name

    # ---------------------------------------------------------------------------------------------- handing out

    def finish(
        self,
        state: State,
        values: Values | None = None,
        images: Tensor | None = None,
        *,
        score: Tensor | None = None,
        log_weight: Tensor | None = None,
        best: Tensor | None = None,
        selection_bias: float | None = None,
        log_z: Tensor | None = None,
        at: tuple[int, int] | None = None,
        **record,
    ) -> SearchResult:
        """The finished population: scored (unless it is already), written down, and the winners handed out.

        Args:
            state: all moves made.
            values, images: where it was scored already.
            score: float64 ``[n]`` that decides instead of ``values.score`` (barred particles at -inf).
            log_weight: float64 ``[n]`` of the finalists, where the method weighs them.
            best: int64 ``[G]`` rows of the winners; default: by the rule ``output``.
            selection_bias: see ``SearchResult``; default: from the selections that were written down.
            log_z: see ``SearchResult``. at, record: as for ``step``.
        """
        if values is None and self.verifier is not None:
            state, values, images = self.evaluate(state)
        self._note_diversity(state, images)
        steps = self.process.steps
        unknown = torch.full((len(state),), -math.inf, dtype=torch.float64)
        score = (unknown if values is None else values.score) if score is None else score.reshape(-1)
        best = self.winners(state, score, log_weight) if best is None else best
        strength = None
        if self.tournament is not None and values is not None:
            if state.x0 is not None:
                self.remember(state, score)  # in case it is cut short
            best, strength = self.compared(state, score, images)
        state = self.step(
            state,
            values,
            images,
            selected=best,
            used=False,
            at=at or (steps, steps),
            sigma=self.process.sigmas[-1],
            log_weight=log_weight,
            strength=strength,
            phase="final",
            **record,
        )
        if state.x0 is not None:
            self.remember(state, score)
        bias = self._family.selection_bias(state.node, score) if selection_bias is None else selection_bias
        instead, lost = self._instead(state, values)
        status = "failed" if lost else "complete"
        return self.result(state, score, best=best, status=status, instead=instead, selection_bias=bias, log_z=log_z)

    # ---------------------------------------------------------------------------------------------- inside

    def _note_diversity(self, state: State, images: Tensor | None) -> None:
        """Into the trace: how different the finished pictures are, for every image that has several."""
        if images is None or images.ndim not in (4, 5) or images.shape[-1] != 3 or len(images) != len(state):
            return
        found = [diversity_of(images[(state.group == g).to(images.device)]) for g in range(self.process.groups)]
        if any(one is not None for one in found):
            self.trace.meta["diversity"] = found

    def _entries(
        self,
        state: State,
        values: Values | None,
        log_weight: Tensor | None,
        scale: Tensor | None,
        known: bool,
        path: bool,
    ) -> list[ParticleEntry]:
        """Entries of a population, rows in order, none selected yet."""
        n, group = len(state), state.group.tolist()
        parents: list[int | None] = [None if node == UNRECORDED else node for node in state.node.tolist()]
        ids = state.node.tolist() if known else self.trace.new_ids(n)
        before = self.trace.table() if path else {}
        none: list[float | None] = [None] * n
        score = none if values is None else finite(values.score.reshape(-1))
        weight = none if log_weight is None else finite(log_weight.reshape(-1))
        scales = [0.0] * n if scale is None else [float(scale[g]) for g in group]
        members = {} if values is None else {name: finite(part) for name, part in values.members.items()}
        prompts = self.process.prompts_of(state)
        entries = []
        for row, slot in enumerate(state.slot.tolist()):
            if path:
                kept = before[ids[row]]
                parents[row], slot, scales[row] = kept["parent"], kept["slot"], kept["gradient_scale"]
            elif self.walked is not None:
                slot, scales[row] = self.walked.made_by(parents[row], group[row], slot, scales[row])
            entry = ParticleEntry(
                id=ids[row],
                parent=None if known and not path else parents[row],
                group=group[row],
                slot=slot,
                score=score[row],
                log_weight=weight[row],
                gradient_scale=scales[row],
                selected=False,
            )
            if members:
                entry["members"] = {name: part[row] for name, part in members.items()}
            if prompts is not None:
                entry["prompt"] = prompts[row]
            entries.append(entry)
        return entries


def _listed(values: Tensor | None) -> list:
    return [] if values is None else values.tolist()
