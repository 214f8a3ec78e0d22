"""Run a function over many particles in pieces that fit into memory, without changing its result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("testtime")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is torch's out-of-memory error of any device."""
    return isinstance(error, torch.OutOfMemoryError)


class Chunker:
    """Splits a population into chunks of at most ``size`` rows; halves the size for good when memory runs out.

    Args:
        size: largest chunk, or None for everything at once.
        is_oom: tells an out-of-memory error (hosts know more kinds).
        after_oom: called once after each such error, e.g. to free caches.
    """

    def __init__(
        self,
        size: int | None = None,
        is_oom: Callable[[BaseException], bool] = is_out_of_memory,
        after_oom: Callable[[], None] = lambda: None,
    ):
        if size is not None and size < 1:
            raise ValueError(f"max_batch is {size}: it must be at least 1 (or empty for no limit)")
        self.size = size
        self._is_oom = is_oom
        self._after_oom = after_oom

    def map(self, function: Callable[[slice], Any], n: int) -> list[Any]:
        """``function(slice)`` over consecutive slices of ``range(n)``; results in order."""
        results, start = [], 0
        while start < n:
            stop = n if self.size is None else min(start + self.size, n)
            failed = False
            try:
                results.append(function(slice(start, stop)))
            except Exception as error:
                if not self._is_oom(error) or stop - start == 1:
                    raise
                failed = True
            if failed:  # outside the except block: its traceback would keep the failed tensors alive
                self.size = (stop - start) // 2
                log.warning("out of memory with %d particles at once: going on with %d", stop - start, self.size)
                self._after_oom()
                continue
            start = stop
        return results

    def cat(self, function: Callable[[slice], Tensor], n: int) -> Tensor:
        """``torch.cat`` of ``map``, written into the whole piece by piece: joining at the end would hold all twice."""
        whole: Tensor | None = None

        def piece(rows: slice) -> Tensor | None:
            nonlocal whole
            part = function(rows)
            if len(part) == n or part.requires_grad:
                return part
            if whole is None:
                whole = part.new_empty(n, *part.shape[1:])
            whole[rows] = part
            return None

        parts = [part for part in self.map(piece, n) if part is not None]
        if whole is not None and not parts:
            return whole
        return parts[0] if len(parts) == 1 else torch.cat(parts)
