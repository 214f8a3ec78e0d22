"""The curves and the family tree of a search as inline SVG; colours are the page's, so light and dark both work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..samplers.run.trace import Trace
from .canvas import ticks
from .curves import best_so_far, scored_points, staircase, winner_paths
from .tree import columns_of, finite, layout, numbered, particles_of, score_range

SHADES = 7
"""Score classes ``s0`` (worst) .. ``s6`` (best); the style sheet gives them their colours."""
CURVES = (1120, 340)
TREE_WIDTH = 1120


def shade(score: float | None, low: float, high: float) -> str:
    """Class of a score's colour, ``none`` without a score."""
    if not finite(score):
        return "none"
    return f"s{min(int(SHADES * (score - low) / (high - low)), SHADES - 1)}"


def curves(trace: Trace, winners: Iterable[int] | None = None) -> str:
    """Every score a dot, the best so far a line per image, the winners' own ways thinner, resampling marked."""
    width, height = CURVES
    left, top, right, bottom = 52, 14, width - 14, height - 42
    points = scored_points(trace)
    if not points:
        return "<p class='fine'>Nothing was scored.</p>"
    low, high = score_range(trace)
    margin = 0.07 * (high - low)
    last = max(record.nfe for record in trace.records) or 1

    def place(nfe: float, score: float) -> str:
        share = (score - low + margin) / (high - low + 2 * margin)
        return f"{left + (right - left) * nfe / last:.1f},{bottom - (bottom - top) * share:.1f}"

    def across(nfe: float) -> float:
        return round(left + (right - left) * nfe / last, 1)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="Scores over compute">']
    for value in ticks(low - margin, high + margin, 6):
        y = place(0, value).split(",")[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(0, last, 8):
        parts.append(f'<text class="tick" x="{across(value)}" y="{bottom + 18}" text-anchor="middle">{value:,g}</text>')
    middle = (left + right) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{height - 4}" text-anchor="middle">forward passes (NFE)</text>')
    for nfe in sorted({record.nfe for record in trace.records if any(record.resampled)}):
        x = across(nfe)
        parts.append(f'<line class="event" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"><title>resampled</title></line>')
    for nfe, score, selected in points:
        x, y = place(nfe, score).split(",")
        kind = f"dot {shade(score, low, high)}{'' if selected else ' dropped'}"
        parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="{3.2 if selected else 2.4}"/>')
    for path in winner_paths(trace, winners):
        if len(path) > 1:
            parts.append(f'<polyline class="way" points="{" ".join(place(*point) for point in path)}"/>')
    for curve in best_so_far(trace).values():
        corners = staircase(curve, last)
        parts.append(f'<polyline class="best" points="{" ".join(place(*point) for point in corners)}"/>')
    return "".join([*parts, "</svg>"])


def tree(trace: Trace, winners: Iterable[int] | None = None, thumbs: Mapping[int, str] | None = None) -> str:
    """The family tree from noise (left) to image (right), one dot per particle.

    Dots carry ``data-id`` and ``data-parent``, by which the page's script finds the way of the one under the pointer;
    without the script a dot still has a tooltip.
    """
    crowd = max((len(found) for _, found in columns_of(trace)), default=1)
    height = min(900, max(150, 19 * crowd + 70))
    left, top, right, bottom = 22, 22, TREE_WIDTH - 22, height - 44
    plan, entries = layout(trace, (left, top, right, bottom), winners), particles_of(trace)
    record_of = {e["id"]: record for record in reversed(trace.records) for e in record.particles}
    low, high = score_range(trace)
    near = (right - left) / max(len(plan.columns), 1)
    radius = max(1.2, min(4.6, 0.34 * (bottom - top) / crowd, 0.3 * near))

    def place(particle: int) -> tuple[float, float]:
        x, y = plan.places[particle]
        return round(x, 1), round(y, 1)

    head = f'<svg class="family" viewBox="0 0 {TREE_WIDTH} {height}" role="img" tabindex="0" '
    parts = [head + f'aria-label="Family tree: {len(plan.places)} particles in {len(plan.columns)} steps">']
    for x in plan.resampled:
        parts.append(
            f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 12}" y2="{bottom + 6}">'
            f"<title>resampled</title></line>"
        )
    for x, step in numbered(plan.columns):
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 20}" text-anchor="middle">{step}</text>')
    lines: dict[str, list[str]] = {"dead": [], "alive": [], "won": []}
    dots: dict[str, list[str]] = {"dead": [], "alive": [], "won": []}
    for parent, child in plan.edges:
        (x0, y0), (x1, y1) = place(parent), place(child)
        bend = (x0 + x1) / 2
        kind = "won" if child in plan.winners else "alive" if child in plan.alive else "dead"
        lines[kind].append(f"M{x0} {y0}C{bend:.1f} {y0} {bend:.1f} {y1} {x1} {y1}")
    for particle in plan.places:
        x, y = place(particle)
        entry = entries[particle]
        kind = "won" if particle in plan.winners else "alive" if particle in plan.alive else "dead"
        score = f", score {entry['score']:.4g}" if finite(entry["score"]) else ""
        parent = "" if entry["parent"] is None else f' data-parent="{entry["parent"]}"'
        size = max(radius, min(3.4, 0.3 * near)) if kind == "won" else radius
        dots[kind].append(
            f'<circle class="{kind} {shade(entry["score"], low, high)}" cx="{x}" cy="{y}" r="{size:.1f}" '
            f'data-id="{particle}"{parent}><title>particle {particle}, step {record_of[particle].step}{score}</title>'
            f"</circle>"
        )
    for kind in ("dead", "alive", "won"):
        parts += [f'<path class="line {kind}" d="{"".join(lines[kind])}"/>', *dots[kind]]
    parts.append('<path class="line pointed"/>')
    parts.append(f'<text class="tick" x="{left}" y="{height - 5}" text-anchor="middle">noise</text>')
    parts.append(f'<text class="tick" x="{right}" y="{height - 5}" text-anchor="middle">image</text>')
    return "".join([*parts, "</svg>"])
