"""What a next-scale search could find: one tree of images per prompt judges all judges and all plans at once.

A *tree* is a population of particles that is drawn to the end, looked at after every scale, with finished copies of
every particle made after the scales at which plans choose. From the trees alone, without drawing anything more:

- how much of the final score is decided after each scale (one-way random effects over the copies), the highest
  correlation that any judge of that state could have (its root), and the correlation that the verifier has;
- what a plan that keeps the best ("top") finds with any judge: its survivors are different particles, so their own
  continuations are what it would have drawn; only its blind choices are drawn again, ``DRAWS`` times;
- what Best-of-n finds, exactly, by order statistics of the same images.

Trees of the same prompts compare plans with a fraction of the noise of separate runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..models.infinity.process import ScalewiseProcess
from ..samplers.methods.population_plan import PopulationPlan
from ..samplers.processes.streams import Streams
from ..samplers.protocols import Verifier
from ..shapes_world.captions import Prompt
from ..shapes_world.evaluator import evaluate
from ..shapes_world.intervals import paired_interval

PARTICLES = 16
COPIES = 3
DRAWS = 300
JUDGES = ("verifier", "oracle 1", "oracle 3")
"""Of plans: the verifier on previews; the final score of one finished copy, or the mean of three: bounds, no judges."""


@dataclass(frozen=True)
class Tree:
    """Scores of one prompt's images, float64.

    Attributes:
        task: of the prompt.
        looks: ``[scales, N]`` verifier's scores of previews; the last row is of the finished images.
        final: ``[N]`` reward of the finished images. correct: ``[N]`` 1 where the exact evaluator agrees.
        copies: scale -> ``[N, C]`` final scores of copies that were made after it.
    """

    task: str
    looks: Tensor
    final: Tensor
    correct: Tensor
    copies: dict[int, Tensor]


@torch.no_grad()
def grow(process: ScalewiseProcess, prompt: Prompt, judge: Verifier, scales: Sequence[int]) -> Tree:
    """The tree of a prompt: ``PARTICLES`` images, ``COPIES`` finished copies of each after each of ``scales``."""
    texts = [prompt.text] * PARTICLES
    state, looks, copied = process.start(PARTICLES), [], {}
    for scale in range(process.steps):
        state, _ = process.advance(state)
        seen = process.predict(state)
        images = process.preview(seen, 0)
        looks.append(judge.score(images, texts).double())
        if scale in scales:
            copied[scale] = torch.stack([finished(process, state, judge, texts, c) for c in range(COPIES)], 1)
    verdicts = [float(evaluate(image.numpy(), prompt).correct) for image in images]
    return Tree(prompt.task, torch.stack(looks), looks[-1], torch.tensor(verdicts, dtype=torch.float64), copied)


def finished(process: ScalewiseProcess, state: Any, judge: Verifier, texts: Sequence[str], copy: int) -> Tensor:
    """Final scores ``[N]`` of one copy of every particle, each drawn on with noise that no other image has."""
    rows = torch.arange(len(state))
    branch = state.select(rows, slot=rows + PARTICLES * (1 + copy))
    while branch.step < process.steps:
        branch, _ = process.advance(branch)
    return judge.score(process.preview(process.predict(branch), 0), texts).double()


def decided(trees: Sequence[Tree], scale: int) -> float:
    """Share of the final score's variance within a prompt that is decided after ``scale``, 0..1.

    The intraclass correlation ICC(1) of the copies (Shrout and Fleiss 1979), mean squares pooled over prompts.
    """
    between, within, count = 0.0, 0.0, 0
    for tree in trees:
        copies = tree.copies[scale]
        count = copies.shape[1]
        between += float(count * copies.mean(1).var())
        within += float(copies.var(1).mean())
    total = between + (count - 1) * within
    return max(0.0, (between - within) / total) if total > 0 else 0.0


def correlation(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean rank correlation (Spearman) over prompts; prompts whose scores are all equal say nothing."""
    found = [float(spearmanr(a, b).statistic) for a, b in pairs if a.std() > 0 and b.std() > 0]
    return sum(found) / max(len(found), 1)


def by_scale(trees: Sequence[Tree], sides: Sequence[int]) -> list[dict[str, Any]]:
    """A row per scale at which copies were made: what is decided, and who can read it."""
    rows = []
    for scale in sorted(trees[0].copies):
        share = decided(trees, scale)
        rows.append(
            {
                "after_scale": scale,
                "side": sides[scale],
                "decided_share": round(share, 3),
                "highest_correlation": round(share**0.5, 3),
                "verifier": round(correlation([(t.looks[scale], t.final) for t in trees]), 3),
                "one_copy": round(correlation([(t.copies[scale][:, 0], t.final) for t in trees]), 3),
                "three_copies": round(correlation([(t.copies[scale].mean(1), t.final) for t in trees]), 3),
            }
        )
    return rows


def best_of(values: Tensor, by: Tensor, n: float) -> float:
    """Expected ``values`` of the image with the highest ``by`` among ``n`` of them, drawn without replacement.

    Exact by order statistics for whole n, linear between; 1 <= n <= N.
    """
    whole = min(int(n), len(by) - 1)
    ranked = values[by.argsort(stable=True)]

    def expected(count: int) -> float:
        weights = torch.tensor([comb(i, count - 1) for i in range(len(by))], dtype=torch.float64)
        return float((weights * ranked).sum() / comb(len(by), count))

    share = n - whole
    return expected(whole) if share <= 0 else (1 - share) * expected(whole) + share * expected(whole + 1)


def judged(tree: Tree, judge: str, scale: int) -> Tensor:
    """What a judge says ``[N]`` after ``scale``."""
    if judge == "verifier":
        return tree.looks[scale]
    return tree.copies[scale][:, : int(judge.split()[1])].mean(1)


def outcome(tree: Tree, plan: PopulationPlan, n: int, judge: str, streams: Streams) -> tuple[float, float]:
    """Expected (reward, correct) of a plan that keeps the best: blind choices are drawn ``DRAWS`` times."""
    total = torch.zeros(2, dtype=torch.float64)
    for draw in range(DRAWS):
        alive = torch.arange(PARTICLES)
        alive = thinned(alive, n * plan.start, streams, draw, 0)
        for place, (scale, keep) in enumerate(sorted(plan.keep.items()), 1):
            if scale in plan.cluster:
                alive = thinned(alive, n * keep, streams, draw, place)
            else:
                alive = alive[judged(tree, judge, scale)[alive].argsort(descending=True, stable=True)[: n * keep]]
        winner = alive[tree.final[alive].argmax()]
        total += torch.stack([tree.final[winner], tree.correct[winner]])
    return float(total[0]) / DRAWS, float(total[1]) / DRAWS


def thinned(alive: Tensor, count: int, streams: Streams, draw: int, place: int) -> Tensor:
    """``count`` of the particles, by chance."""
    if count >= len(alive):
        return alive
    order = streams.uniform(len(alive), group=draw, step=place, purpose="thin").argsort()
    return alive[order[:count].sort().values]


def strata(trees: Sequence[Tree], value: Callable[[Tree], float]) -> list[list[float]]:
    """A value per prompt, task by task."""
    return [[value(t) for t in trees if t.task == task] for task in dict.fromkeys(t.task for t in trees)]


def equal_best_of(trees: Sequence[Tree], reward: float) -> float:
    """n for which Best-of-n has the mean ``reward``, at most ``PARTICLES``."""
    steps = [1 + k / 10 for k in range(10 * (PARTICLES - 1) + 1)]
    means = [sum(best_of(t.final, t.final, n) for t in trees) / len(trees) for n in steps]
    return next((n for n, mean in zip(steps, means, strict=True) if mean >= reward), float(PARTICLES))


def by_plan(
    trees: Sequence[Tree], plans: dict[str, PopulationPlan], costs: Callable[[PopulationPlan, int], tuple[float, float]]
) -> list[dict[str, Any]]:
    """A row per plan, N and judge, selected by *top*; ``costs`` gives (drawing, all) of a plan at N in plain images.

    *n* is that of the Best-of-n with the same reward; differences to Best-of-4N, and to Best-of-n for the same drawing
    and for the same total cost, are paired by prompt, with 95 % intervals.
    """
    streams, rows = Streams(0), []
    for name, plan in plans.items():
        for n in (1, 2):
            drawing, total = costs(plan, n)
            for judge in JUDGES:
                found = {id(t): outcome(t, plan, n, judge, streams) for t in trees}
                mine = strata(trees, lambda t, found=found: found[id(t)][0])
                reward = sum(map(sum, mine)) / len(trees)
                row = {"plan": f"{name}, N = {n}", "judge": judge, "images_drawn": round(drawing, 2)}
                row |= {"reward": round(reward, 3), "equals_best_of": round(equal_best_of(trees, reward), 1)}
                for key, m in (("against_best_of_4N", 4 * n), ("equal_drawing", drawing), ("equal_cost", total)):
                    other = strata(trees, lambda t, m=m: best_of(t.final, t.final, min(m, PARTICLES)))
                    row[key] = "{:+.2f} ({:+.2f} to {:+.2f})".format(*paired_interval(mine, other))
                row["correct"] = round(sum(found[id(t)][1] for t in trees) / len(trees), 3)
                rows.append(row)
    return rows
