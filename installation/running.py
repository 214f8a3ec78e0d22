"""Run one API-format workflow on a ComfyUI, a running one or one started for it, with progress on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from .client import ComfyClient, Listener, RunResult, file_references, text_lines
from .comfyui import HeadlessComfyUI, HeadlessOptions


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
        """Take an event of the server."""
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
            node = self.workflow.get(node_id) or {}
            self._node = node_id
            self._bar = tqdm(total=int(total), desc=_title(node, node_id), file=sys.stderr, unit="step")
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


def _title(node: dict, node_id: str) -> str:
    meta = node.get("_meta")
    return str((meta or {}).get("title") or node.get("class_type") or node_id)
