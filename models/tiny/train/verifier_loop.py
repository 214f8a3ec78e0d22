"""What the trainings of both verifiers share: dense labels' read-outs, schedule, averaging, checkpoints, export."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ....installation.files import write_text
from ....shapes_world.scene import COLOURS, RELATIONS, SHAPES
from ..loading import load_into
from . import common
from .common import optimizers
from .verifier_pool import IGNORE, Feed
from .words import WordNames

PACKAGE = Path(__file__).resolve().parents[3]
WEIGHTS = PACKAGE / "models" / "tiny" / "weights"
RUNS = common.RUNS / "verifiers"
VALIDATION_SEED = 2


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
        told = labels[..., 3].flatten() != IGNORE
        side = F.cross_entropy(sides.flatten(0, 1)[told], labels[..., 3].flatten()[told]) if told.any() else 0.0
        return (
            side
            + F.cross_entropy(shapes.flatten(0, 1), labels[..., 0].flatten(), ignore_index=IGNORE)
            + F.cross_entropy(colours.flatten(0, 1), labels[..., 1].flatten(), ignore_index=IGNORE)
            + F.binary_cross_entropy_with_logits(centre.squeeze(-1), labels[..., 2].float())
        )


def _of_one_length(tokens: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


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
            with open(args.run / "log.jsonl", "a") as log:
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
