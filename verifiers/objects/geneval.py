"""GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513) over any detector's boxes: strict, and graded for steering.

Strict is the benchmark's verdict, right or wrong. It says the same of most candidates of a search, so ``graded`` gives
every clause (presence, number, colour, place) a share of 0 to 1 that rises on the way to being fulfilled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import VerifierError
from .requirements import COLOURS, Item, Requirement

# (name, boxes [m, 4]) -> probability of each of COLOURS [m, 10]
Colours = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """Objects of one kind: ``boxes [m, 4]`` (left, top, right, bottom in pixels), ``scores [m]``, highest first."""

    boxes: Tensor
    scores: Tensor

    def head(self, count: int) -> Found:
        """The first ``count``."""
        return Found(self.boxes[:count], self.scores[:count])


NOTHING = Found(torch.zeros(0, 4), torch.zeros(0))


@dataclass(frozen=True)
class Rules:
    """When a box counts.

    Attributes:
        threshold: score above which an object is there.
        counting_threshold: the same where its exact number is asked for.
        most: objects of a kind that are looked at.
        overlap: of two boxes of a kind that share more than this (intersection over union) the lower one goes; 1: none.
        inside: a box that lies in a higher one of its kind by this share goes; 1: none.
        apart: share of the objects' sizes by which their centres must differ, see ``direction``.

    The benchmark's own values, for a detector trained on COCO's classes, are ``OFFICIAL``; open-vocabulary detectors
    give lower scores and several boxes for one object.
    """

    threshold: float = 0.2
    counting_threshold: float = 0.25
    most: int = 16
    overlap: float = 0.6
    inside: float = 0.9
    apart: float = 0.1

    def __post_init__(self):
        for name in ("threshold", "counting_threshold"):
            if not 0 < getattr(self, name) < 1:
                raise VerifierError(f"{name} is {getattr(self, name)}: it must lie between 0 and 1")
        if self.most < 1:
            raise VerifierError(f"most is {self.most}: at least 1 is needed")


OFFICIAL = Rules(threshold=0.3, counting_threshold=0.9, overlap=1.0, inside=1.0)


def thin_out(found: Found, rules: Rules) -> Found:
    """The boxes that stand for objects of their own, at most ``rules.most`` of them."""
    order = found.scores.argsort(descending=True, stable=True)
    boxes, scores = found.boxes[order], found.scores[order]
    kept: list[int] = []
    for row in range(len(boxes)):
        shared = _intersection(boxes[row], boxes[kept]) if kept else boxes.new_zeros(0)
        union = _area(boxes[row]) + _area(boxes[kept]) - shared if kept else shared
        covered = shared / _area(boxes[row]).clamp(min=1e-9)
        double = rules.overlap < 1 and bool((shared / union.clamp(min=1e-9) > rules.overlap).any())
        nested = rules.inside < 1 and bool((covered >= rules.inside).any())
        if not double and not nested:
            kept.append(row)
    return Found(boxes[kept], scores[kept]).head(rules.most)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def _intersection(box: Tensor, others: Tensor) -> Tensor:
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    return (high - low).clamp(min=0).prod(-1)


def strict(
    wanted: Requirement, found: dict[str, Found], colours: Colours | None = None, rules: Rules = OFFICIAL
) -> tuple[bool, list[str]]:
    """The benchmark's verdict, and why it is wrong where it is.

    Args:
        found: boxes per name, ``thin_out`` already; missing names count as nothing found.
        colours: tells colours; needed where the requirement names one.
    """
    seen = {name: _above(found.get(name, NOTHING), _threshold(wanted, rules)) for name in wanted.names}
    groups: list[Found | None] = []
    reasons: list[str] = []
    for item in wanted.include:
        objects = seen[item.name].head(item.count)
        reason = _clause(item, objects, groups, colours, rules)
        if reason:
            reasons.append(reason)
        groups.append(None if reason else objects)
    for name, limit in wanted.exclude:
        count = len(seen[name].scores)
        if count >= limit:
            reasons.append(f"{count} x {name} instead of {limit - 1}")
    return not reasons, reasons


def _clause(
    item: Item, objects: Found, groups: list[Found | None], colours: Colours | None, rules: Rules
) -> str | None:
    """What is wrong with an item, or None."""
    count = len(objects.scores)
    if count < item.count:
        return f"{count} x {item.name} instead of {item.count}"
    if item.colour is not None:
        told = [COLOURS[i] for i in _colours(colours, item, objects).argmax(1).tolist()]
        if any(colour != item.colour for colour in told):
            return f"{item.name} is {', '.join(told)} instead of {item.colour}"
    if item.relation is not None:
        relation, target = item.relation
        others = groups[target]
        if others is None:
            return f"nothing to be {relation}"
        for box in objects.boxes:
            for other in others.boxes:
                if relation not in relations(box, other, rules.apart):
                    return f"{item.name} is not {relation} the other"
    return None


def graded(
    wanted: Requirement, found: dict[str, Found], colours: Colours | None = None, rules: Rules = OFFICIAL
) -> float:
    """Mean over all clauses of how far each is fulfilled, 0 to 1.

    Presence: ``min(1, s / threshold)`` of the weakest object that is needed. Number: ``exp(-|found - wanted|)``.
    Colour: its probability. Place: ``sigmoid(margin / 0.1)`` of how far the direction is beyond what ``strict`` asks
    for.
    """
    threshold = _threshold(wanted, rules)
    shares: list[float] = []
    groups: list[Found] = []
    for item in wanted.include:
        objects = found.get(item.name, NOTHING).head(item.count)
        weakest = float(objects.scores[item.count - 1]) if len(objects.scores) >= item.count else 0.0
        shares.append(min(1.0, weakest / threshold))
        if item.colour is not None:
            told = _colours(colours, item, objects)[:, COLOURS.index(item.colour)] if len(objects.scores) else None
            shares.append(0.0 if told is None else float(told.mean()))
        if item.relation is not None:
            relation, target = item.relation
            shares.append(_placed(relation, objects, groups[target], rules.apart))
        groups.append(objects)
    for name, limit in wanted.exclude:
        count = len(_above(found.get(name, NOTHING), threshold).scores)
        shares.append(math.exp(-abs(count - (limit - 1))))
    return sum(shares) / len(shares) if shares else 1.0


def count_error(wanted: Requirement, found: dict[str, Found], rules: Rules = OFFICIAL) -> float:
    """``-sum (found - wanted)^2`` over the kinds of objects, with a thousandth of the confidence to break ties."""
    threshold = _threshold(wanted, rules)
    total, confidence = 0.0, []
    for name in wanted.names:
        exact = wanted.target(name)
        target = sum(item.count for item in wanted.include if item.name == name) if exact is None else exact
        objects = _above(found.get(name, NOTHING), threshold)
        total -= (len(objects.scores) - target) ** 2
        confidence += objects.scores.tolist()
    return total + 1e-3 * (sum(confidence) / len(confidence) if confidence else 0.0)


def direction(box: Tensor, other: Tensor, apart: float) -> tuple[float, float]:
    """Where ``box`` lies from ``other``: difference of the centres, less ``apart`` of the sizes, over its length.

    (0, 0) where the boxes are too close to tell; x points right, y down.
    """
    centre = (box[:2] + box[2:] - other[:2] - other[2:]) / 2
    sizes = (box[2:] - box[:2]).abs() + (other[2:] - other[:2]).abs()
    left_over = (centre.abs() - apart * sizes).clamp(min=0) * centre.sign()
    length = float(centre.norm())
    if bool((left_over.abs() < 1e-3).all()) or length == 0:
        return 0.0, 0.0
    return float(left_over[0]) / length, float(left_over[1]) / length


def relations(box: Tensor, other: Tensor, apart: float = 0.1) -> set[str]:
    """What ``box`` is to ``other``: "left of", "right of", "above", "below"; none or two at a time."""
    x, y = direction(box, other, apart)
    held = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in held.items() if holds}


def _placed(relation: str, objects: Found, others: Found, apart: float) -> float:
    if not len(objects.scores) or not len(others.scores):
        return 0.0
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    margins = [sign * direction(box, other, apart)[axis] - 0.5 for box in objects.boxes for other in others.boxes]
    return 1 / (1 + math.exp(-min(margins) / 0.1))


def _threshold(wanted: Requirement, rules: Rules) -> float:
    return rules.counting_threshold if wanted.exclude else rules.threshold


def _above(found: Found, threshold: float) -> Found:
    return Found(found.boxes[found.scores > threshold], found.scores[found.scores > threshold])


def _colours(colours: Colours | None, item: Item, objects: Found) -> Tensor:
    if colours is None:
        raise VerifierError(
            f"the prompt asks for a {item.colour} {item.name}: a CLIP model is needed to tell colours, give one as clip"
        )
    return colours(item.name, objects.boxes)
