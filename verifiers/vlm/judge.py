"""A vision-language model as the judge, on this machine or behind an OpenAI-compatible endpoint.

It is asked whether the image shows the prompt (probability of yes), or to fill in a rubric (``rubric.py``). An image
whose answer cannot be had or read after the retries gets no score (or a neutral one, where the user chose so) and is
counted; the search goes on with the others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ...chat.conversation import NotUnderstood, Turn, Unanswered
from ...chat.local import LocalVLM, load_local_vlm
from ...samplers.frames import FrameChoice
from ...samplers.looks import shown_in
from ...samplers.protocols import ScoreContext, Values, Verifier
from ...samplers.verifier import CLIP
from ..base import VerifierError, check_images, check_prompts
from ..caching import ImageCache
from ..pictures import film_strips, finite_rows, to_bytes, to_pictures
from .rubric import RUBRICS, STRIP, Rubric

log = logging.getLogger("testtime")

HINT = "\nOnly the answer in exactly this form, nothing before or after it."
CUT = ", it was cut off before its end"
ORDINALS = ("First", "Second")
WHICH = (
    'Two images were made for this request: "{prompt}"\nWhich one fulfils it better, counting every object, colour, '
    "number and place that it names, and then how well it is made? Answer with one word: First or Second."
)
FAILURES = ("skip", "neutral", "error")
MEAN = "mean"


@dataclass(frozen=True)
class Asked:
    """A question about pictures, uint8 ``[H, W, 3]`` each, shown in this order."""

    text: str
    pictures: tuple[Tensor, ...]


def about_each(pixels: Tensor, questions: Sequence[str]) -> list[Asked]:
    """A question about every picture of uint8 ``pixels [k, H, W, 3]``."""
    return [Asked(text, (picture,)) for picture, text in zip(pixels, questions, strict=True)]


def as_turn(asked: Asked, longest: int | None, hint: str = "") -> Turn:
    """What the user says to a model, pictures at most ``longest`` pixels long."""
    *before, last = (to_pictures(picture[None], longest)[0] for picture in asked.pictures)
    return Turn("user", asked.text + hint, last, tuple(before))


class Asker(Protocol):
    """Somebody who can be shown pictures. ``name`` for reports."""

    name: str

    @property
    def module(self) -> nn.Module | None:
        """The network, None where there is none here."""
        ...

    def ask(self, pixels: Tensor, questions: Sequence[str], rubric: Rubric) -> list[dict[str, float] | str]:
        """Scores per axis of uint8 ``pixels [k, H, W, 3]``, or in their place the reason why there are none."""
        ...

    def ask_of(self, asked: Sequence[Asked], rubric: Rubric) -> list[dict[str, float] | str]:
        """``ask`` of questions about one or several pictures each (uint8 ``[H, W, 3]``, of any sizes)."""
        ...

    def odds(self, asked: Sequence[Asked], words: tuple[str, str]) -> Odds:
        """How likely the answer is the first of two words, against the second."""
        ...


Odds = list[float | str]
"""Log-odds of one word against another, +-inf where only a word was had, or the reason why there is no answer."""


class LocalAsker:
    """A chat model on this machine.

    Args:
        vlm: the model.
        longest: pixels of an image's longer side that it is shown; None leaves images as they are.
        name: for reports.
    """

    module: LocalVLM

    def __init__(self, vlm: LocalVLM, longest: int | None = 768, name: str = "vlm"):
        self.model = self.module = vlm
        self.longest, self.name = longest, name

    def ask(self, pixels: Tensor, questions: Sequence[str], rubric: Rubric) -> list[dict[str, float] | str]:
        """See ``Asker``."""
        return self.ask_of(about_each(pixels, questions), rubric)

    def ask_of(self, asked: Sequence[Asked], rubric: Rubric) -> list[dict[str, float] | str]:
        """See ``Asker``: the probability of yes in one pass, a rubric with one more try where it cannot be read."""
        if rubric.name == "yes_no":
            said = self._difference(asked, ("Yes", "No"))
            return [{"yes": share} for share in torch.sigmoid(said).tolist()]
        return [self._fill(one, rubric) for one in asked]

    def odds(self, asked: Sequence[Asked], words: tuple[str, str]) -> Odds:
        """See ``Asker``: one pass, exact."""
        return [*self._difference(asked, words).double().tolist()]

    def _difference(self, asked: Sequence[Asked], words: tuple[str, str]) -> Tensor:
        """Log-odds float32 ``[n]`` of one first word against the other."""
        said = self.module.next_token([[as_turn(one, self.longest)] for one in asked])
        one, other = (said[:, self.module.answer_token(word)] for word in words)
        return one - other

    def _fill(self, asked: Asked, rubric: Rubric) -> dict[str, float] | str:
        reason = ""
        for hint in ("", HINT):
            try:
                reply = self.model.answer([as_turn(asked, self.longest, hint)], rubric.tokens)
                return rubric.read(reply.text)
            except NotUnderstood as error:
                reason = f"{error}{CUT * reply.cut}"
            except Unanswered as error:
                return str(error)
        return reason


class VLMJudgeVerifier(Verifier):
    """Scores of a vision-language model.

    Args:
        asker: who is asked.
        rubric: "yes_no" (P(yes) / (P(yes) + P(no)), 0 to 1), "axes" or "video" (0 to 10), "unified_reward" (1 to 5).
        axis: which score of the rubric counts, or "mean" of all; None takes "overall" where there is one.
        on_failure: for an image without an answer: "skip" gives NaN (it cannot win), "neutral" the middle of the scale,
            "error" ends the run.
        batch: images asked about together.

    Attributes:
        failed: how many images got no answer so far.

    Raises:
        VerifierError: unknown rubric, axis or manner.
    """

    differentiable = False
    needs_prompt = True
    bytes_per_image = 2 * 2**30
    pairwise = True
    sees = CLIP
    frames = FrameChoice("uniform", 6, longest=384)

    def __init__(
        self,
        asker: Asker,
        rubric: str = "yes_no",
        axis: str | None = None,
        on_failure: str = "skip",
        batch: int = 1,
        name: str | None = None,
    ):
        if rubric not in RUBRICS:
            raise VerifierError(f"rubric is {rubric!r}: choose one of {', '.join(RUBRICS)}")
        if on_failure not in FAILURES:
            raise VerifierError(f"on_failure is {on_failure!r}: choose one of {', '.join(FAILURES)}")
        self.rubric = RUBRICS[rubric]
        self.axis = axis or ("overall" if "overall" in self.rubric.axes else MEAN)
        if self.axis not in (MEAN, *self.rubric.axes):
            raise VerifierError(f"axis is {axis!r}: choose one of {', '.join((MEAN, *self.rubric.axes))}")
        self.asker, self.on_failure, self.module = asker, on_failure, asker.module
        self.name = name or f"vlm_judge({asker.name})"
        self.default_scale = self.rubric.scale
        self.failed = 0
        self._images = ImageCache(batch=batch)

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Scores float32 ``[n]`` of ``images [n, H, W, 3]`` in 0..1; see ``on_failure`` for what cannot be had."""
        return self.judge(images, prompts, context).score

    def judge(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Values:
        """``score``, and every axis of the rubric where it has several.

        Of a clip ``[n, F, H, W, 3]`` the model is shown its frames in one picture, numbered.
        """
        opening = ""
        if images.dim() == 5:
            shown = shown_in(images, context)
            places = shown.places(self.frames)
            opening = STRIP.format(count=len(places))
            images = film_strips(images[:, places], [shown.numbers[place] for place in places])
        images = check_images(images)
        prompts = check_prompts(prompts, len(images), self.name)
        good, pixels = finite_rows(images), to_bytes(images)
        table = torch.full((len(images), len(self.rubric.axes)), math.nan)

        def ask(rows: Tensor) -> Tensor:
            return self._ask(pixels[rows], [prompts[row] for row in rows.tolist()], opening)

        if bool(good.any()):
            chosen = torch.nonzero(good).flatten()
            kept = self._images(pixels[chosen], lambda rows: ask(chosen[rows]), [prompts[i] for i in chosen.tolist()])
            table[chosen] = kept
        if self.on_failure == "neutral":
            table[good] = table[good].nan_to_num(sum(self.rubric.span) / 2)
        score = table.mean(1) if self.axis == MEAN else table[:, self.rubric.axes.index(self.axis)].clone()
        axes = {f"{self.name}.{axis}": table[:, i] for i, axis in enumerate(self.rubric.axes)}
        return Values(score, None, axes if len(axes) > 1 else {})

    def prefer(
        self, first: Tensor, second: Tensor, prompts: Sequence[str], context: ScoreContext | None = None
    ) -> Tensor:
        """Log-odds float64 ``[n]`` that the image shown first is the better one; NaN where no answer was had.

        Clips ``[n, F, H, W, 3]`` are shown as strips of their frames.
        """
        opening = ""
        if first.dim() == 5:
            shown = shown_in(first, context)
            places = shown.places(self.frames)
            opening = STRIP.format(count=len(places))
            numbers = [shown.numbers[place] for place in places]
            first, second = (film_strips(side[:, places], numbers) for side in (first, second))
        prompts = check_prompts(prompts, len(first), self.name)
        one, other = to_bytes(check_images(first)), to_bytes(check_images(second))
        questions = [opening + WHICH.format(prompt=prompt) for prompt in prompts]
        asked = [Asked(text, (a, b)) for text, a, b in zip(questions, one, other, strict=True)]
        answers = self.asker.odds(asked, ORDINALS)
        reasons = [answer for answer in answers if isinstance(answer, str)]
        if reasons:
            self.failed += len(reasons)
            log.warning(
                "verifier %s did not say which image is better for %d of %d pairs: %s",
                self.name, len(reasons), len(answers), reasons[-1],
            )  # fmt: skip
        return torch.tensor(
            [math.nan if isinstance(answer, str) else answer for answer in answers], dtype=torch.float64
        )

    def _ask(self, pixels: Tensor, prompts: list[str], opening: str = "") -> Tensor:
        """Scores ``[k, axes]``, NaN where there was no answer."""
        answers = self.asker.ask(pixels, [opening + self.rubric.ask(prompt) for prompt in prompts], self.rubric)
        reasons = [answer for answer in answers if isinstance(answer, str)]
        if reasons:
            self.failed += len(reasons)
            message = f"verifier {self.name} gave no score for {len(reasons)} of {len(answers)} images: {reasons[-1]}"
            if self.on_failure == "error":
                raise VerifierError(message)
            log.warning("%s (%d so far); %s", message, self.failed, CONSEQUENCE[self.on_failure])
        blank = dict.fromkeys(self.rubric.axes, math.nan)
        rows = [blank if isinstance(answer, str) else answer for answer in answers]
        return torch.tensor([[row[axis] for axis in self.rubric.axes] for row in rows])


CONSEQUENCE = {"skip": "they cannot win", "neutral": "they get the middle of the scale"}


def load_vlm_judge(folder: str | Path, longest: int | None = 768, **options) -> VLMJudgeVerifier:
    """A judge that runs on this machine. Nothing is downloaded.

    Args:
        folder: Hugging Face folder of a chat model that sees images.
        longest: of ``LocalAsker``.
        options: of ``VLMJudgeVerifier``.

    Raises:
        ChatError: no such model there.
        VerifierError: bad options.
    """
    return VLMJudgeVerifier(LocalAsker(load_local_vlm(folder), longest, Path(folder).name), **options)
