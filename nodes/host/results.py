"""What a finished or stopped search hands to the graph, and a bounded store of the latest ones.

Latents are small and models are not kept. What outlives the server is in the journals of ``host/journals.py``.
"""

from __future__ import annotations

import atexit
import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...samplers.protocols import SearchResult
from ...samplers.run.journal import Journal
from ...samplers.run.trace import Trace
from .live import place
from .scores import Scores

KEPT = 4
KEPT_JOURNALS = 16
STOPPED = ("interrupted", "failed")


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
        prompt_id: of the queued workflow that it ran in, None where the host does not say.
        journal: of the run, None where none is written.
    """

    best: Tensor
    finalists: Tensor
    scores: Scores
    trace: Trace
    status: str
    warnings: tuple[str, ...] = ()
    prompt_id: str | None = None
    journal: Journal | None = None

    @property
    def stopped(self) -> bool:
        """Whether the run was cut off, or its workflow was before it came to its end (while decoding or saving)."""
        return self.status in STOPPED or workflow_went_well(self.prompt_id) is False


def host_result(
    result: SearchResult, verifier: Any, held_out: Any, finish, journal: Journal | None = None
) -> HostResult:
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
        prompt_id=place()["prompt_id"],
        journal=journal,
    )


def workflow_went_well(prompt_id: str | None) -> bool | None:
    """Whether a workflow came to its end without an error or Cancel; None while it runs, or where nothing is known."""
    try:
        from server import PromptServer

        found = PromptServer.instance.prompt_queue.get_history(prompt_id=prompt_id)
        status = found[prompt_id]["status"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return None
    return None if not status else status.get("status_str") == "success"


def finite_or_none(values: Tensor) -> list[float | None]:
    """Numbers, None in place of NaN and infinities."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


class ResultStore:
    """The latest ``KEPT`` results of this server process, newest last."""

    def __init__(self, kept: int = KEPT):
        self._results: deque[HostResult] = deque(maxlen=kept)
        self._undelivered: list[HostResult] = []
        self._lock = threading.Lock()
        self.revision = 0

    def add(self, result: HostResult) -> None:
        """Keep a result, dropping the oldest when full."""
        with self._lock:
            self._results.append(result)
            self.revision += 1
            if result.journal is not None:
                self._undelivered.append(result)
        self.settle()

    def latest(self, status: str | None = None) -> HostResult | None:
        """The newest result, or the newest with ``status``; None if there is none."""
        with self._lock:
            for result in reversed(self._results):
                if status is None or result.status == status:
                    return result
        return None

    def last_stopped(self) -> HostResult | None:
        """The newest result that was cut off, in the search or after it; None if there is none."""
        with self._lock:
            return next((result for result in reversed(self._results) if result.stopped), None)

    def place_of(self, result: HostResult | None) -> int:
        """Which of all results so far it is, counted from 1; 0 for none of those that are kept."""
        with self._lock:
            places = [place for place, kept in enumerate(reversed(self._results)) if kept is result]
        return self.revision - places[0] if places else 0

    def settle(self) -> None:
        """Note in their journals which runs have arrived: their workflows are done, nothing is left to recover."""
        with self._lock:
            waiting, self._undelivered = self._undelivered, []
            for result in waiting:
                went_well = workflow_went_well(result.prompt_id)
                if went_well is None:
                    self._undelivered.append(result)
                elif went_well and result.status not in STOPPED and result.journal is not None:
                    result.journal.deliver()
            del self._undelivered[:-KEPT_JOURNALS]

    def trace_of(self, run: str) -> Trace | None:
        """The trace of the live panel's run ``run``, or None if it is not kept."""
        with self._lock:
            return next((r.trace for r in reversed(self._results) if r.trace.meta.get("run") == run), None)


store = ResultStore()
atexit.register(store.settle)
