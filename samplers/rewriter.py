"""The contract of rewriters: a preview and its prompt go in, better prompts come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Attempt:
    """A prompt that was tried: its text, at which step, and the score of its preview (None while unknown)."""

    prompt: str
    step: int
    score: float | None


@dataclass(frozen=True)
class RewriteRequest:
    """What a rewriter is asked.

    Attributes:
        image: ``[H, W, 3]`` in 0..1, the preview.
        prompt: what the image should show, as the user wrote it.
        count: M, rewrites wanted, >= 1.
        step, steps: how far the image is, ``step`` counted from 1.
        history: what was tried before, oldest first.
        seed: of the rewriter's own randomness.
        sources: the images that are edited, ``[H, W, 3]`` in 0..1 each, the first to be preserved; empty without.
    """

    image: Tensor
    prompt: str
    count: int
    step: int = 1
    steps: int = 1
    history: tuple[Attempt, ...] = ()
    seed: int = 0
    sources: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Rewrite:
    """What a rewriter answers.

    Attributes:
        prompts: at most M prompts, none equal to the original or to each other.
        missing: what the image lacks, in words.
        aligned: nothing is missing; ``prompts`` is then empty.
        failed: no usable answer; ``note`` says why.
        note: for the log and the trace.
        calls: model or endpoint calls made, retries included.
    """

    prompts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    aligned: bool = False
    failed: bool = False
    note: str = ""
    calls: int = 1


class Rewriter(Protocol):
    """Preview + prompt + history -> better prompts. Never raises for a bad answer: that is a ``failed`` Rewrite.

    Attributes:
        name: short name for reports.
    """

    name: str

    def rewrite(self, requests: Sequence[RewriteRequest]) -> list[Rewrite]:
        """One answer per request, in order."""
        ...
