"""One search over several ComfyUIs: who they are, and how long they stay. ``scale.rows`` does the sharing out."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as management
import folder_paths

from ...installation.comfyui import HeadlessOptions
from ...samplers.protocols import Process, SearchError, Verifier
from ...samplers.workers import Shared
from ...scale.gpus import gpu_names
from ...scale.recipes import Recipe
from ...scale.rows.comfyui import ComfyLink
from ...scale.rows.share import RowWorkers
from .compat import throw_if_interrupted
from .running import running_prompt, upstream
from .serving import host_identity

log = logging.getLogger("testtime")
HERE, RAY = "this machine", "Ray cluster"
PLACES = (HERE, RAY)
KEEP_MINUTES = 10.0
"""How long workers wait for another search before they end."""


class Keeper:
    """Workers that stay between searches, and end when none comes.

    Args:
        make: ``(place, number)`` -> a link. minutes: how long unused ones stay.
    """

    def __init__(self, make: Callable[[str, int], Any], minutes: float = KEEP_MINUTES):
        self._make, self.minutes = make, minutes
        self._links: dict[tuple[str, int], Any] = {}
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    @contextmanager
    def lent(self, place: str, count: int) -> Iterator[list[Any]]:
        """The first ``count`` workers of a place; their time begins anew afterwards."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            for number in range(count):
                if (place, number) not in self._links:
                    self._links[place, number] = self._make(place, number)
            links = [self._links[place, number] for number in range(count)]
        try:
            yield links
        finally:
            self._timer = threading.Timer(60 * self.minutes, self.end)
            self._timer.daemon = True
            self._timer.start()

    def end(self) -> None:
        """End all workers."""
        with self._lock:
            links, self._links = list(self._links.values()), {}
        for link in links:
            link.end()


def make_link(place: str, number: int) -> Any:
    """A worker of a place. Raises SearchError for a cluster that is not named or does not answer."""
    if place == HERE:
        main = Path(sys.argv[0]).name == "main.py"
        options = HeadlessOptions(
            arguments=("--input-directory", folder_paths.get_input_directory()),
            like=tuple(sys.argv[1:]) if main else None,
            only_this_pack=not main,
        )
        return ComfyLink(number, options, Path(folder_paths.__file__).parent)
    from ...scale.clusters import connected
    from ...scale.rows.ray_workers import ComfyRayLink

    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise SearchError(
            f"workers is {RAY!r} and RAY_ADDRESS is not set: set it to the cluster's HOST:PORT where ComfyUI is "
            f"started, or choose {HERE!r}"
        )
    return ComfyRayLink(connected(address), number, 0 if management.cpu_mode() else 1)


keeper = Keeper(make_link)
atexit.register(keeper.end)
_latest: tuple[str, str, Any] | None = None


class HostRows(RowWorkers):
    """``RowWorkers`` whose models come from a workflow."""

    def __init__(self, links: Sequence[Any], rows_per_call: int):
        super().__init__(links, Recipe("comfyui"), rows_per_call, throw_if_interrupted)

    def opening(self, process: Process) -> dict[str, Any]:
        """See ``RowWorkers``."""
        return {"sigmas": [float(sigma) for sigma in process.sigmas]}

    def identity(self, process: Process, verifier: Verifier | None) -> dict[str, Any]:
        """See ``RowWorkers``. This is the last that the driver's own model is needed for, but for gradients."""
        return host_identity(process, verifier)


@dataclass(frozen=True)
class HostWorkers:
    """``Plan.workers`` of a node.

    Attributes:
        place: ``HERE`` or ``RAY``.
        count: workers, 0 for one per GPU of this machine.
        rows_per_call: see ``RowWorkers``.
    """

    place: str = HERE
    count: int = 0
    rows_per_call: int = 0

    @property
    def workers(self) -> int:
        """How many."""
        return self.count or max(1, len(gpu_names()))

    @contextmanager
    def sharing(self, process: Process, verifier: Verifier | None, prompts: Sequence[str]) -> Iterator[Shared]:
        """See ``samplers.workers.Workers``."""
        prompt_id, node, prompt = running_prompt()
        wanted = upstream(prompt, node)
        _check_first(prompt_id, node, process)
        with keeper.lent(self.place, self.workers) as links:
            for link in links:
                link.prompt = wanted
            with HostRows(links, self.rows_per_call) as rows, rows.sharing(process, verifier, prompts) as shared:
                yield shared


def _check_first(prompt_id: str, node: str, process: Process) -> None:
    """Raise SearchError for a node that searches twice: workers wait at its first search."""
    global _latest
    anything: Any = process
    guider = getattr(getattr(anything, "denoise", None), "guider", None)
    mark = anything.prompt if guider is None else guider
    before, _latest = _latest, (prompt_id, node, mark)
    if before is not None and before[:2] == (prompt_id, node) and before[2] is not mark:
        raise SearchError(
            f"node {node} searches more than once, and workers wait at its first search: take Use Workers out"
        )
