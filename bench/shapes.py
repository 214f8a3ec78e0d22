"""The Shapes World benchmark: what each method makes of the same compute.

    python -m testtime.bench.shapes [--budgets 1 4 8 16] [--methods ...] [--prompts-per-task 40] [--model diffusion]

240 prompts of six tasks, one image each, judged by the exact evaluator, by the verifier that steered the search and by
one that did not. Budgets are multiples of plain sampling's forward passes. Rows are written as they are finished, and
those already in the output file for the same settings are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..installation.files import write_text
from ..models.tiny.loading import load_family
from ..models.tiny.pipeline import SamplingSettings, shapes_process
from ..samplers.protocols import Search, Verifier
from ..samplers.run.session import run_search
from ..shapes_world.captions import Prompt
from ..shapes_world.evaluator import evaluate
from ..shapes_world.suite import bootstrap_interval, score_table, suite
from ..verifiers.registry import create
from .presets import METHODS, search_for

log = logging.getLogger("testtime")
RESULTS = Path(__file__).parent / "results"
SUITE_SEED = 20240


@dataclass(frozen=True)
class BenchSettings:
    """What a results file was measured with.

    Attributes:
        model, steps, cfg, eta: sampling, see ``SamplingSettings``.
        verifier, held_out: registry names of the judge that steers and of the one that only watches.
        prompts_per_task, seed: the suite's size and the sampling seed.
        precision: "float32" or "bfloat16" (autocast).
        gradient_through: where DAS's gradient goes.
    """

    model: str = "diffusion"
    steps: int = 20
    cfg: float = 2.5
    eta: float = 1.0
    verifier: str = "shapes_preference"
    held_out: str = "shapes_clip"
    prompts_per_task: int = 40
    seed: int = 0
    precision: str = "float32"
    gradient_through: str = "decoder"


def measure(search: Search, prompts: Sequence[Prompt], settings: BenchSettings, batch: int, judges) -> dict:
    """Run ``search`` once per prompt and judge the winners.

    Args:
        search: the method.
        prompts: one image each.
        settings: see ``BenchSettings``.
        batch: particles per model call; that many prompts run together as independent groups.
        judges: (verifier, held-out verifier).

    Returns:
        figures per image and the list of verdicts.
    """
    width = getattr(search, "particles", None) or getattr(search, "candidates", 1)
    groups = max(1, batch // width)
    verdicts, sums, count = [], dict.fromkeys(("reward", "held_out", "optimism", "nfe", "backward", "seconds"), 0.0), 0
    overhead = []
    for first in range(0, len(prompts), groups):
        chosen = prompts[first : first + groups]
        result, images, seconds = _run(search, chosen, first, settings, batch, judges)
        verdicts += [evaluate(image.numpy(), prompt).correct for image, prompt in zip(images, chosen, strict=True)]
        winners = torch.tensor([result.group.tolist().index(g) for g in range(len(chosen))])
        sums["reward"] += float(result.scores[winners].nan_to_num(0.0).sum())
        sums["held_out"] += float(result.held_out[winners].sum())
        sums["optimism"] += result.optimism * len(chosen)
        sums["nfe"] += result.ledger.nfe
        sums["backward"] += result.ledger.backward
        sums["seconds"] += seconds
        overhead.append(result.ledger.overhead())
        count += len(chosen)
    return {"verdicts": verdicts, "overhead": sum(overhead) / len(overhead), **{k: v / count for k, v in sums.items()}}


def _run(search: Search, prompts: Sequence[Prompt], first: int, settings: BenchSettings, batch: int, judges):
    """One batch of prompts -> (result, winners' images ``[G, H, W, 3]``, seconds of search and final decode)."""
    sampling = SamplingSettings(
        model=settings.model,
        steps=settings.steps,
        cfg=settings.cfg,
        eta=settings.eta,
        seed=settings.seed,
        max_batch=batch,
        autocast=torch.bfloat16 if settings.precision == "bfloat16" else None,
        gradient_through=settings.gradient_through,
        group_offset=first,
    )
    process = shapes_process([prompt.text for prompt in prompts], sampling, load_family())
    started = clock()
    result = run_search(search, process, judges[0], [prompt.text for prompt in prompts], held_out=judges[1])
    images = process.to_pixels(process.decode(result.latents))
    held_out = result.ledger.seconds.get("held_out", 0.0)
    return result, images, clock() - started - held_out


def clock() -> float:
    """Seconds: of processor time where one thread does all the work, so that other programs do not count."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def row(method: str, budget: int, prompts: Sequence[Prompt], settings: BenchSettings, batch: int, judges) -> dict:
    """One row of the results file."""
    figures = measure(search_for(method, budget, settings.steps), prompts, settings, batch, judges)
    verdicts = figures.pop("verdicts")
    table = score_table(prompts, verdicts)
    low, high = bootstrap_interval(prompts, verdicts)
    return {
        "method": method,
        "budget": budget,
        "nfe_per_image": round(figures["nfe"], 2),
        "backward_nfe_per_image": round(figures["backward"], 2),
        "overall": table["overall"],
        "overall_ci": [low, high],
        "tasks": {task: value for task, value in table.items() if task != "overall"},
        "reward": round(figures["reward"], 5),
        "held_out": round(figures["held_out"], 5),
        "optimism": round(figures["optimism"], 5),
        "seconds_per_image": round(figures["seconds"], 4),
        "overhead": round(figures["overhead"], 4),
        "verdicts": "".join("1" if verdict else "0" for verdict in verdicts),
    }


def machine() -> str:
    """CPU or GPU, cores and torch version in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


def commit() -> str:
    """Short commit of the code, or "unknown" outside a checkout."""
    root = Path(__file__).parent.parent
    try:
        shown = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return shown.stdout.strip()


def load_results(path: Path, settings: BenchSettings) -> dict:
    """The results file, or an empty one where there is none or it was measured with other settings."""
    fresh = {"suite": "shapes", "commit": commit(), "machine": machine(), "settings": asdict(settings), "rows": []}
    if not path.exists():
        return fresh
    stored = json.loads(path.read_text())
    if stored.get("settings") != asdict(settings):
        log.warning("%s was measured with other settings and is started anew", path.name)
        return fresh
    return stored


class InPrecision:
    """A verifier whose networks run in the benchmark's precision."""

    def __init__(self, verifier: Verifier, precision: str):
        self.name, self.differentiable = verifier.name, verifier.differentiable
        self._verifier, self._reduced = verifier, precision == "bfloat16"

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores ``[n]``, see ``samplers.protocols.Verifier``."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._reduced):
            return self._verifier.score(images, prompts).float()


@dataclass(frozen=True)
class Task:
    """One row to be measured."""

    method: str
    budget: int
    settings: BenchSettings
    batch: int

    def measure(self) -> dict:
        """The row; loads the judges itself, so that it can run in any process."""
        names = (self.settings.verifier, self.settings.held_out)
        judges = tuple(InPrecision(create(name), self.settings.precision) for name in names)
        prompts = suite(self.settings.prompts_per_task, SUITE_SEED)
        return row(self.method, self.budget, prompts, self.settings, self.batch, judges)


def measured(tasks: Sequence[Any], processes: int) -> Iterator[Any]:
    """What ``task.measure()`` returns, as the tasks are finished; several processes share the cores.

    Tasks are begun in the order given, and must be picklable where there is more than one process.
    """
    if processes == 1:
        yield from map(_measure, tasks)
        return
    threads = max(1, torch.get_num_threads() // processes)
    context = multiprocessing.get_context("spawn")  # forking after torch has made its threads deadlocks
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        for future in as_completed([pool.submit(_measure, task) for task in tasks]):
            yield future.result()


def _measure(task: Any) -> Any:
    return task.measure()


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    defaults = BenchSettings()
    parser = argparse.ArgumentParser(prog="testtime bench shapes", description=__doc__.split("\n")[0])
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 4, 8, 16], help="multiples of plain sampling")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--prompts-per-task", type=int, default=defaults.prompts_per_task)
    parser.add_argument("--model", default=defaults.model, choices=["diffusion", "flow"])
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--cfg", type=float, default=defaults.cfg)
    parser.add_argument("--eta", type=float, default=defaults.eta)
    parser.add_argument("--verifier", default=defaults.verifier)
    parser.add_argument("--held-out", default=defaults.held_out)
    parser.add_argument("--precision", default=defaults.precision, choices=["float32", "bfloat16"])
    parser.add_argument("--gradient-through", default=defaults.gradient_through, choices=["denoiser", "decoder"])
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--batch", type=int, default=64, help="particles per model call")
    parser.add_argument("--processes", type=int, default=1, help="rows measured side by side")
    parser.add_argument("--out", type=Path, default=None, help="results file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    options = options_of(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = BenchSettings.__dataclass_fields__
    settings = BenchSettings(**{name: value for name, value in vars(options).items() if name in names})
    path = options.out or RESULTS / f"shapes-{options.model}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = load_results(path, settings)
    done = {(entry["method"], entry["budget"]) for entry in results["rows"]}
    tasks = [
        Task(method, budget, settings, options.batch)
        for budget in sorted(options.budgets, reverse=True)  # the most expensive rows first
        for method in options.methods
        # plain sampling has one budget; searches need more than one particle
        if (method, budget) not in done and (method == "plain") == (budget == 1)
    ]
    for entry in measured(tasks, options.processes):
        results["rows"].append(entry)
        results["rows"].sort(key=lambda known: (list(METHODS).index(known["method"]), known["budget"]))
        write_text(path, json.dumps(results, indent=1) + "\n")
        log.info(
            "%-20s %3dx  overall %.3f [%.3f, %.3f]  reward %.3f  held-out %.3f  %.2f s/image",
            entry["method"], entry["budget"], entry["overall"], *entry["overall_ci"], entry["reward"],
            entry["held_out"], entry["seconds_per_image"],
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
