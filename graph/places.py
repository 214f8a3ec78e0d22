"""Where a new node may stand on a page of a UI-format workflow without covering another one."""

from __future__ import annotations

from .widgets import extra_values, has_widget, options_of, ordered_inputs

TITLE, GAP = 30, 40
SLOT, WIDGET, TEXT, MARGIN = 24, 34, 140, 20
"""Heights in pixels; those of the newer renderer, which is the taller one."""
WIDTH = 340
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def size_of(kind: str, object_info: dict) -> tuple[float, float]:
    """Width and height at which the front end shows a new node of a class without cutting anything off."""
    info = object_info[kind]
    specs = ordered_inputs(info)
    sockets = sum(not has_widget(spec) for spec in specs.values())
    height = max(sockets, len(info.get("output") or ())) * SLOT + MARGIN
    for name, spec in specs.items():
        if has_widget(spec):
            height += (TEXT if options_of(spec).get("multiline") else WIDGET) + WIDGET * min(
                1, extra_values(name, spec)
            )
    return WIDTH, height


def box_of(node: dict) -> Box:
    """What a node covers, its title included."""
    x, y = pair(node.get("pos"))
    width, height = pair(node.get("size"), (200.0, 100.0))
    if (node.get("flags") or {}).get("collapsed"):
        width, height = min(width, 200.0), 0.0
    return x, y - TITLE, x + width, y + height


def boxes_of(content: dict, but: object = None) -> list[Box]:
    """What is covered on a page: nodes, and inside of a sub-graph its two borders."""
    found = [box_of(node) for node in content["nodes"] if node["id"] != but]
    for border in ("inputNode", "outputNode"):
        bounding = (content.get(border) or {}).get("bounding")
        if isinstance(bounding, (list, tuple)) and len(bounding) == 4:
            x, y, width, height = map(float, bounding)
            found.append((x, y, x + width, y + height))
    return found


def overlap(one: Box, other: Box, gap: float = 0.0) -> bool:
    """Whether two boxes come nearer than ``gap``."""
    return (
        one[0] < other[2] + gap and other[0] < one[2] + gap and one[1] < other[3] + gap and other[1] < one[3] + gap
    )  # fmt: skip


def free_place(content: dict, size: tuple[float, float], near, but: object = None) -> tuple[float, float]:
    """The position nearest to ``near`` at which a node of ``size`` covers nothing.

    Args:
        content: the page. size: without the title. near: position. but: id of a node that does not count.
    """
    near = pair(near)
    boxes = boxes_of(content, but)
    # A node that fits as closely as possible touches two others, or keeps one coordinate.
    lefts = [near[0], *(box[2] + GAP for box in boxes), *(box[0] - GAP - size[0] for box in boxes)]
    tops = [near[1], *(box[3] + GAP + TITLE for box in boxes), *(box[1] - GAP - size[1] for box in boxes)]

    def free(place: tuple[float, float]) -> bool:
        x, y = place
        own = (x, y - TITLE, x + size[0], y + size[1])
        gap = 0.0 if place == near else GAP / 2
        return not any(overlap(own, box, gap) for box in boxes)

    places = sorted(
        ((x, y) for x in set(lefts) for y in set(tops)), key=lambda at: abs(at[0] - near[0]) + abs(at[1] - near[1])
    )
    return next((place for place in places if free(place)), (near[0], max(box[3] for box in boxes) + GAP + TITLE))


def pair(value, other: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """Two numbers, however the file writes them: [x, y], {"0": x, "1": y}."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)) and len(value) >= 2:
        return float(value[0]), float(value[1])
    return other
