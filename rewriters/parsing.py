"""From what a model wrote to prompts that can be used: strict JSON first, then whatever can be saved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..chat.conversation import NotUnderstood, shown
from ..chat.reading import LONGEST, answer_in, loosely_parsed, objects
from ..chat.syntax import plain

MISSING_KEPT = 6
SIMILAR = 0.9
"""Jaccard index of two prompts' words from which they count as the same."""
MOST = 200  # prompts of an answer that are looked at

_ALIASES = {
    "prompts": ("prompts", "rewrites", "revised_prompts", "rewritten_prompts", "suggestions", "candidates"),
    "missing": ("missing", "missing_elements", "issues", "problems"),
    "aligned": ("aligned", "is_aligned", "match", "matches"),
}
_LANGUAGE = re.compile(r"\w{1,20}(?=\s)")
_LISTED = re.compile(r"(?:\d{1,4}[ \t]{0,4}[.):]|[-*\u2022])[ \t]+(\S.*)")
_NO_SPACES = "\u3040-\u30ff\u3400-\u9fff"  # kana and Chinese characters: each counts as a word
_WORDS = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")


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
    without, _ = answer_in(text)
    for candidate in (text[-LONGEST:], without, *_fenced(without), *objects(without)):
        answer = _as_answer(loosely_parsed(candidate))
        if answer is not None:
            return answer
    found = (_LISTED.match(line.strip()) for line in without.splitlines())
    lines = tuple(_unquoted(line[1]) for line in found if line is not None)
    lines = tuple(line for line in lines if len(_WORDS.findall(line)) >= 3)
    if lines:
        return Answer(False, (), lines)
    raise NotUnderstood(f"no prompts in {shown(without, 80)}")


def _fenced(text: str) -> list[str]:
    """What stands between code fences, without the name of its language."""
    return [_LANGUAGE.sub("", part, count=1) for part in text.split("```")[1::2]]


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
    for prompt in islice(prompts, MOST):
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
