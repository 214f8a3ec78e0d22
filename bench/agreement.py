"""How well the verifier's scores of unfinished next-scale images foretell those of the finished ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..models.infinity.process import ScalewiseProcess
from ..models.infinity.schedules import ScaleSchedule
from ..samplers.protocols import State, Verifier
from ..shapes_world.captions import Prompt


class Agreement:
    """How well one set of scores foretells another, over prompts."""

    def __init__(self) -> None:
        self.same_best: list[float] = []
        self.correlations: list[float] = []

    def add(self, scores: Tensor, final: Tensor) -> None:
        """One prompt's scores ``[n]`` of the same particles."""
        self.same_best.append(float(scores.argmax() == final.argmax()))
        if scores.std() > 0 and final.std() > 0:
            self.correlations.append(float(spearmanr(scores, final).statistic))

    def figures(self) -> dict[str, float]:
        """Share of prompts with the same best particle, and the mean rank correlation (Spearman)."""
        return {
            "best_is_the_same": round(sum(self.same_best) / len(self.same_best), 4),
            "rank_correlation": round(sum(self.correlations) / max(len(self.correlations), 1), 4),
        }


def copies(process: ScalewiseProcess, scale: int, count: int) -> State:
    """``count`` finished copies of one particle, copied after ``scale``; each draws the later scales by itself."""
    state = process.start(1)
    for step in range(process.steps):
        state, _ = process.advance(state)
        if step == scale:
            state = state.select(torch.zeros(count, dtype=torch.long), slot=torch.arange(count))
    return process.predict(state)


@torch.no_grad()
def agreements(
    prompts: Sequence[Prompt],
    process_of: Callable[[Prompt, int], ScalewiseProcess],
    schedule: ScaleSchedule,
    judge: Verifier,
    sides: Sequence[int],
    particles: int = 8,
) -> tuple[list[dict], list[dict]]:
    """Scores between the scales against the final ones, and scores of small previews against full ones.

    Args:
        prompts: one population each.
        process_of: the process of a prompt, given its number among ``prompts``.
        schedule: of all of them.
        judge: the verifier.
        sides: codes along one side that previews are decoded at, besides all of them.
        particles: of each population.

    Returns:
        ``consistency``, a row per scale: its side, how often the best particle after it is the best in the end (chance
        is 1 / particles), the rank correlation with the final scores (the paper's fig. 5b), and how far the final
        scores of copies made there spread, as a share of the spread of particles that have nothing in common;
        ``previews``, a row per size and scale: the same figures against the scores of full-size previews there.
    """
    last = schedule.grids[-1][0]
    ends = {scale: Agreement() for scale in range(len(schedule))}
    sizes = {(side, scale): Agreement() for side in sides for scale in range(len(schedule) - 1)}
    spread = torch.zeros(len(schedule))  # summed variance of the final scores of copies made after each scale
    strangers = torch.zeros(())  # and of particles that have nothing in common
    for index, prompt in enumerate(prompts):
        process = process_of(prompt, index)
        process.decoder = full = replace(process.decoder, preview_side=0)
        texts = [prompt.text] * particles
        state, scores = process.start(particles), []
        for scale in range(process.steps):
            state, _ = process.advance(state)
            seen = process.predict(state)
            scores.append(judge.score(process.preview(seen), texts))
            for side in sides if scale < process.steps - 1 else ():
                process.decoder = replace(full, preview_side=side)
                sizes[side, scale].add(judge.score(process.preview(seen), texts), scores[-1])
                process.decoder = full
        for scale, values in enumerate(scores):
            ends[scale].add(values, scores[-1])
        strangers += scores[-1].var()
        for scale in range(process.steps - 1):
            spread[scale] += judge.score(process.preview(copies(process, scale, particles)), texts).var()
    left = (spread / strangers).sqrt()
    consistency = [
        {"scale": k, "side": schedule.grids[k][0], **found.figures(), "spread_of_copies": round(float(left[k]), 4)}
        for k, found in ends.items()
    ]
    previews = [
        {"preview_side": side, "scale": k, "decode_cost": round((side / last) ** 2, 4), **found.figures()}
        for (side, k), found in sizes.items()
    ]
    return consistency, previews
