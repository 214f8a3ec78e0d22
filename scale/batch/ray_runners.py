"""What a Ray actor of a batch runs: rows of the library, or workflows on a ComfyUI of its node. Files go back as bytes.

The nodes of a cluster need not share a disk: what a row uploads is sent along, and what it leaves is sent back.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...installation.client import ComfyClient
from ...installation.comfyui import HeadlessComfyUI
from ...installation.errors import CommandError
from ...installation.files import write_bytes
from ...samplers.processes.chunking import is_out_of_memory
from ...samplers.protocols import SearchError
from .dispatch import RowError, WorkerLost
from .library import run_row
from .server_slots import run_workflow

Ended = tuple[dict[str, Any], dict[str, bytes]]
"""``{"facts"}`` or ``{"error", "final", "fatal"}``, and files by name."""


def files_in(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their path in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class LibraryRunner:
    """Rows of the library."""

    def run(self, work: str, uploads: Mapping[str, bytes]) -> Ended:
        """Run a row of ``library.work_of`` in JSON."""
        with tempfile.TemporaryDirectory(prefix="testtime-row-") as name:
            try:
                facts = run_row(json.loads(work), Path(name))
            except (SearchError, CommandError) as error:
                return {"error": str(error), "final": True, "fatal": False}, {}
            except Exception as error:  # noqa: BLE001 - the driver decides what becomes of the row
                fatal = is_out_of_memory(error) or isinstance(error, MemoryError)
                return {"error": f"{type(error).__name__}: {error}", "final": False, "fatal": fatal}, {}
            return {"facts": facts}, files_in(Path(name))


class ComfyRunner:
    """Workflows on a ComfyUI of this machine (``COMFYUI_PATH``), which lives as long as the actor."""

    def __init__(self) -> None:
        self._server = HeadlessComfyUI()
        self._server.start()
        self._info, self._version = asyncio.run(self._told())

    def definitions(self) -> tuple[str, str]:
        """(definitions of all nodes in JSON, version)."""
        return json.dumps(self._info), self._version

    async def _told(self) -> tuple[dict, str]:
        async with ComfyClient(self._server.url) as client:
            return await client.object_info(), client.version

    def run(self, work: str, uploads: Mapping[str, bytes]) -> Ended:
        """Run an API-format workflow in JSON; ``uploads``: what its ``@FILE`` inputs name."""
        with tempfile.TemporaryDirectory(prefix="testtime-row-") as name:
            out, sent = Path(name, "out"), Path(name, "sent")
            out.mkdir()
            workflow = json.loads(work)
            for number, (path, content) in enumerate(uploads.items()):
                own = sent / str(number) / Path(path).name
                own.parent.mkdir(parents=True)
                write_bytes(own, content)
                for node in workflow.values():
                    node["inputs"] = {k: f"@{own}" if v == f"@{path}" else v for k, v in node["inputs"].items()}
            try:
                facts = asyncio.run(self._run(workflow, out))
            except RowError as error:
                return {"error": str(error), "final": error.final, "fatal": False}, {}
            except WorkerLost as error:
                return {"error": str(error), "final": False, "fatal": True}, {}
            return {"facts": facts}, files_in(out)

    async def _run(self, workflow: dict, out: Path) -> dict[str, Any]:
        async with ComfyClient(self._server.url) as client:
            return await run_workflow(client, workflow, out, self._info, None)
