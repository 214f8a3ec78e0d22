"""What a finished or stopped search hands to the graph, and a bounded store of the latest ones."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...samplers.protocols import SearchResult
from ...samplers.run.trace import Trace
from ..types import Scores

KEPT = 4


@dataclass(frozen=True)
class HostResult:
    """A search result in the graph's terms: latents on the intermediate device, without the model's scaling.

    Attributes:
        best: ``[G, C, h, w]`` one per image.
        finalists: ``[n, C, h, w]`` sorted by image, then score, best first.
        scores: of the finalists.
        trace: the record.
        status: "complete", "budget" or "interrupted".
        warnings: sentences for the user.
    """

    best: Tensor
    finalists: Tensor
    scores: Scores
    trace: Trace
    status: str
    warnings: tuple[str, ...] = ()


def host_result(result: SearchResult, verifier: Any, held_out: Any, finish) -> HostResult:
    """Convert a core result; ``finish`` maps latents of the sampler to latents of the graph."""
    scores = Scores(
        verifier=getattr(verifier, "name", "none"),
        values=finite_or_none(result.scores),
        held_out=[] if result.held_out is None else finite_or_none(result.held_out),
        held_out_verifier="" if result.held_out is None else held_out.name,
        group=result.group.tolist(),
        particles=list(result.particles),
    )
    return HostResult(
        best=finish(result.latents),
        finalists=finish(result.finalists),
        scores=scores,
        trace=result.trace,
        status=result.status,
        warnings=tuple(result.warnings),
    )


def finite_or_none(values: Tensor) -> list[float | None]:
    """Numbers, None in place of NaN and infinities."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


class ResultStore:
    """The latest ``KEPT`` results of this server process, newest last. Latents are small; models are not kept."""

    def __init__(self, kept: int = KEPT):
        self._results: deque[HostResult] = deque(maxlen=kept)
        self._lock = threading.Lock()
        self.revision = 0

    def add(self, result: HostResult) -> None:
        """Keep a result, dropping the oldest when full."""
        with self._lock:
            self._results.append(result)
            self.revision += 1

    def latest(self, status: str | None = None) -> HostResult | None:
        """The newest result, or the newest with ``status``; None if there is none."""
        with self._lock:
            for result in reversed(self._results):
                if status is None or result.status == status:
                    return result
        return None

    def trace_of(self, run: str) -> Trace | None:
        """The trace of the live panel's run ``run``, or None if it is not kept."""
        with self._lock:
            return next((r.trace for r in reversed(self._results) if r.trace.meta.get("run") == run), None)


store = ResultStore()
