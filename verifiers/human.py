"""A person as verifier: at chosen steps the candidates are shown and ranked, kept or dropped by hand.

Between those steps, and whenever nobody answers, another verifier judges. A person's ranking is written in that
verifier's own scores, the highest to the first and so on down: methods that compare the scores of different steps
(SMC, FK steering) never see a second scale. What is dropped gets -inf, which no particle survives.
"""

from __future__ import annotations

import math
import re
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..samplers.looks import judge
from ..samplers.protocols import ScoreContext, Values, Verifier
from ..samplers.verifier import CLIP
from .base import VerifierError

END = 1.0
_STRICT = 1e-6  # of the spread: neighbours in a person's ranking never tie


@dataclass(frozen=True)
class Question:
    """What a person is asked.

    Attributes:
        images: ``[n, H, W, 3]`` in 0..1, previews of the candidates, or ``[n, F, H, W, 3]`` of clips.
        prompts: what each should show, ``n`` strings.
        group: image of the batch that each competes for, ``n``.
        scores: of the other verifier, float64 ``[n]``.
        step, steps: how far the search is.
        fallback: name of the other verifier.
    """

    images: Tensor
    prompts: Sequence[str]
    group: Sequence[int]
    scores: Tensor
    step: int
    steps: int
    fallback: str


@dataclass(frozen=True)
class Answer:
    """What a person said: rows from the best down (as many as were ranked), and rows to drop."""

    ranked: tuple[int, ...] = ()
    dropped: frozenset[int] = frozenset()

    def problem(self, group: Sequence[int]) -> str | None:
        """What is wrong with the answer to a question over rows of these groups; None if nothing is."""
        n = len(group)
        rows = [*self.ranked, *self.dropped]
        if any(not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < n for row in rows):
            return f"candidates are numbered 0 to {n - 1}"
        if len(set(rows)) != len(rows):
            return "a candidate is named twice"
        for image in sorted(set(group)):
            if all(row in self.dropped for row in range(n) if group[row] == image):
                return f"nothing is left of image {image + 1}: keep at least one candidate"
        return None


# Waits for a person; None: nobody there, no answer in time, or "let the other verifier decide".
Ask = Callable[[Question], "Answer | None"]


class HumanVerifier(Verifier):
    """Asks a person at chosen points of a search, and another verifier everywhere else.

    Args:
        fallback: judges where nobody is asked or answers.
        ask: shows a question and waits.
        ask_at: shares of the schedule, 0 < share <= 1, at or after which the person is asked once each; 1 is the
            finished images. A method that scores at none of them in between is asked at its next look.

    Raises:
        VerifierError: no mark, or one outside 0..1.
    """

    differentiable = False
    rejects = True  # -inf is meant
    sees = CLIP  # a person is shown the clip

    def __init__(self, fallback: Verifier, ask: Ask, ask_at: Sequence[float] = (0.5, END)):
        if not ask_at or any(not 0.0 < mark <= 1.0 for mark in ask_at):
            raise VerifierError(f"ask_at is {list(ask_at)}: give shares of the schedule above 0 % and up to 100 %")
        self.fallback, self.members, self._ask = fallback, (fallback,), ask
        self.relative, self.least_frames = fallback.relative, fallback.least_frames
        self.ask_at = tuple(sorted(set(ask_at)))
        self.name = f"human, {fallback.name}"
        self._run: Any = lambda: None  # weak reference to what stands for the run that is judged
        self._pending: list[float] = []
        self._last_step = -1

    def wants_all(self, context: ScoreContext) -> bool:
        """Whether the person is due, who must see all candidates at once."""
        return self._due(context) is not None or self.fallback.wants_all(context)

    def _due(self, context: ScoreContext | None) -> float | None:
        """The latest mark that is reached and not yet asked about."""
        if context is None:
            return None
        if self._run() is not context.run or context.step < self._last_step:  # a new run, or a new round of one
            self._run, self._pending = weakref.ref(context.run), list(self.ask_at)
        self._last_step = context.step
        reached = END if context.final else context.step / context.steps
        return max((mark for mark in self._pending if mark <= reached + 1e-9), default=None)

    def score(self, images: Tensor, prompts: Sequence[str], context: ScoreContext | None = None) -> Tensor:
        """Scores ``[n]``: the other verifier's, reordered by the person where one was asked and answered."""
        return self.judge(images, prompts, context).score

    def judge(self, images: Tensor, prompts: Sequence[str], context: ScoreContext | None = None) -> Values:
        """``score``, with what the other verifier says of its parts."""
        judged = judge(self.fallback, images, prompts, context)
        due = self._due(context)
        if context is None or due is None or len(context.group) != len(images):
            return judged
        self._pending = [mark for mark in self._pending if mark > due]
        group = context.group.tolist()
        values = judged.score.detach().cpu().double()
        question = Question(
            images.detach(), list(prompts), group, values, context.step, context.steps, self.fallback.name
        )
        begun = time.perf_counter()
        try:
            answer = self._ask(question)
        finally:
            context.excuse(time.perf_counter() - begun)
        return judged if answer is None else replace(judged, score=reordered(values, group, answer))


def reordered(values: Tensor, group: Sequence[int], answer: Answer) -> Tensor:
    """Scores float64 ``[n]`` of an answer on the scale of ``values`` ``[n]``.

    Within each image the ranked candidates come first, in their order, then the others in the order of their values;
    the highest value goes to the first, the next to the second. Dropped ones get -inf. Images that the answer says
    nothing of keep their values.
    """
    result = values.clone()
    rank = {row: place for place, row in enumerate(answer.ranked)}
    for image in set(group):
        rows = [row for row in range(len(group)) if group[row] == image]
        if not any(row in rank or row in answer.dropped for row in rows):
            continue
        alive = [row for row in rows if row not in answer.dropped]
        alive.sort(key=lambda row: (rank.get(row, len(rank)), -_number(values[row]), row))
        for row, value in zip(alive, _ladder(values[rows], len(alive)), strict=True):
            result[row] = value
        for row in answer.dropped.intersection(rows):
            result[row] = -math.inf
    return result


def _number(value: Tensor) -> float:
    return float(value) if math.isfinite(float(value)) else -math.inf


def _ladder(values: Tensor, n: int) -> list[float]:
    """The ``n`` highest finite of ``values``, made strictly decreasing; without a spread, even steps below the highest
    (from 1 down to 0 where there is none)."""
    found = sorted((float(value) for value in values if math.isfinite(float(value))), reverse=True)
    spread = found[0] - found[-1] if found else 0.0
    if spread <= 0.0:
        top = found[0] if found else 1.0
        return [top - place / max(n - 1, 1) for place in range(n)]
    ladder = found[:n]
    while len(ladder) < n:
        ladder.append(ladder[-1] - spread / n)
    for place in range(1, n):
        ladder[place] = min(ladder[place], ladder[place - 1] - _STRICT * spread)
    return ladder


def parse_marks(text: str) -> tuple[float, ...]:
    """Shares of a schedule from e.g. ``"50%, 80%, end"``.

    Raises:
        VerifierError: naming the part that is no share.
    """
    marks = []
    for part in filter(None, re.split(r"[,;\s]+", text.replace(" %", "%").strip())):
        if part.lower() == "end":
            marks.append(END)
            continue
        try:
            value = float(part.removesuffix("%")) / 100.0
        except ValueError:
            value = math.nan
        if not 0.0 < value <= 1.0:
            raise VerifierError(f"ask_at has {part!r}: give percentages of the steps, e.g. '50%, 80%, end'")
        marks.append(value)
    if not marks:
        raise VerifierError("ask_at is empty: give percentages of the steps, e.g. '50%, 80%, end'")
    return tuple(sorted(set(marks)))
