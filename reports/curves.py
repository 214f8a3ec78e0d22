"""Scores over compute as a picture; ``tree.py`` says why it is drawn here as well as in the browser."""

from __future__ import annotations

import itertools

from ..samplers.run.trace import Trace
from .canvas import Box, Canvas, faded, score_colour, ticks
from .tree import finite, particles_of, score_range, winner_ids

Curve = list[tuple[float, float]]
ROOM = (46, 34)  # pixels for the numbers at the left and below


def scored_points(trace: Trace) -> list[tuple[int, float, bool]]:
    """(NFE, score, selected) of every scored particle, in order.

    What was not paid for is not shown again: a particle that is listed a second time, or one that has its parent's
    score after no further forward passes (the last step of a schedule that ends at zero noise).
    """
    spent: dict[int, tuple[int, float]] = {}
    points = []
    for record in trace.records:
        for entry in record.particles:
            if entry["id"] in spent or not finite(entry["score"]):
                continue
            here = (record.nfe, entry["score"])
            spent[entry["id"]] = here
            if spent.get(entry["parent"]) != here:
                points.append((*here, bool(entry["selected"])))
    return points


def best_so_far(trace: Trace) -> dict[int, Curve]:
    """Per group (NFE, best score up to then), one point per record in which it was scored."""
    curves: dict[int, Curve] = {}
    for record in trace.records:
        found: dict[int, float] = {}
        for entry in record.particles:
            if finite(entry["score"]):
                group = entry["group"]
                found[group] = max(entry["score"], found.get(group, entry["score"]))
        for group, score in found.items():
            curve = curves.setdefault(group, [])
            curve.append((float(record.nfe), max(score, curve[-1][1]) if curve else score))
    return curves


def winner_paths(trace: Trace) -> list[Curve]:
    """Scores along the way of every winner as (NFE, score), from noise to image."""
    table, nfe = particles_of(trace), {}
    for record in trace.records:
        for entry in record.particles:
            nfe.setdefault(entry["id"], record.nfe)
    paths = []
    for winner in winner_ids(trace):
        points: Curve = []
        current: int | None = winner
        while current in table:
            if finite(table[current]["score"]):
                points.append((float(nfe[current]), table[current]["score"]))
            current = table[current]["parent"]
        paths.append(points[::-1])
    return paths


def staircase(curve: Curve, end: float) -> Curve:
    """Corners of a line that keeps a value until the next one is known, and the last one until ``end``."""
    corners = curve[:1]
    for (_, before), (nfe, after) in itertools.pairwise(curve):
        corners += [(nfe, before), (nfe, after)]
    return [*corners, (end, curve[-1][1])]


def draw_curves(canvas: Canvas, trace: Trace, box: Box) -> None:
    """All scores as dots, the best so far as a line, the winners' own ways as thinner ones; resampling marked."""
    theme = canvas.theme
    left, top, right, bottom = box[0] + ROOM[0], box[1], box[2], box[3] - ROOM[1]
    points = scored_points(trace)
    low, high = score_range(trace)
    margin = 0.07 * (high - low)
    last = max((record.nfe for record in trace.records), default=1) or 1

    def place(nfe: float, score: float) -> tuple[float, float]:
        share = (score - low + margin) / (high - low + 2 * margin)
        return left + (right - left) * nfe / last, bottom - (bottom - top) * share

    for value in ticks(low - margin, high + margin, 6):
        y = place(0, value)[1]
        canvas.line([(left, y), (right, y)], theme.grid)
        canvas.text((left - 8, y), f"{value:g}", 11, theme.muted, "rm")
    for value in ticks(0, last, 6):
        canvas.text((place(value, low)[0], bottom + 8), f"{value:,.0f}", 11, theme.muted, "ma")
    canvas.text(((left + right) / 2, box[3]), "forward passes (NFE)", 11, theme.muted, "ms")
    if not points:
        canvas.text(((left + right) / 2, (top + bottom) / 2), "nothing was scored", 13, theme.muted, "mm")
        return
    for nfe in sorted({record.nfe for record in trace.records if any(record.resampled)}):
        x = place(nfe, low)[0]
        canvas.line([(x, top), (x, bottom)], faded(theme, theme.event, 0.3))
        canvas.triangle((x, top + 1), 5.5, theme.event)
    for nfe, score, selected in points:
        colour = score_colour(theme, (score - low) / (high - low))
        canvas.dot(place(nfe, score), 2.7 if selected else 2.1, colour if selected else faded(theme, colour, 0.5))
    for path in winner_paths(trace):
        if len(path) > 1:
            canvas.line([place(*point) for point in path], theme.accent, 1.3)
        for point in path[-1:]:
            canvas.dot(place(*point), 3.4, theme.accent)
    curves = best_so_far(trace)
    for curve in curves.values():
        canvas.line([place(*point) for point in staircase(curve, last)], theme.text, 2.0 if len(curves) == 1 else 1.5)
