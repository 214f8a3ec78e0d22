"""The report of a search as one HTML file; ``pages.py`` says how it is put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..samplers.diversity import in_words
from ..samplers.heredity import inheritance
from ..samplers.run.trace import Trace
from .messages import whole
from .names import title_of
from .page_prompts import pictured, questions_told
from .pages import page
from .report import counts_rounds, settings_line
from .tree import finite, score_range, winner_ids

SHOWN = 48  # finished images
FILMS_SHOWN = 16  # of them that play, where they are clips
WAYS_SHOWN = 4  # winners whose previews are shown


def render(
    trace: Trace,
    thumbs: Mapping[int, str] | None = None,
    *,
    films: Mapping[int, str] | None = None,
    name: str = "",
    version: str = "",
) -> str:
    """The page.

    Args:
        trace: of a run.
        thumbs: particle id -> JPEG, base64.
        films: particle id -> animated WebP, base64, of clips; the first ``FILMS_SHOWN`` are in the page.
        name: of the file it was made from, for the footer; version: of the pack that wrote it.

    Raises:
        ValueError: a trace without records.
    """
    if not trace.records or not any(record.particles for record in trace.records):
        raise ValueError("the trace is empty: there is nothing to show")
    winners = winner_ids(trace)
    pictures = {key: f"data:image/jpeg;base64,{value}" for key, value in (thumbs or {}).items()}
    moving = {key: f"data:image/webp;base64,{value}" for key, value in (films or {}).items()}
    ways = [way for winner in winners[:WAYS_SHOWN] if (way := _way(trace, winner, pictures))]
    shown = {seen["id"] for way in ways for seen in way["previews"]}
    shown |= {entry["id"] for entry in trace.records[-1].particles} | pictured(trace)
    low, high = score_range(trace)
    told, more = questions_told(trace, pictures)
    return page(
        "report.html",
        script=("pages/report.js", "showReport"),
        styles=("page.css", "report.css"),
        data=whole(trace),
        title=title_of(trace),
        seed=trace.seed,
        how=[title_of(trace), *settings_line(trace).split("   ")],
        heading=" · ".join(dict.fromkeys(_prompts(trace))) or "A search",
        ended_early=_ended_early(trace),
        facts=_facts(trace),
        tree=_ends(trace),
        low=f"{low:.2f}",
        high=f"{high:.2f}",
        resampled=any(any(record.resampled) for record in trace.records),
        ways=ways,
        hidden=[(key, picture) for key, picture in pictures.items() if key not in shown],
        judge=str(trace.meta.get("verifier") or "the verifier"),
        gallery=_gallery(trace, winners, pictures, moving),
        questions=told,
        more_questions=more,
        cost=_cost(trace),
        settings=_settings(trace),
        warnings=[str(text) for text in trace.meta.get("warnings") or ()],
        source=name,
        version=version,
    )


def _prompts(trace: Trace) -> list[str]:
    return [str(text) for text in trace.meta.get("prompts") or []]


def _number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if finite(value) else "no score"


def _ledger(trace: Trace) -> dict[str, Any]:
    found = trace.meta.get("ledger")
    return found if isinstance(found, dict) else {}


def _spent(trace: Trace, name: str, default: Any = 0) -> Any:
    value = _ledger(trace).get(name, default)
    return value if isinstance(value, int | float) else default


ENDINGS = {"budget": "the budget was used up", "interrupted": "the run was cancelled", "failed": "the run failed"}


def _ended_early(trace: Trace) -> str:
    status = str(trace.meta.get("status", "complete"))
    return "" if status == "complete" else ENDINGS.get(status, status)


def _facts(trace: Trace) -> list[tuple[str, str]]:
    scores = [e["score"] for e in trace.records[-1].particles if finite(e["score"])]
    seconds = _spent(trace, "total_seconds", trace.records[-1].seconds)
    return [
        *([("best score", f"{max(scores):.3f}")] if scores else []),
        ("forward passes", f"{_spent(trace, 'nfe', trace.records[-1].nfe):,}"),
        ("images scored", f"{_spent(trace, 'verifier_images'):,}"),
        ("seconds", f"{seconds:.1f}"),
        ("particles in the tree", f"{len({e['id'] for r in trace.records for e in r.particles}):,}"),
    ]


def _ends(trace: Trace) -> dict[str, str]:
    """What stands at both ends of the tree, and the sentence above it."""
    if counts_rounds(trace):
        return {"start": "first round", "end": "last round", "lead": "From the first round on the left to the last."}
    return {"start": "noise", "end": "image", "lead": "From noise on the left to finished images on the right."}


def _ancestors(trace: Trace, particle: int) -> list[tuple[int, int]]:
    """(id, step) from the first ancestor down to ``particle``."""
    step_of = {e["id"]: record.step for record in reversed(trace.records) for e in record.particles}
    parent_of = {e["id"]: e["parent"] for record in trace.records for e in record.particles}
    found, current = [], particle
    while current is not None:
        found.append((current, step_of[current]))
        current = parent_of[current]
    return found[::-1]


def _way(trace: Trace, winner: int, pictures: Mapping[int, str]) -> dict[str, Any] | None:
    """The previews of a winner's ancestors, where at least two are there."""
    seen = [
        {"id": key, "step": step, "picture": pictures[key]}
        for key, step in _ancestors(trace, winner)
        if key in pictures
    ]
    return {"particle": winner, "previews": seen} if len(seen) > 1 else None


def _gallery(
    trace: Trace, winners: Sequence[int], pictures: Mapping[int, str], films: Mapping[int, str]
) -> dict[str, Any]:
    order = sorted(
        trace.records[-1].particles,
        key=lambda e: (e["group"], e["id"] not in winners, -(e["score"] if finite(e["score"]) else float("-inf"))),
    )
    prompts = _prompts(trace)
    playing = {e["id"]: films[e["id"]] for e in [e for e in order if e["id"] in films][:FILMS_SHOWN]}
    numbers = list(dict.fromkeys(entry["group"] for entry in order))
    share = max(1, SHOWN // max(len(numbers), 1))
    groups = []
    for group in numbers:
        mine = [entry for entry in order if entry["group"] == group]
        text = f": {prompts[group]}" if group < len(prompts) else ""
        groups.append(
            {
                "heading": f"Image {group + 1}{text}" if len(numbers) > 1 else "",
                "tiles": [
                    {**_tile(entry, entry["id"] in winners, pictures), "film": playing.get(entry["id"], "")}
                    for entry in mine[:share]
                ],
                "more": max(0, len(mine) - share),
            }
        )
    return {
        "title": "Finished images" if trace.records[-1].phase == "final" else "Where the search stopped",
        "groups": groups,
        "held_out": any(finite(entry.get("held_out")) for entry in order),
    }


def _tile(entry: dict[str, Any], first: bool, pictures: Mapping[int, str]) -> dict[str, Any]:
    held_out = entry.get("held_out")
    return {
        "id": entry["id"],
        "first": first,
        "picture": pictures.get(entry["id"], ""),
        "film": "",
        "score": _number(entry["score"]),
        "beside": _number(held_out) if finite(held_out) else f"#{entry['id']}",
        "prompt": "",
    }


def _cost(trace: Trace) -> list[dict[str, Any]]:
    """Rows {name, count, seconds, total} of the table of costs; what did not happen has none."""
    ledger, seconds = _ledger(trace), _ledger(trace).get("seconds")
    seconds = {key: value for key, value in seconds.items() if finite(value)} if isinstance(seconds, dict) else {}
    counted = (
        ("of these with gradient", "backward", "backward"),
        ("Images decoded", "decodes", "decode"),
        ("of these by preview_vae", "quick_decodes", "quick_decode"),
        ("Images scored", "verifier_images", "verifier"),
        ("Images scored, held out", "held_out_images", "held_out"),
        ("Prompt rewrites", "rewriter_calls", "rewriter"),
    )
    limit, passes = ledger.get("max_nfe"), f"{_spent(trace, 'nfe', trace.records[-1].nfe):,}"
    limited = f"{passes} of {limit:,g}" if isinstance(limit, int | float) and limit else passes
    rows = [("Forward passes (NFE)", limited, seconds.get("model"))]
    rows += [(name, f"{_spent(trace, key):,}", seconds.get(kind)) for name, key, kind in counted if _spent(trace, key)]
    decoding = _spent(trace, "decode_flops")
    for name, flops in (("GFLOP of the model", _spent(trace, "flops") - decoding), ("GFLOP of decoding", decoding)):
        if flops > 0:
            rows.append((name, f"{flops / 1e9:,.0f}", None))
    total = _spent(trace, "total_seconds", trace.records[-1].seconds)
    other = total - sum(seconds.values())
    if seconds and other >= 0:
        rows.append(("Everything else", "", other))
    told = [{"name": n, "count": c, "seconds": "" if s is None else f"{s:.2f}", "total": False} for n, c, s in rows]
    told.append({"name": "Total", "count": "", "seconds": f"{total:.2f}", "total": True})
    memory = _spent(trace, "peak_memory")
    if memory:
        told.append({"name": "Peak VRAM", "count": f"{memory / 2**30:.2f} GiB", "seconds": "", "total": False})
    return told


def _settings(trace: Trace) -> list[tuple[str, Any]]:
    meta = trace.meta
    sigmas = [value for value in meta.get("sigmas") or () if finite(value)]
    rows = [
        ("Search", title_of(trace)),
        ("Verifier", meta.get("verifier") or "none"),
        ("Held-out verifier", meta.get("held_out")),
        ("Seed", trace.seed),
        ("Rounds" if counts_rounds(trace) else "Steps", trace.records[-1].steps),
        ("Sigmas", f"{sigmas[0]:.4g} to {sigmas[-1]:.4g}" if sigmas else None),
        ("CFG", meta.get("cfg")),
        ("Sampler", meta.get("sampler")),
        ("Eta", meta.get("eta")),
        ("Heredity", inheritance(meta.get("heredity") or ()) or None),
        ("Diversity", in_words(meta.get("diversity") or ()) or None),
        ("Mean square of chosen noises", ", ".join(f"{v:.2f}" for v in meta.get("noise_square") or ()) or None),
    ]
    return [(name, value) for name, value in rows if value is not None]
