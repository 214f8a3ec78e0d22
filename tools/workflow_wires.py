"""Wires of the example workflows: where a link would run behind a node, reroutes lead it around.

The front end draws links first and nodes over them. ``strokes`` says where a link runs, by the front end's own
formulas; ``route`` adds reroutes (the dots that a user makes with Alt + click) where it would pass behind a node. It
searches a grid of lanes between the nodes for the shortest way with few corners; wires of one output share theirs.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the graph."""

OFFSET = 20
"""How far a link keeps the direction of a reroute, in pixels: the front end's default."""
CLEAR = 7
"""Distance between wires and nodes, in pixels."""
LANE = 14
"""Distance between two wires side by side, in pixels."""
OWN, BESIDE, REACH, NEAR = 26, 18, 900, 60
"""How far slots lie inside their node; how near to a slot a reroute may be, how far; what is beside it. In pixels."""
TRIES = 400
"""How many ways are looked at before a link is given up."""
ARRIVED = -2
CORNER, SHARED, CROWDED = 90, 0.5, 60
"""Price of a reroute in pixels; of a stretch where the same output has a wire; of one where another has."""


@dataclass(frozen=True)
class Wire:
    """A link to be drawn: its number, (node, slot) of its output, both ends, numbers of the nodes at its ends.

    ``loose``: how low the input lies differs between renderers, as with text boxes; the last reroute stands beside it.
    """

    number: int
    output: tuple[int, int]
    start: Point
    end: Point
    ends: tuple[int, int]
    loose: bool = False

    @property
    def far(self) -> bool:
        """Whether the nodes stand further apart than two columns do."""
        return self.end[0] - self.start[0] > 2 * NEAR


PARTS = 48
_T = np.linspace(0.0, 1.0, PARTS + 1)[:, None]
CUBIC = np.concatenate([(1 - _T) ** 3, 3 * _T * (1 - _T) ** 2, 3 * _T**2 * (1 - _T), _T**3], 1)
"""[points, 4]: weights of the four corners of a cubic curve."""


def curves(a: np.ndarray, b: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[curves, points, 2] from ``a`` to ``b``, corners ``first`` and ``second`` relative to them, all [curves, 2]."""
    return CUBIC @ np.stack([a, a + first, b + second, b], 1)


def strokes(path: Sequence[Point]) -> np.ndarray:
    """[points, 2] of a link from an output (first) over reroutes to an input (last), as the front end draws it."""
    leaves, enters = [(math.dist(path[0], path[1]) * 0.25, 0.0)], []
    for before, here, after in zip(path, path[1:], path[2:], strict=False):
        came = math.atan2(here[1] - before[1], here[0] - before[0])
        turn = (came - math.atan2(after[1] - here[1], after[0] - here[0])) * 0.5
        angle = came - (turn + math.pi if abs(turn) > math.pi / 2 else turn)
        along = np.array([math.cos(angle), math.sin(angle)])
        enters.append(tuple(-min(OFFSET, math.dist(before, here) * 0.25) * along))
        leaves.append(tuple(min(OFFSET, math.dist(here, after) * 0.25) * along))
    enters.append((-math.dist(path[-2], path[-1]) * 0.25, 0.0))
    points = np.array(path, float)
    return curves(points[:-1], points[1:], np.array(leaves), np.array(enters)).reshape(-1, 2)


def behind(path: Sequence[Point], boxes: dict[int, Box], ends: tuple[int, int], clear: float = 0.0) -> list[int]:
    """Numbers of the nodes that a link runs behind; at its own two nodes the way from and to the slot is free."""
    numbers, sides = _sides(boxes, ends, clear)
    hidden = _touched(strokes(path)[None], sides)[0]
    return sorted(number for number, found in zip(numbers, hidden, strict=True) if found)


def _sides(boxes: dict[int, Box], ends: tuple[int, int], clear: float) -> tuple[list[int], np.ndarray]:
    """(numbers, boxes [n, 4]) that a link between two nodes has to leave free."""
    rows = [_wider(box, clear, clear) if number not in ends else _wider(box, -OWN, 0) for number, box in boxes.items()]
    return list(boxes), np.array(rows)


def _touched(lines: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """[lines, boxes]: whether a point of each line [lines, points, 2] lies inside each box."""
    x, y = lines[:, :, None, 0], lines[:, :, None, 1]
    return ((x > sides[:, 0]) & (x < sides[:, 2]) & (y > sides[:, 1]) & (y < sides[:, 3])).any(1)


class Lanes:
    """The grid of lanes between the boxes of nodes."""

    def __init__(self, boxes: dict[int, Box]):
        self.boxes = {number: _wider(box, CLEAR, CLEAR) for number, box in boxes.items()}
        lefts, rights = (sorted({box[side] for box in boxes.values()}) for side in (0, 2))
        tops, bottoms = (sorted({box[side] for box in boxes.values()}) for side in (1, 3))
        steps = [LANE * (1 + k) for k in range(4)]
        xs = {x - step for x in lefts for step in steps} | {x + step for x in rights for step in steps}
        ys = {y - step for y in tops for step in steps} | {y + step for y in bottoms for step in steps}
        self.xs, self.ys = _thinned(xs), _thinned(ys)
        self.points = [
            (i, j) for i, x in enumerate(self.xs) for j, y in enumerate(self.ys) if not self._inside((x, y), (x, y))
        ]
        self.free = set(self.points)
        self.open: dict[tuple, bool] = {}
        self.used: dict[tuple, set] = {}

    def _inside(self, a: Point, b: Point) -> bool:
        """Whether the straight stretch between two points of one lane touches a node."""
        left, right, top, bottom = min(a[0], b[0]), max(a[0], b[0]), min(a[1], b[1]), max(a[1], b[1])
        return any(left < x1 and right > x0 and top < y1 and bottom > y0 for x0, y0, x1, y1 in self.boxes.values())

    def at(self, point: tuple[int, int]) -> Point:
        """Where a crossing of lanes lies."""
        return self.xs[point[0]], self.ys[point[1]]

    def passable(self, a: tuple[int, int], b: tuple[int, int]) -> bool:
        """Whether nothing lies between two neighbouring crossings."""
        key = (a, b) if a < b else (b, a)
        if key not in self.open:
            self.open[key] = not self._inside(self.at(a), self.at(b))
        return self.open[key]

    def price(self, a: tuple[int, int], b: tuple[int, int], output: tuple[int, int]) -> float:
        """Cost of a stretch for a wire of an output."""
        length = math.dist(self.at(a), self.at(b))
        others = self.used.get((a, b) if a < b else (b, a), set())
        return length * SHARED if output in others else length + CROWDED * len(others)

    def mark(self, way: Sequence[tuple[int, int]], output: tuple[int, int]) -> None:
        """Note a wire on its stretches."""
        for a, b in itertools.pairwise(way):
            self.used.setdefault((a, b) if a < b else (b, a), set()).add(output)


def _wider(box: Box, across: float, down: float) -> Box:
    return box[0] - across, box[1] - down, box[2] + across, box[3] + down


def _thinned(values: Iterable[float], apart: float = 8.0) -> list[float]:
    """Sorted, without values that lie closer together than ``apart``."""
    result: list[float] = []
    for value in sorted(values):
        if not result or value - result[-1] >= apart:
            result.append(value)
    return result


def route(wires: Sequence[Wire], boxes: dict[int, Box]) -> dict[int, list[Point]]:
    """Reroutes of every link that needs some, from its output to its input.

    Raises ValueError where there is no way: the columns stand too close.
    """
    lanes, result = Lanes(boxes), {}
    hidden = [
        wire for wire in wires if (wire.loose and wire.far) or behind((wire.start, wire.end), boxes, wire.ends, CLEAR)
    ]
    for wire in sorted(hidden, key=lambda wire: (wire.output, -math.dist(wire.start, wire.end))):
        way = _search(wire, lanes, boxes)
        if way is None:
            raise ValueError(f"no way for link {wire.number} from {wire.start} to {wire.end}")
        lanes.mark(way, wire.output)
        result[wire.number] = [lanes.at(point) for point in _corners(way)]
    return result


def _corners(way: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Both ends of a way and the crossings where it turns."""
    return [
        here
        for k, here in enumerate(way)
        if k in (0, len(way) - 1)
        or (way[k - 1][0] == here[0]) != (here[0] == way[k + 1][0])
    ]  # fmt: skip


def _search(wire: Wire, lanes: Lanes, boxes: dict[int, Box]) -> list[tuple[int, int]] | None:
    """The cheapest way over the lanes on which the drawn link stays clear of every node.

    Links are rounded at their reroutes. A way whose corners touch a node is searched again without these corners.
    """
    _, sides = _sides(boxes, wire.ends, CLEAR / 2)
    starts = _reachable(lanes, sides, wire.start, 1)
    ends = _reachable(lanes, sides, wire.end, -1, NEAR if wire.loose else REACH)
    barred: set[tuple[int, int]] = set()
    for _ in range(TRIES):
        way = _cheapest(lanes, starts, ends, barred, wire.output)
        if way is None:
            return None
        corners = _corners(way)
        path = (wire.start, *map(lanes.at, corners), wire.end)
        touched = sides[_touched(strokes(path)[None], sides)[0]]
        if not len(touched):
            return way
        distances = [min(_distance(lanes.at(point), box) for box in touched) for point in corners]
        barred.add(corners[distances.index(min(distances))])
    return None


def _distance(point: Point, box: np.ndarray) -> float:
    """From a point to a box."""
    return math.hypot(max(box[0] - point[0], 0, point[0] - box[2]), max(box[1] - point[1], 0, point[1] - box[3]))


def _cheapest(
    lanes: Lanes, starts: dict, ends: dict, barred: set[tuple[int, int]], output: tuple[int, int]
) -> list[tuple[int, int]] | None:
    """Dijkstra's way from one of ``starts`` to one of ``ends``, that turns at none of ``barred``."""
    queue = [(cost, point, -1, (point,)) for point, cost in starts.items() if point not in barred]
    heapq.heapify(queue)
    done: set[tuple] = set()
    while queue:
        cost, point, direction, way = heapq.heappop(queue)
        if (point, direction) in done:
            continue
        done.add((point, direction))
        if direction == ARRIVED:
            return list(way)
        if point in ends and point not in barred:
            heapq.heappush(queue, (cost + ends[point] + CORNER, point, ARRIVED, way))
        for across, down, turn in ((1, 0, 0), (-1, 0, 0), (0, 1, 1), (0, -1, 1)):
            other = (point[0] + across, point[1] + down)
            bend = turn != direction and direction >= 0
            if other in lanes.free and lanes.passable(point, other) and not (bend and point in barred):
                price = lanes.price(point, other, output) + (CORNER if turn != direction else 0)
                heapq.heappush(queue, (cost + price, other, turn, (*way, other)))
    return None


def _reachable(
    lanes: Lanes, sides: np.ndarray, slot: Point, direction: int, reach: float = REACH
) -> dict[tuple[int, int], float]:
    """Crossings to which the curve from a slot is free, with its cost: length, and how steep it is.

    ``direction``: 1 for an output, whose links leave to the right; -1 for an input.
    """
    places = np.array([lanes.at(point) for point in lanes.points])
    across, down = (places[:, 0] - slot[0]) * direction, np.abs(places[:, 1] - slot[1])
    chosen = np.flatnonzero((across > BESIDE) & (np.hypot(across, down) < reach))
    if not len(chosen):
        return {}
    there, here = places[chosen], np.broadcast_to(np.array(slot, float), (len(chosen), 2))
    control = np.linalg.norm(there - here, axis=1)[:, None] * np.array([0.25 * direction, 0.0])
    none = np.zeros_like(control)
    free = ~_touched(curves(here, there, control, none), sides).any(1)
    return {
        lanes.points[k]: float(np.hypot(across[k], down[k]) + 0.5 * down[k])
        for k, good in zip(chosen, free, strict=True)
        if good
    }
