"""The generators' training set: drawings as latents, their captions, and which object covers each cell.

Drawings are made and encoded shard by shard and kept without their pixels (2 KiB a drawing). How many shards a step may
draw from follows from its number, so that a training starts after minutes and still is a function of its seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ....shapes_world.captions import caption, compatible_prompts
from ....shapes_world.drawing import draw, object_mask
from ....shapes_world.scene import COLOURS, IMAGE_SIZE, SHAPES, TASKS, Scene
from ..loading import load_autoencoder
from ..vocabulary import encode
from .common import RUNS, as_images, in_parallel, kept, training_scene

CAPTIONS = 4
"""Wordings kept per drawing."""

DROPOUT = 0.12
"""Share of captions left out, for classifier-free guidance."""

SHARD = 8190
"""Drawings a shard, a multiple of the six tasks: row ``r`` belongs to task ``r % 6`` in every shard."""

SHARDS = 16
STEPS_A_SHARD = 400
"""A training begins with one shard and takes in another after so many steps, up to ``SHARDS``."""

GRID = 8
"""Cells a side, of 16 x 16 pixels: the denoiser's half resolution."""

COVERED = 0.35
"""Share of a cell's pixels from which on it belongs to an object."""

TASK_WEIGHTS = {
    "single_object": 1.0,
    "two_object": 2.0,
    "counting": 1.5,
    "colors": 1.0,
    "position": 3.0,
    "color_attr": 3.0,
}
"""How often a training step draws from each task: what binds is what is learned last."""


_ROW = np.dtype([("latents", "f2", (4, 16, 16)), ("tokens", "u1", (CAPTIONS, 16)), ("cells", "u1", (2, GRID, GRID))])
_ENCODED = 126  # drawings the autoencoder takes at a time


def training_tokens(seed: int) -> np.ndarray:
    """uint8 ``[CAPTIONS, 16]``: token ids of captions of ``training_scene(seed)``, half of them its own prompt's."""
    prompt, scene = training_scene(seed)
    rng = np.random.default_rng([seed, 0xCA])
    texts = [caption(prompt, rng) for _ in range(CAPTIONS // 2)]
    others = compatible_prompts(scene, rng) or [prompt]
    texts += [others[rng.integers(len(others))].text for _ in range(CAPTIONS - len(texts))]
    return np.array([encode(text) for text in texts], dtype=np.uint8)


def captions_of(count: int) -> Tensor:
    """Tokens uint8 ``[count, CAPTIONS, 16]`` of the training drawings, made once and kept."""
    tokens = kept(RUNS / f"tokens-{count}.npy", lambda: in_parallel(training_tokens, 0, count))
    return torch.from_numpy(np.array(tokens))


def cells(scene: Scene) -> np.ndarray:
    """uint8 ``[2, GRID, GRID]``: 1 + number of the shape, 1 + number of the colour that covers each cell; 0: ground."""
    side = IMAGE_SIZE // GRID
    found, most = np.zeros((2, GRID, GRID), np.uint8), np.full((GRID, GRID), COVERED, np.float32)
    for item in scene.objects:
        left, top, alpha = object_mask(item)
        cover = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
        patch = cover[top : top + alpha.shape[0], left : left + alpha.shape[1]]
        patch += alpha[: patch.shape[0], : patch.shape[1]]
        share = cover.reshape(GRID, side, GRID, side).mean((1, 3))
        mine = share > most
        found[0][mine], found[1][mine] = SHAPES.index(item.shape) + 1, list(COLOURS).index(item.colour) + 1
        most = np.maximum(most, share)
    return found


@torch.no_grad()
def make_shard(number: int, size: int = SHARD) -> np.ndarray:
    """Structured rows ``[size]`` (see ``_ROW``) of drawings ``number * size ..``; encoded in bfloat16."""
    autoencoder, scale = load_autoencoder()
    rows = np.empty(size, _ROW)
    for first in range(0, size, _ENCODED):
        part = rows[first : first + _ENCODED]
        seeds = range(number * size + first, number * size + first + len(part))
        scenes = [training_scene(seed)[1] for seed in seeds]
        with torch.autocast("cpu", torch.bfloat16):
            latents = autoencoder.encode(as_images(np.stack([draw(scene) for scene in scenes])))
        part["latents"] = (latents.float() * scale).half().numpy()
        part["tokens"] = np.stack([training_tokens(seed) for seed in seeds])
        part["cells"] = np.stack([cells(scene) for scene in scenes])
    return rows


def shard(number: int, folder: Path = RUNS, size: int = SHARD) -> np.ndarray:
    """Shard ``number``, made once and kept in ``folder``; mapped into memory."""
    return kept(folder / "shards" / f"world-{number:03d}.npy", lambda: make_shard(number, size))


def shards_at(step: int) -> int:
    """How many shards step ``step`` draws from."""
    return min(SHARDS, 1 + step // STEPS_A_SHARD)


class Batches:
    """Draws the batches of a training.

    Args:
        batch: drawings a step.
        folder: of the shards.
        maker: whether this process makes missing shards; another one waits for them (``wait``).
        wait: called before shards are opened that this process does not make.
        size: drawings a shard, a multiple of the six tasks.
    """

    def __init__(self, batch: int, folder: Path = RUNS, maker: bool = True, wait=lambda: None, size: int = SHARD):
        self.batch, self.folder, self.maker, self.wait, self.size = batch, folder, maker, wait, size
        self.shards: list[np.ndarray] = []
        weights = np.array([TASK_WEIGHTS[task] for task in TASKS])
        self.chances = weights / weights.sum()

    def draw(
        self, step: int, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0 ``[B, 4, 16, 16]``, tokens int64 ``[B, 16]`` (some emptied), eps like x0, cells int64 ``[B, 2, 8, 8]``."""
        self._open(shards_at(step))
        n = self.batch
        tasks = rng.choice(len(TASKS), n, p=self.chances)
        rows = rng.integers(0, self.size // len(TASKS), n) * len(TASKS) + tasks
        picked = np.stack([self.shards[s][r] for s, r in zip(rng.integers(0, len(self.shards), n), rows, strict=True)])
        wording = rng.integers(0, CAPTIONS, n)
        tokens = torch.from_numpy(picked["tokens"][np.arange(n), wording].astype(np.int64))
        tokens[torch.from_numpy(rng.random(n) < DROPOUT)] = 0
        x0 = torch.from_numpy(picked["latents"].astype(np.float32))
        eps = torch.randn(x0.shape, generator=generator)
        return x0, tokens, eps, torch.from_numpy(picked["cells"].astype(np.int64))

    def _open(self, count: int) -> None:
        while len(self.shards) < count:
            number = len(self.shards)
            if self.maker:
                shard(number, self.folder, self.size)
            self.wait()
            self.shards.append(shard(number, self.folder, self.size))
