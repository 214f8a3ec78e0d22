"""Latent beam search with look-ahead: the best beams over all children, judged by where they lead."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from .. import few_steps
from ..checks import at_least, window
from ..method import SearchMethod, calls_of
from ..processes.sde import LinearClock, ratio_of, sigma_of
from ..protocols import Outline, Process, SearchResult
from ..run.session import Session
from ..smc.weights import best_rows
from ..state import State

BLIND = 3
"""Last scale whose previews say little."""
TO_COME = 0.8
"""Share of tokens that is still to be drawn after a cheap scale."""


@dataclass(frozen=True)
class BeamSearch(SearchMethod):
    """Diffusion latent beam search (Oshima et al. 2025, arXiv 2501.19252).

        for each move that draws noise:
            K children of each of B beams
            from each child, L deterministic jumps over the rest of the time  ->  clean estimate  ->  score
            keep the best B of the B K children of an image

    The first jump needs the denoiser call that the child's own next move needs, so an image with T steps costs
    ``B + (T - 1) B K L`` calls.

    Attributes:
        beams: B >= 1. children: K >= 1. lookahead: L >= 1; 1 scores the child's own clean estimate.
        start, end: children are drawn in this window of the steps, outside it every beam has one.
        auto: without a window, below 12 steps, children are drawn at ``few_steps.branching``, and on next-scale models
            where scales are cheap and previews say something, see ``cheap_scales``.
    """

    name: ClassVar[str] = "beam_search"
    title: ClassVar[str] = "Beam Search"
    width: ClassVar[str] = "beams"

    beams: int = 4
    children: int = 2
    lookahead: int = 1
    start: float = 0.0
    end: float = 1.0
    auto: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """Children must differ; a longer look-ahead jumps over noise levels."""
        needs = {"can_branch"} if self.children > 1 else set()
        return frozenset(needs | ({"can_renoise"} if self.lookahead > 1 else set()))

    @property
    def population(self) -> int:
        """Particles per image that run at once."""
        return self.beams * self.children

    @property
    def beginners(self) -> int:
        """The beams."""
        return self.beams

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, beams=self.beams, children=self.children, lookahead=self.lookahead)
        window(self.start, self.end)

    def children_at(self, process: Outline, step: int) -> int:
        """Children of every beam at a step."""
        return self.children if step in self.decisions(process) and process.branches(step) else 1

    def decisions(self, process: Outline) -> list[int]:
        """See ``SearchMethod.decisions``: steps at which children are drawn, where the move draws noise."""
        steps = process.steps
        if self.auto and process.capabilities.has_code_maps and (self.start, self.end) == (0.0, 1.0):
            return cheap_scales(process)
        if self.auto and steps < few_steps.MANY and (self.start, self.end) == (0.0, 1.0):
            return few_steps.branching(steps)
        return [step for step in range(steps) if self.start <= step / steps <= self.end]

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image; a schedule that stops above 0 costs one more, to see the image."""
        widths = [self.children_at(process, i) for i in range(process.steps - 1)]
        ahead = [k * (self.lookahead if k > 1 else 1) for k in widths]
        return self.beams * calls_of(process, [*widths, 1], seen=[*ahead, 1], first=1)

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        widths = [self.children_at(process, i) for i in range(process.steps - 1)]
        return self.beams * (1 + sum(k for k in widths if k > 1))

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring, for all groups at once."""
        process, b = session.process, self.beams
        state = session.step(process.predict(process.start(b)))
        for i in range(process.steps - 1):
            k = self.children_at(process, i)
            state = process.predict(session.move(state.branched(k, slots=b)))
            if k == 1:
                state = session.step(state)
                continue
            ahead, values, images = session.evaluate(self._ahead(process, state))
            kept = best_rows(values.score.view(process.groups, b * k), b)
            # Cut short here, the images that got these scores are the best there is.
            state = session.step(state, values, images, selected=kept, remember=ahead).select(kept)
        return session.finish(session.move(state))

    def _ahead(self, process: Process, state: State) -> State:
        """The states with the clean estimates that ``lookahead`` deterministic jumps arrive at."""
        if self.lookahead == 1 or process.sigmas[state.step] == 0.0:
            return state
        interpolant, clock = process.interpolant, LinearClock()
        time = clock.at(ratio_of(interpolant, process.sigmas[state.step]))
        times = [time * j / self.lookahead for j in range(self.lookahead, -1, -1)]
        road = process.variant(eta=0.0, sigmas=[sigma_of(interpolant, clock.ratio(t)) for t in times])
        ahead = replace(state, step=0)
        for _ in range(self.lookahead - 1):
            ahead, _ = road.advance(ahead)
            ahead = road.predict(ahead)
        return replace(state, x0=ahead.x0)


def cheap_scales(process: Outline) -> list[int]:
    """Scales whose children cost little and can be told apart: from the fourth on, while most tokens are still to come.

    With 13 scales these are 4 to 8: B = 2 and K = 4 then cost 2.6 images at most, as TTS-VAR at N = 2 (Wan et al. 2025,
    arXiv 2510.16751, search scales of a next-scale model by beams; their own schedule is not published).
    """
    drawn = [step for step in range(process.steps - 1) if process.sigmas[step + 1] >= TO_COME]
    return [step for step in drawn if step > BLIND] or drawn[-1:]
