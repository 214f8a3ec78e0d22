"""Train Moving Shapes: ``python -m testtime.models.tiny.train.moving --initial FOLDER``.

The network begins as the embedded flow model on every frame and learns to move; its text encoder, a copy of the
embedded one with four words more, learns what is said of each shape. The learning rate stays up until the last
``--fall`` steps, so that a run can be made longer, or shorter, while it is under way. Resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn

from ....shapes_world.drawing import object_mask
from ....shapes_world.moving import DIRECTIONS, FRAMES, SIDE, STAYS, draw_moving, moving_scenes, sample_moving
from ....shapes_world.scene import COLOURS, IMAGE_SIZE, SHAPES
from ..loading import WEIGHTS, load_autoencoder
from ..moving import MovingDenoiser
from ..text_encoder import TextEncoder
from ..vocabulary import VOCABULARY_SIZE, WORDS, encode
from .common import RUNS, Loop, arguments, as_images, export, kept, rank_and_processes, record
from .generator import REACH, part, take_over

log = logging.getLogger("testtime.train")
DOES = (*DIRECTIONS, STAYS)
DROPOUT = 0.1
"""Share of captions left out, for classifier-free guidance."""
SHARD, SHARDS, STEPS_A_SHARD = 2000, 10, 250
GRID = SIDE // 16
NAMED, SAID = 0.1, 0.1
"""Weights of naming what covers a cell, and of what is said of a shape."""
GROUND = 0.3
COVERED = 0.35
LATER = 1.7
"""Median log-odds of the noise level: what moves where is decided at high noise, as every frame tells of it."""
HELD_OUT = 40_000_000

_ROW = np.dtype(
    [
        ("latents", "f2", (4, FRAMES, SIDE // 8, SIDE // 8)),
        ("tokens", "u1", 16),
        ("cells", "u1", (3, FRAMES, GRID, GRID)),
    ]
)


def _table(names: tuple[str, ...]) -> Tensor:
    """int64 ``[VOCABULARY_SIZE]``: 1 + the number of each word in ``names``, else 0."""
    table = torch.zeros(VOCABULARY_SIZE, dtype=torch.long)
    for number, word in enumerate(names):
        table[WORDS.index(word)] = number + 1
    return table


_SHAPE, _COLOUR, _DOES = _table(tuple(SHAPES)), _table(tuple(COLOURS)), _table(DOES)


def said_of_shapes(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Where shapes are named, bool ``[B, 16]``, and 1 + number of shape, colour and what it does, ``[3, B, 16]``."""
    nouns = _SHAPE[tokens] > 0
    after = F.pad(tokens, (0, 2))
    does = torch.maximum(_DOES[after[:, 1:-1]], _DOES[after[:, 2:]])
    return nouns, torch.stack([_SHAPE[tokens], _COLOUR[F.pad(tokens, (1, 0))[:, :-1]], does]) * nouns


class Names(nn.Module):
    """Reads shape, colour and motion from text states and from cells. Dropped after training (see ``generator``)."""

    def __init__(self, width: int = 192):
        super().__init__()
        sizes = [len(SHAPES) + 1, len(COLOURS) + 1, len(DOES) + 1]
        self.words = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.norm = nn.GroupNorm(8, width)
        self.cells = nn.ModuleList(nn.Conv2d(width, size, 1) for size in sizes)

    def of_words(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Mean cross-entropy over the shapes of captions."""
        nouns, said = said_of_shapes(tokens)
        states = context[nouns]
        if not len(states):
            return context.sum() * 0.0
        return sum(
            F.cross_entropy(head(states).float(), kind[nouns]) for head, kind in zip(self.words, said, strict=True)
        )

    def of_cells(self, features: Tensor, cells: Tensor) -> Tensor:
        """Mean cross-entropy of ``cells`` int64 ``[B, 3, F, g, g]``, features ``[B F, width, g, g]``."""
        x, flat = self.norm(features), cells.transpose(1, 2).flatten(0, 1)
        weight = torch.where(flat[:, 0] > 0, 1.0, GROUND)
        errors = sum(
            F.cross_entropy(head(x).float(), flat[:, k], reduction="none") for k, head in enumerate(self.cells)
        )
        return (weight * errors).sum() / weight.sum()

    @torch.no_grad()
    def right(self, context: Tensor, tokens: Tensor) -> list[float]:
        """Share of shapes whose name, colour and motion are read right."""
        nouns, said = said_of_shapes(tokens)
        return [float((head(context[nouns]).argmax(-1) == kind[nouns]).float().mean())
                for head, kind in zip(self.words, said, strict=True)]  # fmt: skip


def cells(prompt, seed: int) -> np.ndarray:
    """uint8 ``[3, F, GRID, GRID]``: 1 + number of shape, colour and motion of what covers each cell; 0: ground."""
    found = np.zeros((3, FRAMES, GRID, GRID), np.uint8)
    edge = (IMAGE_SIZE - SIDE) // 2
    for frame, scene in enumerate(moving_scenes(prompt, seed)):
        for item, mover in zip(scene.objects, prompt.movers, strict=True):
            left, top, alpha = object_mask(item)
            cover = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
            patch = cover[top : top + alpha.shape[0], left : left + alpha.shape[1]]
            patch += alpha[: patch.shape[0], : patch.shape[1]]
            share = cover[edge : edge + SIDE, edge : edge + SIDE].reshape(GRID, 16, GRID, 16).mean((1, 3))
            names = SHAPES.index(mover.shape), list(COLOURS).index(mover.colour), DOES.index(mover.does)
            for row, name in zip(found, names, strict=True):
                row[frame][share > COVERED] = name + 1
    return found


@torch.no_grad()
def make_shard(number: int) -> np.ndarray:
    """Rows ``[SHARD]`` (see ``_ROW``) of clips ``number * SHARD ..``."""
    autoencoder, scale = load_autoencoder()
    rows = np.empty(SHARD, _ROW)
    for first in range(0, SHARD, 20):
        seeds = range(number * SHARD + first, number * SHARD + first + 20)
        prompts = [sample_moving(seed) for seed in seeds]
        clips = np.concatenate([draw_moving(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)])
        latents = (autoencoder.encode(as_images(clips)) * scale).unflatten(0, (20, FRAMES)).transpose(1, 2)
        part = rows[first : first + 20]
        part["latents"] = latents.half().numpy()
        part["tokens"] = np.array([encode(prompt.text) for prompt in prompts], np.uint8)
        part["cells"] = np.stack([cells(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)])
    return rows


class Clips:
    """Draws batches of clips; half of them run backwards, with the opposite words."""

    def __init__(self, batch: int, maker: bool = True, wait=lambda: None):
        self.batch, self.maker, self.wait = batch, maker, wait
        self.shards: list[np.ndarray] = []
        back = np.arange(VOCABULARY_SIZE)
        for here, there in (("left", "right"), ("up", "down")):
            a, b = WORDS.index(here), WORDS.index(there)
            back[a], back[b] = b, a
        self._back = back
        order = [
            DOES.index({"left": "right", "right": "left", "up": "down", "down": "up", STAYS: STAYS}[w]) for w in DOES
        ]
        self._does_back = np.array([0, *(1 + number for number in order)])

    def draw(self, step: int, rng: np.random.Generator, generator: torch.Generator):
        """x0 ``[B, 4, F, h, w]``, tokens int64 ``[B, 16]`` (some emptied), eps like x0, cells int64."""
        while len(self.shards) < min(SHARDS, 1 + step // STEPS_A_SHARD):
            path, number = RUNS / "moving" / f"clips-{len(self.shards):02d}.npy", len(self.shards)
            if self.maker:
                kept(path, lambda number=number: make_shard(number))
            self.wait()
            self.shards.append(np.load(path, mmap_mode="r"))
        picks = zip(rng.integers(0, len(self.shards), self.batch), rng.integers(0, SHARD, self.batch), strict=True)
        rows = [self.shards[s][r] for s, r in picks]
        latents = np.stack([row["latents"] for row in rows]).astype(np.float32)
        tokens = np.stack([row["tokens"] for row in rows]).astype(np.int64)
        found = np.stack([row["cells"] for row in rows]).astype(np.int64)
        back = rng.random(self.batch) < 0.5
        latents[back], found[back], tokens[back] = (
            latents[back, :, ::-1],
            found[back, :, ::-1],
            self._back[tokens[back]],
        )
        found[back, 2] = self._does_back[found[back, 2]]
        tokens[rng.random(self.batch) < DROPOUT] = 0
        x0 = torch.from_numpy(latents)
        return x0, torch.from_numpy(tokens), torch.randn(x0.shape, generator=generator), torch.from_numpy(found)


def loss_of(model: nn.ModuleDict, batch, generator: torch.Generator) -> Tensor:
    """Flow-matching error, and the names of cells and words."""
    x0, tokens, eps, found = batch
    s = torch.sigmoid(LATER + 1.2 * torch.randn(len(x0), generator=generator)).view(-1, 1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        context, _ = model["text"](tokens)
        flow, features = model["denoiser"].flow_and_cells((1 - s) * x0 + s * eps, 1000 * s.flatten(), context)
        named = NAMED * model["names"].of_cells(features, found) + SAID * model["names"].of_words(context, tokens)
    return (flow.float() - (eps - x0)).square().mean() + named


def build(initial: Path) -> nn.ModuleDict:
    """The network on the weights of the embedded flow model and text encoder in ``initial``."""
    denoiser = MovingDenoiser().initialise().initialise_time()
    text = TextEncoder(reach=REACH)
    take_over(denoiser, "flow", initial)
    take_over(text, "text_encoder", initial)
    return nn.ModuleDict({"text": text, "denoiser": denoiser, "names": Names()})


def train(options: argparse.Namespace) -> None:
    """Run or resume, and export the averaged weights."""
    model = build(options.start or WEIGHTS)
    fall = min(options.fall / options.steps, 1.0)
    loop = Loop("moving", model, options.steps, options.rate, 100, ema=0.998, seed=options.seed, fall=fall)
    loop.resume()
    if not options.export_only:
        rank, processes = rank_and_processes()
        clips = Clips(options.batch, rank == 0, distributed.barrier if processes > 1 else lambda: None)
        loop.run(lambda rng, generator: loss_of(model, clips.draw(loop.step, rng, generator), generator))
    if loop.rank:
        return
    average = loop.averaged()
    model.load_state_dict(average)
    tokens = torch.tensor([encode(sample_moving(HELD_OUT + k).text) for k in range(500)])
    right = model["names"].right(model["text"](tokens)[0], tokens)
    log.info("read right of captions: shape %.3f, colour %.3f, motion %.3f", *right)
    state = {f"text.{key}": value for key, value in part(average, "text").items()}
    state |= {f"denoiser.{key}": value for key, value in part(average, "denoiser").items()}
    export("moving", state, packed=True, folder=options.weights)
    record("moving", {"steps": loop.step, "batch": options.batch * loop.processes, "loss": loop.recent_loss(),
                      "seconds": loop.seconds, "parameters": sum(p.numel() for p in model["denoiser"].parameters())},
           folder=options.weights)  # fmt: skip


def main() -> None:
    """Command line entry."""
    train(arguments(__doc__.split(":")[0], steps=10_000, batch=8, rate=5e-4, start=True, fall=800))


if __name__ == "__main__":
    main()
