"""Distil the flow model to few steps: ``python -m testtime.models.tiny.train.distil STEPS``, first 8, then 4.

Progressive distillation (Salimans & Ho 2022, "Progressive distillation for fast sampling of diffusion models",
algorithm 2): one Euler step of the student is taught to arrive where two of the teacher's do. For 8 steps the teacher
is the flow with guidance, so that the student needs no second pass; for 4 it is the student with 8. Text states and
latents are the flow's: what comes out is one more model of the family, ``flow_turbo``.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from ....samplers.processes.schedules import flow_schedule
from ..denoiser import Denoiser
from .common import RUNS, Loop, arguments, export, rank_and_processes, record
from .generator import build, part, trunk_average
from .shards import Batches

STEPS = (8, 4)
CFG = 2.5
MOST = 5.0
"""Bound of the weight 1 / s^2 on the error of clean estimates."""

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""State ``[B, 4, h, w]``, s ``[B]`` and text states -> velocity."""


def two_steps(velocity: Velocity, x: Tensor, times: Tensor, context: Tensor) -> Tensor:
    """Mean velocity ``[B, 4, h, w]`` of two Euler steps from ``x`` over ``times`` ``[3, B]``, falling."""
    first, middle, last = (t.view(-1, 1, 1, 1) for t in times)
    half = x + (middle - first) * velocity(x, times[0], context)
    end = half + (last - middle) * velocity(half, times[1], context)
    return (end - x) / (last - first)


def guided(network: Denoiser, unconditional: Tensor, cfg: float) -> Velocity:
    """Velocity under classifier-free guidance; ``unconditional`` ``[1, L, W]``."""

    def velocity(x: Tensor, s: Tensor, context: Tensor) -> Tensor:
        both = torch.cat([unconditional.expand_as(context), context])
        negative, positive = network(torch.cat([x, x]), 1000 * torch.cat([s, s]), both).float().chunk(2)
        return negative + cfg * (positive - negative)

    return velocity


def plain(network: Denoiser) -> Velocity:
    """Velocity of a network without guidance."""
    return lambda x, s, context: network(x, 1000 * s, context).float()


def distillation_loss(student: Velocity, teacher: Velocity, steps: int, x0, eps, index: Tensor, context) -> Tensor:
    """Squared error of clean estimates, weighted by ``min(1 / s^2, MOST)``.

    Args:
        steps: of the student; its step ``index`` ``[B]`` (0 .. steps - 1) covers two of the teacher's.
        x0, eps: ``[B, 4, h, w]``; context: ``[B, L, W]``.
    """
    fine = flow_schedule(2 * steps).float()
    times = torch.stack([fine[2 * index + k] for k in range(3)])
    s = times[0].view(-1, 1, 1, 1)
    x = (1 - s) * x0 + s * eps
    with torch.no_grad():
        target = two_steps(teacher, x, times, context)
    error = (student(x, times[0], context) - target).square().mean((1, 2, 3))
    square = times[0].square()
    return (torch.minimum(torch.ones_like(square), MOST * square) * error).mean()


def first_weights(steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(text encoder, network) that a student of ``steps`` starts from and is taught by: their averaged weights."""
    before = RUNS / ("flow.pt" if steps == max(STEPS) else f"turbo{2 * steps}.pt")
    if not before.exists():
        needed = "generator flow" if steps == max(STEPS) else f"distil {2 * steps}"
        raise SystemExit(f"{before.name} is missing in {before.parent}: run '{needed}' first")
    text = part(trunk_average(), "text")
    average = torch.load(before, weights_only=True)["average"]
    return text, part(average, "denoiser") if steps == max(STEPS) else average


def train(steps: int, options: argparse.Namespace) -> None:
    """Run or resume one round and export it; the weights of the last round so far are ``flow_turbo``."""
    model = build("flow")
    text, network = first_weights(steps)
    model["text"].load_state_dict(text)
    model["denoiser"].load_state_dict(network)
    model["text"].requires_grad_(False)
    student = model["denoiser"]
    teacher_network = copy.deepcopy(student).requires_grad_(False)
    loop = Loop(f"turbo{steps}", student, options.steps, options.rate, warmup=50, ema=0.999, seed=options.seed + steps)
    loop.resume()
    with torch.no_grad():
        unconditional, _ = model["text"](torch.zeros(1, 16, dtype=torch.long))
    teacher = guided(teacher_network, unconditional, CFG) if steps == max(STEPS) else plain(teacher_network)
    rank, processes = rank_and_processes()
    wait = torch.distributed.barrier if processes > 1 else lambda: None
    batches = Batches(options.batch, maker=rank == 0, wait=wait)

    def loss(rng, generator) -> Tensor:
        x0, tokens, eps, _ = batches.draw(1 << 30, rng, generator)
        index = torch.from_numpy(rng.integers(0, steps, len(x0)))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                context, _ = model["text"](tokens)
            return distillation_loss(plain(student), teacher, steps, x0, eps, index, context)

    if not options.export_only:
        loop.run(loss)
    if loop.rank:
        return
    export("flow_turbo", loop.averaged(), {"steps": str(steps), "cfg": repr(CFG)}, folder=options.weights)
    metrics = {"steps": loop.step, "batch": options.batch * loop.processes, "loss": loop.recent_loss()}
    record(f"turbo{steps}", {**metrics, "seconds": loop.seconds}, folder=options.weights)


def main() -> None:
    """Command line entry."""
    given = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if given not in {str(steps) for steps in STEPS}:
        raise SystemExit(f"steps of the student are {given!r}: choose one of {', '.join(map(str, STEPS))}")
    train(int(given), arguments(__doc__.split(":")[0], steps=700, batch=64, rate=2e-4))


if __name__ == "__main__":
    main()
