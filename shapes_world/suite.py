"""The benchmark suite of Shapes World: prompts of the six tasks, and the score table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from .captions import Prompt, sample_prompt
from .scene import TASKS

T = TypeVar("T")

FIRST_SEED = 2_000_000_000
"""Prompts of a suite count from here, far from the seeds of training and of held-out drawings."""

_SPAN = 1_000_000  # seeds set aside for one suite
_PATIENCE = 200  # seeds tried per prompt before repeated wordings are accepted


def suite(prompts_per_task: int = 40, seed: int = 0) -> list[Prompt]:
    """Prompts of all six tasks, task after task in the order of ``scene.TASKS``.

    Texts are distinct as long as a task has enough of them ("single_object" has 40).

    Args:
        prompts_per_task: at least 1.
        seed: number of the suite; the same one gives the same prompts on every machine.

    Raises:
        ValueError: fewer than one prompt per task, or a negative seed.
    """
    if prompts_per_task < 1:
        raise ValueError(f"prompts_per_task is {prompts_per_task}: at least 1 is needed")
    if seed < 0:
        raise ValueError(f"seed is {seed}: it must be >= 0")
    return [prompt for task in TASKS for prompt in _of_task(task, prompts_per_task, FIRST_SEED + seed * _SPAN)]


def _of_task(task: str, count: int, first: int) -> list[Prompt]:
    found: dict[str, Prompt] = {}
    spare: list[Prompt] = []
    for offset in range(count * _PATIENCE):
        prompt = sample_prompt(first + offset, task)
        if prompt.text not in found:
            found[prompt.text] = prompt
        elif len(spare) < count:
            spare.append(prompt)
        if len(found) == count:
            break
    return [*found.values(), *spare][:count]


def score_table(prompts: Sequence[Prompt], verdicts: Sequence[bool]) -> dict[str, float]:
    """Share of correct images per task, and ``overall``: the mean of the tasks, as GenEval reports it.

    Raises:
        ValueError: not one verdict per prompt, or no prompts.
    """
    table = {task: float(np.mean(values)) for task, values in by_task(prompts, verdicts).items()}
    return {"overall": float(np.mean(list(table.values()))), **table}


def by_task(prompts: Sequence[Prompt], values: Sequence[T]) -> dict[str, list[T]]:
    """Values (one per prompt) by task, tasks in the order of ``scene.TASKS``, those without prompts left out.

    Raises:
        ValueError: as ``score_table``.
    """
    if len(prompts) != len(values) or not prompts:
        raise ValueError(f"{len(values)} verdicts for {len(prompts)} prompts: one per prompt, and at least one")
    found: dict[str, list[T]] = {task: [] for task in TASKS}
    for prompt, value in zip(prompts, values, strict=True):
        found[prompt.task].append(value)
    return {task: mine for task, mine in found.items() if mine}
