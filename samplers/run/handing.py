"""What a run hands out: the winners of the finished population, or the best so far where it was cut short."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..ledger import Ledger
from ..processes.previews import in_full
from ..protocols import Process, ScoreContext, SearchResult, Values, Verifier
from ..smc.weights import best_index, gumbel_choice
from ..state import State
from ..tournament import Tournament, asked_of
from .judging import Judging
from .keeping import Finalists, Keeper, Kept, at_the_bottom, sound_rows
from .trace import Trace


class HandingOut(Judging):
    """A run's results, from what was judged and what was kept.

    Attributes:
        as ``Judging``; trace: the record, whose winners are named here.
        output: rule for the winners, one of ``plan.OUTPUTS``. tournament: compares the best of them, or None.
        kept: what could be handed out now.
    """

    def __init__(
        self,
        process: Process,
        verifier: Verifier | None,
        prompts: Sequence[str],
        ledger: Ledger,
        trace: Trace,
        held_out: Verifier | None = None,
        output: str = "score",
    ):
        super().__init__(process, verifier, prompts, ledger, held_out)
        self.trace, self.output = trace, output
        self.kept = Keeper(process.groups)
        self.tournament: Tournament | None = None

    def anything_sound(self) -> bool:
        """See ``Judging``."""
        return any(self.kept.before(g) is not None for g in range(self.process.groups))

    def _instead(self, state: State, values: Values | None) -> tuple[dict[int, Kept], list[int]]:
        """(earlier populations by image, images) for images of which all finished latents or pictures are broken."""
        sound = sound_rows(state.x0 if state.x0 is not None else state.x)
        if values is not None and values.broken is not None:
            sound &= ~values.broken
        lost = [g for g in range(self.process.groups) if not bool(sound[state.group == g].any())]
        found = {g: kept for g in lost if (kept := self.kept.before(g)) is not None}
        for g in lost:
            said = "the best of an earlier step is handed out" if g in found else "nothing is there from before"
            self.warn(f"image {g} came out as NaN in the end: {said}")
        return found, lost

    def winners(self, state: State, score: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """Rows int64 ``[G]`` of the winners by the rule ``output``; particles with a score of -inf never win."""
        if self.output == "score" or log_weight is None:
            return self._highest(score, state.group)
        log_weight = log_weight.reshape(-1).masked_fill(torch.isneginf(score), -math.inf)
        if self.output == "weight":
            return self._highest(log_weight, state.group)
        rows, streams = [], self.process.streams
        for g in range(self.process.groups):
            mine = torch.nonzero(state.group == g).flatten()
            uniforms = streams.uniform(len(mine), group=g, step=self.process.steps, purpose="output")
            rows.append(mine[gumbel_choice(log_weight[mine][None], uniforms[None])[0]])
        return torch.stack(rows)

    def compared(self, state: State, score: Tensor, images: Tensor | None) -> tuple[Tensor, Tensor]:
        """The winners of the tournament, rows int64 ``[G]``, and strengths float64 ``[n]`` (NaN: did not take part).

        Pictures that are not at hand are decoded, of the finalists alone.
        """
        tournament = self.tournament
        assert tournament is not None
        seen = state if state.x0 is not None or images is not None else self.process.predict(state)

        def pictures(rows: Tensor) -> Tensor:
            if images is not None:
                return images[rows.to(images.device)]
            with in_full(self.process):
                return self.process.preview(seen.select(rows))

        def context(rows: Tensor) -> ScoreContext:
            return replace(self.context(state), group=state.group[rows])

        prompts = [self.prompts[g] for g in state.group.tolist()]
        ask = asked_of(tournament.judge, pictures, prompts, context)
        strength, best = torch.full((len(state),), math.nan, dtype=torch.float64), []
        for g in range(self.process.groups):
            mine = torch.nonzero(state.group == g).flatten()

            def among(first: Tensor, second: Tensor, mine: Tensor = mine) -> Tensor:
                return ask(mine[first], mine[second])

            with torch.no_grad(), self.ledger.verify(tournament.comparisons(len(mine))):
                choice = tournament.choose(score[mine], among)
            best.append(mine[choice.order[0]])
            strength[mine] = choice.strength
            if choice.tied:
                self.warn("the tournament found no difference between the best two: the higher score won")
        return torch.stack(best), strength

    def result(
        self,
        state: State,
        score: Tensor,
        *,
        best: Tensor,
        status: str = "complete",
        instead: Mapping[int, Kept] | None = None,
        **fields,
    ) -> SearchResult:
        """Result of a population: finalists sorted by group, the winner ``best`` ``[G]`` first, then by score.

        ``instead``: earlier populations that stand in for images of ``state``.
        """
        found = self._finalists(state, score.reshape(-1), best, clean=status != "complete")
        if instead:
            found = found.with_others({g: self._best_of(kept) for g, kept in instead.items()})
        found = found.sorted()
        first = torch.tensor([found.group.tolist().index(g) for g in range(self.process.groups)])
        self.trace.meta["winners"] = found.node[first].tolist()
        return SearchResult(
            latents=found.latents[first.to(found.latents.device)],
            finalists=found.latents,
            scores=torch.where(torch.isneginf(found.score), torch.nan, found.score),
            group=found.group,
            particles=found.node.tolist(),
            status=status,
            trace=self.trace,
            ledger=self.ledger,
            warnings=self.warnings,
            **fields,
        )

    def cut_short(self, status: str, may_score: bool) -> SearchResult | None:
        """The best so far as a result, or None if nothing without NaN was predicted yet."""
        latest, images = self.kept.latest, range(self.process.groups)
        chosen = {g: kept for g in images if (kept := self._last_good(g)) is not None}
        if latest is None or not chosen:
            return None
        for kept in {id(kept): kept for kept in chosen.values()}.values():
            seen_quickly = self.process.cheap_looks is not None and not self.context(kept.state).final
            if (kept.score is None or seen_quickly) and may_score and self.verifier is not None:
                self.ledger.max_seconds = None
                with in_full(self.process):
                    kept.score = self.rate(kept.state, self.process.preview(kept.state)).score
        found = self._best_of(latest)
        instead = {g: kept for g, kept in chosen.items() if kept is not latest}
        return self.result(
            latest.state, found.score, best=torch.nonzero(found.won).flatten(), status=status, instead=instead
        )

    def best_so_far(self) -> Finalists | None:
        """The best particle of every image as far as the search is, scored ones first; None before there is one."""
        chosen = {g: kept for g in range(self.process.groups) if (kept := self._last_good(g)) is not None}
        if len(chosen) < self.process.groups:
            return None
        found = self._best_of(chosen[0]).with_others({g: self._best_of(kept) for g, kept in chosen.items() if g})
        return found.rows(found.won).sorted()

    def _last_good(self, group: int) -> Kept | None:
        """The population to hand out of an image: the latest, or the last scored one where that was all broken."""
        kept = self.kept.of(group)
        if kept is None or kept.score is None or (self.verifier is not None and self.verifier.rejects):
            return kept
        return kept if bool(torch.isfinite(kept.score[kept.state.group == group]).any()) else self.kept.before(group)

    def _best_of(self, kept: Kept) -> Finalists:
        """A population as finalists; its best by score, or by hint where there are no scores."""
        ranking = kept.hint if kept.score is None else kept.score
        ranking = at_the_bottom(ranking, ~kept.sound())
        score = torch.full_like(ranking, -math.inf) if kept.score is None else kept.score
        return self._finalists(kept.state, score, self._highest(ranking, kept.state.group), clean=True)

    def _finalists(self, state: State, score: Tensor, best: Tensor, clean: bool) -> Finalists:
        """A population as finalists; ``clean``: its clean estimates even where it ends above sigma 0."""
        latents = state.x0 if clean and state.x0 is not None else self.process.finish(state)
        won = torch.zeros(len(state), dtype=torch.bool)
        won[best] = True
        return Finalists(latents, state.group, state.node, score, won)

    def _highest(self, values: Tensor, group: Tensor) -> Tensor:
        """Row of the highest value of every group that has any, int64 ``[G]``, the first on ties."""
        rows = [torch.nonzero(group == g).flatten() for g in range(self.process.groups)]
        return torch.stack([mine[best_index(values[mine][None])[0]] for mine in rows if len(mine)])
