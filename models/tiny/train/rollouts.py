"""What the generators draw, step by step, and how good it turned out: what judges of unfinished images are measured by.

Every image is previewed at some of its steps (the decoded clean estimate of a diffusion or flow model, the decoded
codes of a next-scale model), and graded when it is finished: by ShapesEval, which no judge has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ....shapes_world.captions import Prompt
from ....shapes_world.evaluator import detect
from ....shapes_world.rules import decide
from .verifier_data import Thing, score


@dataclass(frozen=True)
class Rollouts:
    """Images of some prompts, ``particles`` each, in the prompts' order.

    Attributes:
        prompts: one per group of ``particles`` images.
        looks: names of the looks, in the order of the steps; the last is the finished image.
        previews: uint8 ``[looks, prompts * particles, 128, 128, 3]``.
        grades: float32 ``[prompts * particles]`` in -1..1, ``verifier_data.score`` of what ShapesEval finds at the end.
        correct: bool ``[prompts * particles]``, ShapesEval's verdict.
    """

    prompts: tuple[Prompt, ...]
    looks: tuple[str, ...]
    previews: np.ndarray
    grades: np.ndarray
    correct: np.ndarray

    @property
    def particles(self) -> int:
        """Images per prompt."""
        return len(self.grades) // len(self.prompts)


def graded(image: np.ndarray, prompt: Prompt) -> tuple[float, bool]:
    """Grade in -1..1 and verdict of a finished image, uint8 ``[h, w, 3]``."""
    found = detect(image)
    things = tuple(Thing(d.shape, d.colour, d.x, d.y, d.radius, 0.0) for d in found)
    return score(prompt, things), decide(prompt, found)[0]


@torch.no_grad()
def roll_out(process, prompts: Sequence[Prompt], particles: int, steps: dict[int, str]) -> Rollouts:
    """Sample ``particles`` images of each prompt and look at them at ``steps``.

    Args:
        process: a ``Process`` over ``prompts``.
        particles: images per prompt.
        steps: number of a step -> name of the look before it; the finished image is looked at besides.
    """
    state, seen = process.start(particles), []
    for step in range(process.steps):
        state = process.predict(state)
        if step in steps:
            seen.append(_bytes(process.preview(state)))
        state, _ = process.advance(state)
    seen.append(_bytes(process.preview(replace(state, x0=process.finish(state)))))
    names = (*(steps[step] for step in sorted(steps)), "finished")
    verdicts = [graded(image, prompts[k // particles]) for k, image in enumerate(seen[-1])]
    grades, correct = (np.array(column) for column in zip(*verdicts, strict=True))
    return Rollouts(tuple(prompts), names, np.stack(seen), grades.astype(np.float32), correct.astype(bool))


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """Several runs with the same looks and number of particles as one."""
    return Rollouts(
        tuple(prompt for part in parts for prompt in part.prompts),
        parts[0].looks,
        np.concatenate([part.previews for part in parts], 1),
        np.concatenate([part.grades for part in parts]),
        np.concatenate([part.correct for part in parts]),
    )


def _bytes(images: torch.Tensor) -> np.ndarray:
    return np.rint(images.float().clamp(0, 1).numpy() * 255).astype(np.uint8)
