"""The report of a search as one HTML file: everything inside, nothing loaded, readable in light and dark.

What comes from a trace is escaped, and the page's own policy forbids all scripts but its own and all requests, so a
prompt can hold whatever it likes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..samplers.run.trace import Trace
from . import svg
from .names import method_name
from .page_prompts import pictured, prompts_on_the_way
from .report import settings_line
from .tree import finite, score_range, winner_ids

HERE = Path(__file__).parent
COMMON_STYLE = HERE / "page.css"
OWN_STYLE = HERE / "report.css"
SCRIPT = HERE / "page.js"
SHOWN = 48  # finished images
WAYS_SHOWN = 4  # winners whose previews are shown


def render(trace: Trace, thumbs: Mapping[int, str] | None = None, *, name: str = "", version: str = "") -> str:
    """The page.

    Args:
        trace: of a run.
        thumbs: particle id -> JPEG, base64.
        name: of the file it was made from, for the footer; version: of the pack that wrote it.

    Raises:
        ValueError: a trace without records.
    """
    if not trace.records or not any(record.particles for record in trace.records):
        raise ValueError("the trace is empty: there is nothing to show")
    thumbs, winners = dict(thumbs or {}), winner_ids(trace)
    script = SCRIPT.read_text(encoding="utf-8")
    style = COMMON_STYLE.read_text(encoding="utf-8") + OWN_STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    parts = [_header(trace), _tree(trace, winners, thumbs), _curves(trace, winners), _gallery(trace, winners, thumbs)]
    uris = {key: _uri(value) for key, value in thumbs.items()}
    parts += [prompts_on_the_way(trace, uris), _cost(trace), _settings(trace), _footer(name, version)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(_title(trace))}</title>"
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><main>{''.join(parts)}</main><script>{script}</script></body></html>\n"
    )


def _title(trace: Trace) -> str:
    return f"{method_name(str(trace.meta.get('method', 'search')))}, seed {trace.seed}"


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


def _header(trace: Trace) -> str:
    prompts = list(dict.fromkeys(_prompts(trace)))
    heading = " · ".join(prompts) if prompts else "A search"
    nfe = _spent(trace, "nfe", trace.records[-1].nfe)
    seconds = _spent(trace, "total_seconds", trace.records[-1].seconds)
    scores = [e["score"] for e in trace.records[-1].particles if finite(e["score"])]
    facts = [("best score", f"{max(scores):.3f}")] if scores else []
    facts += [
        ("forward passes", f"{nfe:,}"),
        ("images judged", f"{_spent(trace, 'verifier_images'):,}"),
        ("seconds", f"{seconds:.1f}"),
        ("particles in the tree", f"{len({e['id'] for r in trace.records for e in r.particles}):,}"),
    ]
    status = str(trace.meta.get("status", "complete"))
    notice = "" if status == "complete" else f"<p class='notice'>Ended early: {escape(status)}.</p>"
    cells = "".join(f"<div><span>{name}</span><b>{value}</b></div>" for name, value in facts)
    how = [method_name(str(trace.meta.get("method", "search"))), *settings_line(trace).split("   ")]
    return (
        f"<header><p class='eyebrow'>{escape(', '.join(how))}</p><h1>{escape(heading)}</h1>{notice}"
        f"<div class='facts'>{cells}</div></header>"
    )


def _ramp(trace: Trace) -> str:
    low, high = score_range(trace)
    cells = "".join(f"<i class='s{k}'></i>" for k in range(svg.SHADES))
    return f"<span>score {low:.2f}<span class='ramp'>{cells}</span>{high:.2f}</span>"


def _events(trace: Trace) -> str:
    if not any(any(record.resampled) for record in trace.records):
        return ""
    return "<span><i class='key event'></i> resampling</span>"


def _tree(trace: Trace, winners: Sequence[int], thumbs: Mapping[int, str]) -> str:
    ways = "".join(_way(trace, winner, thumbs) for winner in winners[:WAYS_SHOWN])
    shown = {key for winner in winners[:WAYS_SHOWN] for key, _ in _ancestors(trace, winner)}
    shown |= {entry["id"] for entry in trace.records[-1].particles} | pictured(trace)
    hidden = "".join(
        f"<img data-particle='{key}' src='{_uri(value)}' alt='' hidden>"
        for key, value in thumbs.items()
        if key not in shown
    )
    return (
        "<section><h2>Family tree</h2><p class='fine'>From noise on the left to images on the right. A line that ends "
        "is a particle that was given up.</p>"
        f"<div class='panel'>{svg.tree(trace, winners, thumbs)}"
        "<p class='inspector'>Point at a particle, or use the arrow keys in the tree, to see its way.</p></div>"
        f"<p class='legend'>{_ramp(trace)}<span><i class='key way'></i> way of the winner</span>{_events(trace)}</p>"
        f"{ways}{hidden}</section>"
    )


def _ancestors(trace: Trace, particle: int) -> list[tuple[int, int]]:
    """(id, step) from the first ancestor down to ``particle``."""
    step_of = {e["id"]: record.step for record in reversed(trace.records) for e in record.particles}
    parent_of = {e["id"]: e["parent"] for record in trace.records for e in record.particles}
    found, current = [], particle
    while current is not None:
        found.append((current, step_of[current]))
        current = parent_of[current]
    return found[::-1]


def _way(trace: Trace, winner: int, thumbs: Mapping[int, str]) -> str:
    """The previews of a winner's ancestors, where at least two are there."""
    seen = [(key, step) for key, step in _ancestors(trace, winner) if key in thumbs]
    if len(seen) < 2:
        return ""
    tiles = "".join(
        f"<figure><img data-particle='{key}' src='{_uri(thumbs[key])}' alt='particle {key}'>"
        f"<figcaption>step {step}</figcaption></figure>"
        for key, step in seen
    )
    return f"<h3>How particle {winner} came about</h3><div class='strip'>{tiles}</div>"


def _curves(trace: Trace, winners: Sequence[int]) -> str:
    judge = escape(str(trace.meta.get("verifier") or "the verifier"))
    return (
        f"<section><h2>Scores over compute</h2><div class='panel'>{svg.curves(trace, winners)}</div>"
        "<p class='legend'><span><i class='key'></i> best so far</span><span><i class='key way'></i> way of the winner"
        f"</span>{_events(trace)}<span>a dot is one look of {judge} at a particle</span></p></section>"
    )


def _uri(thumb: str) -> str:
    return f"data:image/jpeg;base64,{escape(thumb, quote=True)}"


def _gallery(trace: Trace, winners: Sequence[int], thumbs: Mapping[int, str]) -> str:
    order = sorted(
        trace.records[-1].particles,
        key=lambda e: (e["group"], e["id"] not in winners, -(e["score"] if finite(e["score"]) else float("inf"))),
    )
    held_out = any(finite(entry.get("held_out")) for entry in order)
    prompts, blocks = _prompts(trace), []
    groups = list(dict.fromkeys(entry["group"] for entry in order))
    share = max(1, SHOWN // max(len(groups), 1))
    for group in groups:
        mine = [entry for entry in order if entry["group"] == group]
        if len(groups) > 1:
            text = f": {escape(prompts[group])}" if group < len(prompts) else ""
            blocks.append(f"<h3>Image {group + 1}{text}</h3>")
        tiles = "".join(_tile(entry, entry["id"] in winners, thumbs) for entry in mine[:share])
        more = f"<p class='fine'>{len(mine) - share} more are not shown.</p>" if len(mine) > share else ""
        blocks.append(f"<div class='gallery'>{tiles}</div>{more}")
    note = " The second number is of the held-out verifier, which never steers." if held_out else ""
    what = "Finished images" if trace.records[-1].phase == "final" else "Where the search was stopped"
    return (
        f"<section><h2>{what}</h2>{''.join(blocks)}<p class='fine'>Best first, framed the winner.{note}</p></section>"
    )


def _tile(entry: dict[str, Any], first: bool, thumbs: Mapping[int, str]) -> str:
    key = entry["id"]
    picture = "<div class='blank'>no picture</div>"
    if key in thumbs:
        picture = f"<img data-particle='{key}' src='{_uri(thumbs[key])}' alt='particle {key}'>"
    held_out = f"<span>{_number(entry['held_out'])}</span>" if finite(entry.get("held_out")) else f"<span>#{key}</span>"
    return (
        f"<figure class='{'first' if first else 'other'}' title='particle {key}'>{picture}"
        f"<figcaption><b>{_number(entry['score'])}</b>{held_out}</figcaption></figure>"
    )


def _cost(trace: Trace) -> str:
    ledger, seconds = _ledger(trace), _ledger(trace).get("seconds")
    seconds = {key: value for key, value in seconds.items() if finite(value)} if isinstance(seconds, dict) else {}

    def limited(value: str, limit: Any) -> str:
        return f"{value} of {limit:,g}" if isinstance(limit, int | float) and limit else value

    def clock(kind: str) -> str:
        return f"{seconds[kind]:.2f}" if kind in seconds else ""

    nfe = limited(f"{_spent(trace, 'nfe', trace.records[-1].nfe):,}", ledger.get("max_nfe"))
    rows = [("Forward passes (NFE)", nfe, clock("model"))]
    rows += [("of them differentiated", f"{_spent(trace, 'backward'):,}", clock("backward"))]
    rows += [("Images decoded", f"{_spent(trace, 'decodes'):,}", clock("decode"))]
    rows += [("Images judged", f"{_spent(trace, 'verifier_images'):,}", clock("verifier"))]
    rows += [("Images judged, held out", f"{_spent(trace, 'held_out_images'):,}", clock("held_out"))]
    rows += [("Rewriter calls", f"{_spent(trace, 'rewriter_calls'):,}", clock("rewriter"))]
    rows += [("GFLOP of the model", f"{(_spent(trace, 'flops') - _spent(trace, 'decode_flops')) / 1e9:,.0f}", "")]
    rows += [("GFLOP of decoding", f"{_spent(trace, 'decode_flops') / 1e9:,.0f}", "")]
    rows = rows[:1] + [row for row in rows[1:] if row[1] != "0"]
    total = _spent(trace, "total_seconds", trace.records[-1].seconds)
    body = "".join(f"<tr><th>{n}</th><td class='num'>{c}</td><td class='num'>{s}</td></tr>" for n, c, s in rows)
    other = total - sum(seconds.values())
    if seconds and other >= 0:
        body += f"<tr><th>Everything else</th><td></td><td class='num'>{other:.2f}</td></tr>"
    body += f"<tr><th><b>Together</b></th><td></td><td class='num'><b>{total:.2f}</b></td></tr>"
    memory = _spent(trace, "peak_memory")
    if memory:
        body += f"<tr><th>Peak memory of the device</th><td class='num'>{memory / 2**30:.2f} GiB</td><td></td></tr>"
    return (
        "<section><h2>Cost</h2><div class='scroll'><table class='cost'><thead><tr><th></th><th class='num'>Count</th>"
        f"<th class='num'>Seconds</th></tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _settings(trace: Trace) -> str:
    meta = trace.meta
    sigmas = [value for value in meta.get("sigmas") or () if finite(value)]
    rows = [
        ("Method", method_name(str(meta.get("method", "unknown")))),
        ("Verifier", meta.get("verifier") or "none"),
        ("Seed", trace.seed),
        ("Steps", trace.records[-1].steps),
        ("Sigmas", f"{sigmas[0]:.4g} to {sigmas[-1]:.4g}" if sigmas else None),
        ("CFG", meta.get("cfg")),
        ("Eta", meta.get("eta")),
    ]
    items = "".join(f"<dt>{n}</dt><dd>{escape(str(v))}</dd>" for n, v in rows if v is not None)
    warnings = [escape(str(text)) for text in meta.get("warnings") or ()]
    said = f"<h3>Said on the way</h3><ul class='said'>{''.join(f'<li>{t}</li>' for t in warnings)}</ul>"
    return f"<section><h2>Settings</h2><dl>{items}</dl>{said if warnings else ''}</section>"


def _footer(name: str, version: str) -> str:
    source = f" from <code>{escape(name)}</code>" if name else ""
    writer = f", written by version {escape(version)}" if version else ""
    return (
        f"<footer><p>Made by <code>testtime report</code>{source}{writer}. Everything is inside this file; it loads "
        "nothing.</p></footer>"
    )
