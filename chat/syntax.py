"""ComfyUI's prompt syntax: what a prompt box's text says in plain words, and back again.

A judge or a rewriter that reads ``(star:1.3) embedding:style`` takes the signs for content; and a bracket in what a
rewriter writes would be read as emphasis by the text encoder. Everything takes time in proportion to the prompt's
length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_PARTS = re.compile(r"\\[()]|[()]|[^()\\]+|\\")
_SYNTAX = re.compile(r"[()]|\bBREAK\b|(?i:embedding:|<(?:lora|lyco|hypernet):)")
_EMBEDDING = re.compile(r"(?<!\w)embedding:[^\s,]+", re.IGNORECASE)
_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)
_BREAK = re.compile(r"\bBREAK\b")


class _Plain(str):
    """A prompt whose syntax was read: brackets that are still in it are meant."""


def plain(prompt: str) -> str:
    """A prompt as a person would say it, without the syntax that text encoders take from a prompt box.

    Weights lose brackets and number (``(two dogs:1.2)`` -> ``two dogs``, nested ones, too), escaped brackets become
    brackets, ``BREAK`` a comma; ``embedding:name`` and ``<lora:name:1>`` go. A prompt without any of this is returned
    as it is, to the letter, and so is what was returned here before (an ensemble and its member both ask). Takes time
    in proportion to the prompt's length, whatever it holds.
    """
    if isinstance(prompt, _Plain) or not _SYNTAX.search(prompt):
        return prompt
    text = _BREAK.sub(",", _TAG.sub(" ", _EMBEDDING.sub(" ", _unweighted(prompt))))
    words = text.split()  # single spaces first, so that what follows cannot run over the same ones again and again
    return _Plain(re.sub(r" ?,[ ,]*", ", ", " ".join(words)).strip(" ,"))


def _unweighted(prompt: str) -> str:
    """Without the brackets of weights, which ComfyUI nests and whose number follows the last colon in them."""
    pieces: list[str] = []
    opened: list[int] = []
    for part in _PARTS.findall(prompt):
        if part == "(":
            opened.append(len(pieces))
        elif part == ")" and opened:
            pieces[opened.pop()] = ""
            pieces[-1] = _without_number(pieces[-1])
            continue
        elif len(part) == 2 and part[0] == "\\":
            part = part[1]
        pieces.append(part)
    return "".join(pieces)


def _without_number(text: str) -> str:
    before, _, number = text.rpartition(":")
    try:
        float(number)
    except ValueError:
        return text
    return before if before or text.startswith(":") else text


_BRACKETED = re.compile(r"embedding:[^\s,()]+")


def embeddings(prompt: str) -> list[str]:
    """The embeddings of a prompt, with their weights, in order."""
    return [prompt[start:end] for start, end in _embeddings(prompt)]


def escaped(text: str) -> str:
    """A text whose brackets mean brackets."""
    return re.sub(r"(?<!\\)([()])", r"\\\1", text)


def carried_over(original: str, rewrite: str) -> str:
    """A rewrite of plain words as a prompt: brackets escaped, the original's embeddings at the end."""
    return ", ".join([escaped(rewrite), *embeddings(original)])


def _embeddings(prompt: str) -> Iterator[tuple[int, int]]:
    """Where the embeddings of a prompt begin and end, with the brackets that close around them alone."""
    last = 0
    for found in _BRACKETED.finditer(prompt):
        start, end = found.span()
        while start > last and end < len(prompt) and prompt[start - 1] == "(" and prompt[end] == ")":
            start, end = start - 1, end + 1
        last = end
        yield start, end
