"""From what a model wrote to JSON. Everything here takes time in proportion to the text's length.

Models think aloud, wrap JSON in fences and prose, write Python's quotes and trailing commas, nest brackets without end,
and repeat a line break ten thousand times. None of this may freeze a search, raise anything but the pack's own errors,
or make a score out of a thought.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

LONGEST = 20_000  # characters of an answer, without its thoughts, that are read: the last ones
DEEPEST = 100  # brackets in brackets
STARTS = 40  # opening braces that are tried where braces do not balance

_THOUGHT = re.compile(r"[<\u25c1](/?)(?:think|thinking|thought|reasoning)[>\u25b7]", re.IGNORECASE)
_MARKER = re.compile(r"<\|[A-Za-z_ ]{1,40}\|>")  # <|begin_of_box|> and the like
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<sign>[{}\[\],:])|(?P<word>[^\s{}\[\],:"']+)|\s+""", re.DOTALL
)
_ESCAPED = re.compile(r'\\.|"', re.DOTALL)
_SPELLED = {"\\'": "'", '"': '\\"'}
_WORDS = {"True": "true", "False": "false", "None": "null"}


def answer_in(text: str) -> tuple[str, bool]:
    """(the answer without thoughts, whether a thought was left unfinished), the answer cut to its end.

    Thoughts stand between ``<think>`` and ``</think>`` or the like. Where a chat template has opened the thought, the
    text begins with one, and only its end can be seen.
    """
    kept: list[str] = []
    start, thinking = 0, False
    for tag in _THOUGHT.finditer(text):
        if tag[1]:
            if not thinking:
                kept.clear()
            start, thinking = tag.end(), False
        elif not thinking:
            kept.append(text[start : tag.start()])
            thinking = True
    if not thinking:
        kept.append(text[start:])
    return _MARKER.sub("", "".join(kept)[-LONGEST:]), thinking


def parsed(text: str | bytes) -> Any:
    """The JSON value that a text is, or None where it is none or nests too deeply to be meant."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def loosely_parsed(text: str) -> Any:
    """As ``parsed``; trailing commas, single quotes and Python's True, False, None count, too."""
    text = text.strip()
    if _depth(text) > DEEPEST:
        return None
    value = parsed(text)
    if value is not None or not text.startswith(("{", "[")):
        return value
    tokens = _tokens(text)
    return None if tokens is None else parsed("".join(tokens))


def _depth(text: str) -> int:
    """At least how deep brackets nest; those in quotes count, too, which no sound answer has a hundred of."""
    depth = deepest = 0
    for sign in re.findall(r"[{}\[\]]", text):
        depth = max(0, depth + (1 if sign in "{[" else -1))
        deepest = max(deepest, depth)
    return deepest


def _tokens(text: str) -> list[str] | None:
    """The text in JSON's spelling, token by token; None where it is not even nearly JSON."""
    made: list[str] = []
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            return None
        place = found.end()
        if found["text"] is not None:
            made.append(_quoted(found["text"]))
        elif found["word"] is not None:
            made.append(_WORDS.get(found["word"], found["word"]))
        elif found["sign"] is not None:
            if found["sign"] in "}]" and made and made[-1] == ",":
                made.pop()
            made.append(found["sign"])
    return made


def _quoted(text: str) -> str:
    """A quoted text in JSON's quotes; an apostrophe needs no backslash there, and may have none."""
    return '"' + _ESCAPED.sub(lambda found: _SPELLED.get(found[0], found[0]), text[1:-1]) + '"'


def objects(text: str) -> Iterator[str]:
    """Every outermost ``{...}`` whose braces balance in the last ``LONGEST`` signs of a text, quotes respected."""
    text = text[-LONGEST:]
    start = text.find("{")
    for _ in range(STARTS):
        if start < 0:
            return
        end = _closing(text, start)
        if end is None:
            start = text.find("{", start + 1)
            continue
        yield text[start : end + 1]
        start = text.find("{", end + 1)


def _closing(text: str, start: int) -> int | None:
    """Place of the brace that closes the one at ``start``."""
    depth, quoted, skip = 0, False, -1
    for found in re.finditer(r'[{}"\\]', text[start:]):
        place = found.start()
        if place == skip:
            continue
        sign = found[0]
        if sign == "\\":
            skip = place + 1 if quoted else skip
        elif sign == '"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if sign == "{" else -1
            if depth == 0:
                return start + place
    return None


def last_object(text: str) -> dict[str, Any] | None:
    """The last JSON object of a text that is not part of another one; None without any."""
    found = None
    for candidate in objects(text):
        value = loosely_parsed(candidate)
        if isinstance(value, dict):
            found = value
    return found
