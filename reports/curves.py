"""Scores over compute."""

from __future__ import annotations

from ..samplers.trace import Trace
from .canvas import Canvas, faded, score_colour, ticks
from .tree import Box, score_range, winner_ids

Curve = list[tuple[float, float]]


def scored_points(trace: Trace) -> list[tuple[int, float, bool]]:
    """(NFE, score, selected) of every scored particle, in order."""
    return [
        (record.nfe, entry["score"], bool(entry["selected"]))
        for record in trace.records
        for entry in record.particles
        if entry["score"] is not None
    ]


def best_so_far(trace: Trace) -> Curve:
    """(NFE, best score up to then), one point per scored record, averaged over the groups that have one."""
    best: dict[int, float] = {}
    curve: Curve = []
    for record in trace.records:
        scores = [(e["group"], e["score"]) for e in record.particles if e["score"] is not None]
        for group, score in scores:
            best[group] = max(score, best.get(group, score))
        if scores:
            curve.append((float(record.nfe), sum(best.values()) / len(best)))
    return curve


def winner_path(trace: Trace) -> list[Curve]:
    """Scores along the way of every group's winner, as (NFE, score)."""
    table = {e["id"]: (record.nfe, e) for record in trace.records for e in record.particles}
    paths = []
    for winner in winner_ids(trace):
        points, current = [], winner
        while current is not None and current in table:
            nfe, entry = table[current]
            if entry["score"] is not None:
                points.append((float(nfe), entry["score"]))
            current = entry["parent"]
        paths.append(points[::-1])
    return paths


def draw_curves(canvas: Canvas, trace: Trace, box: Box) -> None:
    """All scores as dots, the best so far as a line, the winners' own ways as a thinner one; axes with units."""
    theme = canvas.theme
    left, top, right, bottom = box[0] + 46, box[1], box[2], box[3] - 34
    points = scored_points(trace)
    low, high = score_range(trace)
    margin = 0.06 * (high - low)
    last = max((record.nfe for record in trace.records), default=1) or 1

    def place(nfe: float, score: float) -> tuple[float, float]:
        share = (score - low + margin) / (high - low + 2 * margin)
        return left + (right - left) * nfe / last, bottom - (bottom - top) * share

    for value in ticks(low - margin, high + margin, 6):
        y = place(0, value)[1]
        canvas.line([(left, y), (right, y)], theme.grid)
        canvas.text((left - 8, y), f"{value:g}", 11, theme.muted, "rm")
    for value in ticks(0, last, 5):
        canvas.text((place(value, low)[0], bottom + 8), f"{value:g}", 11, theme.muted, "ma")
    canvas.text(((left + right) / 2, box[3]), "forward passes (NFE)", 11, theme.muted, "ms")
    if not points:
        canvas.text(((left + right) / 2, (top + bottom) / 2), "nothing was scored", 13, theme.muted, "mm")
        return
    for nfe, score, selected in points:
        colour = score_colour(theme, (score - low) / (high - low))
        canvas.dot(place(nfe, score), 2.6 if selected else 1.9, colour if selected else faded(theme, colour, 0.5))
    for path in winner_path(trace):
        if len(path) > 1:
            canvas.line([place(*point) for point in path], faded(theme, theme.accent, 0.75), 1.2)
    curve = best_so_far(trace)
    steps = [place(*curve[0])]
    for (_, before), (nfe, after) in zip(curve, curve[1:], strict=False):
        steps += [place(nfe, before), place(nfe, after)]
    canvas.line(steps, theme.text, 1.8)
    canvas.dot(steps[-1], 3.4, theme.text)
