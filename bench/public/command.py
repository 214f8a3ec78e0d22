"""``testtime bench geneval | t2i-compbench | coco | genai | drawbench MODEL``: rows, batch, layout, evaluator, table.

testtime bench geneval models/sd15 --method svdd:candidates=4 --verifier image_reward:folder=... --out out/geneval
testtime bench geneval workflow.json --map prompt=6.text --map seed=3.seed --workers 2 --out out/geneval
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...graph.workflow import read_workflow
from ...installation.client import normalise_url
from ...installation.comfyui import HeadlessOptions
from ...installation.errors import BadInput
from ...samplers.methods.registry import METHODS
from ...scale.batch.dispatch import Job, Slot
from ...scale.batch.library import parse_library, plan_of, typed, work_of
from ...scale.batch.library_slots import LibrarySlot
from ...scale.batch.manifest import Manifest, fingerprint
from ...scale.batch.rows import Row, keyed, share
from ...scale.batch.run import run_batch
from ...scale.batch.workflow_jobs import serving, workflow_jobs
from . import clip, fid, geneval
from .cost import KINDS, hours, in_words
from .layout import check_complete, picture_in, place
from .prompts import BENCHMARKS, Benchmark, Prompt, first_per_task
from .report import write_report

log = logging.getLogger("testtime")
OWN = "own"


@dataclass(frozen=True)
class Wanted:
    """The pictures of a run: a row each, and where each goes."""

    rows: list[Row]
    places: dict[str, tuple[Prompt, int]]
    in_all: int


def parser_of(benchmark: Benchmark) -> argparse.ArgumentParser:
    """Options of a benchmark."""
    parser = argparse.ArgumentParser(prog=f"testtime bench {benchmark.name}", description=f"{benchmark.title}.")
    parser.add_argument("model", help="diffusers folder, workflow file, shapes, or package.module:function")
    parser.add_argument("--method", default="best_of_n:particles=1", metavar="NAME[:KEY=VALUE,...]")
    parser.add_argument("--budget", type=int, default=None, metavar="N", help="N times the passes of plain sampling")
    parser.add_argument("--verifier", default="", metavar="NAME[:KEY=VALUE,...]", help="steers the search")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--map", action="append", default=[], metavar="prompt=NODE.INPUT", help="of a workflow")
    parser.add_argument("--prompts", type=Path, default=benchmark.shipped, help="official file or folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=None, metavar="K", help="the first K prompts of each task")
    parser.add_argument("--shard", metavar="I/N")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--servers", metavar="URL,...")
    parser.add_argument("--attempts", type=int, default=3)
    parser.add_argument("--evaluate", metavar="own|PATH", help="own evaluator, or the official results.jsonl to read")
    parser.add_argument("--detector", type=Path, help="Mask2Former folder for the own evaluator of GenEval")
    parser.add_argument("--clip", type=Path, help="CLIP folder that tells colours for the own evaluator")
    parser.add_argument("--fid", type=Path, metavar="REFERENCE", help="folder of pictures, or .npz with mu and sigma")
    parser.add_argument("--fid-mode", choices=fid.MODES, default=fid.MODES[0], help="of clean-fid")
    parser.add_argument("--clip-score", type=Path, metavar="FOLDER", help="CLIP folder for the mean CLIP score")
    parser.add_argument("--clip-mode", choices=clip.MODES, default=clip.MODES[0], help="100 x cosine, or CLIPScore")
    parser.add_argument("--plan", choices=sorted(KINDS), help="say what it costs on an H100, and do nothing")
    parser.add_argument("--quiet", action="store_true")
    return parser


def main(name: str, arguments: Sequence[str]) -> int:
    """Run what is not done yet, lay the pictures out, evaluate, report; returns the exit status of the batch."""
    benchmark = BENCHMARKS[name]
    options = parser_of(benchmark).parse_args(arguments)
    if options.prompts is None:
        raise BadInput(f"--prompts is missing: the prompts of {benchmark.title} do not come with the pack")
    method = with_budget(options.method, options.budget)
    wanted = wanted_of(benchmark, options)
    if options.plan:
        kind, n = KINDS[options.plan], options.budget or 1
        images = len(wanted.rows)
        log.info("%d images of %s at N = %d: about %s of one H100", images, kind.title, n,
                 in_words(hours(kind, images, n)))  # fmt: skip
        return 0
    status = draw(benchmark, options, wanted, method)
    return finish(benchmark, options, wanted, method, status)


def with_budget(method: str, budget: int | None) -> str:
    """A method with the width that the budget buys. Raises BadInput."""
    plan_of(method)
    name = method.partition(":")[0]
    width = METHODS[name].method.width
    if budget is None:
        return method
    if budget < 1 or not width:
        raise BadInput(f"--budget {budget}: {'at least 1 is needed' if width else name + ' has no width to set'}")
    other = [part for part in method.partition(":")[2].split(",") if part and not part.startswith(f"{width}=")]
    return f"{name}:" + ",".join([*other, f"{width}={budget}"])


def wanted_of(benchmark: Benchmark, options: argparse.Namespace) -> Wanted:
    """A row per picture; picture k of prompt i has noise of its own, so that it can be made again alone."""
    everything = benchmark.read(options.prompts)
    prompts = first_per_task(everything, options.limit)
    numbered, names = [], {}
    for line, prompt in enumerate(prompts, 1):
        for image in range(benchmark.images):
            name = f"{prompt.task or 'image'}-{prompt.index:05d}-{image:05d}"
            values = {"id": name, "prompt": prompt.text, "seed": options.seed + benchmark.images * prompt.index + image}
            numbered.append((line, values))
            names[name] = (prompt, image)
    rows = keyed(numbered, str(options.prompts))
    places = {row.key: names[values["id"]] for row, (_, values) in zip(rows, numbered, strict=True)}
    return Wanted(share(rows, options.shard), places, len(everything))


def draw(benchmark: Benchmark, options: argparse.Namespace, wanted: Wanted, method: str) -> int:
    """Run the batch; its exit status."""
    title = f"{benchmark.title}, {Path(options.model).name}, {method}"
    if options.model.endswith(".json"):
        template = read_workflow(Path(options.model))
        what = fingerprint([benchmark.name, template, options.assignments, sorted(options.map)])
        urls = [normalise_url(url) for url in (options.servers or "").split(",") if url.strip()]
        with serving(urls, options.workers, HeadlessOptions(), None) as (slots, info, version):
            jobs = workflow_jobs(
                wanted.rows, options.map, template, options.assignments, info, version, options.prompts
            )
            return _run(options, wanted, jobs, slots, what, title)
    settings: dict[str, Any] = {"verifier": options.verifier} if options.verifier else {}
    for text in options.assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--set {text}: expected NAME=VALUE")
        settings[key.strip()] = typed(value)
    recipe = parse_library(library_of(options.model), settings)
    jobs = [Job(row.key, work_of(recipe, method, row.values, row.key), dict(row.values)) for row in wanted.rows]
    what = fingerprint([benchmark.name, recipe.to_json(), method])
    return _run(options, wanted, jobs, [LibrarySlot(k) for k in range(options.workers)], what, title)


def library_of(model: str) -> str:
    """How ``--library`` would name a model: a folder is one of diffusers."""
    return f"diffusers:{model}" if Path(model).is_dir() else model


def _run(
    options: argparse.Namespace, wanted: Wanted, jobs: Sequence[Job], slots: Sequence[Slot], what: str, title: str
) -> int:
    manifest = Manifest(options.out, what, title)
    return run_batch(manifest, wanted.rows, jobs, slots, title=title, quiet=options.quiet)


def finish(benchmark: Benchmark, options: argparse.Namespace, wanted: Wanted, method: str, status: int) -> int:
    """Lay out what is there, evaluate where asked, write the report."""
    images = options.out / "images"
    seconds, nfe, pictures = [], 0, []
    for row in wanted.rows:
        prompt, image = wanted.places[row.key]
        item = options.out / "items" / row.key
        picture = picture_in(item) if item.is_dir() else None
        if picture is not None:
            pictures.append((place(benchmark, prompt, image, picture, images), prompt.text))
            told = _row_facts(item)
            seconds.append(told.get("seconds", 0.0))
            nfe += told.get("nfe") or 0
    prompts = list({prompt.task + str(prompt.index): prompt for prompt, _ in wanted.places.values()}.values())
    scores, evaluator = evaluated(benchmark, options, images)
    more = of_pictures(options, images, pictures)
    if more:
        scores, evaluator = {**(scores or {}), **more}, evaluator or "FID and CLIP score as named"
    facts = {
        "benchmark": benchmark.name, "model": options.model, "method": method, "prompts": len(prompts),
        "prompts_in_all": wanted.in_all, "images": len(seconds), "seconds": seconds, "nfe": nfe, "evaluator": evaluator,
        "missing": check_complete(benchmark, prompts, images),
    }  # fmt: skip
    log.info("%s", write_report(options.out, benchmark, facts, scores))
    return status


def evaluated(benchmark: Benchmark, options: argparse.Namespace, images: Path) -> tuple[dict[str, float] | None, str]:
    """(scores, who judged); None where nobody was asked to."""
    if not options.evaluate:
        return None, ""
    if benchmark.name != "geneval":
        raise BadInput(
            f"--evaluate {options.evaluate}: only GenEval has an evaluator here; take --fid or --clip-score, or run "
            f"{benchmark.official}"
        )
    if options.evaluate != OWN:
        return geneval.summary(geneval.read_results(Path(options.evaluate))), "official results"
    if options.detector is None:
        raise BadInput("--evaluate own needs --detector FOLDER, a Mask2Former for COCO's instances")
    from .mask2former import load_mask2former

    results = geneval.evaluate_folder(images, load_mask2former(options.detector), colours_of(options.clip))
    geneval.write_results(options.out / "results.jsonl", results)
    return geneval.summary(results), "own evaluator"


def of_pictures(options: argparse.Namespace, images: Path, pictures: Sequence[tuple[Path, str]]) -> dict[str, float]:
    """FID and CLIP score where they were asked for; {} else."""
    scores: dict[str, float] = {}
    if options.clip_score is not None:
        scores |= clip.clip_score(pictures, options.clip_score, options.clip_mode)
    if options.fid is not None:
        import torch

        features = fid.inception(options.fid_mode, "cuda" if torch.cuda.is_available() else "cpu")
        scores |= fid.fid_scores(images, options.fid, options.fid_mode, features)
    return scores


def colours_of(clip: Path | None) -> geneval.TellColours | None:
    """What tells colours, by a CLIP folder."""
    if clip is None:
        return None
    from ...verifiers.image_text.clip_score import load_clip_score_folder
    from ...verifiers.objects.verifier import ColourReader

    reader = ColourReader(load_clip_score_folder(clip))
    return lambda pixels: lambda name, boxes: reader(pixels, name, boxes)


def _row_facts(item: Path) -> dict[str, Any]:
    try:
        return json.loads((item / "row.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


GPU_RUNS = {
    "infinity-2b": [("geneval", "best_of_n", 1), ("geneval", "best_of_n", 8), ("geneval", "tts_var", 2),
                    ("geneval", "tts_var", 8)],
    "sd15": [("coco", "best_of_n", 1), ("coco", "ttgen", 1)],
    "sdxl": [("geneval", "best_of_n", 1), ("geneval", "fk", 4), ("geneval", "fk", 8)],
}  # fmt: skip
IMAGES = {"geneval": 553 * 4, "coco": 5000}
"""Images of the runs of ``bench gpu``; COCO's first 5,000 captions."""


def gpu(arguments: Sequence[str]) -> int:
    """``testtime bench gpu MODEL``: what the published tables would cost, then the runs, one after the other."""
    parser = argparse.ArgumentParser(prog="testtime bench gpu", description="Remake published tables on a GPU.")
    parser.add_argument("model", help="diffusers folder, or a workflow")
    parser.add_argument("--kind", choices=sorted(GPU_RUNS), required=True)
    parser.add_argument("--out", type=Path, default=Path("out/bench-gpu"))
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options, rest = parser.parse_known_args(arguments)
    kind, total = KINDS[options.kind], 0.0
    sys.stdout.write(f"{kind.title}, {options.model}; estimates for one H100, corrected after the first images:\n")
    for name, method, n in GPU_RUNS[options.kind]:
        each = hours(kind, IMAGES[name], n)
        total += each
        sys.stdout.write(f"  {BENCHMARKS[name].title}, {method}, N = {n}: {IMAGES[name]:,} images, {in_words(each)}\n")
    sys.stdout.write(f"  together {in_words(total)}\n")
    if not options.yes and (not sys.stdin.isatty() or input("Go on? [y/N] ").strip().lower() != "y"):
        sys.stdout.write("nothing was run; add --yes to go on without asking\n")
        return 0
    status = 0
    for name, method, n in GPU_RUNS[options.kind]:
        out = options.out / f"{name}-{method}-{n}"
        command = [
            sys.executable,
            "-m",
            "testtime",
            "bench",
            name,
            options.model,
            "--method",
            method,
            "--out",
            str(out),
        ]
        command += ["--budget", str(n), *(["--limit", str(IMAGES[name])] if name == "coco" else []), *rest]
        status = max(status, subprocess.run(command).returncode)
    return status
