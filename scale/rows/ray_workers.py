"""Workers of a Ray cluster (``pip install test-time-scaling[ray]``). The only module that imports ``ray``, and late.

Joining a cluster lets it run code here, and us run code there: an address is named in Python, on the command line or in
``RAY_ADDRESS``, never in a workflow, and clusters on other machines need Ray's token mode.
"""

from __future__ import annotations

import importlib
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...samplers.protocols import SearchError
from ..recipes import Recipe
from .pool import LinkLost
from .server import Server
from .share import RowWorkers
from .wire import pack, unpack

LOCAL = ("127.0.0.1", "localhost", "::1")
CONNECT_SECONDS = 5.0
START_SECONDS = 300.0


class Actor:
    """A ``Server`` behind a Ray actor."""

    def __init__(self):
        self._server = Server()

    def answer(self, data: bytes) -> bytes:
        """The packed answer to a packed question."""
        return pack(self._server.answer(unpack(data)))

    def process_id(self) -> int:
        """Of the worker."""
        return os.getpid()


class RayLink:
    """One actor. A dead one is made anew, wherever the cluster has room.

    Args:
        ray: the module, connected. number: counted from 0. gpus: that the actor needs.
    """

    def __init__(self, ray: Any, number: int, gpus: float):
        self._ray, self.name, self._gpus = ray, f"ray-{number}", gpus
        self.actor: Any = None

    def start(self) -> None:
        """See ``Link``."""
        self.close()
        made = self._ray.remote(Actor).options(num_gpus=self._gpus, max_restarts=0)
        try:
            self.actor = made.remote()
            self._ray.get(self.actor.process_id.remote(), timeout=START_SECONDS)
        except self._ray.exceptions.RayError as error:
            raise LinkLost(f"no actor starts ({type(error).__name__}): {str(error).splitlines()[0]}") from error

    def ask(self, data: bytes) -> bytes:
        """See ``Link``."""
        if self.actor is None:
            raise LinkLost("it is not started")
        try:
            return self._ray.get(self.actor.answer.remote(data))
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.RaySystemError) as error:
            raise LinkLost(f"the actor died ({type(error).__name__})") from error

    def close(self) -> None:
        """See ``Link``."""
        actor, self.actor = self.actor, None
        if actor is not None and self._ray.is_initialized():
            self._ray.kill(actor)


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
