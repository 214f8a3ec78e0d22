"""How well the judges tell right from wrong: ``python -m testtime.models.tiny.train.judges``.

Of the preference model and of ShapesCLIP, by task:

- *pairs*: how often the right one of two drawings that differ in what binds scores higher (``hard_pairs``), as drawn,
  and noised and denoised in one step of the flow model without a prompt;
- *ranks*: Spearman's correlation within a prompt between the score of unfinished images of a generator and the grade
  ShapesEval gives to the finished ones (``rollouts``), and how often, of one image that became right and one that did
  not, the first scored higher. Prompts whose images are all alike tell nothing and are left out.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from ....installation.files import write_text
from ....shapes_world.scene import TASKS
from ....shapes_world.suite import suite
from ..clip import load_clip
from ..loading import Family, load_family
from ..pipeline import SamplingSettings, TinyDenoise, encode_prompts, shapes_process
from ..preference import load_preference
from ..var_pipeline import VarSettings, var_process
from ..vocabulary import encode_batch
from .common import RUNS, WEIGHTS, as_images
from .hard_pairs import hard_pair
from .rollouts import Rollouts, joined, roll_out

Judge = Callable[[Tensor, Tensor], Tensor]
"""Images float ``[B, 3, 128, 128]`` in 0..1 and tokens ``[B, 16]`` -> scores ``[B]``."""

HELD_OUT_FIRST = 40_000_000
SUITE = 8
"""Number of the suite whose prompts are rolled out; the benchmark's is 0."""

SIGMAS = (1.0, 2.0, 4.0)
LOOKS = {
    "diffusion": {4: "step 4", 7: "step 7", 10: "step 10", 13: "step 13", 16: "step 16"},
    "flow": {1: "step 1", 3: "step 3", 5: "step 5", 8: "step 8", 12: "step 12"},
    "var": {3: "side 3", 4: "side 4", 5: "side 5", 6: "side 6", 7: "side 8"},
}
"""Steps of 20 (scales of 8) before which unfinished images are looked at."""


def judges(folder: Path) -> dict[str, Judge]:
    """Both judges, from ``folder``."""
    return {"preference": load_preference(folder=folder), "clip": load_clip(folder=folder)}


@torch.no_grad()
def scores(judge: Judge, images: np.ndarray, texts: list[str]) -> np.ndarray:
    """Scores ``[n]`` of uint8 ``[n, 128, 128, 3]`` for their captions."""
    tokens, found = encode_batch(texts), []
    for first in range(0, len(images), 64):
        part = slice(first, first + 64)
        found.append(judge((as_images(images[part]) + 1) / 2, tokens[part]).float())
    return torch.cat(found).numpy()


@torch.no_grad()
def redrawn(images: np.ndarray, sigma: float, family: Family, seed: int = 0) -> np.ndarray:
    """``images`` uint8 noised to ``sigma`` and denoised in one step without a prompt; the same noise for neighbours."""
    latents = family.autoencoder.encode(as_images(images)).float() * family.latent_scale
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(latents) // 2, *latents.shape[1:], generator=generator).repeat_interleave(2, 0)
    empty = encode_prompts(family, [""])
    s = sigma / (1 + sigma)
    denoise = TinyDenoise(family.flow, "flow", empty, empty, cfg=1.0)
    clean = denoise((1 - s) * latents + s * noise, s, torch.zeros(len(latents), dtype=torch.long)).x0
    pixels = (family.autoencoder.decode(clean / family.latent_scale).clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).numpy()


def pair_accuracy(tests: dict[str, Judge], family: Family, count: int) -> dict:
    """judge -> view -> task -> share of ``count`` hard pairs whose right picture scores higher."""
    found: dict = {name: {} for name in tests}
    for task in TASKS:
        pairs = [hard_pair(HELD_OUT_FIRST + k, task) for k in range(count)]
        drawn = np.concatenate([images for _, _, images in pairs])
        texts = [prompt.text for prompt, _, _ in pairs for _ in range(2)]
        views = {"drawn": drawn, **{f"sigma {s:g}": redrawn(drawn, s, family) for s in SIGMAS}}
        for name, judge in tests.items():
            for view, images in views.items():
                given = scores(judge, images, texts).reshape(-1, 2)
                share = round(float((given[:, 0] > given[:, 1]).mean()), 4)
                found[name].setdefault(view, {})[task] = share
    return found


def rank_correlation(rollouts: Rollouts, given: np.ndarray) -> dict[str, float]:
    """How the scores ``given [n]`` of one look order the images of a prompt, against how they turned out.

    Returns:
        spearman: mean over prompts whose grades differ; error: its standard error; told: share of (right, wrong) pairs
        of images of the same prompt that are in order; prompts: how many had grades that differ.
    """
    p = rollouts.particles
    ranks, ordered = [], []
    for k in range(len(rollouts.prompts)):
        rows = slice(k * p, (k + 1) * p)
        grades, right, score = rollouts.grades[rows], rollouts.correct[rows], given[rows]
        if np.ptp(grades) > 0 and np.ptp(score) > 0:
            ranks.append(spearmanr(grades, score).statistic)
        if right.any() and not right.all():
            ordered.append(float((score[right][:, None] > score[~right][None]).mean()))
    return {
        "spearman": round(float(np.mean(ranks)), 3),
        "error": round(float(np.std(ranks) / len(ranks) ** 0.5), 3),
        "told": round(float(np.mean(ordered)), 3) if ordered else float("nan"),
        "prompts": len(ranks),
    }


def rolled_out(model: str, prompts_per_task: int, particles: int) -> Rollouts:
    """Rollouts of one of the shipped generators, in the settings of the benchmarks."""
    prompts, parts = suite(prompts_per_task, SUITE), []
    for first in range(0, len(prompts), 6):
        some = prompts[first : first + 6]
        texts = [prompt.text for prompt in some]
        if model == "var":
            process = var_process(texts, VarSettings(group_offset=first))
        else:
            settings = SamplingSettings(model, eta=0.0, autocast=torch.bfloat16, group_offset=first)
            process = shapes_process(texts, settings)
        parts.append(roll_out(process, some, particles, LOOKS[model]))
    return joined(parts)


def main(argv: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the judges to be measured")
    parser.add_argument("--pairs", type=int, default=100, help="per task; 0: none")
    parser.add_argument("--prompts", type=int, default=6, help="rolled out per task; 0: none")
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--models", nargs="*", default=list(LOOKS), choices=list(LOOKS))
    parser.add_argument("--out", type=Path, default=RUNS / "quality" / "judges.json")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(options.threads)
    tests, found = judges(options.weights), {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.pairs:
        found["pairs"] = pair_accuracy(tests, load_family(), options.pairs)
        print(json.dumps(found["pairs"]), flush=True)
    for model in options.models if options.prompts else ():
        rollouts = rolled_out(model, options.prompts, options.particles)
        texts = [prompt.text for prompt in rollouts.prompts for _ in range(options.particles)]
        found[model] = {"correct": round(float(rollouts.correct.mean()), 4)}
        for name, judge in tests.items():
            looks = zip(rollouts.looks, rollouts.previews, strict=True)
            found[model][name] = {look: rank_correlation(rollouts, scores(judge, seen, texts)) for look, seen in looks}
        print(model, json.dumps(found[model]), flush=True)
        write_text(options.out, json.dumps(found, indent=1) + "\n")
    write_text(options.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
