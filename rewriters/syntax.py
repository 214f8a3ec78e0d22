"""ComfyUI's prompt syntax around a rewriter: weights and embeddings go in as plain words and come out intact.

A model that reads ``(star:1.3) embedding:style`` takes the signs for content; and a bracket in what it writes would be
read as emphasis by the text encoder.
"""

from __future__ import annotations

import re

_EMBEDDING = re.compile(r"\(*embedding:[^\s,()]+(?::[0-9.]+)?\)*")
_WEIGHT = re.compile(r"\(([^()]*?)(?::\s*-?[0-9]*\.?[0-9]+\s*)?\)")
_ESCAPED = re.compile(r"\\([()])")
_MARKS = str.maketrans({"(": "\x01", ")": "\x02"})


def plain(prompt: str) -> str:
    """A prompt in plain words: without embeddings, weights and their brackets."""
    hidden = _ESCAPED.sub(lambda found: found.group(1).translate(_MARKS), prompt)
    hidden = _EMBEDDING.sub(" ", hidden)
    before = None
    while before != hidden:  # brackets nest
        before, hidden = hidden, _WEIGHT.sub(r"\1", hidden)
    words = re.sub(r"\s+([,.;])", r"\1", " ".join(hidden.split()))
    return words.replace("\x01", "(").replace("\x02", ")").strip(" ,")


def embeddings(prompt: str) -> list[str]:
    """The embeddings of a prompt, with their weights, in order."""
    return [_closed(found.group()) for found in _EMBEDDING.finditer(prompt)]


def escaped(text: str) -> str:
    """A text whose brackets mean brackets."""
    return re.sub(r"(?<!\\)([()])", r"\\\1", text)


def carried_over(original: str, rewrite: str) -> str:
    """A rewrite of plain words as a prompt: brackets escaped, the original's embeddings at the end."""
    return ", ".join([escaped(rewrite), *embeddings(original)])


def _closed(text: str) -> str:
    """The same with as many closing as opening brackets."""
    inner = text.strip("()")
    depth = min(len(text) - len(text.lstrip("(")), len(text) - len(text.rstrip(")")))
    return "(" * depth + inner + ")" * depth
