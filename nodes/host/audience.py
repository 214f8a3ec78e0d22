"""Who sees a search: every window of this server, the one that queued it, or nobody.

A server that several people share shows every search to all of them, prompts and previews included, unless the
environment variable ``TESTTIME_PANEL`` says otherwise. It hides, it does not protect: ComfyUI itself tells every client
of the queue and its prompts.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

log = logging.getLogger("testtime")

VARIABLE = "TESTTIME_PANEL"
EVERYONE, OWN, OFF = "everyone", "own", "off"


def audience() -> str:
    """``EVERYONE``, ``OWN`` or ``OFF``, as the environment variable says; unset is ``EVERYONE``."""
    return _known(os.environ.get(VARIABLE, ""))


@lru_cache
def _known(text: str) -> str:
    value = text.strip().lower() or EVERYONE
    if value in (EVERYONE, OWN, OFF):
        return value
    log.warning("%s is %r: choose %s, %s or %s. Until then searches are not shown.", VARIABLE, text, EVERYONE, OWN, OFF)
    return OFF


def may_see(owner: str | None, client: str | None) -> bool:
    """Whether the window ``client`` may see what ``owner`` queued (None: the bare API, or an unknown window)."""
    shown = audience()
    return shown == EVERYONE or (shown == OWN and owner is not None and owner == client)


def server() -> Any:
    """The running server of ComfyUI, None without one (tests, library use)."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def connected() -> set[str]:
    """Ids of the clients with an open connection to the running server."""
    return set(getattr(server(), "sockets", None) or ())


def queued_by() -> str | None:
    """Id of the client that queued the prompt that executes now, None for the bare API."""
    return getattr(server(), "client_id", None)


def sender(owner: str | None) -> Callable[[str, dict[str, Any]], None]:
    """A function that sends ``(event, payload)`` to the windows that may see what ``owner`` queued."""

    def send(event: str, payload: dict[str, Any]) -> None:
        running, shown = server(), audience()
        if running is None or shown == OFF or (shown == OWN and owner is None):
            return
        running.send_sync(event, payload, owner if shown == OWN else None)

    return send
