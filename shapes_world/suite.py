"""The benchmark suite of Shapes World: prompts of the six tasks, the score table, and its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .captions import Prompt, sample_prompt
from .scene import TASKS

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
    by_task = _by_task(prompts, verdicts)
    table = {task: float(np.mean(values)) for task, values in by_task.items()}
    return {"overall": float(np.mean(list(table.values()))), **table}


def bootstrap_interval(
    prompts: Sequence[Prompt], verdicts: Sequence[bool], level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``overall``: prompts are drawn again within their task.

    Args:
        prompts, verdicts: as in `score_table`.
        level: coverage, between 0 and 1.
        resamples: bootstrap samples.
        seed: of the resampling; the interval is a function of its arguments.

    Returns:
        (low, high), rounded to 4 digits.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}: it must lie between 0 and 1")
    rng = np.random.default_rng(seed)
    # Drawing n verdicts with replacement is drawing a binomial count.
    means = [rng.binomial(len(v), np.mean(v), size=resamples) / len(v) for v in _by_task(prompts, verdicts).values()]
    low, high = np.quantile(np.mean(means, axis=0), [(1 - level) / 2, (1 + level) / 2])
    return round(float(low), 4), round(float(high), 4)


def _by_task(prompts: Sequence[Prompt], verdicts: Sequence[bool]) -> dict[str, list[bool]]:
    if len(prompts) != len(verdicts) or not prompts:
        raise ValueError(f"{len(verdicts)} verdicts for {len(prompts)} prompts: one per prompt, and at least one")
    by_task: dict[str, list[bool]] = {task: [] for task in TASKS}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        by_task[prompt.task].append(bool(verdict))
    return {task: values for task, values in by_task.items() if values}
