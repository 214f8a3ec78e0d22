"""Prompts with choices and comments: ``a {red|blue} car /* which? */``.

The front end draws them when it queues a workflow, in inputs that say ``dynamicPrompts``. Here the draw is a function
of a seed and of the place in the workflow, so that a run can be repeated.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

Choose = Callable[[Sequence[str], str], str]
"""(options, place in the workflow) -> one of the options."""

MARK = re.compile(r"/[*/]")
LINE_END = re.compile(r"[\n\r\u2028\u2029]")
DEEPEST = 50
"""Levels of choices inside choices that are drawn; deeper ones stay as they are written."""


def drawn_by(seed: int) -> Choose:
    """Choices drawn by ``seed``: the same place gets the same choice, whatever is changed elsewhere."""
    dice: dict[str, random.Random] = {}

    def choose(options: Sequence[str], place: str) -> str:
        return dice.setdefault(place, random.Random(f"{seed}/{place}")).choice(options)

    return choose


def first_choice(options: Sequence[str], _: str) -> str:
    """Always the first one."""
    return options[0]


def has_choices(text: str) -> bool:
    """Whether ``resolved`` would change a text."""
    return "{" in text or without_comments(text) != text


def without_comments(text: str) -> str:
    """``text`` without ``/* ... */`` and without ``// ...`` to the end of the line, in linear time."""
    parts, at, last_end = [], 0, text.rfind("*/")
    while (mark := MARK.search(text, at)) is not None:
        parts.append(text[at : mark.start()])
        if mark.group() == "//":
            end = LINE_END.search(text, mark.end())
            at = end.start() if end else len(text)
        elif last_end >= mark.end():
            at = text.index("*/", mark.end()) + 2
        else:  # never closed: no comment
            parts.append(text[mark.start()])
            at = mark.start() + 1
    return "".join([*parts, text[at:]])


def resolved(text: str, choose: Choose, place: str, depth: int = 0) -> str:
    """``text`` without comments, with one option of every ``{a|b}``; ``\\{``, ``\\|`` and ``\\}`` are plain signs."""
    text = without_comments(text)
    parts, at = [], 0
    while at < len(text):
        sign = text[at]
        at += 1
        if sign == "\\":
            parts.append(sign + text[at : at + 1])
            at += 1
        elif sign == "{" and depth < DEEPEST:
            options, at = _options(text, at)
            parts.append(resolved(choose(options, place), choose, place, depth + 1))
        else:
            parts.append(sign)
    return re.sub(r"\\([{}|])", r"\1", "".join(parts))


def _options(text: str, at: int) -> tuple[list[str], int]:
    """(options of the choice whose content begins at ``at``, where it ends); one that is never closed ends the text."""
    options, start, depth = [], at, 0
    while at < len(text):
        sign = text[at]
        if sign == "\\":
            at += 1
        elif sign == "{":
            depth += 1
        elif sign == "}" and not depth:
            break
        elif sign == "}":
            depth -= 1
        elif sign == "|" and not depth:
            options.append(text[start:at])
            start = at + 1
        at += 1
    return [*options, text[start:at]], at + 1
