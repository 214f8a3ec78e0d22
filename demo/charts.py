"""The demo page's pictures of a search, as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from ..samplers.run.trace import Trace

CURVE_SIZE = (560, 300)
TREE_SIZE = (1080, 300)
THUMB = 44


def data_uri(image: np.ndarray, size: int | None = None) -> str:
    """A PNG of uint8 ``[H, W, 3]``, optionally scaled to ``size`` pixels, as a data URI."""
    picture = Image.fromarray(image)
    if size is not None:
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def best_so_far(trace: Trace) -> list[tuple[int, float]]:
    """(NFE spent, best score seen up to then) at every step that was scored."""
    points, best = [], None
    for record in trace.records:
        scores = [entry["score"] for entry in record.particles if entry["score"] is not None]
        if scores:
            best = max(scores) if best is None else max(best, *scores)
            points.append((record.nfe, best))
    return points


def step_scores(trace: Trace) -> list[tuple[int, float]]:
    """(NFE spent, best score of the population at that step)."""
    points = []
    for record in trace.records:
        scores = [entry["score"] for entry in record.particles if entry["score"] is not None]
        if scores:
            points.append((record.nfe, max(scores)))
    return points


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers inside [low, high], about ``count`` of them."""
    span = max(high - low, 1e-9)
    raw = span / count
    magnitude = 10 ** np.floor(np.log10(raw))
    step = magnitude * min((m for m in (1, 2, 5, 10) if m * magnitude >= raw), default=10)
    first = np.ceil(low / step) * step
    return [float(value) for value in np.arange(first, high + step * 1e-6, step)]


def curves(series: Sequence[tuple[str, str, list[tuple[int, float]]]]) -> str:
    """Score over compute, one line per (name, CSS colour, points); a single point is drawn as a dot."""
    points = [point for _, _, line in series for point in line]
    if not points:
        return ""
    width, height = CURVE_SIZE
    left, right, top, bottom = 52, 16, 14, 40
    x_high = max(x for x, _ in points) * 1.02
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    margin = 0.08 * max(y_high - y_low, 1e-3)
    y_low, y_high = y_low - margin, y_high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (width - left - right) * x / x_high
        return round(across, 1), round(top + (height - top - bottom) * (y_high - y) / (y_high - y_low), 1)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="Score over compute">']
    for value in ticks(y_low, y_high):
        _, y = place(0, value)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in ticks(0, x_high, 5):
        x, _ = place(value, y_low)
        parts.append(f'<text class="tick" x="{x}" y="{height - bottom + 18}" text-anchor="middle">{value:g}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{height - 4}" text-anchor="middle">forward passes (NFE)</text>')
    for name, colour, line in series:
        places = [place(x, y) for x, y in line]
        if len(places) > 1:
            path = " ".join(f"{x},{y}" for x, y in places)
            parts.append(f'<polyline class="curve" style="stroke:{colour}" points="{path}"/>')
        if places:
            x, y = places[-1]
            title = f"<title>{escape(name)}: {line[-1][1]:.3f} after {line[-1][0]} NFE</title>"
            parts.append(f'<circle class="end" style="fill:{colour}" cx="{x}" cy="{y}" r="4.5">{title}</circle>')
    return "".join([*parts, "</svg>"])


def winner_lineage(trace: Trace, winner: int) -> set[int]:
    """Ids of a particle and all its ancestors."""
    parents = {entry["id"]: entry["parent"] for record in trace.records for entry in record.particles}
    chain, current = set(), winner
    while current is not None and current in parents:
        chain.add(current)
        current = parents[current]
    return chain


def tree(
    trace: Trace, winner: int, finalists: Sequence[tuple[int, np.ndarray]], colour: str, start: str = "noise"
) -> str:
    """The family tree: time from left to right, one line per particle, the winner's ancestors in ``colour``.

    Children stay next to their siblings, so that no two lines cross. ``finalists``: (particle id, image uint8) of those
    finished images that are shown at the right end; ``start``: what stands at the left end.
    """
    width, height = TREE_SIZE
    left, right, top, bottom = 14, 2 * THUMB + 32, THUMB / 2 + 6, THUMB / 2 + 22
    steps = len(trace.records)
    chain = winner_lineage(trace, winner)
    places: dict[int, tuple[float, float]] = {}
    rank: dict[int, int] = {}
    lines, dots = [], []
    for column, record in enumerate(trace.records):
        entries = sorted(record.particles, key=lambda e: (rank.get(e["parent"], -1), e["id"]))
        x = left + (width - left - right) * column / max(steps - 1, 1)
        rank = {}
        for row, entry in enumerate(entries):
            share = 0.5 if len(entries) == 1 else row / (len(entries) - 1)
            y = top + (height - top - bottom) * share
            rank[entry["id"]] = row
            places[entry["id"]] = (round(x, 1), round(y, 1))
            kind = "alive" if entry["id"] in chain else "other"
            if entry["parent"] in places:
                (x0, y0), (x1, y1) = places[entry["parent"]], places[entry["id"]]
                bend = (x0 + x1) / 2
                path = f"M{x0} {y0}C{bend:.1f} {y0} {bend:.1f} {y1} {x1} {y1}"
                lines.append((kind, f'<path class="branch {kind}" d="{path}"/>'))
            score = "" if entry["score"] is None else f", score {entry['score']:.3f}"
            title = f"<title>particle {entry['id']}, step {record.step}{score}</title>"
            x1, y1 = places[entry["id"]]
            radius = 3.2 if kind == "alive" else 2
            dots.append((kind, f'<circle class="leaf {kind}" cx="{x1}" cy="{y1}" r="{radius}">{title}</circle>'))
    style = f'style="--mark:{colour}"'
    parts = [f'<svg class="tree" viewBox="0 0 {width} {height}" role="img" aria-label="Family tree" {style}>']
    for wanted in ("other", "alive"):
        parts += [text for kind, text in lines + dots if kind == wanted]
    parts += _thumbnails(finalists, places, chain, width - right + 16)
    parts.append(f'<text class="tick" x="{left}" y="{height - 4}">{escape(start)}</text>')
    parts.append(f'<text class="tick" x="{width - right}" y="{height - 4}" text-anchor="end">finished</text>')
    return "".join([*parts, "</svg>"])


def _thumbnails(finalists: Sequence[tuple[int, np.ndarray]], places: dict, chain: set[int], x: float) -> list[str]:
    """Finished images beside their particles in two columns, as many as fit without touching, the winner's for sure."""
    parts, taken = [], ([], [])
    known = [item for item in finalists if item[0] in places]
    for particle, image in sorted(known, key=lambda item: (item[0] not in chain, places[item[0]][1])):
        y = places[particle][1]
        free = (k for k, column in enumerate(taken) if all(abs(y - other) > THUMB for other in column))
        column = next(free, None)
        if column is None:
            continue
        taken[column].append(y)
        kind = "alive" if particle in chain else "other"
        left = x + column * (THUMB + 8)
        place = f'x="{left}" y="{y - THUMB / 2:.1f}" width="{THUMB}" height="{THUMB}"'
        parts.append(f'<image href="{data_uri(image, 2 * THUMB)}" {place}/><rect class="frame {kind}" {place}/>')
    return parts
