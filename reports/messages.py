"""A search as the modules of ``web/draw`` read it: a page carries what the live panel is sent, in one format."""

from __future__ import annotations

import math
from typing import Any

from ..samplers.run.trace import StepRecord, Trace
from .names import title_of
from .tree import winner_ids

PARTICLE = ("id", "parent", "group", "score", "log_weight", "selected")
"""Columns of a particle's row, in order; ``web/draw/schema.js`` has the same."""
RECORD = ("step", "steps", "sigma", "phase", "ess", "resampled", "nfe", "seconds", "rewrites")
"""Fields of a record that are sent as they are."""
RUN = ("method", "title", "prompts", "verifier", "held_out", "status", "winners", "ledger", "warnings")
"""What is said of the whole run; the panel is told a part of it when the run begins, and the rest at its end."""


def compact(record: StepRecord, index: int, ledger: dict[str, Any] | None = None) -> dict[str, Any]:
    """A record without what no drawing shows; particles are rows of ``PARTICLE``.

    Args:
        record: of a running or a finished search.
        index: its place in the trace, from 0.
        ledger: costs up to here, where the reader has no other source for them.
    """
    prompts = [entry.get("prompt") for entry in record.particles]
    return {
        "index": index,
        **{name: sendable(getattr(record, name)) for name in RECORD},
        "ledger": ledger or {},
        "particles": [[sendable(entry[name]) for name in PARTICLE] for entry in record.particles],
        # Only of searches that re-prompt: the prompt of every row (null: the original).
        "prompts": prompts if any(prompts) else None,
        "thumbs": None,
        # Rows that play: a 1 where the server has a clip of the row.
        "clips": None,
    }


def sendable(value: Any) -> Any:
    """A value as it is sent: truth as 0 or 1, numbers with six digits, None if not finite (JSON has no NaN)."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return [sendable(item) for item in value] if isinstance(value, list | tuple) else value


def whole(trace: Trace) -> dict[str, Any]:
    """A finished search, as ``Run.from`` of ``web/draw/run.js`` takes it."""
    return {
        "run": "page",
        "title": title_of(trace),
        "status": str(trace.meta.get("status", "complete")),
        "winners": winner_ids(trace),
        "records": [compact(record, index) for index, record in enumerate(trace.records)],
    }
