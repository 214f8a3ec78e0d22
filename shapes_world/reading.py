"""Read a caption of Shapes World back into what it asks for: the inverse of ``captions.caption``."""

from __future__ import annotations

import re

from .captions import NUMBER_WORDS, Prompt, Requirement, plural
from .scene import COLOURS, SHAPES

_SHAPES = {name: shape for shape in SHAPES for name in (shape, plural(shape))}
_COUNTS = {"a": 1, "an": 1} | {name: n for n, word in NUMBER_WORDS.items() for name in (word, str(n))}
_SIDES = {"left": "left of", "right": "right of", "above": "above", "over": "above", "below": "below", "under": "below"}
_PREFIX = re.compile(r"^(?:an?|the) (?:photo|picture|drawing|image) of ")
_LINK = re.compile(r" (?:is )?(?:(?:to|on) the )?(left|right) of | (?:is )?(above|over|below|under) ")


def read_caption(text: str) -> Prompt | None:
    """The prompt that a caption words, or None where it is not one of this world's.

    The task is the one that a caption of this form belongs to. Case, punctuation and repeated spaces do not matter.
    """
    plain = _PREFIX.sub("", " ".join(re.findall(r"[a-z0-9]+", text.lower())))
    link = _LINK.search(f" {plain} ")
    if link is not None:
        padded = f" {plain} "
        parts, relation = [padded[: link.start()], padded[link.end() :]], _SIDES[link.group(1) or link.group(2)]
    else:
        parts, relation = plain.split(" and "), None
    objects = tuple(_thing(part.split()) for part in parts)
    if not 1 <= len(objects) <= 2 or None in objects or sum(o.count for o in objects) > 4:
        return None
    return Prompt(text, _task(objects, relation), objects, relation)


def _thing(words: list[str]) -> Requirement | None:
    """ "two red stars" -> 2 red stars; None for words of another kind."""
    count = 1
    if words and words[0] in (*_COUNTS, "the"):
        count = _COUNTS.get(words[0], 1)
        words = words[1:]
    colour = words[0] if words and words[0] in COLOURS else None
    rest = words[1:] if colour else words
    if len(rest) != 1 or rest[0] not in (*_SHAPES, "object", "objects"):
        return None
    return Requirement(_SHAPES.get(rest[0]), colour, count)


def _task(objects: tuple[Requirement, ...], relation: str | None) -> str:
    if relation is not None:
        return "position"
    if len(objects) == 1:
        if objects[0].count != 1:
            return "counting"
        return "colors" if objects[0].colour else "single_object"
    return "color_attr" if any(o.colour for o in objects) else "two_object"
