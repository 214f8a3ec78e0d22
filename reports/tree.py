"""The family tree of a search as a picture: steps from left to right, one lane per particle, winners' paths on top.

Panel and pages are drawn by ``web/draw``, in the browser. This and ``curves.py`` are the one drawing beside it, because
the IMAGE that a node gives (Search Report), and the thumbnails of workflows, are made where no browser is. Both put
everything in the same place: a test compares the two layouts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..samplers.run.trace import StepRecord, Trace
from .canvas import Box, Canvas, Point, faded, score_colour

GROUP_GAP = 0.8  # lanes left free between the groups of a column
AXIS = 22  # pixels below the lanes for the numbers of the steps


@dataclass(frozen=True)
class TreeLayout:
    """Where everything of a tree goes.

    Attributes:
        places: particle id -> (x, y).
        edges: (parent, child) ids.
        winners: ids on the paths to the winners. alive: ids that have a descendant in the last record.
        columns: (x, step) from left to right. resampled: x of those at which a resampling took place.
    """

    places: dict[int, Point]
    edges: list[tuple[int, int]]
    winners: set[int]
    alive: set[int]
    columns: list[tuple[float, int]]
    resampled: list[float]


def finite(score: float | None) -> bool:
    """Whether there is a score that can be drawn."""
    return score is not None and math.isfinite(score)


def particles_of(trace: Trace) -> dict[int, dict[str, Any]]:
    """Particle id -> entry. A particle that was listed again keeps what the later entry knows."""
    table: dict[int, dict[str, Any]] = {}
    for record in trace.records:
        for entry in record.particles:
            known = table.setdefault(entry["id"], dict(entry))
            known.update({key: value for key, value in entry.items() if value is not None})
    return table


def columns_of(trace: Trace) -> list[tuple[list[StepRecord], list[dict[str, Any]]]]:
    """(records, entries that are new in them) of every column, from left to right.

    Records of the same step share a column: methods that try children one at a time write many of them. Where that
    would put a child beside or before its parent (a search that goes back in time), every record is a column of its
    own. A record that only lists known particles again makes none.
    """
    step_of: dict[int, int] = {}
    fresh: list[tuple[StepRecord, list[dict[str, Any]]]] = []
    forward = True
    for record in trace.records:
        new = [entry for entry in record.particles if entry["id"] not in step_of]
        forward = forward and all(step_of.get(entry["parent"], -1) < record.step for entry in new)
        step_of.update({entry["id"]: record.step for entry in new})
        fresh.append((record, new))
    columns: dict[int, tuple[list[StepRecord], list[dict[str, Any]]]] = {}
    for number, (record, new) in enumerate(fresh):
        if new:
            records, entries = columns.setdefault(record.step if forward else number, ([], []))
            records.append(record)
            entries.extend(new)
    return [columns[key] for key in sorted(columns)]


def winner_ids(trace: Trace) -> list[int]:
    """Ids of the winners, an image each."""
    return [entry["id"] for entry in trace.winners()]


def lanes(groups: Sequence[int]) -> list[float]:
    """Heights 0..1 of a column's entries, evenly spaced with a gap where the group changes; 0.5 for a single one."""
    height, heights = 0.0, []
    for index, group in enumerate(groups):
        if index:
            height += 1.0 + (GROUP_GAP if group != groups[index - 1] else 0.0)
        heights.append(height)
    return [value / height for value in heights] if height else [0.5] * len(heights)


def layout(trace: Trace, box: Box) -> TreeLayout:
    """Places in ``box`` (left, top, right, bottom).

    Children stand in the order of their parents, so that lines of different families do not cross.
    """
    left, top, right, bottom = box
    columns = columns_of(trace)
    places: dict[int, Point] = {}
    order: dict[int, float] = {}
    edges, axis, resampled = [], [], []
    for column, (records, found) in enumerate(columns):
        x = left + (right - left) * (column / (len(columns) - 1) if len(columns) > 1 else 0.5)
        entries = sorted(found, key=lambda e: (e["group"], order.get(e["parent"], -1.0), e["id"]))
        for entry, height in zip(entries, lanes([e["group"] for e in entries]), strict=True):
            places[entry["id"]] = (x, top + (bottom - top) * height)
            order[entry["id"]] = height
            if entry["parent"] in places:
                edges.append((entry["parent"], entry["id"]))
        axis.append((x, records[0].step))
        if any(any(record.resampled) for record in records):
            resampled.append(x)
    parents = {child: parent for parent, child in edges}
    chosen = winner_ids(trace)
    last = [entry["id"] for entry in trace.records[-1].particles] if trace.records else []
    return TreeLayout(places, edges, _line(chosen, parents), _line([*last, *chosen], parents), axis, resampled)


def _line(ids: Iterable[int], parents: dict[int, int]) -> set[int]:
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
    scores = [e["score"] for r in trace.records for e in r.particles if finite(e["score"])]
    if not scores:
        return 0.0, 1.0
    low, high = min(scores), max(scores)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def numbered(columns: Sequence[tuple[float, int]], room: float = 34.0) -> list[tuple[float, int]]:
    """The columns that get a number: every 1st, 2nd, 5th, 10th, ... so that numbers are ``room`` pixels apart."""
    if len(columns) < 2:
        return list(columns)
    distance = (columns[-1][0] - columns[0][0]) / (len(columns) - 1)
    stride = next(s * 10**power for power in range(6) for s in (1, 2, 5) if s * 10**power * distance >= room)
    return list(columns)[::stride]


def draw_tree(canvas: Canvas, trace: Trace, box: Box) -> TreeLayout:
    """Draw the tree of ``trace`` and the numbers of its steps into ``box``; returns its layout."""
    theme, area = canvas.theme, (box[0], box[1], box[2], box[3] - AXIS)
    plan, entries = layout(trace, area), particles_of(trace)
    low, high = score_range(trace)
    crowd = max((len(found) for _, found in columns_of(trace)), default=1)
    near = (area[2] - area[0]) / max(len(plan.columns), 1)
    radius = max(1.1, min(4.0, 0.32 * (area[3] - area[1]) / crowd, 0.3 * near))
    for x in plan.resampled:
        canvas.line([(x, area[1] - 10), (x, area[3] + 4)], faded(theme, theme.event, 0.45), 1.0)
        canvas.triangle((x, area[1] - 8), 5.5, theme.event)
    for x, step in numbered(plan.columns):
        canvas.text((x, box[3]), str(step), 11, theme.muted, "ms")

    def shade(particle: int):
        score = entries[particle]["score"]
        colour = score_colour(theme, (score - low) / (high - low)) if finite(score) else theme.muted
        return colour if particle in plan.alive else faded(theme, colour, 0.35)

    # Dead ends first, then the living, then the winners, so that what matters lies on top.
    thin = 0.9 if crowd <= 32 else 0.6
    for alive, strength in ((False, 0.24), (True, 0.6)):
        for parent, child in plan.edges:
            if child not in plan.winners and (child in plan.alive) == alive:
                canvas.branch(plan.places[parent], plan.places[child], faded(theme, theme.muted, strength), thin)
        for particle, place in plan.places.items():
            if particle not in plan.winners and (particle in plan.alive) == alive:
                canvas.dot(place, radius, shade(particle))
    for parent, child in plan.edges:
        if child in plan.winners:
            canvas.branch(plan.places[parent], plan.places[child], theme.accent, 2.2)
    for particle in sorted(plan.winners):
        big = max(radius, min(2.4, 0.3 * near))
        canvas.dot(plan.places[particle], big, shade(particle), ring=theme.accent)
    return plan
