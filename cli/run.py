"""``testtime run``: one workflow, on a running ComfyUI or on one started for the occasion."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..graph.prompt import checked_prompt, uploads_in
from ..graph.workflow import is_ui_format, read_workflow
from ..installation.client import ComfyClient, RunResult
from ..installation.comfyui import HeadlessComfyUI, HeadlessOptions
from ..installation.errors import BadInput, WorkflowFailed
from ..installation.running import last_words, run_on, server_for

logger = logging.getLogger("testtime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``testtime run``."""
    parser.add_argument("workflow", type=Path, help="workflow file, as saved by ComfyUI (UI format) or exported (API)")
    parser.add_argument(
        "--set",
        dest="assignments",
        metavar="NODE.INPUT=VALUE",
        action="append",
        default=[],
        help="change an input; NODE is an id, a title or a class. @FILE uploads an image. May be repeated",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="use a ComfyUI that is already running; otherwise one is started, and stopped afterwards",
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for the outputs (default: out/NAME-OF-WORKFLOW)")
    parser.add_argument(
        "--timeout", type=seconds, default=None, metavar="SECONDS", help="interrupt the run after this long"
    )
    parser.add_argument(
        "--prompt-seed", type=int, default=0, metavar="N", help="seed for choices in prompts such as {red|blue} (0)"
    )
    parser.add_argument("--only-this-pack", action="store_true", help="start ComfyUI without other custom nodes")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def seconds(text: str) -> float:
    """A positive number of seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def check_folder(out: Path) -> None:
    """Raise ``BadInput`` where outputs could not be written, before anything is run."""
    nearest = next((path for path in (out, *out.absolute().parents) if path.exists()), Path("/"))
    if not nearest.is_dir():
        raise BadInput(f"--out {out}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadInput(f"--out {out}: nothing can be written into {nearest}")


async def prepare(
    client: ComfyClient, workflow: dict, assignments: Sequence[str], prompt_seed: int = 0
) -> tuple[dict, dict | None]:
    """(API-format workflow ready to queue, extra PNG info): converted, checked, with assignments and uploads done.

    ``prompt_seed`` draws the choices of dynamic prompts, which only UI-format files have.
    """
    object_info = await client.object_info()
    # The file as it is goes into the images, so that dropping one on ComfyUI opens it; not when values differ.
    extra = {"workflow": workflow} if is_ui_format(workflow) and not assignments else None
    ready = checked_prompt(workflow, assignments, object_info, client.version, prompt_seed)
    for node_id, name, path in uploads_in(ready, object_info):
        ready[node_id]["inputs"][name] = await client.upload(Path(path).expanduser())
    return ready, extra


def out_of(options: argparse.Namespace) -> Path:
    """The folder for the outputs."""
    return options.out or Path("out") / options.workflow.stem


async def run_file(options: argparse.Namespace, workflow: dict, url: str, server: HeadlessComfyUI | None) -> RunResult:
    """Everything between a reachable server and the fetched outputs."""
    out = out_of(options)
    async with ComfyClient(url, last_words(server)) as client:
        ready, extra = await prepare(client, workflow, options.assignments, options.prompt_seed)
        work = run_on(client, ready, out, quiet=options.quiet, extra_pnginfo=extra)
        try:
            return await asyncio.wait_for(work, options.timeout)
        except asyncio.TimeoutError:
            raise WorkflowFailed(
                f"not finished within --timeout {options.timeout:g} s; the run was interrupted"
            ) from None


def report(result: RunResult) -> None:
    """Print what a run left: texts to stderr, the paths of the files to stdout (one per line, for scripts)."""
    for node_id, lines in result.texts.items():
        for line in lines:
            sys.stderr.write(f"{node_id}: {line}\n")
    for path in result.files:
        sys.stdout.write(f"{path}\n")


def main(options: argparse.Namespace) -> int:
    """Run one workflow; returns the exit status."""
    workflow = read_workflow(options.workflow)
    check_folder(out_of(options))
    headless = HeadlessOptions(only_this_pack=options.only_this_pack)
    with server_for(options.server, headless) as (url, server):
        try:
            result = asyncio.run(run_file(options, workflow, url, server))
        except Exception as error:
            kept = getattr(error, "result", None)
            if kept is not None:
                report(kept)
            raise
    report(result)
    return 0
