"""A search's steps as ComfyUI's sampler callback: progress bar, live preview of the best particle, interruption."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...samplers.protocols import State
from ...samplers.run.trace import Listener, StepRecord

# (step, x0, x, total steps), as samplers call it
Callback = Callable[[int, Tensor, Tensor, int], None]


def best_rows(record: StepRecord, groups: int) -> list[int]:
    """Row of the best particle per group by score; the first row of a group where nothing is scored yet."""
    best: dict[int, tuple[float, int]] = {}
    for row, entry in enumerate(record.particles):
        score = entry["score"]
        value = -math.inf if score is None or math.isnan(score) else score
        if entry["group"] not in best or value > best[entry["group"]][0]:
            best[entry["group"]] = (value, row)
    return [best[g][1] for g in range(groups) if g in best]


def report_to(callback: Callback | None, groups: int) -> Listener | None:
    """A listener that shows the best particle of every image.

    The last x0 given to the callback becomes SamplerCustomAdvanced's second output, so it is always one per image.
    """
    if callback is None:
        return None

    def listener(record: StepRecord, state: State, _: Tensor | None) -> None:
        rows = torch.tensor(best_rows(record, groups), device=state.x.device)
        x = state.x[rows]
        x0 = x if state.x0 is None else state.x0[rows]
        callback(min(record.step, record.steps - 1), x0, x, record.steps)

    return listener


def report_last(callback: Callback | None, groups: int, total: int) -> Listener | None:
    """A listener that shows the finished images, the best of every image, at the end of a bar of ``total``."""
    if callback is None:
        return None

    def listener(record: StepRecord, state: State, _images: Tensor | None) -> None:
        if record.phase == "final":
            rows = torch.tensor(best_rows(record, groups), device=state.x.device)
            callback(total - 1, state.x[rows], state.x[rows], total)

    return listener


def both(first: Listener | None, second: Listener | None) -> Listener | None:
    """One listener that calls two."""
    if first is None or second is None:
        return first or second

    def listener(record: StepRecord, state: State, images: Tensor | None) -> None:
        first(record, state, images)
        second(record, state, images)

    return listener
