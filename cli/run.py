"""``testtime run``: one workflow, on a running ComfyUI or on one started for the occasion."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from ..graph.check import check_known_nodes, check_links, check_values
from ..graph.convert import Origin, origins_in, to_api
from ..graph.dynamic_prompts import drawn_by
from ..graph.widgets import UPLOADS
from ..graph.workflow import apply_assignments, input_specs, is_ui_format, read_workflow, title_of
from ..installation.client import ComfyClient, Listener, RunResult, file_references, text_lines
from ..installation.comfyui import HeadlessComfyUI, HeadlessOptions
from ..installation.errors import BadInput, WorkflowFailed

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
        "--server", metavar="URL", help="a running ComfyUI; without it one is started and stopped again"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for the outputs (default: out/NAME-OF-WORKFLOW)")
    parser.add_argument(
        "--timeout", type=seconds, default=None, metavar="SECONDS", help="interrupt the run after this long"
    )
    parser.add_argument(
        "--prompt-seed", type=int, default=0, metavar="N", help="draws the choices of prompts such as {red|blue} (0)"
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


class RunListener(Listener):
    """Shows progress and fetches what nodes report at once, so that it is kept whatever happens later."""

    def __init__(self, client: ComfyClient, workflow: dict, out: Path, quiet: bool = False):
        self.client = client
        self.workflow = workflow
        self.out = out
        self.result = RunResult(prompt_id="")
        self._quiet = quiet
        self._bar: tqdm | None = None
        self._node = ""

    async def on_event(self, kind: str, data: dict) -> None:
        if kind == "execution_cached":
            self.result.cached.update(map(str, data.get("nodes") or []))
        elif kind == "executing":
            self._close_bar()
        elif kind == "progress":
            self._progress(str(data.get("node")), data.get("value", 0), data.get("max", 0))
        elif kind == "executed":
            await self.take(str(data.get("node")), data.get("output") or {})

    async def take(self, node_id: str, output: dict) -> None:
        """Fetch the files and keep the text of one node's output, once."""
        if node_id in self.result.outputs:
            return
        self.result.outputs[node_id] = output
        for reference in file_references(output):
            folder = self.out / Path(
                str(reference.get("subfolder", "")).replace("\\", "/").strip("/").replace("..", "_")
            )
            self.result.files.append(await self.client.fetch(reference, folder))
        if "text" in output:
            self.result.texts[node_id] = text_lines(output)

    def _progress(self, node_id: str, value: float, total: float) -> None:
        if self._quiet or total <= 1:
            return
        if self._bar is None or self._node != node_id:
            self._close_bar()
            node = self.workflow.get(node_id)
            self._node = node_id
            self._bar = tqdm(total=int(total), desc=title_of(node) if node else node_id, file=sys.stderr, unit="step")
        self._bar.total = int(total)
        self._bar.update(int(value) - self._bar.n)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Leave the terminal tidy."""
        self._close_bar()


async def run_on(client: ComfyClient, workflow: dict, out: Path, *, quiet=False, extra_pnginfo=None) -> RunResult:
    """Run an API-format workflow and fetch its outputs into ``out``.

    A failure is raised with what had been fetched before it as its ``result`` attribute.
    """
    listener = RunListener(client, workflow, out, quiet)
    try:
        listener.result.prompt_id = await client.follow(workflow, listener, extra_pnginfo)
        record = await client.history(listener.result.prompt_id) or {}
        for node_id, output in (record.get("outputs") or {}).items():
            await listener.take(node_id, output)
    except Exception as error:
        error.result = listener.result
        raise
    finally:
        listener.close()
    return listener.result


async def prepare(
    client: ComfyClient, workflow: dict, assignments: Sequence[str], prompt_seed: int = 0
) -> tuple[dict, dict | None]:
    """(API-format workflow ready to queue, extra PNG info): converted, checked, with assignments and uploads done.

    ``prompt_seed`` draws the choices of dynamic prompts, which only UI-format files have.
    """
    object_info = await client.object_info()
    origins: dict[str, Origin] = {}
    extra = None
    if is_ui_format(workflow):
        origins = origins_in(workflow)
        # The file as it is goes into the images, so that dropping one on ComfyUI opens it; not when values differ.
        extra = None if assignments else {"workflow": workflow}
        workflow = to_api(workflow, object_info, drawn_by(prompt_seed))
    check_known_nodes(workflow, object_info, origins, client.version)
    check_links(workflow, object_info)
    workflow = apply_assignments(workflow, assignments, object_info)
    check_values(workflow, object_info)
    for node in workflow.values():
        for name, spec in input_specs(object_info[node["class_type"]]).items():
            value = node["inputs"].get(name)
            options = spec[1] if len(spec) > 1 else {}
            if isinstance(value, str) and value.startswith("@") and any(options.get(key) for key in UPLOADS):
                node["inputs"][name] = await client.upload(Path(value[1:]).expanduser())
    return workflow, extra


@contextlib.contextmanager
def server_for(url: str | None, options: HeadlessOptions | None = None) -> Iterator[tuple[str, HeadlessComfyUI | None]]:
    """(address, own server or None): the given server, or a headless one for the time of the block."""
    if url is not None:
        yield url, None
        return
    with HeadlessComfyUI(options) as server:
        yield server.url, server


def last_words(server: HeadlessComfyUI | None):
    """For ``ComfyClient``: what our own server last said, None for a server that is not ours."""
    return None if server is None else server.log_tail


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


def report(result: RunResult, workflow: dict) -> None:
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
                report(kept, workflow)
            raise
    report(result, workflow)
    return 0
