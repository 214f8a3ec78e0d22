"""Flow models at a fixed budget: what each method makes of the same forward passes, on the ODE and on two SDEs.

    python -m testtime.bench.flow [--budgets 1 2 .. 10] [--methods ...] [--prompts-per-task 40] [--verifier ...]

The embedded flow model on the counting and position tasks, as the paper of RBF compares methods (Kim et al. 2025, table
1): at 500 forward passes per image, which are ten times plain sampling here, and at every tenth of it for the curve.
Every prompt is made several times, for the diversity: the mean distance (1 - cosine) between the CLIP embeddings of its
images. Rows are written as they are finished, and those already in the file for the same settings are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..installation.files import write_text
from ..models.tiny.loading import load_family
from ..models.tiny.pipeline import SamplingSettings, shapes_process
from ..samplers.budget import Outline, WithinBudget
from ..samplers.methods import RBF, SMC, SVDD, BestOfN
from ..samplers.processes.kernel import Flow
from ..samplers.processes.sde import SDE, OnPath
from ..samplers.run.session import run_search
from ..shapes_world.captions import Prompt
from ..shapes_world.evaluator import evaluate
from ..shapes_world.suite import bootstrap_interval, score_table, suite
from ..verifiers.registry import create
from .shapes import RESULTS, SUITE_SEED, InPrecision, clock, load_results, measured

log = logging.getLogger("testtime")
TASKS = ("counting", "position")
ALMOST_ODE = 1e-3  # norm of the noise that stands for the ODE: on none at all clones could not be told apart
LEVELS = 10  # of the published grid; the rest of the steps is its ODE tail


@dataclass(frozen=True)
class FlowSettings:
    """What a results file was measured with.

    Attributes:
        steps, cfg: of plain sampling. A budget of 1 is one plain image: ``steps`` times the guidance branches.
        verifier, held_out: registry names of the judge that steers and of the one that only watches.
        prompts_per_task, per_prompt: the suite's size, and images made of every prompt.
        seed, precision: as in ``bench.shapes``.
    """

    model: str = "flow"
    steps: int = 25
    cfg: float = 2.5
    verifier: str = "shapes_preference"
    held_out: str = "shapes_clip"
    prompts_per_task: int = 40
    per_prompt: int = 2
    seed: int = 0
    precision: str = "float32"


def _on(path: str, search: Any, steps: int) -> OnPath:
    """A method on the almost-ODE, the linear or the VP path, over as many steps as plain sampling has."""
    if path == "ode":
        return OnPath(search, SDE("linear", norm=ALMOST_ODE))
    if path == "linear":
        return OnPath(search, SDE("linear"))
    levels = min(LEVELS, steps - 1)
    return OnPath(search, SDE("vp"), "exp", levels, max(steps - levels + 1, 1))


METHODS: dict[str, Callable[[int], Any]] = {
    "plain": lambda steps: BestOfN(1),
    "best_of_n": lambda steps: BestOfN(),
    **{f"svdd_{path}": partial(_on, path, SVDD()) for path in ("ode", "linear", "vp")},
    **{f"smc_{path}": partial(_on, path, SMC()) for path in ("ode", "linear", "vp")},
    **{f"rbf_{path}": partial(_on, path, RBF()) for path in ("linear", "vp")},
}
"""Methods of the comparison; the number of particles comes from the budget."""


def prepared(method: str, budget: int, prompts: Sequence[str], first: int, settings: FlowSettings, batch: int):
    """(search, process) of a method at ``budget`` plain images; ``first`` is the number of the first prompt."""
    search = METHODS[method](settings.steps)
    sampling = SamplingSettings(
        model=settings.model,
        steps=settings.steps,
        cfg=settings.cfg,
        eta=0.0,
        seed=settings.seed,
        max_batch=batch,
        autocast=torch.bfloat16 if settings.precision == "bfloat16" else None,
        group_offset=first,
    )
    process = shapes_process(prompts, sampling, load_family())
    if isinstance(search, OnPath):
        sigmas, process.eta = search.schedule(Flow(), torch.tensor(process.sigmas, dtype=torch.float64))
        process.sigmas, process.steps, search = sigmas.tolist(), len(sigmas) - 1, search.search
    if method != "plain":
        rows = process.denoise.rows_per_particle
        limit = WithinBudget(search, nfe=budget * settings.steps * rows, steps="keep", least=1)
        search, _ = limit.fit(search, Outline(process.interpolant, process.sigmas, process.eta), rows)
    return search, process


def measure(method: str, budget: int, prompts: Sequence[Prompt], settings: FlowSettings, batch: int, judges) -> dict:
    """Run a method on every prompt ``per_prompt`` times.

    Returns:
        per image: "verdicts", "reward", "held_out", "optimism"; per prompt: "diversity"; and "nfe", "seconds" as means.
    """
    search, _ = prepared(method, budget, ["a red star"], 0, settings, batch)
    widths = (getattr(search, name, None) for name in ("population", "particles", "candidates"))
    groups = max(1, batch // next(width for width in widths if width))
    images_of = [prompt for prompt in prompts for _ in range(settings.per_prompt)]
    found: dict[str, list] = {name: [] for name in ("verdicts", "reward", "held_out", "optimism", "embeddings")}
    nfe = seconds = 0.0
    clip = create("shapes_clip").module
    for first in range(0, len(images_of), groups):
        chosen = images_of[first : first + groups]
        texts = [prompt.text for prompt in chosen]
        search, process = prepared(method, budget, texts, first, settings, batch)
        started = clock()
        result = run_search(search, process, judges[0], texts, held_out=judges[1])
        pictures = process.to_pixels(process.decode(result.latents))
        seconds += clock() - started - result.ledger.seconds.get("held_out", 0.0)
        winners = torch.tensor([result.group.tolist().index(g) for g in range(len(chosen))])
        found["verdicts"] += [evaluate(i.numpy(), p).correct for i, p in zip(pictures, chosen, strict=True)]
        found["reward"] += result.scores[winners].nan_to_num(0.0).tolist()
        found["held_out"] += result.held_out[winners].tolist()
        found["optimism"] += [result.optimism] * len(chosen)
        with torch.no_grad():
            found["embeddings"].append(clip.encode_image(pictures.movedim(-1, 1)))
        nfe += result.ledger.nfe
    found["diversity"] = diversities(torch.cat(found.pop("embeddings")), settings.per_prompt)
    return {**found, "nfe": nfe / len(images_of), "seconds": seconds / len(images_of), "images": images_of}


def diversities(embeddings: Tensor, per_prompt: int) -> list[float]:
    """Mean pairwise ``1 - cosine`` of the images of every prompt, from embeddings ``[prompts * per_prompt, D]``."""
    if per_prompt < 2:
        return []
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1).view(-1, per_prompt, embeddings.shape[1])
    cosine = unit @ unit.transpose(1, 2)
    return (1.0 - (cosine.sum((1, 2)) - per_prompt) / (per_prompt * (per_prompt - 1))).tolist()


def interval(values: Sequence[float], per_prompt: int = 1, resamples: int = 4000) -> list[float]:
    """95 % bootstrap interval of a mean, whose prompts (not images) are drawn again."""
    means = np.asarray(values).reshape(-1, per_prompt).mean(1)
    drawn = np.random.default_rng(0).integers(len(means), size=(resamples, len(means)))
    return [round(float(value), 5) for value in np.quantile(means[drawn].mean(1), [0.025, 0.975])]


def row(method: str, budget: int, prompts: Sequence[Prompt], settings: FlowSettings, batch: int, judges) -> dict:
    """One row of the results file: that of ``bench.shapes``, and intervals and diversity."""
    figures = measure(method, budget, prompts, settings, batch, judges)
    table = score_table(figures["images"], figures["verdicts"])
    entry = {
        "method": method,
        "budget": budget,
        "nfe_per_image": round(figures["nfe"], 2),
        "backward_nfe_per_image": 0.0,
        "overall": table["overall"],
        "overall_ci": list(bootstrap_interval(figures["images"], figures["verdicts"])),
        "tasks": {task: value for task, value in table.items() if task != "overall"},
    }
    for name in ("reward", "held_out", "optimism"):
        entry[name] = round(float(np.mean(figures[name])), 5)
        entry[f"{name}_ci"] = interval(figures[name], settings.per_prompt)
    if figures["diversity"]:
        entry["diversity"] = round(float(np.mean(figures["diversity"])), 5)
        entry["diversity_ci"] = interval(figures["diversity"])
    verdicts = "".join("1" if verdict else "0" for verdict in figures["verdicts"])
    return {**entry, "seconds_per_image": round(figures["seconds"], 4), "verdicts": verdicts}


@dataclass(frozen=True)
class Task:
    """One row to be measured; loads the judges itself, so that it can run in any process."""

    method: str
    budget: int
    settings: FlowSettings
    batch: int

    def measure(self) -> dict:
        """The row."""
        names = (self.settings.verifier, self.settings.held_out)
        judges = tuple(InPrecision(create(name), self.settings.precision) for name in names)
        prompts = [prompt for prompt in suite(self.settings.prompts_per_task, SUITE_SEED) if prompt.task in TASKS]
        return row(self.method, self.budget, prompts, self.settings, self.batch, judges)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    defaults = FlowSettings()
    parser = argparse.ArgumentParser(prog="testtime bench flow", description=__doc__.split("\n")[0])
    tenths = list(range(1, 11))
    parser.add_argument("--budgets", type=int, nargs="+", default=tenths, help="multiples of plain sampling")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--prompts-per-task", type=int, default=defaults.prompts_per_task)
    parser.add_argument("--per-prompt", type=int, default=defaults.per_prompt, help="images of every prompt")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--cfg", type=float, default=defaults.cfg)
    parser.add_argument("--verifier", default=defaults.verifier)
    parser.add_argument("--held-out", default=None, help="default: one that is not the verifier")
    parser.add_argument("--precision", default=defaults.precision, choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--batch", type=int, default=64, help="particles per model call")
    parser.add_argument("--processes", type=int, default=1, help="rows measured side by side")
    parser.add_argument("--out", type=Path, default=None, help="results file")
    options = parser.parse_args(arguments)
    options.held_out = options.held_out or ("shapes_preference" if options.verifier == "shapes_clip" else "shapes_clip")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    options = options_of(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = FlowSettings.__dataclass_fields__
    settings = FlowSettings(**{name: value for name, value in vars(options).items() if name in names})
    suffix = "" if settings.verifier == FlowSettings.verifier else f"-{settings.verifier.replace('_', '-')}"
    path = options.out or RESULTS / f"shapes-flow{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {**load_results(path, settings), "settings": asdict(settings)}
    done = {(entry["method"], entry["budget"]) for entry in results["rows"]}
    tasks = [
        Task(method, budget, settings, options.batch)
        for budget in sorted(options.budgets, reverse=True)
        for method in options.methods
        if (method, budget) not in done and (budget == 1 or method != "plain")
        if affordable(method, budget, settings)
    ]
    for entry in measured(tasks, options.processes):
        results["rows"].append(entry)
        results["rows"].sort(key=lambda known: (list(METHODS).index(known["method"]), known["budget"]))
        write_text(path, json.dumps(results, indent=1) + "\n")
        log.info(
            "%-12s %4.0f NFE  overall %.3f [%.3f, %.3f]  reward %.4f  held-out %.4f  diversity %.3f  %.2f s/image",
            entry["method"], entry["nfe_per_image"], entry["overall"], *entry["overall_ci"], entry["reward"],
            entry["held_out"], entry.get("diversity", 0.0), entry["seconds_per_image"],
        )  # fmt: skip
    return 0


def affordable(method: str, budget: int, settings: FlowSettings) -> bool:
    """Whether a budget pays for a method at all: one plain image does not pay for RBF on every step."""
    try:
        prepared(method, budget, ["a red star"], 0, settings, 1)
    except ValueError as error:
        log.info("%s at %dx: %s", method, budget, error)
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
