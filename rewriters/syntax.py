"""ComfyUI's prompt syntax around a rewriter: weights and embeddings go in as plain words and come out intact.

A model that reads ``(star:1.3) embedding:style`` takes the signs for content; and a bracket in what it writes would be
read as emphasis by the text encoder. Everything takes time in proportion to the prompt's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_EMBEDDING = re.compile(r"embedding:[^\s,()]+")
_NUMBER = re.compile(r":\s{0,8}-?[0-9]{0,12}\.?[0-9]{1,12}\s{0,8}\Z")
_LONGEST_NUMBER = 42  # characters of what ``_NUMBER`` finds
_PIECE = re.compile(r"\\[()]|[()]|[^()\\]+|\\")


def plain(prompt: str) -> str:
    """A prompt in plain words: without embeddings, weights and their brackets."""
    kept, place = [], 0
    for start, end in _embeddings(prompt):
        kept += [prompt[place:start], " "]
        place = end
    words = " ".join(_unweighted("".join([*kept, prompt[place:]])).split())
    return re.sub(r" ([,.;])", r"\1", words).strip(" ,")


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
    for found in _EMBEDDING.finditer(prompt):
        start, end = found.span()
        while start > last and end < len(prompt) and prompt[start - 1] == "(" and prompt[end] == ")":
            start, end = start - 1, end + 1
        last = end
        yield start, end


def _unweighted(prompt: str) -> str:
    """Without brackets that are closed, and the weights in front of their ends. Escaped brackets become brackets."""
    pieces: list[str] = []
    opened: list[int] = []
    for piece in _PIECE.findall(prompt):
        if piece == "(":
            opened.append(len(pieces))
        elif piece == ")" and opened:
            pieces[opened.pop()] = ""
            tail = pieces[-1][-_LONGEST_NUMBER:]
            pieces[-1] = pieces[-1][: len(pieces[-1]) - len(tail)] + _NUMBER.sub("", tail)
            continue
        pieces.append(piece[1] if len(piece) == 2 and piece[1] in "()" else piece)
    return "".join(pieces)
