"""The part of a search's page that tells what a rewriter saw, what it proposed, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..samplers.run.trace import StepRecord, Trace
from .tree import finite

SHOWN = 40  # questions
ORIGINAL = "the prompt as it was"


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


def prompts_on_the_way(trace: Trace, pictures: Mapping[int, str]) -> str:
    """The section, or nothing where nobody rewrote.

    Args:
        trace: of a run.
        pictures: particle id -> data URI of its preview.
    """
    found = questions(trace)
    if not found:
        return ""
    blocks = "".join(_question(record, answer, pictures) for record, answer in found[:SHOWN])
    more = f"<p class='fine'>{len(found) - SHOWN} more.</p>" if len(found) > SHOWN else ""
    return (
        "<section><h2>Prompts on the way</h2><p class='fine'>At these steps the rewriter looked at the preview. Every "
        "prompt made a preview of its own, all were scored against the original prompt; the framed one made the step."
        f"</p>{blocks}{more}</section>"
    )


def _question(record: StepRecord, answer: Mapping[str, Any], pictures: Mapping[int, str]) -> str:
    missing = answer.get("missing") or ""
    text = missing if isinstance(missing, str) else "; ".join(str(part) for part in missing)
    lacks = f" <i>missing: {escape(text)}</i>" if text else ""
    if answer.get("failed"):
        lacks = f" <i>no usable answer: {escape(str(answer.get('note') or 'unknown reason'))}</i>"
    group, several = answer.get("group"), len({entry["group"] for entry in record.particles}) > 1
    image = f", image {group + 1}" if several and isinstance(group, int) else ""
    title = f"step {int(record.step)}{image}"
    mine = candidates(record, answer)
    if not mine:
        prompts = " / ".join(escape(str(text)) for text in answer.get("prompts") or ()) or "kept as it was"
        return f"<p class='said'>{title}: {prompts}{lacks}</p>"
    return f"<h3>{title[0].upper()}{title[1:]}{lacks}</h3><div class='gallery'>{_tiles(mine, pictures)}</div>"


def _tiles(entries: Sequence[dict[str, Any]], pictures: Mapping[int, str]) -> str:
    tiles = []
    for entry in entries:
        key, prompt = entry["id"], entry.get("prompt") or ORIGINAL
        picture = "<div class='blank'>no picture</div>"
        if key in pictures:
            picture = f"<img data-particle='{key}' src='{pictures[key]}' alt='particle {key}'>"
        score = f"{entry['score']:.3f}" if finite(entry["score"]) else "no score"
        kind = "first" if entry["selected"] else "other"
        tiles.append(
            f"<figure class='{kind}' title='particle {key}'>{picture}<figcaption><b>{score}</b>"
            f"<span class='prompt'>{escape(str(prompt))}</span></figcaption></figure>"
        )
    return "".join(tiles)
