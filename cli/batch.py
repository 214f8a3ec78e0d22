"""``testtime batch``: a workflow, or a search of the library, once for every row of a table."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..graph.workflow import read_workflow
from ..installation.client import normalise_url
from ..installation.comfyui import HeadlessOptions
from ..installation.errors import BadInput
from ..scale.batch.dispatch import Job, Patience, Slot
from ..scale.batch.library import parse_library, plan_of, typed, work_of
from ..scale.batch.library_slots import LibrarySlot
from ..scale.batch.manifest import Manifest, fingerprint
from ..scale.batch.ray_slots import library_slots, ray_serving
from ..scale.batch.rows import Row, mapped, read_rows, share
from ..scale.batch.run import run_batch
from ..scale.batch.workflow_jobs import serving, workflow_jobs
from .run import check_folder, seconds

log = logging.getLogger("testtime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``testtime batch``."""
    parser.add_argument("workflow", type=Path, nargs="?", help="workflow file, UI or API format")
    parser.add_argument(
        "--library", metavar="NAME", help="instead of a workflow: shapes, diffusers:FOLDER, or package.module:function"
    )
    parser.add_argument("--rows", type=Path, required=True, help=".jsonl or .csv: a column per input, a line per run")
    parser.add_argument("--out", type=Path, required=True, help="folder for outputs and manifest; goes on where it is")
    parser.add_argument(
        "--map", action="append", default=[], metavar="COLUMN=NODE.INPUT", help="which input a column sets"
    )
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="the same for all rows; with --library NAME=VALUE",
    )
    parser.add_argument(
        "--method", default="best_of_n:particles=4", metavar="NAME[:KEY=VALUE,...]", help="of --library"
    )
    parser.add_argument(
        "--workers", type=whole, default=None, metavar="N", help="processes on this machine (1), or actors of --ray"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--servers", metavar="URL,...", help="running ComfyUIs")
    where.add_argument(
        "--ray", metavar="ADDRESS", help="actors of a Ray cluster, HOST:PORT or local: one per GPU, unless --workers"
    )
    parser.add_argument("--attempts", type=whole, default=3, metavar="N", help="of a row before it is set aside (3)")
    parser.add_argument("--backoff", type=seconds, default=1.0, metavar="SECONDS", help="before the second attempt (1)")
    parser.add_argument("--retry-failed", action="store_true", help="give rows that were set aside new attempts")
    parser.add_argument("--shard", metavar="I/N", help="only this share of the rows, for one machine of N")
    parser.add_argument("--timeout", type=seconds, default=None, metavar="SECONDS", help="for one row")
    parser.add_argument("--prompt-seed", type=int, default=0, metavar="N", help="as for testtime run")
    parser.add_argument("--only-this-pack", action="store_true", help="start ComfyUI without other custom nodes")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def whole(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def main(options: argparse.Namespace) -> int:
    """Run what is not done yet; returns the exit status."""
    if (options.workflow is None) == (options.library is None):
        raise BadInput("give a workflow file, or --library NAME, not both")
    check_folder(options.out)
    rows = share(read_rows(options.rows), options.shard)
    return library(options, rows) if options.library else workflow(options, rows)


def library(options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Rows of the library."""
    if options.servers:
        raise BadInput(f"--servers {options.servers}: --library runs in processes of its own, use --workers N")
    settings: dict[str, Any] = {}
    for text in options.assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--set {text}: expected NAME=VALUE")
        settings[name.strip()] = typed(value)
    plan_of(options.method)
    recipe = parse_library(options.library, settings)
    jobs = []
    for row in mapped(rows, options.map):
        work = work_of(recipe, options.method, row.values, f"--rows {options.rows}: line {row.line}")
        jobs.append(Job(row.key, work, dict(row.values)))
    what = fingerprint(["library", recipe.to_json(), options.method, sorted(options.map)])
    slots: Sequence[Slot]
    if options.ray:
        slots = library_slots(options.ray, options.workers, len(jobs), options.timeout)
    else:
        count = min(options.workers or 1, max(1, len(jobs)))
        slots = [LibrarySlot(number, options.timeout) for number in range(count)]
    return _run(options, rows, jobs, slots, what, f"{options.library}, {options.method}")


def workflow(options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Rows of a workflow, on running servers or on ones of our own."""
    template = read_workflow(options.workflow)
    what = fingerprint(["workflow", template, options.assignments, sorted(options.map), options.prompt_seed])
    urls = [normalise_url(url.strip()) for url in (options.servers or "").split(",") if url.strip()]
    if options.servers and options.workers:
        raise BadInput("--workers and --servers: the servers are the workers, give one of the two")
    if options.servers is not None and not urls:
        raise BadInput("--servers: expected addresses such as http://127.0.0.1:8188")
    headless = HeadlessOptions(only_this_pack=options.only_this_pack)
    count = min(options.workers or 1, max(1, len(rows)))
    if options.ray:
        place = ray_serving(options.ray, options.workers, len(rows), options.timeout)
    else:
        place = serving(list(dict.fromkeys(urls)), count, headless, options.timeout)
    with place as (slots, info, version):
        jobs = workflow_jobs(
            rows, options.map, template, options.assignments, info, version, options.rows, options.prompt_seed
        )
        return _run(options, rows, jobs, slots, what, options.workflow.stem)


def _run(
    options: argparse.Namespace, rows: Sequence[Row], jobs: Sequence[Job], slots: Sequence[Slot], what: str, title: str
) -> int:
    manifest = Manifest(options.out, what, title, version=__version__)
    if options.retry_failed:
        manifest.forget_failures()
    patience = Patience(attempts=options.attempts, backoff=options.backoff)
    status = run_batch(manifest, rows, jobs, slots, title=title, patience=patience, quiet=options.quiet)
    log.info("%s", options.out / "index.html")
    return status
