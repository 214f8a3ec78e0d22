"""Questions for a model that judges images, and the strict reading of its answers.

Explanations come before scores, because a model that has to give reasons first scores more steadily (Ma et al. 2025,
arXiv 2501.09732, whose five axes these are; the wording is ours).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...chat import reading
from ...chat.conversation import NotUnderstood, shown

AXES = {
    "accuracy": "every object, number, colour, position and action of the request is there, and nothing contradicts it",
    "creativity": "the idea is fresh and the picture could not be exchanged for any other of its kind",
    "quality": "sharpness, light, anatomy and texture are as good as the style allows, without visible faults",
    "consistency": "the parts belong together: style, perspective, shadows and scale agree",
    "resonance": "the mood or the theme of the request can be felt",
}
VIDEO_AXES = {
    "alignment": "everything that the request asks for is there, and happens in the order it asks for",
    "quality": "every frame is sharp, well lit and without visible faults",
    "motion": "what should move does, smoothly, and nothing flickers or freezes that should not",
    "identity": "people, things and places stay the same from frame to frame",
    "physics": "bodies, liquids, shadows and contacts behave as they do in the world of the request",
}
OVERALL = "overall"
STRIP = "The picture is a film strip: {count} frames of one video, in order, each with its number. Judge the video.\n\n"
"""What a question about a clip begins with."""
UNIFIED_AXES = ("alignment", "coherence", "style")
_YES_NO = re.compile(r"\W*(yes|no)\b(?![\s,\"'*.]{0,9}(?:or\b|/))", re.IGNORECASE)
_GRADE = re.compile(r"(\d{1,9}(?:\.\d{1,20})?)(?:\s{0,9}/\s{0,9}10)?")


@dataclass(frozen=True)
class Rubric:
    """What is asked, and how the answer is read.

    Attributes:
        name: for settings.
        axes: names of the scores that ``read`` returns.
        span: (lowest, highest) score of an axis.
        tokens: longest answer.
        schema: JSON schema of the answer, None where it is no JSON.
        ask: prompt -> question.
        read: answer -> score per axis; raises NotUnderstood.
        scale: mean and standard deviation to expect, for ensembles.
    """

    name: str
    axes: tuple[str, ...]
    span: tuple[float, float]
    tokens: int
    schema: dict[str, Any] | None
    ask: Callable[[str], str]
    read: Callable[[str], dict[str, float]]
    scale: tuple[float, float]


def question_of_axes(prompt: str, axes: Mapping[str, str] = AXES, medium: str = "image") -> str:
    """Ask for every axis and an overall score, as one JSON object. The first axis counts most."""
    listed = "\n".join(f'- "{name}": {what}' for name, what in axes.items())
    one = '{"explanation": "one sentence", "score": 0}'
    shape = ", ".join(f'"{name}": {one}' for name in (*axes, OVERALL))
    return (
        f"You grade {medium}s that were made for a request. The request:\n{prompt}\n\n"
        f"Look at the {medium} and grade it from 0 (fails) to 10 (could not be better) on each of these:\n{listed}\n"
        f'- "{OVERALL}": all of it together, {next(iter(axes))} above the rest\n\n'
        f"Give the reason first, then the number. Answer with this JSON object and nothing else:\n{{{shape}}}"
    )


def schema_of_axes(axes: Mapping[str, str] = AXES) -> dict[str, Any]:
    """JSON schema of the answer to ``question_of_axes``."""
    score = {"type": "number", "minimum": 0, "maximum": 10}
    one = {
        "type": "object",
        "properties": {"explanation": {"type": "string"}, "score": score},
        "required": ["explanation", "score"],
        "additionalProperties": False,
    }
    names = [*axes, OVERALL]
    return {
        "type": "object",
        "properties": dict.fromkeys(names, one),
        "required": names,
        "additionalProperties": False,
    }


def read_axes(text: str, axes: Mapping[str, str] = AXES) -> dict[str, float]:
    """Scores of the last JSON object in an answer. NotUnderstood: none, an axis is missing, a score is no 0 to 10."""
    found = last_object(text)
    return {name: _score(name, found) for name in (*axes, OVERALL)}


def last_object(text: str) -> dict[str, Any]:
    """The last JSON object of a text that is not part of another one, fences and chatter around it ignored."""
    found = reading.last_object(reading.answer_in(text)[0])
    if found is None:
        raise NotUnderstood(f"there is no JSON object in the answer {shown(text)}")
    return found


def _score(name: str, found: dict[str, Any]) -> float:
    value = found.get(name)
    if isinstance(value, dict):
        value = value.get("score")
    if isinstance(value, str):
        match = _GRADE.fullmatch(value.strip())
        value = float(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotUnderstood(f"the answer has no score for {name!r}")
    if not 0 <= value <= 10:
        raise NotUnderstood(f"the score for {name!r} is {str(value)[:20]}: it must lie in 0..10")
    return float(value)


def question_yes_no(prompt: str) -> str:
    """Ask whether the image shows the prompt."""
    return f'Does this figure show "{prompt}"? Please answer Yes or No.'


def read_yes_no(text: str) -> dict[str, float]:
    """1 for an answer that begins with yes, 0 for no. "Yes or no? .." begins with neither."""
    answer, _ = reading.answer_in(text)
    match = _YES_NO.match(answer)
    if match is None:
        raise NotUnderstood(f"the answer {shown(answer)} begins with neither yes nor no")
    return {"yes": 1.0 if match[1].lower() == "yes" else 0.0}


def question_unified(prompt: str) -> str:
    """Ask for the three lines that UnifiedReward 2.0 was trained to write (Wang et al. 2025, arXiv 2503.05236)."""
    return (
        "You are given a text caption and an image that was generated from it. Rate the image on three aspects, each "
        "from 1 to 5: Alignment, how well the image matches the caption; Coherence, how free it is of distortions and "
        "logical faults; Style, how good it looks, whatever the caption says.\n"
        f"Text Caption: [{prompt}]\n"
        "Answer with these three lines:\nAlignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z"
    )


def read_unified(text: str) -> dict[str, float]:
    """Scores of the three lines; the last one where an aspect occurs more than once."""
    scores = {}
    answer, _ = reading.answer_in(text)
    for name in UNIFIED_AXES:
        found = re.findall(rf"{name}\s{{1,9}}score[^:\n]{{0,40}}:\W{{0,20}}(\d{{1,9}}(?:\.\d{{1,20}})?)", answer, re.I)
        if not found:
            raise NotUnderstood(f"the answer {shown(answer)} has no {name.capitalize()} Score")
        scores[name] = float(found[-1])
        if not 1 <= scores[name] <= 5:
            raise NotUnderstood(f"the {name.capitalize()} Score is {scores[name]:g}: it must lie in 1..5")
    return scores


RUBRICS = {
    rubric.name: rubric
    for rubric in (
        Rubric("yes_no", ("yes",), (0, 1), 8, None, question_yes_no, read_yes_no, (0.7, 0.25)),
        Rubric("axes", (*AXES, OVERALL), (0, 10), 600, schema_of_axes(), question_of_axes, read_axes, (6.5, 1.5)),
        Rubric(
            "video",
            (*VIDEO_AXES, OVERALL),
            (0, 10),
            600,
            schema_of_axes(VIDEO_AXES),
            lambda prompt: question_of_axes(prompt, VIDEO_AXES, "video"),
            lambda text: read_axes(text, VIDEO_AXES),
            (6.5, 1.5),
        ),
        Rubric("unified_reward", UNIFIED_AXES, (1, 5), 64, None, question_unified, read_unified, (3.3, 0.6)),
    )
}
"""By name: "yes_no" (probability of yes), "axes" and "video" (0 to 10), "unified_reward" (three lines of 1 to 5)."""
