"""Looking at a population: predict, preview, score, with the books of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..ledger import Ledger
from ..looks import judge
from ..processes.kernel import as_float64_cpu
from ..processes.previews import in_full
from ..protocols import Process, ScoreContext, SearchError, Values, Verifier
from ..smc.weights import clean_scores
from ..sources import Sources, padded_sentence, parts
from ..state import State
from ..workers import Looker
from .agreement import LEAST, Agreement
from .keeping import sound_pictures, sound_rows
from .notes import brief

log = logging.getLogger("testtime")

REMEDY = {
    "model": "run it in a higher precision (bf16 or fp32), or check what patches it",
    "VAE": "run it in bf16 or fp32",
}


class Broken(Exception):
    """A model left no particle without NaN or infinities, so that nothing could come of going on."""


class Judging:
    """The part of a ``Session`` that looks.

    Attributes:
        process, verifier, prompts, ledger, held_out: of ``Session``.
        warnings: sentences for the user, each once.
        sources: what every image is made from, ``[G]``, or empty. instruction: what is done to it, "" = the prompt.
        looker: decodes and judges elsewhere, or None.
        carries_on: whether a population of NaN is no reason to end, see ``SearchMethod``.
        agreement: of the quick decoder with the full one, where there are two.
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
        self.carries_on = False
        self.looker: Looker | None = None
        self.sources: Sequence[Sources] = ()
        self.instruction = ""
        self.agreement = Agreement()
        self._blamed: set[str] = set()

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
        self.check_sound(state)
        context = self.context(state)
        verifier = self.verifier
        if self.looker is not None and verifier is not None and not (verifier.wants_all(context) or self.sources):
            return (state, *self._seen_elsewhere(self.looker, state, context))
        images = self.process.preview(state)
        values = self.rate(state, images)
        if verifier is not None and self._misled(state, values, context):
            images = self.process.preview(state)
            values = self.rate(state, images)
        return state, values, images

    def _misled(self, state: State, quick: Values, context: ScoreContext) -> bool:
        """Compare a look with one through the full decoder; whether the quick one is given up, so to look again.

        Only the first looks are compared, until ``ENOUGH`` candidates were seen both ways.
        """
        looks, agreement = self.process.cheap_looks, self.agreement
        if looks is None or not looks.on or context.final or not agreement.asks:
            return False
        rows = agreement.rows(state.group)
        if not len(rows):
            return False
        seen = state.select(rows)
        with in_full(self.process):
            full = self.rate(seen, self.process.preview(seen))
        agreement.add(quick.score[rows], full.score, seen.group)
        found = agreement.correlation()
        if not agreement.known or found is None:
            return False
        log.info("preview_vae and vae: rank correlation of scores %.2f", found)
        looks.trusted = found >= LEAST
        if not looks.trusted:
            self.warn(
                f"preview_vae ranks candidates otherwise than vae (rank correlation {found:.2f} of "
                f"{agreement.candidates}, at least {LEAST:g} is needed): all looks go through vae from here on"
            )
        return not looks.trusted

    def rate(self, state: State, images: Tensor) -> Values:
        """Values of previews that were made already; non-finite scores as -inf, counted.

        A picture that is NaN somewhere gets no score, whatever the verifier, who is shown a black one, says of it.
        """
        values, pictures = self.judged(images, self.context(state))
        return self._cleaned(values, state, sound_rows(state.x0), pictures)

    def judged(self, images: Tensor, context: ScoreContext) -> tuple[Values, Tensor]:
        """(what the verifier says, bool ``[n]`` whether a picture has no NaN); it is shown black for one that has."""
        pictures = sound_pictures(images)
        if not bool(pictures.all()):
            images = torch.where(pictures.to(images.device).view(-1, *[1] * (images.dim() - 1)), images, 0.0)
        return self.judge(images, context), pictures

    def _seen_elsewhere(self, looker: Looker, state: State, context: ScoreContext) -> tuple[Values, Tensor]:
        """(values, small previews) of a predicted population that workers decode and judge."""
        self.ledger.check()
        with self.ledger.verify(len(state)):
            seen = looker.look(state, context, self.prompts)
        self.ledger.decodes += len(state)
        self.ledger.flops += seen.flops
        self.ledger.decode_flops += seen.flops
        return self._cleaned(seen.values, state, sound_rows(state.x0), seen.sound), seen.images

    def check_sound(self, state: State) -> None:
        """Look for NaN in the clean estimates of ``state``, and say that the model gave them.

        Raises Broken where it left no particle without. Searches that go on from elsewhere than the latest population
        (``carries_on``) are let be once they have something to go on from.
        """
        sound = sound_rows(state.x0)
        if bool(sound.all()):
            return
        if not sound.any() and not (self.carries_on and self.anything_sound()):
            raise Broken(f"the model gave NaN or infinite numbers {self._when(state)}: {REMEDY['model']}")
        self._blame("model", "numbers", state)

    def anything_sound(self) -> bool:
        """Whether something without NaN was found so far."""
        return False

    def context(self, state: State) -> ScoreContext:
        """Which images a verifier is shown when it is shown the previews of ``state``."""
        steps = self.process.steps
        final = state.step >= steps - (1 if self.process.capabilities.ends_clean else 0)
        excuse, shown = self.ledger.excuse, self.process.shown
        return ScoreContext(
            state.group, state.step, steps, final, self, excuse, self.sources, self.instruction, frames=shown
        )

    def judge(self, images: Tensor, context: ScoreContext, held_out: bool = False) -> Values:
        """Values of images by the verifier (or the held-out one), in chunks, without gradients."""
        verifier = self.held_out if held_out else self.verifier
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")
        self._say_padding(verifier, images)

        def chunk(rows: slice) -> Values:
            self.ledger.check()
            part = context.rows(rows)
            with torch.no_grad(), self.ledger.verify(len(part.group), held_out):
                values = self._checked(verifier, images[rows], part)
            return replace(values, score=as_float64_cpu(values.score))

        if verifier.wants_all(context):
            return chunk(slice(0, len(images)))
        return Values.joined(self.process.chunker.map(chunk, len(images)))

    def _say_padding(self, verifier: Verifier, images: Tensor) -> None:
        """Say once where a judge compares with a source of other proportions."""
        if not self.sources or images.dim() < 4 or not any(part.compares for part in parts(verifier)):
            return
        for source in self.sources:
            sentence = padded_sentence(source.first, *images.shape[-3:-1])
            if sentence:
                self.warn(sentence)

    def _differentiated(self, state: State) -> tuple[State, Values]:
        """``evaluate`` with the gradient of the scores."""
        parts: list[Values] = []
        state, values = self.process.value_gradient(state, self._differentiable(state, parts))
        self.check_sound(state)
        seen = Values.joined(parts) if parts and sum(len(part.score) for part in parts) == len(state) else None
        members = {} if seen is None else seen.members
        members = members if all(len(part) == len(state) for part in members.values()) else {}
        pictures = torch.ones(len(state), dtype=torch.bool) if seen is None or seen.broken is None else ~seen.broken
        found = Values(values.score, values.gradient, members)
        if found.gradient is not None and not bool(sound_rows(found.gradient)[sound_rows(state.x0)].all()):
            self.warn("the gradient of the score was NaN or infinite for some particles: their moves are not guided")
        return state, self._cleaned(found, state, sound_rows(state.x0), pictures)

    def _differentiable(self, state: State, parts: list[Values]) -> Callable[[Tensor, Tensor], Tensor]:
        """``(images, group) -> score [m]`` of a chunk with its graph; collects what the verifier said in ``parts``."""
        verifier = self.verifier
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")

        def value(images: Tensor, group: Tensor) -> Tensor:
            with self.ledger.verify(len(group)):
                values = self._checked(verifier, images, replace(self.context(state), group=group))
            score = values.score.detach().cpu().double()
            parts.append(Values(score, None, values.members, ~sound_pictures(images)))
            return values.score

        return value

    def _cleaned(self, values: Values, state: State, latents: Tensor, pictures: Tensor) -> Values:
        """Values with -inf for what has no score, and the part that is to blame in the warnings.

        Args:
            latents, pictures: bool ``[n]`` whether the clean estimates and the decoded previews are sound.
        """
        broken = ~(latents & pictures)
        score, bad = clean_scores(values.score.masked_fill(broken, torch.nan) if broken.any() else values.score)
        if bad:
            self.ledger.rejected_scores += bad
            if not bool(latents.all()):
                self._blame("model", "numbers", state)
            if not bool((pictures | ~latents).all()):
                self._blame("VAE", "pixels", state)
            rejected = torch.isneginf(score) & ~broken
            if rejected.any() and self.verifier is not None and not self.verifier.rejects:  # a person may
                self.warn(f"verifier {self.verifier.name!r} gave NaN or infinite scores: such particles cannot win")
        return replace(values, score=score, broken=broken if broken.any() else None)

    def _blame(self, part: str, what: str, state: State) -> None:
        """Say which part gave no number, once for each part."""
        if part in self._blamed:
            return
        self._blamed.add(part)
        self.warn(
            f"the {part} gave NaN or infinite {what} {self._when(state)}: such particles cannot win; {REMEDY[part]}"
        )

    def _when(self, state: State) -> str:
        return f"at step {min(state.step + 1, self.process.steps)} of {self.process.steps}"

    def _checked(self, verifier: Verifier, images: Tensor, context: ScoreContext) -> Values:
        """What ``verifier`` says of some images, one number each."""
        prompts = [self.prompts[g] for g in context.group.tolist()]
        values = judge(verifier, images, prompts, context)
        if tuple(values.score.shape) != (len(prompts),):
            raise SearchError(
                f"verifier {verifier.name!r} returned shape {tuple(values.score.shape)} for {len(prompts)} images: "
                f"one number per image is needed"
            )
        return values
