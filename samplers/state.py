"""``State``: a population of particles at one step of a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

PROMPT = "prompt"
"""Key of ``State.extra``: which prompt a particle is conditioned on."""
X0_PREV = ("x0_prev", "x0_prev2")
"""Keys of ``State.extra``: the clean estimates that the latest two moves were made with, ``[n, ...]``."""
SIGMA_PREV = ("sigma_prev", "sigma_prev2")
"""Keys of ``State.extra``: at which noise levels these were made, float64 ``[n]``, 0 where there is none."""
MEMORY = (*X0_PREV, *SIGMA_PREV)
UNRECORDED = -1
"""``State.node`` of a particle that no record names yet."""


@dataclass(frozen=True)
class State:
    """A population of particles at one step of a process. Immutable; ``select`` never shares mutable storage.

    Attributes:
        x: ``[n, ...]`` current noisy states in the sampler's own scale.
        group: int64 ``[n]`` output slot that each particle competes for.
        slot: int64 ``[n]`` owner of the noise stream that drives the particle's next move (0..N-1 within a group).
        step: index of the transition that comes next; ``x`` sits at ``sigmas[step]``.
        x0: ``[n, ...]`` expected clean latents at ``x``, or None while not computed (a cache, see ``Process.predict``).
        extra: further per-particle tensors of a process, particle axis first: KV caches, and ``PROMPT``, the number
            of the prompt in the process's table that a particle has instead of its group's own (-1: its group's).
        node: int64 ``[n]`` id in the trace of the latest record of each particle or of its ancestor, ``UNRECORDED``
            before the first: it follows every selection, so that the family tree needs no other bookkeeping.
    """

    x: Tensor
    group: Tensor
    slot: Tensor
    step: int
    x0: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    node: Tensor = field(default=None)  # type: ignore[assignment]  # filled in below

    def __post_init__(self):
        if self.node is None:
            object.__setattr__(self, "node", torch.full((len(self.x),), UNRECORDED, dtype=torch.int64))

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def clean(self) -> Tensor:
        """``x0`` of a predicted state. ValueError where nothing was predicted yet."""
        if self.x0 is None:
            raise ValueError("the state is not predicted yet: call process.predict first")
        return self.x0

    @staticmethod
    def joined(states: Sequence[State]) -> State:
        """One population of several at the same step, rows in order.

        ``x0`` is kept where all have it. Where some have numbers in ``extra`` (a prompt's) that others lack, those get
        what stands for none: -1, and for the memory of earlier estimates 0. What only a subclass of State holds is
        lost: ``Capabilities.can_join`` says where that matters.
        """
        x0s = [s.x0 for s in states if s.x0 is not None]
        return State(
            step=states[0].step,
            x=torch.cat([s.x for s in states]),
            group=torch.cat([s.group for s in states]),
            slot=torch.cat([s.slot for s in states]),
            x0=torch.cat(x0s) if len(x0s) == len(states) else None,
            extra={name: _joined_extra(states, name) for name in dict.fromkeys(n for s in states for n in s.extra)},
            node=torch.cat([s.node for s in states]),
        )

    def select(self, index: Tensor, slot: Tensor | None = None) -> Any:
        """Reindex particles (duplicates allowed). ``slot`` re-assigns stream owners, default: the parents' slots."""
        rows, rows_cpu = index.to(self.x.device), index.cpu()
        return replace(
            self,
            x=self.x[rows],
            group=self.group[rows_cpu],
            slot=(self.slot[rows_cpu] if slot is None else slot).clone(),
            x0=None if self.x0 is None else self.x0[rows],
            extra={name: value[rows.to(value.device)] for name, value in self.extra.items()},
            node=self.node[rows_cpu],
        )

    def descending_from(self, node: Tensor) -> Any:
        """The particles as descendants of ids ``[n]`` of the trace (``UNRECORDED`` for none)."""
        return replace(self, node=node)

    def branched(self, children: int, slots: int | None = None) -> Any:
        """``children`` clones of every particle, side by side; clone j draws from slot j, counted within ``slots``.

        Args:
            children: clones per particle, >= 1.
            slots: particles of a group that count their slots together; None: each parent's clones count on their own.
        """
        rows = torch.arange(len(self)).repeat_interleave(children)
        count = children if slots is None else children * slots
        return self.select(rows, slot=torch.arange(count).repeat(len(rows) // count))


def _joined_extra(states: Sequence[State], name: str) -> Tensor:
    known = next(s.extra[name] for s in states if name in s.extra)
    none = -1
    if known.is_floating_point() and any(name not in s.extra for s in states):
        if name not in MEMORY:
            raise KeyError(f"{name!r} is known of some particles only, and nothing stands for none")
        none = 0
    missing = [known.new_full((len(s), *known.shape[1:]), none) if name not in s.extra else None for s in states]
    return torch.cat([s.extra[name] if gap is None else gap for s, gap in zip(states, missing, strict=True)])
