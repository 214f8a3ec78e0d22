"""The benchmark of next-scale models: what each method makes of N finished images, and what it costs in FLOPs.

    python -m testtime.bench.var [--parts rows ablations consistency previews] [--processes 2] [--prompts-per-task 40]

240 prompts of six tasks on the embedded next-scale model, judged by the exact evaluator, by the verifier that steers
and by one that does not. The budget is N, as in the paper: TTS-VAR begins with 8 N particles and finishes N. Rows are
written as they are finished; those already in the file are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..installation.files import write_text
from ..models.infinity.process import ScalewiseProcess
from ..models.infinity.vae import BSQVae
from ..models.tiny.var import SCHEDULE
from ..models.tiny.var_pipeline import VarFamily, VarSettings, load_var_family, var_process
from ..samplers.clustering import PixelFeatures
from ..samplers.methods import SMC, TTSVAR, BestOfN, FKSteering, ImportanceSampling
from ..samplers.methods.tts_var import PLANS, Plan
from ..samplers.protocols import Search, State, Verifier
from ..samplers.run.session import run_search
from ..shapes_world.captions import Prompt
from ..shapes_world.evaluator import evaluate
from ..shapes_world.suite import bootstrap_interval, score_table, suite
from ..verifiers.embedded import ShapesFeatures
from ..verifiers.registry import create
from .results_files import at_equal_cost
from .shapes import RESULTS, SUITE_SEED, InPrecision, clock, commit, machine, measured
from .ttgen import Measured

log = logging.getLogger("testtime")

START = PLANS[len(SCHEDULE)].start
PARTS = ("rows", "ablations", "consistency", "previews")
ABLATED = 2  # N of the ablations
COSTS = {"drawing_gflop_per_image": "GFLOP without decoding", "gflop_per_image": "GFLOP"}
SIDES = (4, 6)  # codes along one side that previews are decoded at, against all eight


@dataclass(frozen=True)
class VarBench:
    """What a results file was measured with.

    Attributes:
        cfg, tau, top_p: sampling, see ``VarSettings``.
        verifier, held_out: registry names of the judge that steers and of the one that only watches.
        strength: lambda of TTS-VAR.
        preview_side: codes along one side that unfinished images are decoded at, 0 for all.
        prompts_per_task, seed: the suite's size and the sampling seed.
        ablation_prompts_per_task: the ablations see the first so many of each task.
        precision: "bfloat16" runs decoder and verifiers under autocast; the transformer computes in float32.
    """

    cfg: float = 3.0
    tau: float = 1.0
    top_p: float = 0.97
    verifier: str = "shapes_preference"
    held_out: str = "shapes_clip"
    strength: float = 10.0
    preview_side: int = VarSettings.preview_side
    prompts_per_task: int = 40
    seed: int = 0
    ablation_prompts_per_task: int = 20
    precision: str = "float32"

    def sampling(self, first: int, batch: int | None = None) -> VarSettings:
        """Settings of a process whose first prompt is number ``first`` of the suite."""
        return VarSettings(self.cfg, self.tau, self.top_p, self.seed, batch, self.preview_side, first)


def methods(settings: VarBench) -> dict[str, Callable[[int], Search]]:
    """Methods of the main table, by N."""
    features = ShapesFeatures()
    return {
        "plain": lambda n: BestOfN(particles=1),
        "importance_sampling": lambda n: ImportanceSampling(particles=n),
        "best_of_n": lambda n: BestOfN(particles=n),
        "smc": lambda n: SMC(particles=n),
        "fk": lambda n: FKSteering(particles=n),
        "tts_var": lambda n: TTSVAR(n, extractor=features, strength=settings.strength),
    }


def ablations(settings: VarBench) -> dict[str, Search]:
    """What each part of TTS-VAR brings, at N = ``ABLATED``."""
    features, plan = ShapesFeatures(), PLANS[len(SCHEDULE)]

    def variant(**changes) -> TTSVAR:
        return TTSVAR(ABLATED, **{"extractor": features, "strength": settings.strength, **changes})

    return {
        "as it is": variant(),
        "no selection before the end": BestOfN(particles=ABLATED * START),
        "clusters only": variant(plan=Plan(START, {1: 6, 2: 4, 3: 2, 5: 1}, {})),
        "scores only": variant(plan=Plan(START, {}, plan.keep)),
        "clusters early": variant(plan=Plan(START, {0: 6, 1: 4}, {3: 2, 5: 1})),
        "scores early": variant(plan=Plan(START, {}, {1: 6, 2: 4, 3: 2, 4: 1})),
        "clusters late": variant(plan=Plan(START, {2: 6, 4: 4}, {5: 2, 6: 1})),
        "scores often": variant(plan=Plan(START, {1: 4}, {3: 3, 4: 2, 6: 1})),
        "scores late": variant(plan=Plan(START, {1: 6, 2: 4}, {5: 2, 6: 1})),
        **{f"potential {name}": variant(potential=name) for name in ("max", "sum", "diff")},
        "features pool": variant(features="pool"),
        "clusters by colour": variant(extractor=PixelFeatures()),
        **{f"clusters at {side} x {side} codes": variant(cluster_side=side) for side in SIDES},
        "colours at 4 x 4 codes": variant(extractor=PixelFeatures(), cluster_side=4),
        **{f"lambda {value:g}": variant(strength=value) for value in (1.0, 3.0, 30.0, 100.0)},
    }


def measure(
    search: Search, prompts: Sequence[Prompt], settings: VarBench, batch: int, judges: Sequence[Verifier],
    family: VarFamily,
) -> Measured:  # fmt: skip
    """Run ``search`` once per prompt and judge the winners; ``batch`` particles of several prompts run together.

    Returns:
        verdicts, and sums over the prompts: reward, held_out, nfe, gflop, of these decode_gflop, decodes, seconds (of
        processor time where one thread works).
    """
    plan = getattr(search, "plan_for", None)
    width = search.particles * (plan(len(SCHEDULE)).start if plan else 1)
    groups = max(1, batch // width)
    out = Measured()
    for first in range(0, len(prompts), groups):
        chosen = prompts[first : first + groups]
        texts = [prompt.text for prompt in chosen]
        process = var_process(texts, settings.sampling(first, batch), family)
        began = clock()
        result = run_search(search, process, judges[0], texts, held_out=judges[1])
        images = family.decode(result.latents).numpy()
        seconds = clock() - began - result.ledger.seconds.get("held_out", 0.0)
        out.verdicts += [evaluate(image, prompt).correct for image, prompt in zip(images, chosen, strict=True)]
        winners = torch.tensor([result.group.tolist().index(g) for g in range(len(chosen))])
        out.add(
            reward=float(result.scores[winners].nan_to_num(0.0).sum()),
            held_out=float(result.held_out[winners].sum()),
            nfe=result.ledger.nfe,
            gflop=result.ledger.flops / 1e9,
            decode_gflop=result.ledger.decode_flops / 1e9,
            decodes=result.ledger.decodes,
            seconds=seconds,
        )
    return out


def row(method: str, budget: int, found: Measured, prompts: Sequence[Prompt]) -> dict:
    """One row of the results file, in the schema that all suites share, with FLOPs."""
    table = score_table(prompts, found.verdicts)
    low, high = bootstrap_interval(prompts, found.verdicts)
    mean = {name: value / len(prompts) for name, value in found.sums.items()}
    return {
        "method": method,
        "budget": budget,
        "nfe_per_image": round(mean["nfe"], 2),
        "gflop_per_image": round(mean["gflop"], 2),
        "drawing_gflop_per_image": round(mean["gflop"] - mean["decode_gflop"], 2),
        "decodes_per_image": round(mean["decodes"], 2),
        "overall": table["overall"],
        "overall_ci": [low, high],
        "tasks": {task: value for task, value in table.items() if task != "overall"},
        "reward": round(mean["reward"], 5),
        "held_out": round(mean["held_out"], 5),
        "seconds_per_image": round(mean["seconds"], 4),
        "verdicts": "".join("1" if verdict else "0" for verdict in found.verdicts),
    }


class Agreement:
    """How well one set of scores foretells another, over prompts."""

    def __init__(self) -> None:
        self.same_best: list[float] = []
        self.correlations: list[float] = []

    def add(self, scores: Tensor, final: Tensor) -> None:
        """One prompt's scores ``[n]`` of the same particles."""
        from scipy.stats import spearmanr

        self.same_best.append(float(scores.argmax() == final.argmax()))
        if scores.std() > 0 and final.std() > 0:
            self.correlations.append(float(spearmanr(scores, final).statistic))

    def figures(self) -> dict[str, float]:
        """Share of prompts with the same best particle, and the mean rank correlation (Spearman)."""
        return {
            "best_is_the_same": round(sum(self.same_best) / len(self.same_best), 4),
            "rank_correlation": round(sum(self.correlations) / max(len(self.correlations), 1), 4),
        }


def copies(process: ScalewiseProcess, scale: int, count: int) -> State:
    """``count`` finished copies of one particle, copied after ``scale``; each draws the later scales by itself."""
    state = process.start(1)
    for step in range(process.steps):
        state, _ = process.advance(state)
        if step == scale:
            state = state.select(torch.zeros(count, dtype=torch.long), slot=torch.arange(count))
    return process.predict(state)


@torch.no_grad()
def agreements(
    prompts: Sequence[Prompt], settings: VarBench, judge: Verifier, family: VarFamily, particles: int = 8
) -> tuple[list[dict], list[dict]]:
    """Scores between the scales against the final ones, and scores of small previews against full ones.

    Returns:
        ``consistency``, a row per scale: its side, how often the best particle after it is the best in the end (chance
        is 1 / particles), the rank correlation with the final scores (the paper's fig. 5b), and how far the final
        scores of copies made there spread, as a share of the spread of particles that have nothing in common;
        ``previews``, a row per size and scale: the same figures against the scores of full-size previews there.
    """
    last = SCHEDULE.grids[-1][0]
    ends = {scale: Agreement() for scale in range(len(SCHEDULE))}
    sizes = {(side, scale): Agreement() for side in SIDES for scale in range(len(SCHEDULE) - 1)}
    spread = torch.zeros(len(SCHEDULE))  # summed variance of the final scores of copies made after each scale
    strangers = torch.zeros(())  # and of particles that have nothing in common
    for index, prompt in enumerate(prompts):
        process = var_process([prompt.text], settings.sampling(index), family)
        process.decoder = full = replace(process.decoder, preview_side=0)
        texts = [prompt.text] * particles
        state, scores = process.start(particles), []
        for scale in range(process.steps):
            state, _ = process.advance(state)
            seen = process.predict(state)
            scores.append(judge.score(process.preview(seen), texts))
            for side in SIDES if scale < process.steps - 1 else ():
                process.decoder = replace(full, preview_side=side)
                sizes[side, scale].add(judge.score(process.preview(seen), texts), scores[-1])
                process.decoder = full
        for scale, values in enumerate(scores):
            ends[scale].add(values, scores[-1])
        strangers += scores[-1].var()
        for scale in range(process.steps - 1):
            spread[scale] += judge.score(process.preview(copies(process, scale, particles)), texts).var()
    left = (spread / strangers).sqrt()
    consistency = [
        {"scale": k, "side": SCHEDULE.grids[k][0], **found.figures(), "spread_of_copies": round(float(left[k]), 4)}
        for k, found in ends.items()
    ]
    previews = [
        {"preview_side": side, "scale": k, "decode_cost": round((side / last) ** 2, 4), **found.figures()}
        for (side, k), found in sizes.items()
    ]
    return consistency, previews


class ReducedVae:
    """A decoder whose network runs in bfloat16."""

    def __init__(self, vae: BSQVae):
        self.config, self._vae = vae.config, vae

    def decode(self, total: Tensor) -> Tensor:
        """See ``BSQVae.decode``."""
        with torch.autocast(total.device.type, torch.bfloat16):
            return self._vae.decode(total).float()


@dataclass(frozen=True)
class Task:
    """One thing to be measured, in any process: a search by its part, name and N, or the agreements."""

    part: str
    method: str
    budget: int
    settings: VarBench
    batch: int
    some: int = 60

    def measure(self) -> dict[str, list[dict]]:
        """Rows by part of the results file."""
        settings, family = self.settings, load_var_family()
        if settings.precision == "bfloat16":
            family = replace(family, vae=ReducedVae(family.vae))
        judges = [InPrecision(create(name), settings.precision) for name in (settings.verifier, settings.held_out)]
        ablated = self.part == "ablations"
        prompts = suite(settings.ablation_prompts_per_task if ablated else settings.prompts_per_task, SUITE_SEED)
        if self.part == "agreements":
            some = prompts[:: max(1, len(prompts) // self.some)]
            return dict(zip(("consistency", "previews"), agreements(some, settings, judges[0], family), strict=True))
        made = ablations(settings)[self.method] if ablated else None
        search = made or methods(settings)[self.method](self.budget)
        figures = measure(search, prompts, settings, self.batch, judges, family)
        return {self.part: [row(self.method, self.budget, figures, prompts)]}


def tasks_of(options: argparse.Namespace, settings: VarBench, report: Report) -> list[Task]:
    """What is still to be measured, the dearest first, so that several processes end together."""
    found = []
    for budget in sorted(options.budgets, reverse=True):
        for name in methods(settings):
            # At N = 1 all but TTS-VAR are plain sampling, which has no other N.
            wanted = not options.methods or name in options.methods
            if wanted and (name == "tts_var" or (name == "plain") == (budget == 1)):
                found.append(Task("rows", name, budget, settings, options.batch))
    found += [Task("ablations", name, ABLATED, settings, options.batch) for name in ablations(settings)]
    missing = [task for task in found if task.part in options.parts and not report.has(task)]
    if {"consistency", "previews"} & set(options.parts) and "consistency" not in report.body:
        missing.append(Task("agreements", "", 0, settings, options.batch))
    return missing


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="testtime bench var", description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 2, 4, 8], help="N")
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--batch", type=int, default=64, help="particles per model call")
    parser.add_argument("--processes", type=int, default=1, help="rows measured side by side")
    parser.add_argument("--out", type=Path, default=RESULTS / "shapes-var.json", help="results file")
    for name, value in asdict(VarBench()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    return parser.parse_args(arguments)


class Report:
    """The results file: rows are written as they are finished, and those already there are not measured again."""

    def __init__(self, path: Path, settings: VarBench):
        self.path = path
        self.body = {"suite": "shapes", "commit": commit(), "machine": machine(), "settings": asdict(settings)}
        self.body["rows"] = []
        if path.exists():
            stored = json.loads(path.read_text())
            if stored.get("settings") == self.body["settings"]:
                self.body = stored
            else:
                log.warning("%s was measured with other settings and is started anew", path.name)

    def has(self, task: Task) -> bool:
        """Whether a row was measured before."""
        rows = self.body.get(task.part, [])
        return any((entry["method"], entry["budget"]) == (task.method, task.budget) for entry in rows)

    def add(self, part: str, entries: list[dict]) -> None:
        """Keep rows, in the order of the benchmark, and write the file."""
        rows = self.body.setdefault(part, [])
        rows += entries
        if part == "ablations":
            order = list(ablations(VarBench()))
            rows.sort(key=lambda entry: order.index(entry["method"]))
        if part == "rows":
            self.body["equal"] = at_equal_cost(rows, "tts_var", ("best_of_n",), COSTS, "N = {}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.body, indent=1) + "\n")
        for entry in entries if "overall" in entries[0] else ():
            log.info(
                "%-28s N=%d  overall %.3f [%.3f, %.3f]  reward %.3f  held-out %.3f  %.1f GFLOP  %.2f s/image",
                entry["method"], entry["budget"], entry["overall"], *entry["overall_ci"], entry["reward"],
                entry["held_out"], entry["gflop_per_image"], entry["seconds_per_image"],
            )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    options = options_of(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = VarBench(**{name: getattr(options, name) for name in asdict(VarBench())})
    report = Report(options.out, settings)
    for made in measured(tasks_of(options, settings, report), options.processes):
        for part, entries in made.items():
            report.add(part, entries)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
