"""A ComfyUI as a worker: where a node would search, it answers questions of the driver instead.

The node's thread answers, with the guider, patches, hooks and memory of a search that it began like any other; the
routes of ``nodes/worker_routes.py`` put questions in.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from ...samplers.prepare import Prepared
from ...samplers.protocols import Process, Verifier
from ...scale.recipes import Made, digest_of, identity
from ...scale.rows.comfyui import TOKEN_VARIABLE, worker_prompt
from ...scale.rows.server import Server
from ...scale.rows.wire import pack, unpack
from .compat import InterruptProcessing, host_version
from .pixels import HostVerifier
from .running import model_files, running_prompt

if TYPE_CHECKING:
    from .run import HostCall, SearchOptions

TOKEN = os.environ.pop(TOKEN_VARIABLE, "")
"""What the driver shows; "" in a ComfyUI that is no worker. Programs that nodes start do not inherit it."""


class Gone(Exception):
    """Nothing answers: no workflow has come to its search, or it was let go."""


class Desk:
    """Where questions wait for the node's thread.

    Attributes:
        serves: id of the prompt that answers, None while there is none.
    """

    def __init__(self) -> None:
        self.serves: str | None = None
        self._waiting: queue.SimpleQueue[tuple[bytes, Future[bytes]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def ask(self, data: bytes) -> Future[bytes]:
        """The packed answer to come. Raises Gone."""
        with self._lock:
            if self.serves is None:
                raise Gone("no search waits for questions")
            future: Future[bytes] = Future()
            self._waiting.put((data, future))
            return future

    def release(self) -> None:
        """End the prompt that answers."""
        with self._lock:
            if self.serves is not None:
                self._waiting.put(None)

    def serve(self, prompt_id: str, answer: Callable[[bytes], bytes]) -> None:
        """Answer in this thread until released."""
        self.serves = prompt_id
        try:
            while (asked := self._waiting.get()) is not None:
                asked[1].set_result(answer(asked[0]))
        finally:
            with self._lock:
                self.serves = None
                while not self._waiting.empty():
                    left = self._waiting.get()
                    if left is not None:
                        left[1].set_exception(Gone("the search was let go"))


desk = Desk()


def host_identity(process: Process, verifier: Verifier | None) -> dict[str, Any]:
    """What driver and workers must have in common: versions, model, schedule of scales, judge, model files."""
    _, node, prompt = running_prompt()
    made: Any = process
    guider = getattr(getattr(made, "denoise", None), "guider", None)
    model = made.model if guider is None else guider.inner_model
    network = getattr(model, "diffusion_model", model)
    return {
        **identity(Made(process, verifier)),
        "comfyui": host_version(),
        "model": f"{type(model).__name__}, {type(network).__name__}",
        "weights": digest_of(model_files(worker_prompt(prompt, node))),
    }


class HostServer(Server):
    """Answers with the process of a sampling call.

    Args:
        call, prepared, options: as for a search; the driver says on which schedule.
    """

    def __init__(self, call: HostCall, prepared: Prepared, options: SearchOptions):
        super().__init__()
        self._call, self._prepared, self._options = call, prepared, options

    def make(self, opening: Mapping[str, Any]) -> Made:
        """See ``Server``. A call is cut where it does not fit this worker's memory."""
        process, residency = self._call.process(replace(self._prepared, sigmas=opening["sigmas"]), self._options)
        anything: Any = process
        if opening["rows_per_call"]:
            anything.chunker.size = min(anything.chunker.size or opening["rows_per_call"], opening["rows_per_call"])
        verifier = self._options.verifier
        return Made(process, None if verifier is None else HostVerifier(verifier, residency))

    def identity(self, made: Made) -> dict[str, Any]:
        """See ``Server``."""
        return host_identity(made.process, made.verifier)


def serve(call: HostCall, options: SearchOptions) -> NoReturn:
    """Answer until the driver lets this worker go; then the prompt ends as a cancelled one does."""
    options = replace(options, search=replace(options.search, workers=None, budget=None))
    server = HostServer(call, call.prepare(options), options)
    prompt_id, _, _ = running_prompt()
    desk.serve(prompt_id, lambda data: pack(server.answer(unpack(data))))
    raise InterruptProcessing()
