"""The benchmark of next-scale models: what each method makes of N finished images, and what it costs in FLOPs.

    python -m testtime.bench.var [--budgets 1 2 4 8] [--ablations] [--prompts-per-task 40]

240 prompts of six tasks on the embedded next-scale model, judged by the exact evaluator, by the verifier that steers
and by one that does not. The budget is N, as in the paper: TTS-VAR begins with 8 N particles and finishes N.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..models.tiny.var import SCHEDULE
from ..models.tiny.var_pipeline import VarFamily, VarSettings, load_var_family, var_process
from ..samplers.clustering import PixelFeatures
from ..samplers.methods import SMC, TTSVAR, BestOfN, FKSteering, ImportanceSampling
from ..samplers.methods.tts_var import PLANS, Plan
from ..samplers.protocols import Search, Verifier
from ..samplers.session import run_search
from ..shapes_world.captions import Prompt
from ..shapes_world.evaluator import evaluate
from ..shapes_world.suite import bootstrap_interval, score_table, suite
from ..verifiers.embedded import ShapesFeatures
from ..verifiers.registry import create
from .shapes import RESULTS, SUITE_SEED, commit, machine

log = logging.getLogger("testtime")

START = PLANS[len(SCHEDULE)].start


@dataclass(frozen=True)
class VarBench:
    """What a results file was measured with.

    Attributes:
        cfg, tau, top_p: sampling, see ``VarSettings``.
        verifier, held_out: registry names of the judge that steers and of the one that only watches.
        strength: lambda of TTS-VAR.
        prompts_per_task, seed: the suite's size and the sampling seed.
    """

    cfg: float = 2.0
    tau: float = 1.0
    top_p: float = 0.97
    verifier: str = "shapes_preference"
    held_out: str = "shapes_clip"
    strength: float = 10.0
    prompts_per_task: int = 40
    seed: int = 0


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
    """What each part of TTS-VAR brings, at N = 2."""
    features, plan = ShapesFeatures(), PLANS[len(SCHEDULE)]

    def variant(**changes) -> TTSVAR:
        return TTSVAR(2, **{"extractor": features, "strength": settings.strength, **changes})

    return {
        "no selection before the end": BestOfN(particles=2 * START),
        "clusters only": variant(plan=Plan(START, {1: 4, 2: 2, 3: 1}, {})),
        "scores only": variant(plan=Plan(START, {}, plan.keep)),
        "clusters early": variant(plan=Plan(START, {0: 6, 1: 4}, {3: 2, 4: 1})),
        "scores early": variant(plan=Plan(START, {}, {1: 6, 2: 2, 3: 1})),
        "scores late": variant(plan=Plan(START, {1: 6, 2: 4}, {4: 1})),
        **{f"potential {name}": variant(potential=name) for name in ("max", "sum", "diff")},
        "features pool": variant(features="pool"),
        "features pixels": variant(extractor=PixelFeatures()),
        **{f"lambda {value:g}": variant(strength=value) for value in (0.5, 2.0, 5.0, 20.0, 50.0)},
    }


@dataclass
class Measured:
    """Sums over prompts of one method.

    Attributes:
        verdicts: of the exact evaluator, one per prompt.
        sums: reward, held_out, nfe, tflop, seconds.
    """

    verdicts: list[bool]
    sums: dict[str, float]


def measure(
    search: Search, prompts: Sequence[Prompt], settings: VarBench, batch: int, judges: Sequence[Verifier],
    family: VarFamily,
) -> Measured:  # fmt: skip
    """Run ``search`` once per prompt and judge the winners; ``batch`` particles of several prompts run together."""
    plan = getattr(search, "plan_for", None)
    width = search.particles * (plan(len(SCHEDULE)).start if plan else 1)
    groups = max(1, batch // width)
    out = Measured([], dict.fromkeys(("reward", "held_out", "nfe", "tflop", "seconds"), 0.0))
    for first in range(0, len(prompts), groups):
        chosen = prompts[first : first + groups]
        texts = [prompt.text for prompt in chosen]
        sampling = VarSettings(
            settings.cfg, settings.tau, settings.top_p, settings.seed, max_batch=batch, group_offset=first
        )  # fmt: skip
        process = var_process(texts, sampling, family)
        result = run_search(search, process, judges[0], texts, held_out=judges[1])
        images = family.decode(result.latents).numpy()
        out.verdicts += [evaluate(image, prompt).correct for image, prompt in zip(images, chosen, strict=True)]
        winners = torch.tensor([result.group.tolist().index(g) for g in range(len(chosen))])
        out.sums["reward"] += float(result.scores[winners].nan_to_num(0.0).sum())
        out.sums["held_out"] += float(result.held_out[winners].sum())
        out.sums["nfe"] += result.ledger.nfe
        out.sums["tflop"] += result.ledger.flops / 1e12
        out.sums["seconds"] += result.ledger.total_seconds - result.ledger.seconds.get("held_out", 0.0)
    return out


def row(method: str, budget: int, measured: Measured, prompts: Sequence[Prompt]) -> dict:
    """One row of the results file, in the schema that all suites share, with FLOPs."""
    table = score_table(prompts, measured.verdicts)
    low, high = bootstrap_interval(prompts, measured.verdicts)
    mean = {name: value / len(prompts) for name, value in measured.sums.items()}
    return {
        "method": method,
        "budget": budget,
        "nfe_per_image": round(mean["nfe"], 2),
        "tflop_per_image": round(mean["tflop"], 5),
        "overall": table["overall"],
        "overall_ci": [low, high],
        "tasks": {task: value for task, value in table.items() if task != "overall"},
        "reward": round(mean["reward"], 5),
        "held_out": round(mean["held_out"], 5),
        "seconds_per_image": round(mean["seconds"], 4),
        "verdicts": "".join("1" if verdict else "0" for verdict in measured.verdicts),
    }


@torch.no_grad()
def consistency(
    prompts: Sequence[Prompt], settings: VarBench, judge: Verifier, family: VarFamily, particles: int = 8
) -> list[dict]:
    """How well scores between the scales foretell the final ones.

    Returns:
        per scale: how often the best particle so far is the best in the end (chance is 1 / particles), and the mean
        rank correlation with the final scores (Spearman, over prompts whose scores differ).
    """
    from scipy.stats import spearmanr

    agree, correlation = [[] for _ in SCHEDULE.grids], [[] for _ in SCHEDULE.grids]
    for index, prompt in enumerate(prompts):
        process = var_process([prompt.text], VarSettings(settings.cfg, settings.tau, group_offset=index), family)
        state, scores = process.start(particles), []
        for _ in range(process.steps):
            state, _ = process.advance(state)
            scores.append(judge.score(process.preview(process.predict(state)), [prompt.text] * particles))
        for scale, values in enumerate(scores):
            agree[scale].append(float(values.argmax() == scores[-1].argmax()))
            if values.std() > 0 and scores[-1].std() > 0:
                correlation[scale].append(float(spearmanr(values, scores[-1]).statistic))
    return [
        {
            "scale": scale,
            "side": SCHEDULE.grids[scale][0],
            "best_stays_best": round(sum(agree[scale]) / len(agree[scale]), 4),
            "rank_correlation": round(sum(correlation[scale]) / max(len(correlation[scale]), 1), 4),
        }
        for scale in range(len(SCHEDULE))
    ]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    defaults = VarBench()
    parser = argparse.ArgumentParser(prog="testtime bench var", description=__doc__.split("\n")[0])
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 2, 4, 8], help="N")
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--ablations", action="store_true", help="also the parts of TTS-VAR, and the consistency")
    parser.add_argument("--batch", type=int, default=64, help="particles per model call")
    parser.add_argument("--out", type=Path, default=RESULTS / "shapes-var.json", help="results file")
    for name, value in asdict(defaults).items():
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

    def rows(self, part: str) -> list[dict]:
        """Rows of a part of the file."""
        return self.body.setdefault(part, [])

    def has(self, part: str, method: str, budget: int) -> bool:
        """Whether a row was measured before."""
        return any((entry["method"], entry["budget"]) == (method, budget) for entry in self.rows(part))

    def add(self, part: str, entry: dict) -> None:
        """Keep a row."""
        self.rows(part).append(entry)
        self.write()
        log.info("%-30s N=%d  overall %.3f  %.4f TFLOP", *map(entry.get, ("method", "budget", "overall")),
                 entry["tflop_per_image"])  # fmt: skip

    def write(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.body, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None, family: VarFamily | None = None) -> int:
    """Command line entry; returns the exit code. ``family``: other networks than the trained ones."""
    options = options_of(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = VarBench(**{name: getattr(options, name) for name in asdict(VarBench())})
    family, judges = family or load_var_family(), [create(settings.verifier), create(settings.held_out)]
    prompts, report = suite(settings.prompts_per_task, SUITE_SEED), Report(options.out, settings)

    def run(part: str, name: str, budget: int, search: Search) -> None:
        if not report.has(part, name, budget):
            figures = measure(search, prompts, settings, options.batch, judges, family)
            report.add(part, row(name, budget, figures, prompts))

    for budget in options.budgets:
        for name, make in methods(settings).items():
            # At N = 1 all but TTS-VAR are plain sampling, which has no other N.
            wanted = not options.methods or name in options.methods
            if wanted and (name == "tts_var" or (name == "plain") == (budget == 1)):
                run("rows", name, budget, make(budget))
    if options.ablations:
        for name, search in ablations(settings).items():
            run("ablations", name, 2, search)
        if "consistency" not in report.body:
            chosen = prompts[:: max(1, len(prompts) // 60)]
            report.body["consistency"] = consistency(chosen, settings, judges[0], family)
            report.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
