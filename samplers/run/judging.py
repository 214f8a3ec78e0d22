"""Looking at a population: predict, preview, score, with the books of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..ledger import Ledger
from ..processes.kernel import as_float64_cpu
from ..protocols import Process, ScoreContext, SearchError, Values, Verifier
from ..smc.weights import clean_scores
from ..state import State
from .notes import brief

log = logging.getLogger("testtime")


class Judging:
    """The part of a ``Session`` that looks.

    Attributes:
        process, verifier, prompts, ledger, held_out: of ``Session``.
        warnings: sentences for the user, each once.
    """

    def __init__(
        self,
        process: Process,
        verifier: Verifier | None,
        prompts: Sequence[str],
        ledger: Ledger,
        held_out: Verifier | None = None,
    ):
        self.process, self.verifier, self.prompts, self.held_out = process, verifier, list(prompts), held_out
        self.ledger = ledger
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        """Keep a sentence for the user, shortened to one line, and log all of it, once."""
        if brief(message) not in self.warnings:
            self.warnings.append(brief(message))
            log.warning(message)

    def evaluate(self, state: State, gradient: bool = False) -> tuple[State, Values, Tensor | None]:
        """Predict, preview and score a population.

        Returns:
            (state with x0, values with float64 ``[n]`` scores (non-finite ones as -inf, counted) and the gradient
            where asked, previews ``[n, H, W, 3]`` or None on the gradient path, which keeps none).
        """
        if gradient:
            return (*self._differentiated(state), None)
        state = self.process.predict(state)
        images = self.process.preview(state)
        return state, self.rate(state, images), images

    def rate(self, state: State, images: Tensor) -> Values:
        """Values of previews that were made already; non-finite scores as -inf, counted."""
        values = self.judge(images, self.context(state))
        return replace(values, score=self._clean(values.score))

    def context(self, state: State) -> ScoreContext:
        """Which images a verifier is shown when it is shown the previews of ``state``."""
        steps = self.process.steps
        final = state.step >= steps - (1 if self.process.capabilities.ends_clean else 0)
        return ScoreContext(state.group, state.step, steps, final, self, self.ledger.excuse)

    def judge(self, images: Tensor, context: ScoreContext, held_out: bool = False) -> Values:
        """Values of images by the verifier (or the held-out one), in chunks, without gradients."""
        verifier = self.held_out if held_out else self.verifier
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")

        def chunk(rows: slice) -> Values:
            self.ledger.check()
            part = context.rows(rows)
            with torch.no_grad(), self.ledger.verify(len(part.group), held_out):
                values = self._checked(verifier, images[rows], part)
            return replace(values, score=as_float64_cpu(values.score))

        if verifier.wants_all(context):
            return chunk(slice(0, len(images)))
        return Values.joined(self.process.chunker.map(chunk, len(images)))

    def _differentiated(self, state: State) -> tuple[State, Values]:
        """``evaluate`` with the gradient of the scores."""
        parts: list[Values] = []
        state, values = self.process.value_gradient(state, self._differentiable(state, parts))
        members = Values.joined(parts).members if parts else {}
        members = members if all(len(part) == len(state) for part in members.values()) else {}
        return state, Values(self._clean(values.score), values.gradient, members)

    def _differentiable(self, state: State, parts: list[Values]) -> Callable[[Tensor, Tensor], Tensor]:
        """``(images, group) -> score [m]`` of a chunk with its graph; collects what the verifier said in ``parts``."""
        verifier = self.verifier
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")

        def value(images: Tensor, group: Tensor) -> Tensor:
            with self.ledger.verify(len(group)):
                values = self._checked(verifier, images, replace(self.context(state), group=group))
            parts.append(Values(values.score.detach().cpu().double(), None, values.members))
            return values.score

        return value

    def _clean(self, score: Tensor) -> Tensor:
        score, bad = clean_scores(score)
        if bad:
            self.ledger.rejected_scores += bad
            if self.verifier is not None and not self.verifier.rejects:  # a person may
                self.warn(f"verifier {self.verifier.name!r} gave NaN or infinite scores: such particles cannot win")
        return score

    def _checked(self, verifier: Verifier, images: Tensor, context: ScoreContext) -> Values:
        """What ``verifier`` says of some images, one number each."""
        prompts = [self.prompts[g] for g in context.group.tolist()]
        values = verifier.judge(images, prompts, context)
        if tuple(values.score.shape) != (len(prompts),):
            raise SearchError(
                f"verifier {verifier.name!r} returned shape {tuple(values.score.shape)} for {len(prompts)} images: "
                f"one number per image is needed"
            )
        return values
