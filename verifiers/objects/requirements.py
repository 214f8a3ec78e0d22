"""What a prompt asks for, as things that a detector can check: objects, how many, in which colour, where.

Reads prompts of the kind that GenEval (Ghosh et al. 2023, arXiv 2310.11513) is made of, and its metadata files:

    a photo of two clocks
    a photo of a red car and a blue cup
    a photo of a dog left of a teddy bear
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ...chat.syntax import plain
from ..base import VerifierError

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {"a": 1, "an": 1, "the": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
           "eight": 8, "nine": 9, "ten": 10, "no": 0}  # fmt: skip
LONGEST_NAME = 4  # words
LONGEST_NUMBER = 6  # digits
LONGEST_SHOWN = 120  # characters of a prompt in a message
_SPOKEN = {
    "to the left of": "left of", "on the left of": "left of", "to the right of": "right of",
    "on the right of": "right of", "on top of": "above", "over": "above", "underneath": "below", "beneath": "below",
    "under": "below",
}  # fmt: skip
_OPENING = re.compile(r"^(?:an?|the)?\s*(?:photo|picture|image|drawing|painting|photograph)\s+of\s+", re.IGNORECASE)
_RELATION = re.compile(
    r"\s+(?:is\s+|are\s+)?("
    + "|".join(re.escape(words) for words in sorted((*RELATIONS, *_SPOKEN), key=len, reverse=True))
    + r")\s+"
)
_SINGULAR = {
    "people": "person", "persons": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "knives": "knife", "knifes": "knife", "sheeps": "sheep", "geese": "goose", "feet": "foot", "buses": "bus",
    "wolves": "wolf", "leaves": "leaf", "cookies": "cookie", "skis": "skis", "scissors": "scissors",
}  # fmt: skip
_NO_NAMES = frozenset(
    [
        "with",
        "without",
        "in",
        "on",
        "at",
        "by",
        "of",
        "that",
        "which",
        "who",
        "near",
        "next",
        "from",
        "wearing",
        "holding",
        "and",
        "or",
    ]
)


@dataclass(frozen=True)
class Item:
    """One kind of object.

    Attributes:
        name: singular, lower case.
        count: how many there must be at least.
        colour: one of ``COLOURS``, or None.
        relation: where they are to another item, one of ``RELATIONS`` and that item's place in the list, or None.
    """

    name: str
    count: int = 1
    colour: str | None = None
    relation: tuple[str, int] | None = None


@dataclass(frozen=True)
class Requirement:
    """All that an image must show.

    Attributes:
        include: what must be there.
        exclude: (name, n): fewer than n of these.
    """

    include: tuple[Item, ...]
    exclude: tuple[tuple[str, int], ...] = ()

    @property
    def names(self) -> list[str]:
        """Every kind of object, each once, in order."""
        return list(dict.fromkeys([item.name for item in self.include] + [name for name, _ in self.exclude]))

    @property
    def has_colours(self) -> bool:
        """Whether a colour has to be told."""
        return any(item.colour for item in self.include)

    def target(self, name: str) -> int | None:
        """The exact number of a kind, None where more are fine."""
        return next((limit - 1 for other, limit in self.exclude if other == name), None)


def from_geneval(line: dict[str, Any]) -> Requirement:
    """A line of GenEval's metadata.

    Raises:
        VerifierError: it lacks a field, or names a relation to an item that does not come before it.
    """
    try:
        include = tuple(
            Item(
                entry["class"],
                int(entry["count"]),
                entry.get("color"),
                (str(entry["position"][0]), int(entry["position"][1])) if "position" in entry else None,
            )
            for entry in line["include"]
        )
        exclude = tuple((entry["class"], int(entry["count"])) for entry in line.get("exclude", ()))
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise VerifierError(f"this is no line of GenEval's metadata: {type(error).__name__}: {error}") from error
    for place, item in enumerate(include):
        if item.relation is not None and not 0 <= item.relation[1] < place:
            raise VerifierError(
                f"item {place} stands {item.relation[0]} item {item.relation[1]}, which is not before it"
            )
    return Requirement(include, exclude)


def parse(prompt: str) -> Requirement:
    """What a prompt asks for, its weights and BREAKs left out. Counts in words or digits are exact, "a": at least one.

    Raises:
        VerifierError: the prompt is not of this kind; the message says which part, and what can be written instead.
    """
    text = _OPENING.sub("", " ".join(plain(prompt).split()).strip().rstrip(".!"))
    include: list[Item] = []
    exclude: list[tuple[str, int]] = []

    def add(phrase: str, relation: tuple[str, int] | None = None) -> int:
        name, count, colour, exact = _object(phrase, prompt)
        if exact:
            exclude.append((name, count + 1))
        if count:
            include.append(Item(name, count, colour, relation))
        return len(include) - 1

    for clause in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+|\s*;\s*", text.lower()):
        parts = _RELATION.split(clause)
        if len(parts) == 1:
            add(clause)
        elif len(parts) == 3:
            target = add(parts[2])
            add(parts[0], (_SPOKEN.get(parts[1], parts[1]), target))
        else:
            raise _unclear(prompt, clause)
    return Requirement(tuple(include), tuple(exclude))


def _object(phrase: str, prompt: str) -> tuple[str, int, str | None, bool]:
    """(name, count, colour, whether the count is exact) of "two red apples"."""
    words = phrase.split()
    count, exact = 1, False
    if words and (words[0] in NUMBERS or words[0].isnumeric()):
        exact = words[0] not in ("a", "an", "the")
        # Signs like a superscript two are numeric and no decimal, and Python refuses numbers of thousands of digits.
        if words[0] not in NUMBERS and not (words[0].isdecimal() and len(words[0]) <= LONGEST_NUMBER):
            raise _unclear(prompt, phrase)
        count = NUMBERS[words[0]] if words[0] in NUMBERS else int(words[0])
        words = words[1:]
    colour = None
    if len(words) > 1 and words[0] in COLOURS:
        colour, words = words[0], words[1:]
    if not 1 <= len(words) <= LONGEST_NAME or _NO_NAMES & set(words) or count > 100:
        raise _unclear(prompt, phrase)
    if count != 1 or exact:
        words = [*words[:-1], singular(words[-1])]
    return " ".join(words), count, colour, exact


def singular(word: str) -> str:
    """A noun's singular, by rule and for a few exceptions; also undoes plurals made by rule ("knifes")."""
    if word in _SINGULAR:
        return _SINGULAR[word]
    if len(word) > 4 and re.search(r"[^aeiou]ies$", word):
        return word[:-3] + "y"
    if re.search(r"(?:ch|sh|x|ss|zz)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _unclear(prompt: str, part: str) -> VerifierError:
    prompt, part = (
        text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..." for text in (prompt, part)
    )
    return VerifierError(
        f"the objects in the prompt {prompt!r} are not clear at {part!r}: write what to look for in `objects`, e.g. "
        f'"two dogs, a red ball, a cat left of a tree"'
    )
