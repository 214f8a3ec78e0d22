"""The part of a search's page that tells what a rewriter saw, what it proposed, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..samplers.run.trace import StepRecord, Trace
from .tree import finite

SHOWN = 40  # questions
ORIGINAL = "original prompt"


def questions(trace: Trace) -> list[tuple[StepRecord, dict[str, Any]]]:
    """(record, what was asked and answered there), in order."""
    asked = ((record, answer) for record in trace.records for answer in getattr(record, "rewrites", None) or ())
    return [(record, answer) for record, answer in asked if isinstance(answer, dict)]


def candidates(record: StepRecord, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Particles of a record that competed over an answer: those of its trajectory, under different prompts.

    Empty where prompts did not compete at this step: nothing was missing, or the search chooses later.
    """
    mine = [e for e in record.particles if (e["group"], e["slot"]) == (answer.get("group"), answer.get("slot"))]
    return mine if len({entry.get("prompt") for entry in mine}) > 1 else []


def pictured(trace: Trace) -> set[int]:
    """Particles whose previews this part shows, where there are any."""
    return {entry["id"] for record, answer in questions(trace)[:SHOWN] for entry in candidates(record, answer)}


def questions_told(trace: Trace, pictures: Mapping[int, str]) -> tuple[list[dict[str, Any]], int]:
    """({title, note, tiles, said} per question, how many more there are); nothing where nobody rewrote.

    Args:
        trace: of a run.
        pictures: particle id -> data URI of its preview.
    """
    found = questions(trace)
    told = [_question(record, answer, pictures) for record, answer in found[:SHOWN]]
    return told, max(0, len(found) - SHOWN)


def _question(record: StepRecord, answer: Mapping[str, Any], pictures: Mapping[int, str]) -> dict[str, Any]:
    missing = answer.get("missing") or ""
    text = missing if isinstance(missing, str) else "; ".join(str(part) for part in missing)
    note = f"missing: {text}" if text else ""
    if answer.get("failed"):
        note = f"no usable answer: {answer.get('note') or 'unknown reason'}"
    group, several = answer.get("group"), len({entry["group"] for entry in record.particles}) > 1
    image = f", image {group + 1}" if several and isinstance(group, int) else ""
    return {
        "title": f"step {int(record.step)}{image}",
        "note": note,
        "tiles": [_tile(entry, pictures) for entry in candidates(record, answer)],
        "said": " / ".join(str(text) for text in answer.get("prompts") or ()) or "prompt kept",
    }


def _tile(entry: dict[str, Any], pictures: Mapping[int, str]) -> dict[str, Any]:
    return {
        "id": entry["id"],
        "first": bool(entry["selected"]),
        "picture": pictures.get(entry["id"], ""),
        "film": "",
        "score": f"{entry['score']:.3f}" if finite(entry["score"]) else "no score",
        "beside": "",
        "prompt": str(entry.get("prompt") or ORIGINAL),
    }
