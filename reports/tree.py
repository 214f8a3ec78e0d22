"""The family tree of a search: steps from left to right, one lane per particle, the winner's path on top."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..samplers.trace import Trace
from .canvas import Canvas, faded, score_colour

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class TreeLayout:
    """Where everything of a tree goes.

    Attributes:
        places: particle id -> (x, y). edges: (parent, child) ids.
        winners: ids on the paths to the winners. alive: ids that have a finished descendant.
        resampled: x of the steps at which a resampling took place.
    """

    places: dict[int, tuple[float, float]]
    edges: list[tuple[int, int]]
    winners: set[int]
    alive: set[int]
    resampled: list[float]


def winner_ids(trace: Trace) -> list[int]:
    """Winner of every group: the selected entry of the last record, or its best."""
    if not trace.records:
        return []
    best: dict[int, dict] = {}
    for entry in trace.records[-1].particles:
        known = best.get(entry["group"])
        if known is None or _order(entry) > _order(known):
            best[entry["group"]] = entry
    return [best[group]["id"] for group in sorted(best)]


def _order(entry: dict) -> tuple[bool, float]:
    score = entry["score"]
    return bool(entry["selected"]), -math.inf if score is None else score


def layout(trace: Trace, box: Box) -> TreeLayout:
    """Places in ``box`` (left, top, right, bottom).

    Children are drawn in the order of their parents, so that lines cross as little as a picture on a grid allows.
    """
    left, top, right, bottom = box
    columns = max(len(trace.records) - 1, 1)
    places, order, edges, resampled = {}, {}, [], []
    for column, record in enumerate(trace.records):
        x = left + (right - left) * (column / columns if len(trace.records) > 1 else 0.5)
        entries = sorted(record.particles, key=lambda e: (e["group"], order.get(e["parent"], -1), e["id"]))
        for row, entry in enumerate(entries):
            share = 0.5 if len(entries) == 1 else row / (len(entries) - 1)
            places[entry["id"]] = (x, top + (bottom - top) * share)
            order[entry["id"]] = row
            if entry["parent"] in places:
                edges.append((entry["parent"], entry["id"]))
        if any(record.resampled):
            resampled.append(x)
    parents = {child: parent for parent, child in edges}
    last = [entry["id"] for entry in trace.records[-1].particles] if trace.records else []
    return TreeLayout(places, edges, _ancestors(winner_ids(trace), parents), _ancestors(last, parents), resampled)


def _ancestors(ids: list[int], parents: dict[int, int]) -> set[int]:
    """``ids`` and everything they descend from."""
    found: set[int] = set()
    for particle in ids:
        current: int | None = particle
        while current is not None and current not in found:
            found.add(current)
            current = parents.get(current)
    return found


def score_range(trace: Trace) -> tuple[float, float]:
    """(lowest, highest) finite score of a trace; (0, 1) without any."""
    scores = [e["score"] for r in trace.records for e in r.particles if e["score"] is not None]
    if not scores:
        return 0.0, 1.0
    low, high = min(scores), max(scores)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def draw_tree(canvas: Canvas, trace: Trace, box: Box) -> TreeLayout:
    """Draw the tree of ``trace`` into ``box``; returns its layout."""
    theme, plan = canvas.theme, layout(trace, box)
    low, high = score_range(trace)
    entries = {e["id"]: e for r in trace.records for e in r.particles}
    crowd = max((len(r.particles) for r in trace.records), default=1)
    radius = max(1.2, min(4.0, 0.32 * (box[3] - box[1]) / crowd))
    for x in plan.resampled:
        canvas.line([(x, box[1] - 6), (x, box[3] + 6)], faded(theme, theme.event, 0.28), 1.0)

    def shade(particle: int):
        score = entries[particle]["score"]
        colour = theme.muted if score is None else score_colour(theme, (score - low) / (high - low))
        return colour if particle in plan.alive else faded(theme, colour, 0.4)

    for parent, child in plan.edges:
        if child not in plan.winners:
            strength = 0.55 if child in plan.alive else 0.22
            canvas.branch(plan.places[parent], plan.places[child], faded(theme, theme.muted, strength), 0.9)
    for particle, place in plan.places.items():
        if particle not in plan.winners:
            canvas.dot(place, radius, shade(particle))
    for parent, child in plan.edges:
        if child in plan.winners:
            canvas.branch(plan.places[parent], plan.places[child], theme.accent, 2.2)
    for particle in plan.winners:
        canvas.dot(plan.places[particle], radius, shade(particle), ring=theme.accent)
    return plan
