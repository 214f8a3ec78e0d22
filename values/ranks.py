"""Whether a value may choose: how previews rank candidates, which it must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..samplers.protocols import Verifier


@torch.no_grad()
def preview_ranks(
    make_process: Callable[[Sequence[str], int], Any],
    verifier: Verifier,
    prompts: Sequence[str],
    times: Sequence[float],
    particles: int = 8,
) -> dict[str, float]:
    """Rank correlation within a prompt of the verifier's scores of previews with those of the finished images.

    For diffusion and next-scale processes alike, at the step nearest to each of ``times`` (1 = nothing is decided):
    what a value network must beat, see ``training.ranks``.
    """
    found: dict[str, list[float]] = {str(time): [] for time in times}
    for number, prompt in enumerate(prompts):
        process = make_process([prompt], number)
        texts, state = [prompt] * particles, process.start(particles)
        scores: list[Tensor] = []
        for step in range(process.steps + 1):
            state = process.predict(state)
            scores.append(verifier.score(process.preview(state), texts).double().cpu())
            if step < process.steps:
                state, _ = process.advance(state)
        for time in times:
            step = step_at(process, time)
            if scores[step].std() > 0 and scores[-1].std() > 0:
                found[str(time)].append(float(spearmanr(scores[step], scores[-1]).statistic))
    return {time: round(sum(each) / len(each), 4) for time, each in found.items() if each}


def step_at(process: Any, time: float) -> int:
    """Moves made by the state that a network is asked at ``time`` in training: the same state for both to rank.

    A noisy latent's time is ``b / (a + b)``, and the nearest level is taken; scales are counted as
    ``scale_rollouts.ScaleRollouts.states`` does.
    """
    if process.capabilities.has_code_maps:
        last = process.steps - 2
        return 1 + max(0, last - int(time * (last + 1)))
    levels = [process.interpolant.coefficients(sigma) for sigma in process.sigmas]
    return min(range(len(levels)), key=lambda step: abs(levels[step][1] / sum(levels[step]) - time))


def caveat_of(about: dict[str, Any]) -> str:
    """A warning where previews ranked held-out images better than the network does, "" elsewhere."""
    value, preview = about.get("ranks") or {}, about.get("preview_ranks") or {}
    worse = [(preview[at] - value[at], at) for at in value.keys() & preview.keys() if preview[at] > value[at]]
    if not worse:
        return ""
    _, at = max(worse)
    return (
        f"the value network ranks candidates worse than previews do (rank correlation {value[at]:.2f} against "
        f"{preview[at]:.2f} at level {at}): the search may find more without it"
    )
