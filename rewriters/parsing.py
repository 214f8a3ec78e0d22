"""From what a model wrote to prompts that can be used: strict JSON first, then whatever can be saved."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .syntax import plain

MISSING_KEPT = 6
SIMILAR = 0.9
"""Jaccard index of two prompts' words from which they count as the same."""
LONGEST = 20_000  # characters of an answer that are read
STARTS = 40  # opening braces that are tried: an answer of nothing else must not take long

_ALIASES = {
    "prompts": ("prompts", "rewrites", "revised_prompts", "rewritten_prompts", "suggestions", "candidates"),
    "missing": ("missing", "missing_elements", "issues", "problems"),
    "aligned": ("aligned", "is_aligned", "match", "matches"),
}
_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```(?:\w+)?\s*\n?(.*?)(?:```|\Z)", re.DOTALL)
_LISTED = re.compile(r"^\s*(?:\d+\s*[.):]|[-*\u2022])\s+(.+)$", re.MULTILINE)
_NO_SPACES = "\u3040-\u30ff\u3400-\u9fff"  # kana and Chinese characters: each counts as a word
_WORDS = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")


class NotUnderstood(ValueError):
    """The answer holds no prompts and does not say that nothing is missing."""


@dataclass(frozen=True)
class Answer:
    """What a model said: whether nothing is missing, what is, and its prompts, not yet validated."""

    aligned: bool
    missing: tuple[str, ...]
    prompts: tuple[str, ...]


def parse(text: str) -> Answer:
    """Read an answer.

    Tried in turn: the text as JSON; the same without thinking blocks and code fences; the first balanced ``{...}``;
    that with trailing commas or Python's quotes; numbered or bulleted lines of three words and more.

    Raises:
        NotUnderstood: none of these gave a prompt or a verdict.
    """
    text = text[:LONGEST]
    without = _THINKING.sub("", text)
    for candidate in (text, without, *_FENCE.findall(without), *balanced(without)):
        answer = _as_answer(_loaded(candidate))
        if answer is not None:
            return answer
    lines = tuple(_unquoted(line) for line in _LISTED.findall(without))
    lines = tuple(line for line in lines if len(_WORDS.findall(line)) >= 3)
    if lines:
        return Answer(False, (), lines)
    raise NotUnderstood(f"no prompts in {_shown(text)}")


def balanced(text: str) -> Iterator[str]:
    """Every outermost ``{...}`` of a text whose braces balance, quotes respected."""
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
    depth, quoted, skip = 0, False, False
    for place in range(start, len(text)):
        sign = text[place]
        if skip:
            skip = False
        elif quoted:
            skip, quoted = sign == "\\", sign != '"'
        elif sign == '"':
            quoted = True
        elif sign in "{}":
            depth += 1 if sign == "{" else -1
            if depth == 0:
                return place
    return None


def _loaded(text: str) -> Any:
    """A JSON value; one with trailing commas or in Python's spelling counts too. None where it is neither."""
    text = text.strip()
    for version in (text, re.sub(r",(\s*[}\]])", r"\1", text)):
        try:
            return json.loads(version)
        except (ValueError, RecursionError):
            continue
    if text.startswith("{"):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return None


def _as_answer(value: Any) -> Answer | None:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return Answer(False, (), tuple(value))
    if not isinstance(value, dict):
        return None
    fields = {str(key).lower().strip().replace(" ", "_"): item for key, item in value.items()}
    found = {name: next((fields[a] for a in aliases if a in fields), None) for name, aliases in _ALIASES.items()}
    if found["prompts"] is None and found["aligned"] is None:
        return None
    prompts = _texts(found["prompts"])
    aligned = found["aligned"] is True or str(found["aligned"]).lower() in ("true", "yes")
    if not prompts and not aligned and found["aligned"] is None:
        aligned = found["prompts"] == []  # "prompts": [] alone says that there is nothing to mend
    return Answer(aligned, tuple(_texts(found["missing"])), () if aligned else tuple(prompts))


def _texts(value: Any) -> list[str]:
    """The texts in a value: a text, or a list of texts or of objects with a text in "prompt" or "text"."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if not isinstance(value, list):
        return []
    items = [item.get("prompt", item.get("text")) if isinstance(item, dict) else item for item in value]
    return [item for item in items if isinstance(item, str) and item.strip()]


def _unquoted(text: str) -> str:
    return text.strip().strip("\"'*\u201c\u201d").strip()


def _shown(text: str, length: int = 80) -> str:
    flat = " ".join(text.split())
    return "an empty answer" if not flat else repr(flat[:length] + ("..." if len(flat) > length else ""))


def same(first: str, second: str) -> bool:
    """Whether two prompts say the same: equal but for case, spaces and punctuation, or nearly the same set of words.

    The order of the words counts in short prompts only as far as the first test goes: "a star above a ring" and "a ring
    above a star" have the same words and are not the same, so equal sets in another order are told apart.
    """
    a, b = _WORDS.findall(plain(first).lower()), _WORDS.findall(plain(second).lower())
    if a == b:
        return True
    mine, theirs = set(a), set(b)
    if mine == theirs:
        return False
    return len(mine & theirs) / max(1, len(mine | theirs)) >= SIMILAR


def usable(prompts: Iterable[str], original: str, count: int, words: int) -> list[str]:
    """At most ``count`` of ``prompts``: of three words and more, cut to ``words``, none like the original or another.

    Prompts in another script than the original's are left out: the text encoder may not know it.
    """
    kept: list[str] = []
    for prompt in prompts:
        text = " ".join(_unquoted(prompt).split()[:words])[: 12 * words]
        if len(_WORDS.findall(text)) < 3 or _foreign(text, original):
            continue
        if any(same(text, other) for other in (original, *kept)):
            continue
        kept.append(text)
        if len(kept) == count:
            break
    return kept


def _foreign(text: str, original: str) -> bool:
    """Whether most letters of ``text`` are of a script that ``original`` does not use (Latin or not)."""
    shares = []
    for candidate in (text, plain(original)):
        letters = [sign for sign in candidate if sign.isalpha()]
        shares.append(sum(bool(_LATIN.match(sign)) for sign in letters) / max(1, len(letters)))
    mine, theirs = shares
    return (mine < 0.5) if theirs > 0.9 else (mine > 0.9 and theirs < 0.1)


def listed(missing: Sequence[str]) -> tuple[str, ...]:
    """What is missing, at most six short entries."""
    return tuple(" ".join(item.split())[:120] for item in missing[:MISSING_KEPT])
