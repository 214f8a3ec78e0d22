"""``testtime batch``: a workflow, or a search of the library, once for every row of a table."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..graph.prompt import checked_prompt, uploads_in
from ..graph.workflow import input_specs, read_workflow
from ..installation.client import ComfyClient, normalise_url
from ..installation.comfyui import HeadlessComfyUI, HeadlessOptions
from ..installation.errors import BadInput
from ..scale.batch.dispatch import Job, Patience, Slot
from ..scale.batch.library import parse_library, plan_of, typed, work_of
from ..scale.batch.library_slots import LibrarySlot
from ..scale.batch.manifest import Manifest, fingerprint
from ..scale.batch.rows import Row, as_text, mapped, read_rows, share
from ..scale.batch.run import run_batch
from ..scale.batch.server_slots import HeadlessSlot, ServerSlot, on_gpu
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
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=whole, default=1, metavar="N", help="processes on this machine (1)")
    where.add_argument("--servers", metavar="URL,...", help="running ComfyUIs")
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
    slots = [LibrarySlot(number, options.timeout) for number in range(min(options.workers, max(1, len(jobs))))]
    return _run(options, rows, jobs, slots, what, f"{options.library}, {options.method}")


def workflow(options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Rows of a workflow, on running servers or on ones of our own."""
    template = read_workflow(options.workflow)
    what = fingerprint(["workflow", template, options.assignments, sorted(options.map), options.prompt_seed])
    title = options.workflow.stem
    if options.servers:
        urls = list(dict.fromkeys(normalise_url(url.strip()) for url in options.servers.split(",") if url.strip()))
        info, version = asyncio.run(_definitions(urls))
        jobs = jobs_of(options, rows, template, info, version)
        return _run(options, rows, jobs, [ServerSlot(url, info, options.timeout) for url in urls], what, title)
    headless = HeadlessOptions(only_this_pack=options.only_this_pack)
    first = HeadlessComfyUI(on_gpu(headless, 0))
    first.start()
    try:
        info, version = asyncio.run(_definitions([first.url]))
        jobs = jobs_of(options, rows, template, info, version)
        count = min(options.workers, max(1, len(jobs)))
        slots = [HeadlessSlot(k, headless, info, options.timeout, first if k == 0 else None) for k in range(count)]
        return _run(options, rows, jobs, slots, what, title)
    finally:
        first.stop()


async def _definitions(urls: Sequence[str]) -> tuple[dict, str]:
    """(definitions of nodes, version) of the first server; every other must have the nodes of it that are used.

    Raises:
        ServerTrouble: one does not answer: a batch that begins with fewer workers than were named would go unnoticed.
    """
    found: tuple[dict, str] | None = None
    for url in urls:
        async with ComfyClient(url) as client:
            info = await client.object_info()
            found = found or (info, client.version)
    if found is None:
        raise BadInput("--servers: expected addresses such as http://127.0.0.1:8188")
    return found


def jobs_of(
    options: argparse.Namespace, rows: Sequence[Row], template: dict, info: dict, version: str = ""
) -> list[Job]:
    """A checked workflow per row, those with the same models side by side. Raises BadInput naming the line."""
    jobs: list[tuple[str, Job]] = []
    for row, named in zip(rows, mapped(rows, options.map), strict=True):
        where = f"--rows {options.rows}: line {row.line}"
        for column in named.values:
            if "." not in column:
                advice = f"call it NODE.INPUT, or add --map {column}=NODE.INPUT"
                raise BadInput(f"{where}: column {column!r} names no input: {advice}")
        assignments = [*options.assignments, *(f"{name}={as_text(value)}" for name, value in named.values.items())]
        try:
            ready = checked_prompt(template, assignments, info, version, options.prompt_seed)
            for _, _, path in uploads_in(ready, info):
                if not Path(path).expanduser().is_file():
                    raise BadInput(f"{path}: no such file to upload")
        except BadInput as error:
            raise BadInput(f"{where}: {str(error).replace('--set ', '', 1)}") from error
        jobs.append((models_of(ready, info), Job(row.key, ready, dict(row.values))))
    return [job for _, job in sorted(jobs, key=lambda pair: pair[0])]


def models_of(ready: dict, info: dict) -> str:
    """The files that a workflow loads, so that rows with the same ones run one after the other."""
    names = []
    for node_id, node in ready.items():
        if any(isinstance(value, list) for value in node["inputs"].values()):
            continue  # loaders have no links
        for name, spec in input_specs(info.get(node["class_type"], {})).items():
            if isinstance(spec[0], list) or spec[0] == "COMBO":
                names.append(f"{node_id}.{name}={node['inputs'].get(name)}")
    return "\n".join(names)


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
