"""How good the generators are: ``python -m testtime.models.tiny.train.quality MODEL``.

MODEL is "diffusion", "flow", "flow_turbo" (4 steps without guidance), or "trunk" for the last checkpoint of the trunk
in training, read as a flow. Two measures:

- *plain*: share of correct images of plain sampling, by task, as ShapesEval judges them, with a picture of all of them;
- *binding*: on held-out drawings at some noise levels, how often the network's error is smaller with the true caption
  than with the same words bound the other way round (left and right, colours exchanged). It needs no sampling, so
  that it shows within a minute whether a training has begun to bind. Chance is one half.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....installation.files import write_text
from ....samplers.methods import BestOfN
from ....samplers.run.search import run_search
from ....shapes_world.captions import sample_prompt
from ....shapes_world.drawing import draw
from ....shapes_world.evaluator import evaluate
from ....shapes_world.intervals import mean_interval
from ....shapes_world.sampling import sample_scene
from ....shapes_world.suite import by_task, score_table, suite
from .. import vocabulary
from ..denoiser import Denoiser
from ..loading import Family, load_autoencoder, load_denoiser, load_text_encoder
from ..pipeline import SamplingSettings, shapes_process
from ..text_encoder import TextEncoder
from .common import RUNS, WEIGHTS, as_images
from .generator import HELD_OUT_FIRST, REACH, part, trunk_average
from .verifier_data import opposite

SIGMAS = (1.0, 2.0, 4.0, 8.0)
BINDING_TASKS = ("position", "color_attr")


def family_of(model: str, folder: Path) -> Family:
    """The shipped autoencoder with the generators in ``folder``, or with the trunk's last checkpoint.

    Both of the family's places hold the model that is asked for.
    """
    autoencoder, scale = load_autoencoder()
    if model == "trunk":
        average = trunk_average()
        text, flow = TextEncoder(reach=REACH), Denoiser("flow")
        text.load_state_dict(part(average, "text"))
        flow.load_state_dict(part(average, "denoiser"))
        for module in (text, flow):
            module.eval().requires_grad_(False)
        return Family(vocabulary, autoencoder, text, flow, flow, scale)
    asked = load_denoiser(model, folder)
    return Family(vocabulary, autoencoder, load_text_encoder(folder), asked, asked, scale)


@torch.no_grad()
def plain(family: Family, settings: SamplingSettings, prompts_per_task: int, number: int) -> tuple[dict, np.ndarray]:
    """Metrics of one plain image per prompt of suite ``number``, and the images, uint8 ``[n, 128, 128, 3]``."""
    prompts, images = suite(prompts_per_task, number), []
    for first in range(0, len(prompts), 24):
        texts = [prompt.text for prompt in prompts[first : first + 24]]
        process = shapes_process(texts, replace(settings, group_offset=first), family)
        result = run_search(BestOfN(particles=1), process, None, texts)
        images.append(process.to_pixels(process.decode(result.latents)).float().clamp(0, 1).numpy())
    images = np.rint(np.concatenate(images) * 255).astype(np.uint8)
    verdicts = [evaluate(image, prompt).correct for image, prompt in zip(images, prompts, strict=True)]
    table = {task: round(share, 4) for task, share in score_table(prompts, verdicts).items()}
    interval = mean_interval(list(by_task(prompts, verdicts).values())).rounded(4)[1:]
    return {"correct": table, "interval": interval, "prompts": len(prompts)}, images


@torch.no_grad()
def binding(family: Family, count: int) -> dict[str, dict[str, float]]:
    """By task and sigma: share of ``count`` drawings whose error is smaller with the true caption."""
    table: dict[str, dict[str, float]] = {}
    for task in BINDING_TASKS:
        x0, true, false = _bound_pairs(family, task, count)
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        table[task] = {}
        for sigma in SIGMAS:
            s = sigma / (1 + sigma)
            errors = []
            for tokens in (true, false):
                context, _ = family.text_encoder(tokens)
                with torch.autocast("cpu", torch.bfloat16):
                    v = family.flow((1 - s) * x0 + s * eps, torch.full((count,), 1000.0 * s), context).float()
                errors.append((v - (eps - x0)).square().mean((1, 2, 3)))
            table[task][f"sigma {sigma:g}"] = round(float((errors[0] < errors[1]).float().mean()), 4)
    return table


def _bound_pairs(family: Family, task: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents ``[count, 4, 16, 16]`` of held-out drawings of ``task``, tokens of true and of opposite captions."""
    latents, true, false = [], [], []
    for seed in range(HELD_OUT_FIRST, HELD_OUT_FIRST + count):
        prompt = sample_prompt(seed, task)
        image = as_images(draw(sample_scene(seed, prompt))[None])
        latents.append(family.autoencoder.encode(image) * family.latent_scale)
        true.append(prompt.text)
        false.append(opposite(prompt, np.random.default_rng([seed, 0xB1])).text)
    return torch.cat(latents), vocabulary.encode_batch(true), vocabulary.encode_batch(false)


def sheet(images: np.ndarray, columns: int) -> Image.Image:
    """Contact sheet of uint8 ``[n, h, w, 3]``, row by row."""
    rows = -(-len(images) // columns)
    blank = np.zeros((rows * columns - len(images), *images.shape[1:]), np.uint8)
    grid = np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
    return Image.fromarray(np.concatenate(np.concatenate(grid, 1), 1))


def main(argv: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("model", choices=("diffusion", "flow", "flow_turbo", "trunk"))
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the generators to be measured")
    parser.add_argument("--prompts", type=int, default=20, help="per task; 0: no images")
    parser.add_argument("--binding", type=int, default=128, help="drawings per task; 0: none")
    parser.add_argument("--suite", type=int, default=7, help="number of the suite; the benchmark's is 0")
    parser.add_argument("--steps", type=int, help="default: 4 for flow_turbo, else 20")
    parser.add_argument("--cfg", type=float, help="default: 1 for flow_turbo, else 2.5")
    parser.add_argument("--eta", type=float, help="default: 1 for diffusion, 0 for flow")
    parser.add_argument("--out", type=Path, default=RUNS / "quality", help="folder of the figures and pictures")
    parser.add_argument("--name", help="of the files; default: the model's")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(options.threads)
    family = family_of(options.model, options.weights)
    kind = "diffusion" if options.model == "diffusion" else "flow"
    eta = options.eta if options.eta is not None else float(kind == "diffusion")
    steps, cfg = (4, 1.0) if options.model == "flow_turbo" else (20, 2.5)
    steps, cfg = options.steps or steps, options.cfg or cfg
    settings = SamplingSettings(kind, steps, cfg, eta, autocast=torch.bfloat16)
    found: dict = {"model": options.model, "steps": steps, "cfg": cfg, "eta": eta}
    if options.model == "trunk":
        found["trained_steps"] = torch.load(RUNS / "trunk.pt", weights_only=True)["step"]
    if options.binding:
        found["binding"] = binding(family, options.binding)
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.name or options.model
    if options.prompts:
        found["plain"], images = plain(family, settings, options.prompts, options.suite)
        sheet(images, options.prompts).save(options.out / f"{name}.png")
    write_text(options.out / f"{name}.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
