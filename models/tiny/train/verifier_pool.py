"""Pools of the judges' training pairs: drawn once, kept, mixed into batches, with labels for every image token."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ....installation.files import write_text
from ....shapes_world.rules import relations
from ....shapes_world.scene import COLOURS, IMAGE_SIZE, RELATIONS, SHAPES
from ..verifier_blocks import GRID
from .degrade import degrade
from .hard_pairs import sample_hard_pair
from .verifier_data import Pair, Thing, sample_pair

IGNORE = -100
"""Label of a cell that is not asked about."""

_ALIKE = 8  # pairs of a batch from the same pool, both pictures of which are degraded alike
_COLOUR_INDEX = {name: index for index, name in enumerate(COLOURS)}
_SHAPE_INDEX = {name: index for index, name in enumerate(SHAPES)}


def load_pool(
    folder: Path, count: int, seed: int, workers: int = 2, sample: Callable = sample_pair, kind: str = "pairs"
) -> tuple[list[Pair], np.ndarray]:
    """`count` pairs and their images, uint8 [count, 2, 128, 128, 3] (memory-mapped), drawn once into `folder`.

    `sample` draws one from a seed; `kind` names its files.
    """
    images_path, pairs_path = folder / f"{kind}-{seed}-{count}.npy", folder / f"{kind}-{seed}-{count}.json"
    if not pairs_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        images = np.lib.format.open_memmap(images_path, "w+", np.uint8, (count, 2, IMAGE_SIZE, IMAGE_SIZE, 3))
        pairs = []
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            jobs = pool.imap(sample, (seed * 10_000_000 + i for i in range(count)), chunksize=64)
            for index, (pair, drawn) in enumerate(jobs):
                images[index] = drawn
                pairs.append(pair.to_dict())
        images.flush()
        write_text(pairs_path, json.dumps(pairs))
    pairs = [Pair.from_dict(p) for p in json.loads(pairs_path.read_text())]
    return pairs, np.load(images_path, mmap_mode="r")


class Feed:
    """Batches of pairs. A batch is a function of (seed, step), so a resumed run sees what an unbroken one would.

    Args:
        folder, count, seed: of the pool of pairs, see ``verifier_data.load_pool``.
        hard: share of the batches' pairs that differ in what binds (``hard_pairs``), from a pool of their own.
        hard_count: pairs in that pool.
    """

    def __init__(self, folder: Path, count: int, seed: int, hard: float = 0.0, hard_count: int = 0):
        self.hard = hard if hard_count else 0.0
        self.pools = [_Pool(folder, count, seed)]
        if self.hard:
            self.pools.append(_Pool(folder, hard_count, seed, sample_hard_pair, "hard"))
        self.pairs, self.images = self.pools[0].pairs, self.pools[0].images

    @property
    def decoded(self) -> np.ndarray | None:
        """The autoencoder's renderings of the first pool, if they have been found."""
        return self.pools[0].decoded

    def find_decoded(self) -> bool:
        """Map the autoencoder's renderings of the pools that ``reconstruct.py`` has made, if any."""
        return all(pool.find_decoded() for pool in self.pools)

    def batch(self, size: int, seed: int, step: int) -> tuple[list[Pair], torch.Tensor, torch.Tensor]:
        """(pairs, images float [2 * size, 3, 128, 128] in 0..1 and degraded, labels [2 * size, 64, 4])."""
        rng = np.random.default_rng([seed, step])
        pairs, drawn, labels = [], [], []
        for _ in range(0, size, _ALIKE):  # whole chunks, as degradations are shared within a chunk
            pool = self.pools[int(rng.random() < self.hard)]
            index = rng.integers(len(pool.pairs), size=min(_ALIKE, size - len(pairs)))
            decoded = pool.decoded is not None and rng.random() < 0.55
            drawn += [
                pool.decoded[i, rng.integers(pool.decoded.shape[1])] if decoded else pool.images[i] for i in index
            ]
            pairs += [pool.pairs[i] for i in index]
            labels.append(pool.labels[index])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        images = to_float(np.stack(drawn).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3))
        return pairs, degrade(images, generator), torch.cat(labels).flatten(0, 1)


class _Pool:
    """Pairs, their drawings, their grid labels, and their renderings if there are any."""

    def __init__(self, folder: Path, count: int, seed: int, sample: Callable = sample_pair, kind: str = "pairs"):
        self.pairs, self.images = load_pool(folder, count, seed, sample=sample, kind=kind)
        self.labels = torch.stack([torch.stack([grid_labels(t) for t in pair.things]) for pair in self.pairs])
        self.path = folder / decoded_name(kind, seed, count)
        self.decoded: np.ndarray | None = None

    def find_decoded(self) -> bool:
        if self.decoded is None and self.path.exists():
            self.decoded = np.load(self.path, mmap_mode="r")
        return self.decoded is not None


def decoded_name(kind: str, seed: int, count: int) -> str:
    """File name of a pool's renderings."""
    return f"decoded-{seed}-{count}.npy" if kind == "pairs" else f"decoded-{kind}-{seed}-{count}.npy"


def grid_labels(things: tuple[Thing, ...]) -> torch.Tensor:
    """LongTensor [64, 4]: shape, colour, "a centre lies here" and side of every grid cell.

    Malformed objects are ignored, and so are sides where there are not two objects or their relation is not plain.
    """
    labels = np.empty((GRID, GRID, 4), np.int64)
    labels[..., 0], labels[..., 1], labels[..., 2], labels[..., 3] = len(SHAPES), len(COLOURS), 0, IGNORE
    sides = [relations(*things), relations(*things[::-1])] if len(things) == 2 else []
    cell = IMAGE_SIZE // GRID
    ys, xs = (np.mgrid[:GRID, :GRID] + 0.5) * cell
    for index, thing in enumerate(things):
        near = np.hypot(xs - thing.x, ys - thing.y) < thing.radius * 0.9
        row, column = (min(GRID - 1, int(v // cell)) for v in (thing.y, thing.x))
        near[row, column] = True
        labels[near, 0] = IGNORE if thing.other_shape else _SHAPE_INDEX[thing.shape]
        labels[near, 1] = IGNORE if thing.other_colour else _COLOUR_INDEX[thing.colour]
        labels[row, column, 2] = 1
        if sides and len(sides[index]) == 1:
            labels[near, 3] = RELATIONS.index(sides[index][0])
    return torch.from_numpy(labels.reshape(-1, 4))


def to_float(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in 0..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(255)
