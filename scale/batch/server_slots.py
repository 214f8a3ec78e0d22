"""Slots that are ComfyUIs: servers that run already, and headless ones of our own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...graph.prompt import uploads_in
from ...installation.client import ComfyClient
from ...installation.comfyui import HeadlessComfyUI, HeadlessOptions
from ...installation.errors import BadInput, CommandError, ServerTrouble, WorkflowFailed
from ...installation.running import last_words, run_on
from ..gpus import on_gpu
from .dispatch import Job, RowError, WorkerLost

HOPELESS = ("SearchError", "VerifierError", "BadInput")
"""Classes of a node's error that the row itself causes: it would fail on every worker."""


@dataclass
class ServerSlot:
    """A ComfyUI at an address.

    Attributes:
        url: its address. timeout: seconds for a row, None for no limit.
        object_info: definitions of its nodes, for uploads.
    """

    url: str
    object_info: dict
    timeout: float | None = None

    def __post_init__(self):
        self.name = self.url
        self._client: ComfyClient | None = None

    async def open(self) -> None:
        """Connect."""
        client = ComfyClient(self.url)
        try:
            self._client = await client.__aenter__()
        except ServerTrouble as error:
            raise WorkerLost(str(error)) from error

    async def run(self, job: Job, folder: Path) -> dict[str, Any]:
        """Run an API-format workflow; its files into ``folder``."""
        return await run_workflow(self._client, job.work, folder, self.object_info, self.timeout)

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            await self._client.__aexit__(None, None, None)
            self._client = None


class HeadlessSlot:
    """A ComfyUI of our own, which is started again when it dies.

    Args:
        number: counted from 0. options: how to start it. object_info, timeout: see ``ServerSlot``.
        server: one that is started already, for the first time.
    """

    def __init__(
        self,
        number: int,
        options: HeadlessOptions,
        object_info: dict,
        timeout: float | None = None,
        server: HeadlessComfyUI | None = None,
    ):
        self.number, self.options, self.timeout, self.object_info = number, options, timeout, object_info
        self._server, self._client = server, None

    @property
    def name(self) -> str:
        """With the process id, as soon as there is one."""
        process = None if self._server is None else self._server.process
        return f"comfyui-{self.number}" + ("" if process is None else f" (process {process.pid})")

    async def open(self) -> None:
        """Start and connect."""
        try:
            if self._server is None or not self._server.running():
                self._server = HeadlessComfyUI(on_gpu(self.options, self.number))
                await asyncio.to_thread(self._server.start)
            self._client = await ComfyClient(self._server.url, last_words(self._server)).__aenter__()
        except ServerTrouble as error:
            raise WorkerLost(str(error)) from error

    async def run(self, job: Job, folder: Path) -> dict[str, Any]:
        """Run an API-format workflow; its files into ``folder``."""
        return await run_workflow(self._client, job.work, folder, self.object_info, self.timeout)

    async def close(self) -> None:
        """Disconnect and stop it."""
        if self._client is not None:
            await self._client.__aexit__(None, None, None)
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)
        self._client = self._server = None


async def run_workflow(
    client: ComfyClient, workflow: dict, folder: Path, object_info: dict, timeout: float | None
) -> dict[str, Any]:
    """Run a workflow with its uploads. Raises RowError and WorkerLost."""
    try:
        ready = {key: {**node, "inputs": dict(node["inputs"])} for key, node in workflow.items()}
        for node_id, name, path in uploads_in(workflow, object_info):
            ready[node_id]["inputs"][name] = await client.upload(Path(path).expanduser())
        await asyncio.wait_for(run_on(client, ready, folder, quiet=True), timeout)
    except asyncio.TimeoutError:
        raise RowError(f"not finished within {timeout:g} s; the run was interrupted") from None
    except ServerTrouble as error:
        raise WorkerLost(str(error)) from error
    except BadInput as error:
        raise RowError(str(error), final=True) from error
    except WorkflowFailed as error:
        raise RowError(str(error), final=error.kind.rpartition(".")[2] in HOPELESS) from error
    except CommandError as error:
        raise RowError(str(error)) from error
    return {}
