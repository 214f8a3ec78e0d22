"""Workers of a Ray cluster (``pip install test-time-scaling[ray]``), see ``scale.clusters``."""

from __future__ import annotations

import json
from typing import Any

from ...installation.comfyui import HeadlessOptions, require_comfyui
from ...samplers.protocols import SearchError
from ..clusters import connected, start_actor
from ..recipes import Recipe
from .comfyui import ComfyLink
from .pool import LinkLost
from .server import Server
from .share import RowWorkers
from .wire import Message, pack, unpack

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
