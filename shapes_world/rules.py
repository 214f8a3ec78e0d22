"""When a picture satisfies a prompt: GenEval's rules over a list of objects.

The rules read object lists only, so they serve drawn scenes (the ground truth) and detections alike.
Source: Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment" (2023), section 3.2
and its `evaluate_images.py` (position threshold 0.1, direction threshold 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from .captions import Prompt, Requirement
from .scene import RELATIONS

POSITION_THRESHOLD = 0.1
"""Offsets up to this fraction of the two objects' summed sizes count as no offset."""

DIRECTION_THRESHOLD = 0.5
"""The part of the offset that must point in a direction: within 60 degrees, so a diagonal fulfils two relations."""


class Item(Protocol):
    """What the rules read of an object; `scene.Object` and `evaluator.Detection` both fit. Pixels, y points down."""

    @property
    def shape(self) -> str:
        """One of ``SHAPES``."""
        ...

    @property
    def colour(self) -> str:
        """One of ``COLOURS``."""
        ...

    @property
    def x(self) -> float:
        """Centre."""
        ...

    @property
    def y(self) -> float:
        """Centre."""
        ...

    @property
    def radius(self) -> float:
        """Of the circle that it fits."""
        ...


def matches(item: Item, need: Requirement) -> bool:
    """Whether `item` has the shape and the colour that `need` names; what it leaves open matches anything."""
    return need.shape in (None, item.shape) and need.colour in (None, item.colour)


def relations(first: Item, second: Item) -> tuple[str, ...]:
    """The relations of `first` to `second` by their centres: none, one, or two on a diagonal."""
    size = 2.0 * (first.radius + second.radius)
    dx, dy = first.x - second.x, first.y - second.y
    length = math.hypot(dx, dy)
    if length < 1e-6:
        return ()
    dx, dy = (math.copysign(max(abs(d) - POSITION_THRESHOLD * size, 0.0), d) / length for d in (dx, dy))
    holds = (dx < -DIRECTION_THRESHOLD, dx > DIRECTION_THRESHOLD, dy < -DIRECTION_THRESHOLD, dy > DIRECTION_THRESHOLD)
    return tuple(name for name, true in zip(RELATIONS, holds, strict=True) if true)


def decide(prompt: Prompt, items: Sequence[Item]) -> tuple[bool, str]:
    """Whether `items` satisfy `prompt`.

    A count is exact in the task "counting" and a minimum elsewhere (so "a star" is true of a star beside a ring). One
    object serves one requirement only. Unlike GenEval, which tests its most confident detection of a class, a relation
    holds as soon as some pair of fitting objects fulfils it; without repeated shapes the two are the same.

    Returns:
        (correct, reason): the reason names the first requirement that fails, and is "all requirements hold" otherwise.
    """
    candidates = [[item for item in items if matches(item, need)] for need in prompt.objects]
    for need, found in zip(prompt.objects, candidates, strict=True):
        wanted = need.count or 1
        if prompt.task == "counting" and len(found) != wanted:
            return False, f"expected exactly {wanted} of {_name(need)}, found {len(found)}"
        if len(found) < wanted:
            return False, _missing(need, items, wanted, len(found))
    for choice in _assignments(prompt.objects, candidates):
        if prompt.relation is None or prompt.relation in relations(choice[0], choice[1]):
            return True, "all requirements hold"
    if prompt.relation is None:
        return False, "one object would have to serve two requirements"
    first, second = prompt.objects[:2]
    return False, f"{_name(first)} is not {prompt.relation} {_name(second)}"


def _assignments(needs: Sequence[Requirement], candidates: list[list[Item]], taken: tuple[int, ...] = ()):
    """Yield the first object chosen for each requirement, over all ways to give every requirement its own objects."""
    if not needs:
        yield ()
        return
    free = [item for item in candidates[0] if id(item) not in taken]
    wanted = needs[0].count or 1
    for start in range(len(free) - wanted + 1):
        # Rotating the start is enough: objects of one requirement are interchangeable but for relations, where it is 1.
        chosen = free[start : start + wanted]
        for rest in _assignments(needs[1:], candidates[1:], taken + tuple(id(item) for item in chosen)):
            yield (chosen[0], *rest)


def _missing(need: Requirement, items: Sequence[Item], wanted: int, found: int) -> str:
    if need.colour is not None and need.shape is not None:
        colours = [item.colour for item in items if item.shape == need.shape]
        if len(colours) >= wanted:
            return f"expected {need.shape} in {need.colour}, found {', '.join(colours)}"
    return f"expected at least {wanted} of {_name(need)}, found {found}"


def _name(need: Requirement) -> str:
    return " ".join(word for word in (need.colour, need.shape or "object") if word)
