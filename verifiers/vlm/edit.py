"""A vision-language model as the judge of edits: is it done, did nothing else change, does it look right?

    D = P(the instruction is carried out)      shown source and result
    S = P(everything else is as in the source) shown source and result
    N = P(natural, without artefacts)          shown the result alone
    score = (D * min(D, S) * N)^(1/3)

min(D, S) instead of S, so that handing back the source unchanged earns nothing. Models that were trained to grade edits
(EditScore, UnifiedReward-Edit) answer with grades of 0..25 instead: score = sqrt(min(two) / 2.5 * min(two) / 2.5).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...chat.conversation import NotUnderstood
from ...chat.local import load_local_vlm
from ...chat.syntax import plain
from ...samplers.protocols import ScoreContext, Values, Verifier
from ...samplers.sources import Sources, fitted
from ..base import VerifierError, check_images, check_prompts
from ..caching import ImageCache, digest
from ..image_image.preservation import source_for
from ..pictures import finite_rows, to_bytes
from .judge import CONSEQUENCE, FAILURES, Asked, Asker, LocalAsker
from .rubric import RUBRICS, Rubric, last_object

log = logging.getLogger("testtime")

YES_NO, GRADES = "yes_no", "grades"
MANNERS = (YES_NO, GRADES)
TOP = 25.0
AXES = ("done", "preserved", "natural")
GRADED = ("done", "preserved", "natural", "clean")

_SHOWN = "The first picture is the original, the last one is what became of it. The instruction was:\n{instruction}\n\n"
QUESTIONS = (
    _SHOWN + "Is the instruction carried out completely in the last picture? Please answer Yes or No.",
    _SHOWN + "Leave aside what the instruction asks for. Is everything else in the last picture as it is in the first "
    "one? Please answer Yes or No.",
    "Does this picture look natural, free of artefacts, seams and distorted parts? Please answer Yes or No.",
)
_ANSWER = "Give the reason first. Answer with this JSON object and nothing else:\n"
GRADE_QUESTIONS = (
    _SHOWN + "Give two whole numbers from 0 (not at all) to 25 (perfect). done: how far the instruction is carried "
    "out. preserved: how far everything it does not ask for is as in the first picture.\n"
    + _ANSWER
    + '{{"reason": "", "done": 0, "preserved": 0}}',
    "Give two whole numbers from 0 (not at all) to 25 (perfect). natural: light, shadows, proportions and place are "
    "right. clean: no artefacts, seams, distorted or unfinished parts.\n"
    + _ANSWER
    + '{{"reason": "", "natural": 0, "clean": 0}}',
)


def read_grades(text: str, names: Sequence[str]) -> dict[str, float]:
    """Grades 0..25 of the last JSON object. NotUnderstood: none, one is missing, or one out of its range."""
    found = last_object(text)
    grades = {}
    for name in names:
        value = found.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NotUnderstood(f"the answer has no grade for {name!r}")
        if not 0 <= value <= TOP:  # a clamped or a middle grade would beat honest ones
            raise NotUnderstood(f"the grade for {name!r} is {str(value)[:20]}: it must lie in 0..25")
        grades[name] = float(value)
    return grades


def _grading(names: tuple[str, ...], question: str) -> Rubric:
    schema = {
        "type": "object",
        "properties": {"reason": {"type": "string"}, **{name: {"type": "number"} for name in names}},
        "required": ["reason", *names],
        "additionalProperties": False,
    }
    ask = question.format
    return Rubric(
        f"edit_{names[0]}",
        names,
        (0, TOP),
        512,
        schema,
        lambda instruction: ask(instruction=instruction),
        lambda text: read_grades(text, names),
        (18.0, 5.0),
    )


GRADINGS = (_grading(GRADED[:2], GRADE_QUESTIONS[0]), _grading(GRADED[2:], GRADE_QUESTIONS[1]))


def of_chances(done: Tensor, preserved: Tensor, natural: Tensor) -> Tensor:
    """(D min(D, S) N)^(1/3) of probabilities ``[n]``; NaN where one of them is."""
    return (done * torch.minimum(done, preserved) * natural).pow(1.0 / 3.0)


def of_grades(done: Tensor, preserved: Tensor, natural: Tensor, clean: Tensor) -> Tensor:
    """sqrt(SC PQ) in 0..10 of grades ``[n]`` in 0..25: the worse of each pair counts; NaN where one is."""
    success, quality = torch.minimum(done, preserved) / 2.5, torch.minimum(natural, clean) / 2.5
    return (success * quality).sqrt()


@dataclass(frozen=True)
class _Case:
    """One candidate: pixels ``[H, W, 3]``, the source fitted to it, references, and the instruction."""

    result: Tensor
    source: Tensor
    references: tuple[Tensor, ...]
    instruction: str


class EditJudgeVerifier(Verifier):
    """How well a vision-language model finds that an image was edited.

    Args:
        asker: who is asked; see ``judge.Asker``.
        manner: "yes_no" (0..1, three questions) or "grades" (0..10, two questions, for models trained to grade edits).
        source: what is edited; None takes the search's own.
        instruction: what is to be done to it; "" takes the prompt.
        on_failure, batch: of ``judge.VLMJudgeVerifier``.

    Attributes:
        failed: how many images got no score so far.

    Raises:
        VerifierError: an unknown manner or way with failures.
    """

    differentiable = False
    compares = True
    bytes_per_image = 2 * 2**30

    def __init__(
        self,
        asker: Asker,
        manner: str = YES_NO,
        source: Sources | None = None,
        instruction: str = "",
        on_failure: str = "skip",
        batch: int = 1,
        name: str | None = None,
    ):
        if manner not in MANNERS:
            raise VerifierError(f"manner is {manner!r}: choose one of {', '.join(MANNERS)}")
        if on_failure not in FAILURES:
            raise VerifierError(f"on_failure is {on_failure!r}: choose one of {', '.join(FAILURES)}")
        self.asker, self.manner, self.own, self.on_failure = asker, manner, source, on_failure
        self.instruction = plain(instruction).strip()
        self.module, self.name = asker.module, name or f"edit_judge({asker.name})"
        self.needs_source, self.needs_prompt = source is None, not self.instruction
        self.default_scale = (0.6, 0.25) if manner == YES_NO else (6.0, 2.0)
        self.axes = AXES if manner == YES_NO else GRADED
        self.failed = 0
        self._images = ImageCache(batch=batch)

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Scores float32 ``[n]`` of ``images [n, H, W, 3]`` in 0..1; NaN for what got no answer."""
        return self.judge(images, prompts, context).score

    def judge(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Values:
        """``score`` with the answer to every question as ``members``. Raises SearchError where there is no source."""
        images = check_images(images)
        asked = self._instructions(prompts, len(images), context)
        sources = [source_for(self, row, context) for row in range(len(images))]
        good, pixels = finite_rows(images), to_bytes(images)
        table = torch.full((len(images), len(self.axes)), math.nan)
        chosen = torch.nonzero(good).flatten().tolist()
        if chosen:
            cases = [_case(pixels[row], sources[row], asked[row]) for row in chosen]
            also = [(case.instruction, *map(digest, (case.source, *case.references))) for case in cases]
            table[chosen] = self._images(pixels[chosen], lambda rows: self._ask([cases[i] for i in rows]), also)
        if self.on_failure == "neutral":
            table[good] = table[good].nan_to_num(0.5 if self.manner == YES_NO else TOP / 2)
        combine = of_chances if self.manner == YES_NO else of_grades
        members = {f"{self.name}.{axis}": table[:, i] for i, axis in enumerate(self.axes)}
        return Values(combine(*table.unbind(1)), None, members)

    def _instructions(self, prompts: Sequence[str] | str, n: int, context: ScoreContext | None) -> list[str]:
        given = self.instruction or ("" if context is None else context.instruction)
        return [given] * n if given else check_prompts(prompts, n, self.name)

    def _ask(self, cases: Sequence[_Case]) -> Tensor:
        """Answers ``[k, axes]``, NaN where there was none. One question after the other about all candidates."""
        if self.manner == YES_NO:
            rubrics, questions = [RUBRICS[YES_NO]] * 3, QUESTIONS
            texts = [[question.format(instruction=case.instruction) for case in cases] for question in questions]
        else:
            rubrics = list(GRADINGS)
            texts = [[rubric.ask(case.instruction) for case in cases] for rubric in rubrics]
        columns = []
        for number, (rubric, said) in enumerate(zip(rubrics, texts, strict=True)):
            alone = number == len(rubrics) - 1  # whether it looks right is asked of the result, not of a comparison
            answers = self.asker.ask_of(
                [
                    Asked(text, (case.result,) if alone else (case.source, *case.references, case.result))
                    for text, case in zip(said, cases, strict=True)
                ],
                rubric,
            )
            self._note([answer for answer in answers if isinstance(answer, str)], len(answers))
            blank = dict.fromkeys(rubric.axes, math.nan)
            rows = [blank if isinstance(answer, str) else answer for answer in answers]
            columns.append(torch.tensor([[float(row[axis]) for axis in rubric.axes] for row in rows]))
        return torch.cat(columns, 1)

    def _note(self, reasons: list[str], of: int) -> None:
        if not reasons:
            return
        self.failed += len(reasons)
        message = f"verifier {self.name} got no answer about {len(reasons)} of {of} images: {reasons[-1]}"
        if self.on_failure == "error":
            raise VerifierError(message)
        log.warning("%s (%d so far); %s", message, self.failed, CONSEQUENCE[self.on_failure])


def _case(result: Tensor, sources: Sources, instruction: str) -> _Case:
    first = to_bytes(fitted(sources.first.cpu(), *result.shape[:2])[None])[0]
    others = tuple(to_bytes(image[None])[0] for image in sources.images[1:])
    return _Case(result, first, others, instruction)


def load_edit_judge(folder: str | Path, longest: int | None = 512, **options) -> EditJudgeVerifier:
    """A judge of edits that runs on this machine. Nothing is downloaded.

    Args:
        folder: Hugging Face folder of a chat model that sees several images.
        longest: pixels of the longer side of the pictures that it is shown; options: of ``EditJudgeVerifier``.

    Raises:
        ChatError: no such model there.
        VerifierError: bad options.
    """
    return EditJudgeVerifier(LocalAsker(load_local_vlm(folder), longest, Path(folder).name), **options)
