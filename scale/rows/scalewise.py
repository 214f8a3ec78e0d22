"""Next-scale models over workers: an image's particles stay together, and what a worker holds of them is a short cut.

A row's keys and values are far too large to send. They are a function of how the row came about: of the noise slot of
each scale and of the selections in between. So that is what is sent, a few numbers per particle and scale, and the
worker that made the scale before goes on from its cache; any other worker makes the scales again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...models.infinity.process import ScalewiseProcess
from ...models.infinity.scale_state import Decoder
from ...samplers.processes.chunking import Chunker
from ...samplers.protocols import SearchError
from ...samplers.state import State
from .pool import Pool
from .server import History
from .wire import Message

ROW = "row"
"""``State.extra``: which particle of its image's latest scale a particle is, so that selections need no bookkeeping."""


@dataclass(frozen=True)
class SharedScaleState(State):
    """A population whose caches are elsewhere.

    Attributes:
        histories: the way of every image so far.
    """

    histories: tuple[History, ...] = ()


class SharedScalewise(ScalewiseProcess):
    """A ``ScalewiseProcess`` whose scales are drawn by workers."""

    pool: Pool

    @classmethod
    def of(cls, process: ScalewiseProcess, decoder: Decoder, pool: Pool) -> SharedScalewise:
        """A copy of ``process`` that asks ``pool``."""
        own = copy.copy(process)
        own.__class__ = cls
        own.pool, own.decoder, own.chunker = pool, decoder, Chunker(None)  # type: ignore[attr-defined]
        return own  # type: ignore[return-value]

    def begin(self, noise: Tensor, group: Tensor, slot: Tensor) -> Any:
        """See ``ScalewiseProcess.begin``."""
        rows = torch.zeros(len(group), dtype=torch.int64)
        return SharedScaleState(noise, group, slot, step=0, extra={ROW: rows}, histories=((),) * self.groups)

    @torch.no_grad()
    def advance(self, state: State, gradient: Tensor | None = None) -> tuple[Any, Tensor]:
        """Draw the next scale of all particles, image by image, each by the worker that holds its caches."""
        if gradient is not None or not isinstance(state, SharedScaleState):
            raise SearchError("gradients and joined populations are not for next-scale models")
        present = state.group.unique().tolist()
        mine = {g: torch.nonzero(state.group == g).flatten() for g in present}
        histories = list(state.histories)
        for g in present:
            rows, slots = state.extra[ROW][mine[g]].tolist(), state.slot[mine[g]].tolist()
            histories[g] = (*histories[g], (tuple(rows), tuple(slots)))
        questions = [Message("advance", {"group": g, "history": histories[g], "eta": self.eta}) for g in present]
        counts = [len(mine[g]) for g in present]
        flops = len(state) * self.scale_cost(state.step)
        with self.ledger.model(len(state) * self.prompt.branches, flops=flops):
            answers = self.pool.ask(questions, counts, [g % len(self.pool.links) for g in present])
        x, row = state.x.clone(), torch.empty_like(state.extra[ROW])
        for g, answer in zip(present, answers, strict=True):
            x[mine[g].to(x.device)] = answer.tensors["x"].to(x)
            row[mine[g]] = torch.arange(len(mine[g]))
        moved = replace(
            state, x=x, x0=None, step=state.step + 1, extra={**state.extra, ROW: row}, histories=tuple(histories)
        )
        return moved, torch.zeros(len(state), dtype=torch.float64)
