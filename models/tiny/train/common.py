"""What the generator trainings share: the drawn data set, checkpoints, schedules, exports."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
from safetensors.torch import save_file
from torch import nn

from ....installation.files import write_text
from ....shapes_world.captions import Prompt, sample_prompt
from ....shapes_world.drawing import draw
from ....shapes_world.sampling import sample_scene
from ....shapes_world.scene import BACKGROUND_LEVELS, TASKS, Scene
from ..packing import pack
from .muon import Muon, matrices

log = logging.getLogger("testtime.train")
WEIGHTS = Path(__file__).parent.parent / "weights"
RUNS = Path(os.environ.get("TESTTIME_RUNS") or Path(__file__).parents[3] / "runs")
"""Data sets and checkpoints. ``TESTTIME_RUNS`` names another folder, one that outlives the checkout."""


def training_scene(seed: int) -> tuple[Prompt, Scene]:
    """Prompt and satisfying scene number ``seed``: tasks in turn, so that all six are equally frequent."""
    prompt = sample_prompt(seed, TASKS[seed % len(TASKS)])
    return prompt, sample_scene(seed, prompt)


def training_drawing(seed: int) -> np.ndarray:
    """uint8 ``[128, 128, 3]`` of ``training_scene(seed)``."""
    return draw(training_scene(seed)[1])


def plain_drawing(seed: int) -> np.ndarray:
    """As ``training_drawing`` on even ground of its kind's usual level: no tint, no gradient, no texture."""
    scene = training_scene(seed)[1]
    ground = scene.background
    level = sum(BACKGROUND_LEVELS[ground.kind]) / 2
    even = replace(ground, rgb=(level, level, level), gradient=0.0, texture=0.0)
    return draw(replace(scene, background=even))


def kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in ``path``, made and written first where it is not there; mapped into memory, not read.

    It appears all at once under its name: processes of a ``torchrun`` that make it side by side do not meet halves.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, make())
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def in_parallel(function: Callable[[int], np.ndarray], first: int, count: int) -> np.ndarray:
    """``function`` of ``first .. first + count - 1``, stacked ``[count, ...]``, computed by all cores."""
    with Pool(os.cpu_count()) as pool:
        return np.stack(pool.map(function, range(first, first + count), chunksize=128))


def drawings(
    first: int, count: int, folder: Path = RUNS, drawing: Callable[[int], np.ndarray] = training_drawing
) -> np.ndarray:
    """uint8 ``[count, 128, 128, 3]``: drawings ``first ..``, drawn in parallel once and kept in ``folder``."""
    kind = "" if drawing is training_drawing else f"{drawing.__name__}-"
    return kept(folder / f"drawings-{kind}{first}-{count}.npy", lambda: in_parallel(drawing, first, count))


def as_images(array: np.ndarray) -> torch.Tensor:
    """uint8 ``[B, H, W, 3]`` -> float32 ``[B, 3, H, W]`` in -1..1, channels last in memory."""
    images = torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    return images.contiguous(memory_format=torch.channels_last)


def learning_rate(
    step: int, steps: int, peak: float, warmup: int, floor: float = 0.02, decay: float | None = None
) -> float:
    """Linear warm-up, then cosine to ``floor * peak`` at ``steps``.

    With ``decay``, a share of ``steps``, the rate stays at ``peak`` until that last share and then falls linearly: such
    a run can be made longer while it is under way (Hu et al. 2024, "MiniCPM").
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if decay is not None:
        return peak * max(min(1.0, (steps - step) / (decay * steps)), floor)
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def optimizers(modules: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of linear and convolutional layers, AdamW for everything else, at one learning rate.

    Orthogonalised updates need markedly fewer steps, which is what a training on a CPU is short of.
    """
    weights = matrices(modules)
    chosen = {id(weight) for weight in weights}
    others = [p for p in modules.parameters() if p.requires_grad and id(p) not in chosen]
    rest = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    return [rest, Muon(weights, rate)] if weights else [rest]


class Loop:
    """A resumable optimisation loop with an exponential moving average of the weights.

    Args:
        name: of the checkpoint file ``runs/<name>.pt``.
        modules: what is trained.
        steps, peak, warmup: learning-rate schedule.
        ema: decay of the average, 0 for none.
        seed: of data order and noise; the same step draws the same numbers, resumed or not.
        fall: last share of the steps in which the learning rate falls, see ``learning_rate``; None for a cosine.

    Under ``torchrun`` every process draws its share of the batch and the gradients are averaged.
    """

    def __init__(
        self, name: str, modules: nn.Module, steps: int, peak: float, warmup=200, ema=0.9995, seed=0, fall=None
    ):
        self.path = RUNS / f"{name}.pt"
        self.modules, self.steps, self.seed = modules, steps, seed
        self.peak, self.warmup, self.decay, self.fall = peak, warmup, ema, fall
        self.optimizers = optimizers(modules, peak)
        self.average = {key: value.detach().clone() for key, value in modules.state_dict().items()}
        self.step, self.seconds, self.losses, self.stored_loss = 0, 0.0, [], 0.0
        self.rank, self.processes = rank_and_processes()

    def resume(self) -> None:
        """Go on from the checkpoint if there is one."""
        if not self.path.exists():
            return
        stored = torch.load(self.path, weights_only=True)
        self.modules.load_state_dict(stored["modules"])
        if len(stored.get("optimizers", ())) == len(self.optimizers):
            for optimizer, state in zip(self.optimizers, stored["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        else:
            log.warning("%s was written with another optimizer, whose memory is lost", self.path.name)
        self.average, self.step, self.seconds = stored["average"], stored["step"], stored["seconds"]
        self.stored_loss = stored.get("loss", 0.0)
        log.info("%s: resuming at step %d", self.path.name, self.step)

    def checkpoint(self) -> None:
        """Write ``runs/<name>.pt`` (all at once, so that an interruption never leaves half a file)."""
        if self.rank:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(
            {
                "modules": self.modules.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "average": self.average,
                "step": self.step,
                "seconds": self.seconds,
                "loss": self.recent_loss(),
            },
            partial,
        )
        partial.replace(self.path)

    def run(
        self, loss_of: Callable[[np.random.Generator, torch.Generator], torch.Tensor], every: float = 120.0
    ) -> None:
        """Train to the last step; ``loss_of(rng, generator)`` draws a batch and returns its loss."""
        started = saved = time.time()
        before = self.seconds
        while self.step < self.steps:
            rng = np.random.default_rng([self.seed, self.step, self.rank])
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            for group in [group for optimizer in self.optimizers for group in optimizer.param_groups]:
                group["lr"] = learning_rate(self.step, self.steps, self.peak, self.warmup, decay=self.fall)
            loss = loss_of(rng, generator)
            self.modules.zero_grad(set_to_none=True)
            loss.backward()
            self._share_gradients()
            nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self._average()
            self.step += 1
            self.losses.append(float(loss.detach()))
            self.seconds = before + time.time() - started
            if self.step % 100 == 0:
                recent = sum(self.losses[-100:]) / len(self.losses[-100:])
                log.info("step %d/%d  loss %.4f  %.0f s", self.step, self.steps, recent, self.seconds)
            if time.time() - saved > every:
                self.checkpoint()
                saved = time.time()
        self.checkpoint()

    def averaged(self) -> dict[str, torch.Tensor]:
        """State dict of the moving average."""
        return self.average

    def recent_loss(self) -> float:
        """Mean loss of the last 200 steps of this process, or what the checkpoint says if it has trained none."""
        recent = self.losses[-200:]
        return sum(recent) / len(recent) if recent else self.stored_loss

    def _share_gradients(self) -> None:
        """Average the gradients over the processes, all in one message."""
        if self.processes == 1:
            return
        gradients = [p.grad for p in self.modules.parameters() if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.processes
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for key, value in self.modules.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value.to(self.average[key]), 1 - decay)
            else:
                self.average[key].copy_(value)


def rank_and_processes() -> tuple[int, int]:
    """This process's number and how many train together: (0, 1) outside ``torchrun``."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def export(
    name: str,
    state: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
    packed: bool = False,
    folder: Path = WEIGHTS,
) -> Path:
    """Write ``<folder>/<name>.safetensors`` in float16, or with ``packed`` at a byte per number (see ``packing``)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    stored = pack(state) if packed else {key: value.half().contiguous() for key, value in state.items()}
    save_file(stored, str(path), metadata=metadata)
    return path


def record(name: str, metrics: dict, folder: Path = WEIGHTS) -> None:
    """Put ``metrics`` under ``name`` into ``<folder>/metrics.json``."""
    path = folder / "metrics.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[name] = metrics
    write_text(path, json.dumps(known, indent=1, sort_keys=True) + "\n")


def arguments(
    description: str, steps: int, batch: int, rate: float, start: bool = False, fall: int | None = None
) -> argparse.Namespace:
    """Common command line of the training scripts; with ``start`` also where to take first weights from.

    ``fall``: default of how many of the last steps the learning rate falls in, where that can be chosen.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate, help="peak learning rate")
    parser.add_argument("--images", type=int, default=48_000, help="drawings in the training set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder the trained weights are written to")
    if start:
        parser.add_argument(
            "--initial", dest="start", type=Path, help="folder of an earlier family's weights to go on from"
        )
    if fall is not None:
        parser.add_argument("--fall", type=int, default=fall, help="last steps, in which the learning rate falls")
    parser.add_argument("--export-only", action="store_true", help="write the weights of the last checkpoint and stop")
    options = parser.parse_args()
    if "RANK" in os.environ:  # set by torchrun
        distributed.init_process_group("gloo")
        share, rest = divmod(options.batch, distributed.get_world_size())
        if rest:
            parser.error(f"--batch is {options.batch}: must be a multiple of {distributed.get_world_size()} processes")
        options.batch = share
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options
