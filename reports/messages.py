"""A search as the modules of ``web/draw`` read it: a page carries what the live panel is sent, in one format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..samplers.run.trace import StepRecord, Trace
from .names import title_of
from .tree import winner_ids

PARTICLE = ("id", "parent", "group", "score", "log_weight", "selected")
"""Columns of a particle's row, in order; ``web/draw/schema.js`` names the same ones."""


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
        "step": record.step,
        "steps": record.steps,
        "sigma": short(record.sigma),
        "phase": record.phase,
        "ess": [round(value, 3) if math.isfinite(value) else None for value in record.ess],
        "resampled": list(record.resampled),
        "nfe": record.nfe,
        "seconds": record.seconds,
        "ledger": ledger or {},
        "particles": [
            [e["id"], e["parent"], e["group"], short(e["score"]), short(e["log_weight"]), int(e["selected"])]
            for e in record.particles
        ],
        # Only of searches that re-prompt: the prompt of every row (null: the original), and what the rewriter said.
        "prompts": prompts if any(prompts) else None,
        "rewrites": list(record.rewrites),
        "thumbs": None,
    }


def short(value: float | None) -> float | None:
    """Six significant digits of a finite number, None of anything else: JSON has no NaN."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def whole(trace: Trace, winners: Sequence[int] | None = None) -> dict[str, Any]:
    """A finished search, as ``Run.from`` of ``web/draw/run.js`` takes it.

    Args:
        trace: of a run.
        winners: ids of the winners where the run handed out others than the best of its last record.
    """
    return {
        "run": "page",
        "title": title_of(trace),
        "status": str(trace.meta.get("status", "complete")),
        "winners": winner_ids(trace) if winners is None else list(winners),
        "records": [compact(record, index) for index, record in enumerate(trace.records)],
    }
