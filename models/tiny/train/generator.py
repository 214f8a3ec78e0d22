"""Train the embedded generators: ``python -m testtime.models.tiny.train.generator STAGE``.

Stages, in order:
    words      text encoder alone: what is said of each noun (see ``words``); minutes
    trunk      text encoder and denoiser together, variance-preserving, v-prediction, all noise levels
    diffusion  fine-tunes the trunk as an eps-model on Stable Diffusion's discrete schedule; text encoder frozen
    flow       fine-tunes the trunk as a rectified flow; text encoder frozen

Every stage resumes from its checkpoint in ``runs/`` and exports the averaged weights. ``--export-only`` writes the
weights of the last checkpoints without training (the later stages fall back on the trunk).
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import sys
from pathlib import Path

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn

from ....shapes_world.captions import sample_prompt
from ....shapes_world.scene import COLOURS, SHAPES, TASKS
from ..denoiser import TRAINING_STEPS, Denoiser, log_sigma_table
from ..loading import load_state
from ..text_encoder import TextEncoder
from ..vocabulary import encode_batch
from .common import RUNS, Loop, arguments, export, rank_and_processes, record
from .shards import Batches
from .words import WordNames

log = logging.getLogger("testtime.train")
HELD_OUT_FIRST = 30_000_000  # seeds of prompts and drawings that are measured on
STAGES = ("words", "trunk", "diffusion", "flow")
REACH = 4  # words to either side of the text encoder's convolution: "star is to the left of" is five words
CELLS = 0.1  # weight of naming the cells
SAID = 0.05  # weight of what is said of the nouns, in the trunk's loss
LIKENESS = 1.0  # weight of staying near the states the denoiser knows, in the stage "words"
GROUND = 0.3  # weight of a cell of ground against one of an object, in naming

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""What ``Batches.draw`` gives: x0, tokens, eps, cells."""


class CellNames(nn.Module):
    """Names the shape and the colour that cover each cell, from the denoiser's features there. Dropped after training.

    A squared error hardly notices which of two blobs is the star and which the ring, so that binding is learned last.
    Asking for the names makes that the largest part of what is wrong. Where the picture is still noise the prompt alone
    can answer, which is what the denoiser has to learn. (Yu et al. 2024, "Representation alignment for generation",
    find that features which know what is in the picture are what a denoiser spends its training on.)
    """

    def __init__(self, width: int = 192):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.shapes = nn.Conv2d(width, len(SHAPES) + 1, 1)
        self.colours = nn.Conv2d(width, len(COLOURS) + 1, 1)

    def forward(self, features: Tensor, cells: Tensor) -> Tensor:
        """Mean cross-entropy of ``cells`` int64 ``[B, 2, 8, 8]`` (``shards.cells``), features ``[B, width, 8, 8]``."""
        x = self.norm(features)
        weight = torch.where(cells[:, 0] > 0, 1.0, GROUND)
        errors = [F.cross_entropy(head(x).float(), cells[:, k], reduction="none")
                  for k, head in enumerate((self.shapes, self.colours))]  # fmt: skip
        return (weight * (errors[0] + errors[1])).sum() / weight.sum()


def trunk_loss(model: nn.ModuleDict, batch: Batch, _rng, generator) -> Tensor:
    """Velocity error at log-normal noise levels, one in eight at a uniform angle to reach the ends; names of the cells.

    The median is sigma = 3: a latent of this world says the same thing in many places, so that shapes can still be read
    at sigma = 4 and are decided between 2 and 14, while nothing but texture is left to be learned below 1.
    """
    x0, tokens, eps, cells = batch
    n = len(x0)
    phi = torch.atan(torch.exp(1.1 * torch.randn(n, generator=generator) + 1.1))
    uniform = torch.rand(n, generator=generator) * (math.pi / 2)
    phi = torch.where(torch.rand(n, generator=generator) < 0.125, uniform, phi)
    sin, cos = phi.sin().view(-1, 1, 1, 1), phi.cos().view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        context, _ = model["text"](tokens)
        velocity, features = model["denoiser"].velocity_and_cells(cos * x0 + sin * eps, phi, context)
        named = CELLS * model["names"](features, cells) + SAID * model["words"](context, tokens)
    return (velocity.float() - (cos * eps - sin * x0)).square().mean() + named


def words_loss(model: nn.ModuleDict, batch: Batch, _rng, _generator) -> Tensor:
    """Names of what is said of the nouns; where a denoiser was taken over, states also stay near those it knows."""
    tokens = batch[1]
    context, _ = model["text"](tokens)
    loss = model["words"](context, tokens)
    if "known" in model:
        with torch.no_grad():
            known, _ = model["known"](tokens)
        loss = loss + LIKENESS * (context - known).square().mean()
    return loss


def diffusion_loss(model: nn.ModuleDict, batch: Batch, rng, _generator) -> Tensor:
    """eps error over the discrete schedule, weighted by min(1 + sigma^2, 5) (min-SNR weighting, Hang et al. 2023)."""
    x0, tokens, eps, _ = batch
    t = torch.from_numpy(rng.integers(0, TRAINING_STEPS, len(x0)))
    sigma = log_sigma_table()[t].exp().float()
    scale = (1 + sigma * sigma).rsqrt().view(-1, 1, 1, 1)
    x = (x0 + sigma.view(-1, 1, 1, 1) * eps) * scale
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            context, _ = model["text"](tokens)
        predicted = model["denoiser"](x, t.float(), context).float()
    weight = (1 + sigma * sigma).clamp(max=5.0)
    return (weight * (predicted - eps).square().mean((1, 2, 3))).mean()


def flow_loss(model: nn.ModuleDict, batch: Batch, _rng, generator) -> Tensor:
    """Flow-matching error with logit-normal times (Esser et al. 2024, section 3.1), shifted to where shapes are decided
    (see ``trunk_loss``)."""
    x0, tokens, eps, _ = batch
    s = torch.sigmoid(1.0 + torch.randn(len(x0), generator=generator)).view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            context, _ = model["text"](tokens)
        predicted = model["denoiser"]((1 - s) * x0 + s * eps, 1000 * s.flatten(), context).float()
    return (predicted - (eps - x0)).square().mean()


def build(parameterisation: str) -> nn.ModuleDict:
    """Fresh text encoder, denoiser and, for the trunk, the names of its cells."""
    model = nn.ModuleDict({"text": TextEncoder(reach=REACH), "denoiser": Denoiser(parameterisation).initialise()})
    if parameterisation == "v":
        model["names"] = CellNames()
        model["words"] = WordNames()
    return model


def build_words(folder: Path | None) -> nn.ModuleDict:
    """Text encoder and the reader of its states; with ``folder`` that of an earlier family, a copy kept as "known"."""
    model = nn.ModuleDict({"text": TextEncoder(reach=REACH), "words": WordNames()})
    if folder:
        take_over(model["text"], "text_encoder", folder)
        model["known"] = copy.deepcopy(model["text"]).requires_grad_(False)
    return model


def take_over(module: nn.Module, file: str, folder: Path) -> None:
    """Load ``file`` of an earlier family from ``folder`` into ``module``; what it lacks keeps its fresh values."""
    state = {key: value.float() for key, value in load_state(file, folder)[0].items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    if unexpected:
        raise SystemExit(f"{file}.safetensors in {folder} does not fit: it has {', '.join(unexpected)}")
    log.info("from %s.safetensors; fresh: %s", file, ", ".join(missing) or "nothing")


def start(model: nn.ModuleDict, folder: Path | None) -> None:
    """First weights of the trunk: of the stage "words", if it has run, and of an earlier family's flow in ``folder``.

    A flow is the trunk read in another way (``denoiser``).
    """
    if folder:
        take_over(model["denoiser"], "flow", folder)
    if (RUNS / "words.pt").exists():
        average = torch.load(RUNS / "words.pt", weights_only=True)["average"]
        for name in ("text", "words"):
            model[name].load_state_dict(part(average, name))
    elif folder:
        take_over(model["text"], "text_encoder", folder)


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Entries of one module of a ``ModuleDict`` state, without the prefix."""
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(name + ".")}


def trunk_average() -> dict[str, Tensor]:
    """Averaged weights of the trunk's last checkpoint."""
    path = RUNS / "trunk.pt"
    if not path.exists():
        raise SystemExit(f"{path.name} is missing in {path.parent}: train the trunk first (stage 'trunk')")
    return torch.load(path, weights_only=True)["average"]


def prepare(stage: str, options: argparse.Namespace) -> tuple[nn.ModuleDict, Loop]:
    """Model and loop of a stage, with its first weights."""
    if stage == "words":
        model = build_words(options.start)
        return model, Loop("words", model, options.steps, options.rate, warmup=50, ema=0.99, seed=options.seed)
    model = build({"trunk": "v", "diffusion": "eps", "flow": "flow"}[stage])
    if stage == "trunk":
        start(model, options.start)
        return model, Loop("trunk", model, options.steps, options.rate, 300, ema=0.999, seed=options.seed, fall=0.2)
    average = trunk_average()
    for name in ("text", "denoiser"):
        model[name].load_state_dict(part(average, name))
    model["text"].requires_grad_(False)
    return model, Loop(stage, model, options.steps, options.rate, warmup=50, ema=0.998, seed=options.seed + 1)


def train(stage: str, options: argparse.Namespace) -> None:
    """Run or resume one stage and export it."""
    model, loop = prepare(stage, options)
    loop.resume()
    if not options.export_only:
        rank, processes = rank_and_processes()
        wait = distributed.barrier if processes > 1 else lambda: None
        batches = Batches(options.batch, maker=rank == 0, wait=wait)
        loss = {"words": words_loss, "trunk": trunk_loss, "diffusion": diffusion_loss, "flow": flow_loss}[stage]
        at = 1 << 30 if stage in ("diffusion", "flow") else 0  # these draw from all shards from their first step
        loop.run(lambda rng, generator: loss(model, batches.draw(loop.step + at, rng, generator), rng, generator))
    if loop.rank:
        return
    average = loop.averaged()
    if stage == "words":
        model.load_state_dict(average)
        prompts = [sample_prompt(HELD_OUT_FIRST + k, task) for task in TASKS for k in range(200)]
        tokens = encode_batch([prompt.text for prompt in prompts])
        log.info("named right: %s", model["words"].accuracy(model["text"](tokens)[0], tokens))
        return
    if stage == "trunk":
        export("text_encoder", part(average, "text"), folder=options.weights)
        for name in ("diffusion", "flow"):  # until these stages have run, the trunk stands in for both
            if not (RUNS / f"{name}.pt").exists():
                export(name, part(average, "denoiser"), folder=options.weights)
    else:
        export(stage, part(average, "denoiser"), folder=options.weights)
    metrics = {
        "steps": loop.step,
        "batch": options.batch * loop.processes,
        "loss": loop.recent_loss(),
        "seconds": loop.seconds,
    }
    parameters = sum(p.numel() for p in model["denoiser"].parameters())
    record(stage, {**metrics, "parameters": parameters}, folder=options.weights)


def main() -> None:
    """Command line entry."""
    stage = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if stage not in STAGES:
        raise SystemExit(f"stage is {stage!r}: choose one of {', '.join(STAGES)}")
    defaults = {"words": (600, 1e-3), "trunk": (24_000, 7e-4), "diffusion": (300, 2e-4), "flow": (300, 2e-4)}[stage]
    options = arguments(
        __doc__.split(":")[0], steps=defaults[0], batch=64, rate=defaults[1], start=stage in ("words", "trunk")
    )
    assert encode_batch([""]).sum() == 0, "the empty caption must be all padding: dropout relies on it"
    train(stage, options)


if __name__ == "__main__":
    main()
