"""Scale schedules: which token grids an image is drawn on, from 1 x 1 up (Infinity's published tables)."""

from __future__ import annotations

from dataclasses import dataclass

Grid = tuple[int, int]

_TABLE: dict[float, str] = {
    1.0: "1,1 2,2 4,4 6,6 8,8 12,12 16,16 20,20 24,24 32,32 40,40 48,48 64,64",
    1.25: "1,1 2,2 3,3 5,4 10,8 15,12 20,16 25,20 30,24 35,28 45,36 55,44 70,56",
    1.333: "1,1 2,2 4,3 8,6 12,9 16,12 20,15 24,18 28,21 36,27 48,36 60,45 72,54",
    1.5: "1,1 2,2 3,2 6,4 9,6 15,10 21,14 27,18 33,22 39,26 48,32 63,42 78,52",
    1.75: "1,1 2,2 3,3 7,4 11,6 14,8 21,12 28,16 35,20 42,24 56,32 70,40 84,48",
    2.0: "1,1 2,2 4,2 6,3 10,5 16,8 22,11 30,15 38,19 46,23 60,30 74,37 90,45",
    2.5: "1,1 2,2 5,2 10,4 15,6 20,8 25,10 30,12 40,16 50,20 65,26 80,32 100,40",
    3.0: "1,1 2,2 6,2 9,3 15,5 21,7 27,9 36,12 45,15 54,18 72,24 90,30 111,37",
}
BUDGETS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""Pixel budget -> number of scales."""

TOKEN_PIXELS = 16
"""Image pixels along one side of a token, for every released model (stride 16, or stride 8 with 2 x 2 patches)."""


@dataclass(frozen=True)
class ScaleSchedule:
    """The token grids of an image, coarse to fine.

    Attributes:
        grids: ``(h, w)`` per scale, in tokens; areas must not shrink.
        reference: grid whose rows and columns the rotary embedding counts in: the finest one the model was trained
            on at this aspect ratio, even when fewer scales are drawn.
    """

    grids: tuple[Grid, ...]
    reference: Grid

    def __post_init__(self):
        areas = [h * w for h, w in self.grids]
        if not areas or min(areas) < 1 or areas != sorted(areas):
            raise ValueError(f"grids are {self.grids}: at least one is needed, and their areas must not shrink")
        if areas[0] != 1:
            raise ValueError(f"the first grid is {self.grids[0]}: it must be (1, 1), the start token")

    def __len__(self) -> int:
        return len(self.grids)

    @property
    def lengths(self) -> list[int]:
        """Tokens per scale."""
        return [h * w for h, w in self.grids]

    @property
    def offsets(self) -> list[int]:
        """Tokens before each scale, and their total: K + 1 numbers."""
        total = [0]
        for length in self.lengths:
            total.append(total[-1] + length)
        return total

    @classmethod
    def square(cls, *sides: int) -> ScaleSchedule:
        """Square grids; the last one is the reference."""
        return cls(tuple((side, side) for side in sides), (sides[-1], sides[-1]))


def _tables() -> dict[float, tuple[Grid, ...]]:
    tables = {}
    for ratio, text in _TABLE.items():
        grids = tuple((int(h), int(w)) for h, w in (pair.split(",") for pair in text.split()))
        tables[ratio] = grids
        if ratio != 1.0:
            tables[int(1 / ratio * 1000) / 1000] = tuple((w, h) for h, w in grids)
    return tables


TABLES = _tables()
"""Height over width -> the 13 grids of a 1M-pixel image."""


def schedule_for(aspect: float = 1.0, budget: str = "1M", exact: bool = False) -> ScaleSchedule:
    """Schedule of the tabled aspect ratio nearest to ``aspect``.

    Args:
        aspect: height / width, > 0.
        budget: "0.06M" (256 x 256), "0.25M" (512), "0.60M" (768) or "1M" (1024).
        exact: refuse a ratio that is more than 1 % off every tabled one, naming the nearest.

    Raises:
        ValueError: an unknown budget, or a ratio without a schedule.
    """
    if budget not in BUDGETS:
        raise ValueError(f"pixel budget is {budget!r}: choose one of {', '.join(BUDGETS)}")
    if not aspect > 0:
        raise ValueError(f"aspect ratio (height / width) is {aspect}: it must be > 0")
    nearest = min(TABLES, key=lambda ratio: abs(ratio - aspect))
    if exact and abs(nearest - aspect) > 0.01 * aspect:
        raise ValueError(f"aspect ratio (height / width) {aspect:g} has no schedule: the nearest is {nearest:g}")
    return ScaleSchedule(TABLES[nearest][: BUDGETS[budget]], TABLES[nearest][-1])


def schedule_of_grid(grid: Grid) -> ScaleSchedule:
    """Schedule whose finest grid is ``grid`` (tokens high, tokens wide), at the largest budget that ends there.

    Raises:
        ValueError: no schedule ends on this grid; the message names the nearest that does.
    """
    ends = {
        table[count - 1]: ScaleSchedule(table[:count], table[-1])
        for table in TABLES.values()
        for count in sorted(BUDGETS.values())
    }
    if grid not in ends:
        nearest = min(ends, key=lambda known: abs(known[0] - grid[0]) + abs(known[1] - grid[1]))
        pixels = " x ".join(str(side * TOKEN_PIXELS) for side in nearest)
        raise ValueError(f"no schedule ends on {grid[0]} x {grid[1]} tokens: the nearest image has {pixels} pixels")
    return ends[grid]
