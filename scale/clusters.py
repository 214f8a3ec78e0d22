"""Ray clusters (``pip install test-time-scaling[ray]``). The only module that imports ``ray``, and late.

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

from ..samplers.protocols import SearchError

LOCAL = ("127.0.0.1", "localhost", "::1")
CONNECT_SECONDS = 5.0
START_SECONDS = 300.0


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
