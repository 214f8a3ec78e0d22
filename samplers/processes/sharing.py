"""Rows of a batch that hold the same state: what depends on the state alone is computed once for all of them.

Candidates that differ in their prompt only have the same unconditional prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KEPT = 256


@dataclass(frozen=True)
class Plan:
    """Who needs what, among the ``k`` distinct states of a batch of ``n`` rows.

    Attributes:
        rows: int64 ``[k]`` the first row of every distinct state.
        owner: int64 ``[n]`` which of them a row holds.
        known: int64 ``[k]`` place of a state's result among the kept ones, -1 for what has to be computed.
        states: ``[k, ...]``; keys: int64 ``[k]``; sigma: of the call.
    """

    rows: Tensor
    owner: Tensor
    known: Tensor
    states: Tensor
    keys: Tensor
    sigma: float

    @property
    def new(self) -> Tensor:
        """int64 ``[m]`` rows whose results have to be computed."""
        return self.rows[self.known < 0]


class SharedRows:
    """Results by state, within a call and over the calls at one noise level.

    States are compared bit by bit: clones are exact copies, and nothing else may be taken for one.
    """

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        """Drop all results."""
        self._sigma: float | None = None
        self._kept: list[tuple[int, Tensor, Tensor]] = []  # (key, state, result)

    def plan(self, x: Tensor, sigma: float, keys: Tensor | None = None) -> Plan:
        """What has to be computed for ``x`` ``[n, ...]`` at ``sigma``.

        ``keys`` int64 ``[n]`` say what else a result depends on (the image whose conditioning a row has).
        """
        keys = torch.zeros(len(x), dtype=torch.int64) if keys is None else keys.cpu()
        if sigma != self._sigma or (self._kept and self._kept[0][1].shape != x.shape[1:]):
            self.forget()
            self._sigma = sigma
        first: list[int] = []
        owner = []
        for row in range(len(x)):
            mine = [(int(keys[f]), x[f]) for f in first]
            place = _place(int(keys[row]), x[row], mine)
            if place < 0:
                place = len(first)
                first.append(row)
            owner.append(place)
        rows = torch.tensor(first, dtype=torch.int64)
        known = [_place(int(keys[row]), x[row], [entry[:2] for entry in self._kept]) for row in first]
        return Plan(rows, torch.tensor(owner), torch.tensor(known), x[rows.to(x.device)], keys[rows], sigma)

    def complete(self, plan: Plan, results: Tensor) -> Tensor:
        """Results ``[n, ...]`` of all rows, given the new ones ``[m, ...]`` in the order of ``plan.new``."""
        fresh = iter(results)
        mine = [next(fresh) if place < 0 else self._kept[place][2] for place in plan.known.tolist()]
        if not torch.is_grad_enabled() or not results.requires_grad:
            new = [k for k, place in enumerate(plan.known.tolist()) if place < 0]
            self._kept += [(int(plan.keys[k]), plan.states[k], mine[k]) for k in new]
            del self._kept[:-KEPT]
        return torch.stack([mine[k] for k in plan.owner.tolist()])


def _place(key: int, state: Tensor, among: list[tuple[int, Tensor]]) -> int:
    """Index of an equal (key, state), -1 without one."""
    matches = (i for i, (other, known) in enumerate(among) if other == key and torch.equal(known, state))
    return next(matches, -1)
