"""Slots that are actors of a Ray cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...graph.prompt import uploads_in
from ...installation.errors import BadInput, ServerTrouble
from ...installation.files import write_bytes
from ...samplers.protocols import SearchError
from ..clusters import connected, start_actor
from .dispatch import Job, RowError, WorkerLost

LIBRARY, COMFYUI = (f"testtime.scale.batch.ray_runners:{name}" for name in ("LibraryRunner", "ComfyRunner"))


class RaySlot:
    """One actor; a dead one is made anew, wherever the cluster has room.

    Args:
        ray: the module, connected. number: counted from 0. kind: ``LIBRARY`` or ``COMFYUI``. gpus: that it needs.
        timeout: seconds for a row, or None. actor: one that is started already, for the first time.
        object_info: definitions of nodes, for uploads.
    """

    def __init__(
        self,
        ray: Any,
        number: int,
        kind: str,
        gpus: float,
        timeout: float | None = None,
        actor: Any = None,
        object_info: dict | None = None,
    ):
        self._ray, self.name, self._kind, self._gpus, self.timeout = ray, f"ray-{number}", kind, gpus, timeout
        self.actor, self._info = actor, object_info or {}

    async def open(self) -> None:
        """Start the actor."""
        if self.actor is None:
            try:
                self.actor = await asyncio.to_thread(start_actor, self._ray, self._kind, self._gpus)
            except self._ray.exceptions.RayError as error:
                raise WorkerLost(f"no actor starts: {first_line(error)}") from error

    async def run(self, job: Job, folder: Path) -> dict[str, Any]:
        """Run a row; its files into ``folder``."""
        uploads = {}
        if self._info:
            uploads = {path: Path(path).expanduser().read_bytes() for _, _, path in uploads_in(job.work, self._info)}
        asked = self.actor.call.remote("run", json.dumps(job.work), uploads)
        try:
            answer, files = await asyncio.to_thread(self._ray.get, asked, timeout=self.timeout)
        except self._ray.exceptions.GetTimeoutError as error:
            raise WorkerLost(f"no answer within {self.timeout:g} s") from error
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(f"the actor died: {first_line(error)}") from error
        if answer.get("fatal"):
            raise WorkerLost(answer["error"])
        if "error" in answer:
            raise RowError(answer["error"], final=answer["final"])
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
        return answer["facts"]

    async def close(self) -> None:
        """End the actor."""
        actor, self.actor = self.actor, None
        if actor is not None and self._ray.is_initialized():
            await asyncio.to_thread(self._ray.kill, actor)


def first_line(error: BaseException) -> str:
    """Of what Ray says, which is long."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def joined(address: str) -> Any:
    """The module ``ray``, connected. Raises BadInput."""
    try:
        return connected(address)
    except SearchError as error:
        raise BadInput(f"--ray {address}: {error}") from error


def actors_of(ray: Any, workers: int | None) -> tuple[int, float]:
    """(actors, GPUs of each): one per GPU of the cluster, or one per node where it has none, unless ``workers``."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    nodes = sum(bool(node.get("Alive")) for node in ray.nodes())
    count = workers or gpus or nodes
    return count, min(1.0, gpus / count) if gpus else 0.0


def library_slots(address: str, workers: int | None, rows: int, timeout: float | None) -> Sequence[RaySlot]:
    """Slots for rows of the library. Raises BadInput."""
    ray = joined(address)
    count, gpus = actors_of(ray, workers)
    return [RaySlot(ray, number, LIBRARY, gpus, timeout) for number in range(min(count, max(1, rows)))]


@contextmanager
def ray_serving(
    address: str, workers: int | None, rows: int, timeout: float | None
) -> Iterator[tuple[Sequence[RaySlot], dict, str]]:
    """(slots, definitions of nodes, version) of a cluster's ComfyUIs. Raises BadInput, ServerTrouble."""
    ray = joined(address)
    count, gpus = actors_of(ray, workers)
    try:
        first = start_actor(ray, COMFYUI, gpus)
        info, version = ray.get(first.call.remote("definitions"))
    except ray.exceptions.RayError as error:
        raise ServerTrouble(f"--ray {address}: no ComfyUI starts there: {first_line(error)}") from error
    told = json.loads(info)
    slots = [
        RaySlot(ray, number, COMFYUI, gpus, timeout, first if number == 0 else None, told)
        for number in range(min(count, max(1, rows)))
    ]
    try:
        yield slots, told, version
    finally:
        if slots[0].actor is not None and ray.is_initialized():
            ray.kill(slots[0].actor)
