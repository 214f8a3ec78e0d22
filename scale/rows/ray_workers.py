"""Workers of a Ray cluster (``pip install test-time-scaling[ray]``). The only module that imports ``ray``, and late.

Joining a cluster lets it run code here, and us run code there: an address is named in Python, on the command line or in
``RAY_ADDRESS``, never in a workflow, and clusters on other machines need Ray's token mode.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...installation.comfyui import HeadlessOptions, require_comfyui
from ...samplers.protocols import SearchError
from ..recipes import Recipe
from .comfyui import ComfyLink
from .pool import LinkLost
from .server import Server
from .share import RowWorkers
from .wire import Message, pack, unpack

LOCAL = ("127.0.0.1", "localhost", "::1")
CONNECT_SECONDS = 5.0
START_SECONDS = 300.0


LOST = "lost"
"""Kind of the message of an actor whose own ComfyUI is gone."""


class RowActor:
    """A ``Server`` behind a Ray actor."""

    def __init__(self):
        self._server = Server()

    def answer(self, data: bytes) -> bytes:
        """The packed answer to a packed question."""
        return pack(self._server.answer(unpack(data)))


class ComfyActor:
    """A ComfyUI of the node that the actor is on (``COMFYUI_PATH`` there), which serves a workflow."""

    def __init__(self):
        found = require_comfyui()
        options = HeadlessOptions(arguments=("--input-directory", str(found.root / "input")))
        self._link = ComfyLink(0, options)

    def serve(self, prompt: str) -> str:
        """Come to the search of a workflow in JSON; "" or why that is not possible."""
        self._link.prompt = json.loads(prompt)
        try:
            self._link.start()
        except SearchError as error:
            return str(error)
        return ""

    def answer(self, data: bytes) -> bytes:
        """The packed answer to a packed question."""
        try:
            return self._link.ask(data)
        except LinkLost as error:
            return pack(Message(LOST, {"message": str(error)}))


def start_actor(ray: Any, name: str, gpus: float, *arguments: Any) -> Any:
    """An actor around ``package.module:Class`` of the pack that is installed on its node.

    Its methods are ``call(method, *arguments)`` and ``process_id``. Raises what Ray raises where none starts.
    """

    class Actor:
        """Sent by value, so it names nothing of this module: in ComfyUI the pack has another name than elsewhere."""

        def __init__(self, name, arguments):
            import importlib

            module, _, attribute = name.partition(":")
            self.inner = getattr(importlib.import_module(module), attribute)(*arguments)

        def call(self, method, *arguments):
            return getattr(self.inner, method)(*arguments)

        def process_id(self):
            import os

            return os.getpid()

    actor = ray.remote(Actor).options(num_gpus=gpus, max_restarts=0).remote(name, arguments)
    ray.get(actor.process_id.remote(), timeout=START_SECONDS)
    return actor


class RayLink:
    """One actor. A dead one is made anew, wherever the cluster has room.

    Args:
        ray: the module, connected. number: counted from 0. gpus: that the actor needs.
    """

    kind = "testtime.scale.rows.ray_workers:RowActor"

    def __init__(self, ray: Any, number: int, gpus: float):
        self._ray, self.name, self._gpus = ray, f"ray-{number}", gpus
        self.actor: Any = None

    def start(self) -> None:
        """See ``Link``."""
        self.close()
        try:
            self.actor = start_actor(self._ray, self.kind, self._gpus)
        except self._ray.exceptions.RayError as error:
            raise LinkLost(f"no actor starts ({type(error).__name__}): {str(error).splitlines()[0]}") from error

    def ask(self, data: bytes) -> bytes:
        """See ``Link``."""
        return self.call("answer", data)

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the actor answers. Raises LinkLost."""
        if self.actor is None:
            raise LinkLost("it is not started")
        try:
            return self._ray.get(self.actor.call.remote(method, *arguments))
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.RaySystemError) as error:
            raise LinkLost(f"the actor died ({type(error).__name__})") from error

    def close(self) -> None:
        """See ``Link``."""
        actor, self.actor = self.actor, None
        if actor is not None and self._ray.is_initialized():
            self._ray.kill(actor)


class ComfyRayLink(RayLink):
    """An actor whose ComfyUI executes a workflow up to its search, see ``rows.comfyui``. It stays between searches.

    Attributes:
        prompt: what it shall execute.
    """

    kind = "testtime.scale.rows.ray_workers:ComfyActor"

    def __init__(self, ray: Any, number: int, gpus: float):
        super().__init__(ray, number, gpus)
        self.prompt: dict[str, Any] = {}

    def start(self) -> None:
        """See ``Link``: the actor where there is none, then the workflow."""
        try:
            refused = self.call("serve", json.dumps(self.prompt))
        except LinkLost:
            super().start()
            refused = self.call("serve", json.dumps(self.prompt))
        if refused:
            raise SearchError(f"{self.name}: {refused}")

    def ask(self, data: bytes) -> bytes:
        """See ``Link``."""
        answer = super().ask(data)
        told = unpack(answer)
        if told.kind == LOST:
            raise LinkLost(told.values["message"])
        return answer

    def close(self) -> None:
        """Nothing: the actor and its models stay for the next search."""

    def end(self) -> None:
        """End the actor, and with it its ComfyUI."""
        super().close()


class RayWorkers(RowWorkers):
    """Actors of a Ray cluster.

    Args:
        recipe: how each makes its model; model files must be where the recipe says, on every node.
        count: actors, >= 1. rows_per_call: see ``RowWorkers``. gpus: that each actor needs.
        address: of the cluster ("host:6379"); None: ``RAY_ADDRESS``, else a cluster of this machine alone.

    Raises:
        SearchError: Ray is missing, the address does not answer, or a cluster elsewhere has no token.
    """

    def __init__(
        self, recipe: Recipe, count: int = 2, rows_per_call: int = 0, gpus: float = 0, address: str | None = None
    ):
        self.ray = connected(address)
        super().__init__([RayLink(self.ray, number, gpus) for number in range(count)], recipe, rows_per_call)


def connected(address: str | None) -> Any:
    """The module ``ray``, connected to a cluster; one that is connected already stays so. Raises SearchError."""
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address not in (None, "local", "auto"):
        check_address(str(address))
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise SearchError(f"Ray is missing ({error}): pip install test-time-scaling[ray]") from error
    if ray.is_initialized():
        return ray
    own = address in (None, "local")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "ignore_reinit_error": True}
    if own:
        options.update(include_dashboard=False, _node_ip_address="127.0.0.1")
    try:
        ray.init(address="local" if own else address, **options)
    except Exception as error:
        raise SearchError(
            f"the Ray cluster at {address or 'this machine'} cannot be joined ({type(error).__name__}): "
            f"{(str(error).splitlines() or [''])[0][:200]}"
        ) from error
    return ray


def check_address(address: str) -> None:
    """Raise SearchError for a cluster that does not answer, or one elsewhere that would be joined without a token."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise SearchError(f"Ray address is {address!r}: expected HOST:PORT, for example 10.0.0.5:6379")
    if host not in LOCAL and not has_token():
        raise SearchError(
            f"Ray address {address}: a cluster on another machine is joined with a token only; set RAY_AUTH_MODE=token "
            f"and RAY_AUTH_TOKEN_PATH, there and here"
        )
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise SearchError(f"Ray address {address} does not answer ({error}): is the cluster running?") from error


def has_token() -> bool:
    """Whether Ray here would show a token."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return False
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    return (Path.home() / ".ray" / "auth_token").is_file()
