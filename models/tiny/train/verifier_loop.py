"""What the trainings of both verifiers share: batches, grid labels, schedule, averaging, checkpoints, export."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ....installation.files import write_text
from ....shapes_world.rules import relations
from ....shapes_world.scene import COLOURS, IMAGE_SIZE, RELATIONS, SHAPES
from ..loading import load_into
from ..verifier_blocks import GRID
from . import common
from .common import optimizers
from .degrade import degrade
from .hard_pairs import sample_hard_pair
from .verifier_data import Pair, Thing, load_pool, sample_pair
from .words import WordNames

PACKAGE = Path(__file__).resolve().parents[3]
WEIGHTS = PACKAGE / "models" / "tiny" / "weights"
RUNS = common.RUNS / "verifiers"
VALIDATION_SEED = 2

_COLOUR_INDEX = {name: index for index, name in enumerate(COLOURS)}
_SHAPE_INDEX = {name: index for index, name in enumerate(SHAPES)}
_IGNORE = -100
_ALIKE = 8  # pairs of a batch from the same pool, both pictures of which are degraded alike


def parser(name: str, seed: int) -> argparse.ArgumentParser:
    """Command line options of a verifier's training."""
    options = argparse.ArgumentParser(description=f"Train the {name} model of the embedded family.")
    options.add_argument("--steps", type=int, default=9000, help="optimiser steps in all")
    options.add_argument("--pairs", type=int, default=16000, help="training pairs to draw")
    options.add_argument("--hard-pairs", type=int, default=8000, help="training pairs that differ in what binds")
    options.add_argument("--hard", type=float, default=0.5, help="share of these in a batch")
    options.add_argument("--initial", type=Path, help="folder of earlier weights to go on from")
    options.add_argument("--batch", type=int, default=32, help="pairs a step")
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument("--seed", type=int, default=seed)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--run", type=Path, default=RUNS / name, help="folder of checkpoints and log")
    options.add_argument("--export-every", type=int, default=500)
    options.add_argument("--export", type=Path, default=WEIGHTS)
    return options


class GridHead(nn.Module):
    """Auxiliary read-outs, dropped after training: shape, colour, centre and side of what lies under each image token,
    and, as ``words``, what is said of each noun of a caption (see ``words.WordNames``).

    The side is where the object is as seen from the other one of two: "the left one" is what a caption asks about.

    Dense labels teach the image tower shapes and colours many times faster than one number per image does. Tokens are
    brought to one length first: those of a trained model are long, and fresh read-outs would begin with huge errors.
    """

    def __init__(self, width: int):
        super().__init__()
        self.read = nn.Linear(width, len(SHAPES) + 1 + len(COLOURS) + 1 + len(RELATIONS) + 1)
        self.words = WordNames(width)

    def words_loss(self, words: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """Contextual words [B, 16, width] of captions [B, 16] -> error in naming what is said of each noun."""
        return self.words(_of_one_length(words), captions)

    def loss(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """`tokens` [B, 64, width], `labels` as `grid_labels` gives them for B images."""
        read = self.read(_of_one_length(tokens)).float()
        shapes, colours, sides, centre = read.split([len(SHAPES) + 1, len(COLOURS) + 1, len(RELATIONS), 1], dim=-1)
        told = labels[..., 3].flatten() != _IGNORE
        side = F.cross_entropy(sides.flatten(0, 1)[told], labels[..., 3].flatten()[told]) if told.any() else 0.0
        return (
            side
            + F.cross_entropy(shapes.flatten(0, 1), labels[..., 0].flatten(), ignore_index=_IGNORE)
            + F.cross_entropy(colours.flatten(0, 1), labels[..., 1].flatten(), ignore_index=_IGNORE)
            + F.binary_cross_entropy_with_logits(centre.squeeze(-1), labels[..., 2].float())
        )


def _of_one_length(tokens: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


def grid_labels(things: tuple[Thing, ...]) -> torch.Tensor:
    """LongTensor [64, 4]: shape, colour, "a centre lies here" and side of every grid cell.

    Malformed objects are ignored, and so are sides where there are not two objects or their relation is not plain.
    """
    labels = np.empty((GRID, GRID, 4), np.int64)
    labels[..., 0], labels[..., 1], labels[..., 2], labels[..., 3] = len(SHAPES), len(COLOURS), 0, _IGNORE
    sides = [relations(*things), relations(*things[::-1])] if len(things) == 2 else []
    cell = IMAGE_SIZE // GRID
    ys, xs = (np.mgrid[:GRID, :GRID] + 0.5) * cell
    for index, thing in enumerate(things):
        near = np.hypot(xs - thing.x, ys - thing.y) < thing.radius * 0.9
        row, column = (min(GRID - 1, int(v // cell)) for v in (thing.y, thing.x))
        near[row, column] = True
        labels[near, 0] = _IGNORE if thing.other_shape else _SHAPE_INDEX[thing.shape]
        labels[near, 1] = _IGNORE if thing.other_colour else _COLOUR_INDEX[thing.colour]
        labels[row, column, 2] = 1
        if sides and len(sides[index]) == 1:
            labels[near, 3] = RELATIONS.index(sides[index][0])
    return torch.from_numpy(labels.reshape(-1, 4))


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
        return all([pool.find_decoded() for pool in self.pools])

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


def to_float(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in 0..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(255)


def train(args: argparse.Namespace, model: nn.Module, head: GridHead, loss: Callable, evaluate: Callable) -> None:
    """Run or resume a training.

    Args:
        args: of `parser`.
        model, head: trained together; only the average of `model` over the last steps is exported.
        loss: (model, head, pairs, images, labels, step) -> (scalar, dict of floats to log).
        evaluate: model -> dict of metrics, written beside the exported weights.
    """
    torch.set_num_threads(args.threads)
    feed = Feed(RUNS / "pool", args.pairs, 1, args.hard, args.hard_pairs)
    if args.initial:
        load_into(model, args.run.name, args.initial)
        model.train().requires_grad_(True)
    model.to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    both = nn.ModuleList([model, head])
    chosen = optimizers(both, args.lr)
    step, seconds, checkpoint = 0, 0.0, args.run / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(state["both"])
        average.load_state_dict(state["average"])
        for optimizer, memory in zip(chosen, state["optimizers"], strict=True):
            optimizer.load_state_dict(memory)
        step, seconds = state["step"], state["seconds"]
    args.run.mkdir(parents=True, exist_ok=True)
    log = open(args.run / "log.jsonl", "a", buffering=1)
    began, sums = time.perf_counter(), {}
    both.train()
    while step < args.steps:
        if step % 100 == 0:
            feed.find_decoded()
        for group in [group for optimizer in chosen for group in optimizer.param_groups]:
            group["lr"] = args.lr * schedule(step, args.steps)
        pairs, images, labels = feed.batch(args.batch, args.seed, step)
        with torch.autocast("cpu", torch.bfloat16):
            value, record = loss(model, head, pairs, images, labels, step)
        both.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimizer in chosen:
            optimizer.step()
        average.update_parameters(model)
        step += 1
        for key, number in record.items():
            sums[key] = sums.get(key, 0.0) + float(torch.as_tensor(number).detach())
        if step % 50 == 0:
            spent = seconds + time.perf_counter() - began
            line = {"step": step, "seconds": round(spent), **{k: round(v / 50, 4) for k, v in sums.items()}}
            log.write(json.dumps(line) + "\n")
            sums = {}
        if step % 250 == 0 or step == args.steps:
            state = {
                "both": both.state_dict(),
                "average": average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in chosen],
                "step": step,
                "seconds": seconds + time.perf_counter() - began,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        if step % args.export_every == 0 or step == args.steps:
            metrics = {
                "steps": step,
                "planned_steps": args.steps,
                "seed": args.seed,
                "train_seconds": round(seconds + time.perf_counter() - began),
            }
            metrics |= evaluate(export(average.module, args.export / f"{args.run.name}.safetensors"))
            write_text(args.export / f"metrics_{args.run.name}.json", json.dumps(metrics, indent=1) + "\n")
            log.write(json.dumps(metrics) + "\n")


def schedule(step: int, steps: int) -> float:
    """Warm-up, plateau, and a linear decay over the last 30 %, so that `--steps` may change while on the plateau."""
    return min(1.0, (step + 1) / 200, max(0.02, (steps - step) / (0.3 * steps)))


def export(model: nn.Module, path: Path) -> nn.Module:
    """Write float16 safetensors and return a frozen copy of `model` that holds exactly those weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
    copy = type(model)().eval().requires_grad_(False)
    copy.load_state_dict({name: value.float() for name, value in state.items()})
    return copy
