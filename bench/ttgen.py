"""The TTGen benchmark: what rewriting the prompt brings, when, and at what cost.

    python -m testtime.bench.ttgen [--steps 50] [--prompts-per-task 40] [--parts main injection interval curves]

240 prompts of six tasks on the embedded diffusion model; the rewriter is the rule-based one. Direct sampling, TTGen and
its lower bound (worst) run on the ODE as in the paper; Best-of-N and SVDD get the same number of forward passes. The
rewriter reads previews with ShapesEval's detector, so ShapesEval is no independent judge of TTGen here: the verifier
that only watches is. Rows are written as they are finished; those already in the file are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..installation.files import write_text
from ..models.tiny.loading import Family, load_family
from ..models.tiny.pipeline import SamplingSettings, shapes_process
from ..rewriters.shapes import ShapesRewriter
from ..samplers.methods import SVDD, BestOfN, TTGen
from ..samplers.protocols import Search, Verifier
from ..samplers.rewriting import Reprompted, Rounds
from ..samplers.run.session import run_search
from ..shapes_world.captions import Prompt
from ..shapes_world.drawing import draw
from ..shapes_world.evaluator import evaluate
from ..shapes_world.scene import sample_scene
from ..shapes_world.suite import bootstrap_interval, score_table, suite
from ..verifiers.registry import create
from .results_files import at_equal_cost
from .shapes import RESULTS, SUITE_SEED, InPrecision, clock, commit, machine, measured

log = logging.getLogger("testtime")

INJECTIONS = (0.1, 0.2, 0.4, 0.6, 1.0)  # 5, 10, 20, 30 and 50 of 50 steps
INTERVALS = (1, 2, 5)
PARTS = ("main", "injection", "interval", "curves")
DRAWINGS = 8  # per prompt, as the reference of the Frechet distance


@dataclass(frozen=True)
class TTGenBench:
    """What a results file was measured with.

    Attributes:
        model, steps, cfg: sampling, see ``SamplingSettings``.
        rewrites: M.
        injection: share of the steps with rewrites.
        verifier, held_out: registry names of the judge that steers and of the one that only watches.
        prompts_per_task, seed: the suite's size and the sampling seed.
        precision: "bfloat16" runs the networks under autocast.
    """

    model: str = "diffusion"
    steps: int = 50
    cfg: float = 2.5
    rewrites: int = 4
    injection: float = 0.4
    verifier: str = "shapes_preference"
    held_out: str = "shapes_clip"
    prompts_per_task: int = 40
    seed: int = 0
    precision: str = "float32"

    def ttgen(self, injection: float | None = None, **changes) -> TTGen:
        """TTGen with rewrites in a share of the steps."""
        last = round((self.injection if injection is None else injection) * self.steps)
        return TTGen(ShapesRewriter(), **{"rewrites": self.rewrites, "injection_step": last, **changes})


@dataclass(frozen=True)
class Case:
    """A search to be measured: its row's key, its budget as a multiple of plain sampling, and its eta."""

    method: str
    budget: int
    search: Search
    eta: float = 0.0


def cases(settings: TTGenBench) -> dict[str, list[Case]]:
    """Everything that has a row, by part."""
    rounds = Rounds(1, round(settings.injection * settings.steps))
    share = settings.injection * settings.rewrites / 2  # forward passes of rewrites over those of plain sampling
    once = max(2, round(1 + share))
    main = [
        Case("plain", 1, BestOfN(1)),
        Case("ttgen", once, settings.ttgen()),
        Case("ttgen_worst", once, settings.ttgen(choice="worst")),
        Case("ttgen", 2 * once, settings.ttgen(particles=2)),
    ]
    for budget in (once, 2 * once):
        main.append(Case("best_of_n", budget, BestOfN(budget)))
        main.append(Case("svdd", budget, SVDD(budget), eta=1.0))
        reprompted = Reprompted(SVDD(budget), ShapesRewriter(), budget - 1, rounds)
        main.append(Case("svdd_reprompted", budget, reprompted, eta=1.0))
    main.append(Case("best_of_n", 4 * once, BestOfN(4 * once)))  # what TTGen's seconds would pay for
    return {
        "main": main,
        "injection": [
            Case(f"until step {round(s * settings.steps)}", max(1, round(1 + s * settings.rewrites / 2)),
                 settings.ttgen(s)) for s in INJECTIONS
        ],
        "interval": [
            Case("every step" if k == 1 else f"every {k} steps", once, settings.ttgen(interval=k)) for k in INTERVALS
        ],
    }  # fmt: skip


@dataclass
class Measured:
    """Images of one case, and sums over its prompts."""

    images: list[Tensor] = field(default_factory=list)
    verdicts: list[bool] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, **figures: float) -> None:
        """Add to the sums."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


def measure(
    case: Case, prompts: Sequence[Prompt], settings: TTGenBench, batch: int, judges: Sequence[Verifier], family: Family,
    listener=None,
) -> Measured:  # fmt: skip
    """Run a case once per prompt; ``batch`` particles of several prompts run together."""
    search = case.search
    width = getattr(search, "population", None) or getattr(search, "particles", None) or search.candidates
    groups = max(1, batch // width)
    out = Measured()
    for first in range(0, len(prompts), groups):
        chosen = prompts[first : first + groups]
        texts = [prompt.text for prompt in chosen]
        sampling = SamplingSettings(
            settings.model, settings.steps, settings.cfg, case.eta, settings.seed, max_batch=batch, group_offset=first,
            autocast=torch.bfloat16 if settings.precision == "bfloat16" else None,
        )  # fmt: skip
        process = shapes_process(texts, sampling, family)
        began = clock()
        heard = None if listener is None else listener(process, texts)
        result = run_search(search, process, judges[0], texts, held_out=judges[1], listener=heard)
        images = process.to_pixels(process.decode(result.latents))
        seconds = clock() - began - result.ledger.seconds.get("held_out", 0.0)
        out.images += list(images)
        out.verdicts += [evaluate(image.numpy(), prompt).correct for image, prompt in zip(images, chosen, strict=True)]
        winners = torch.tensor([result.group.tolist().index(g) for g in range(len(chosen))])
        ledger = result.ledger
        out.add(
            reward=float(result.scores[winners].nan_to_num(0.0).sum()),
            held_out=float(result.held_out[winners].sum()),
            optimism=result.optimism * len(chosen),
            nfe=ledger.nfe,
            rewriter_calls=ledger.rewriter_calls,
            decodes=ledger.decodes,
            rewriter_seconds=ledger.seconds.get("rewriter", 0.0),
            seconds=seconds,
        )
    return out


def row(case: Case, found: Measured, prompts: Sequence[Prompt]) -> dict:
    """One row of the results file, in the schema that all suites share, with the rewriter's calls."""
    table = score_table(prompts, found.verdicts)
    low, high = bootstrap_interval(prompts, found.verdicts)
    mean = {name: value / len(prompts) for name, value in found.sums.items()}
    return {
        "method": case.method,
        "budget": case.budget,
        "eta": case.eta,
        "nfe_per_image": round(mean["nfe"], 2),
        "rewriter_calls_per_image": round(mean["rewriter_calls"], 2),
        "decodes_per_image": round(mean["decodes"], 2),
        "overall": table["overall"],
        "overall_ci": [low, high],
        "tasks": {task: value for task, value in table.items() if task != "overall"},
        "reward": round(mean["reward"], 5),
        "held_out": round(mean["held_out"], 5),
        "optimism": round(mean["optimism"], 5),
        "seconds_per_image": round(mean["seconds"], 4),
        "rewriter_seconds_per_image": round(mean["rewriter_seconds"], 4),
        "verdicts": "".join("1" if verdict else "0" for verdict in found.verdicts),
    }


def three_samplings(settings: TTGenBench) -> dict[str, Case]:
    """The paper's three: TTGen, direct and worst."""
    found = {case.method: case for case in reversed(cases(settings)["main"])}
    return {"ttgen": found["ttgen"], "direct": found["plain"], "worst": found["ttgen_worst"]}


def curves(
    prompts: Sequence[Prompt], settings: TTGenBench, batch: int, judges, family: Family, names: Sequence[str] = ()
) -> dict:
    """Mean score of the chosen preview at every step, by both judges, for the three samplings or for ``names``."""
    result = {}
    for name, case in three_samplings(settings).items():
        if names and name not in names:
            continue
        sums = np.zeros((settings.steps + 1, len(judges)))

        def listener(process, texts, sums=sums):
            def heard(record, state, images):
                rows = torch.tensor([k for k, entry in enumerate(record.particles) if entry["selected"]])
                ledger, process.ledger = process.ledger, type(process.ledger)()
                shown = process.preview(state.select(rows)) if images is None else images[rows]
                process.ledger = ledger
                asked = [texts[g] for g in state.group[rows].tolist()]
                sums[record.step] += [float(judge.score(shown, asked).sum()) for judge in judges]

            return heard

        measure(case, prompts, settings, batch, judges, family, listener)
        means = sums / len(prompts)
        result[name] = {judge.name: means[:, k].round(5).tolist() for k, judge in enumerate(judges)}
    return {"prompts": len(prompts), "by_step": result}


def frechet(first: Tensor, second: Tensor) -> float:
    """Frechet distance of two sets of features ``[n, d]``: of the normal distributions with their moments."""
    from scipy import linalg

    a, b = first.double().numpy(), second.double().numpy()
    gap = a.mean(0) - b.mean(0)
    ours, theirs = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(ours @ theirs).real
    return float(gap @ gap + np.trace(ours + theirs - 2 * root))


@torch.no_grad()
def features(images: Sequence[Tensor]) -> Tensor:
    """ShapesCLIP's embeddings ``[n, d]`` of images ``[H, W, 3]`` in 0..1."""
    encoder = create("shapes_clip").module
    parts = [torch.stack(list(images[k : k + 64])) for k in range(0, len(images), 64)]
    return torch.cat([encoder.encode_image(part.movedim(-1, 1)) for part in parts])


@cache
def drawn(prompts_per_task: int, seed: int) -> Tensor:
    """Features of ``DRAWINGS`` drawings of every prompt of a suite, the reference of the Frechet distance."""
    drawings = [
        torch.from_numpy(draw(sample_scene(seed + DRAWINGS * k + copy, prompt))).float() / 255
        for k, prompt in enumerate(suite(prompts_per_task, SUITE_SEED))
        for copy in range(DRAWINGS)
    ]
    return features(drawings)


def load(path: Path, settings: TTGenBench) -> dict:
    """The results file, or an empty one where there is none or it was measured with other settings."""
    fresh = {"suite": "ttgen", "commit": commit(), "machine": machine(), "settings": asdict(settings), "rows": []}
    if path.exists():
        stored = json.loads(path.read_text())
        if stored.get("settings") == asdict(settings):
            return stored
        log.warning("%s was measured with other settings and is started anew", path.name)
    return fresh


@dataclass(frozen=True)
class Task:
    """One thing to be measured, in any process: a case by its part and number, or one of the curves by its name."""

    part: str
    which: int | str
    settings: TTGenBench
    batch: int
    curve_prompts: int

    def measure(self) -> tuple[str, dict]:
        """(part, row), for curves (part, ``{name: means}``)."""
        settings = self.settings
        judges = tuple(InPrecision(create(name), settings.precision) for name in (settings.verifier, settings.held_out))
        prompts, family = suite(settings.prompts_per_task, SUITE_SEED), load_family()
        if self.part == "curves":
            some = prompts[:: max(1, len(prompts) // self.curve_prompts)]
            return self.part, curves(some, settings, self.batch, judges, family, [self.which])
        case = cases(settings)[self.part][self.which]
        found = measure(case, prompts, settings, self.batch, judges, family)
        made = row(case, found, prompts)
        if self.part == "main":
            reference = drawn(settings.prompts_per_task, settings.seed)
            made["frechet"] = round(frechet(features(found.images), reference), 5)
        return self.part, made


def tasks_of(options: argparse.Namespace, settings: TTGenBench, results: dict) -> list[Task]:
    """What is still to be measured."""
    common = (settings, options.batch, options.curve_prompts)
    found = []
    for part, some in cases(settings).items():
        done = {(entry["method"], entry["budget"]) for entry in rows_of(results, part)}
        missing = [k for k, case in enumerate(some) if (case.method, case.budget) not in done]
        # Where an ablation has the main setting among its own, that row is copied, see ``copy_twins``.
        own = [k for k in missing if part == "main" or twin(some[k], settings) is None]
        found += [Task(part, k, *common) for k in own if part in options.parts]
    known = results.get("curves", {}).get("by_step", {})
    names = [name for name in three_samplings(settings) if name not in known]
    return found + [Task("curves", name, *common) for name in names if "curves" in options.parts]


def rows_of(results: dict, part: str) -> list[dict]:
    """Rows of a part, in the file."""
    return results["rows"] if part == "main" else results.setdefault(part, [])


def twin(case: Case, settings: TTGenBench) -> Case | None:
    """The case of the main part with the same search, if there is one."""

    def bare(some: Case) -> tuple:
        search = some.search
        return some.eta, replace(search, rewriter=None) if hasattr(search, "rewriter") else search

    return next((known for known in cases(settings)["main"] if bare(known) == bare(case)), None)


def equal_costs(rows: Sequence[dict]) -> list[dict]:
    """What Best-of-N and SVDD bring for the forward passes and for the seconds of each TTGen row."""
    costs = {"nfe_per_image": "NFE", "seconds_per_image": "seconds"}
    return at_equal_cost(rows, "ttgen", ("best_of_n", "svdd"), costs, "{}x")


def copy_twins(results: dict, settings: TTGenBench) -> None:
    """Fill the ablations' rows that the main part has measured already, and put all rows in order."""
    main = {(entry["method"], entry["budget"]): entry for entry in results["rows"]}
    for part, some in cases(settings).items():
        rows = rows_of(results, part)
        done = {(entry["method"], entry["budget"]) for entry in rows}
        for case in some:
            same = None if part == "main" else twin(case, settings)
            found = None if same is None else main.get((same.method, same.budget))
            if found is not None and (case.method, case.budget) not in done:
                rows.append({**found, "method": case.method, "budget": case.budget})
        order = [(case.method, case.budget) for case in some]
        rows.sort(key=lambda entry, order=order: order.index((entry["method"], entry["budget"])))


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="testtime bench ttgen", description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    parser.add_argument("--curve-prompts", type=int, default=48, help="prompts of the curves, spread over the tasks")
    parser.add_argument("--batch", type=int, default=64, help="particles per model call")
    parser.add_argument("--processes", type=int, default=1, help="rows measured side by side")
    parser.add_argument("--out", type=Path, default=RESULTS / "ttgen.json", help="results file")
    for name, value in asdict(TTGenBench()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    options = options_of(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = TTGenBench(**{name: getattr(options, name) for name in TTGenBench.__dataclass_fields__})
    results = load(options.out, settings)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for part, made in measured(tasks_of(options, settings, results), options.processes):
        if part == "curves":
            stored = results.setdefault("curves", {"prompts": made["prompts"], "by_step": {}})
            stored["by_step"] |= made["by_step"]
        else:
            rows_of(results, part).append(made)
            log.info(
                "%-26s %3dx  overall %.3f [%.3f, %.3f]  reward %.3f  held-out %.3f  NFE %.0f  calls %.1f  %.2f s/image",
                made["method"], made["budget"], made["overall"], *made["overall_ci"], made["reward"], made["held_out"],
                made["nfe_per_image"], made["rewriter_calls_per_image"], made["seconds_per_image"],
            )  # fmt: skip
        copy_twins(results, settings)
        results["equal"] = equal_costs(results["rows"])
        write_text(options.out, json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
