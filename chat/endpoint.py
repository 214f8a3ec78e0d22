"""Where an OpenAI-compatible server is, how it is asked, and which key it may see.

The key comes from the environment and from nowhere else, because workflows are shared: ``TESTTIME_API_KEY``. It is
sent only to the hosts named in ``TESTTIME_API_HOSTS`` (comma separated), so that a workflow from somewhere else cannot
have it sent to a server of its choice; a server on this machine needs no entry. No text that leaves this room holds it.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit

from .conversation import ChatError

log = logging.getLogger("testtime")

KEY_VARIABLE = "TESTTIME_API_KEY"
HOSTS_VARIABLE = "TESTTIME_API_HOSTS"
EXAMPLE = "http://127.0.0.1:8000/v1"
LONGEST_TIMEOUT = 86_400.0
QUERY = ("api-version",)  # what an address may ask for; everything else in a query may be a key
SHORTEST_SECRET = 8
"""Characters from which a key is blotted out of answers, too: "EMPTY" or "ollama" are no keys, but ordinary words."""
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?\.?|[0-9a-fA-F:.]{2,45}")
_said: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Endpoint:
    """A server and the manners it is asked with.

    Attributes:
        url: base address, with the version: ``http://127.0.0.1:8000/v1``.
        model: name that the server knows.
        temperature: of its sampling, >= 0.
        max_tokens: longest answer.
        timeout: seconds for one answer, from the connection to its last byte.
        retries: further tries after an overload, a server error or a dropped connection.
        backoff: seconds before the first retry, doubled each time; a server's Retry-After counts more.
        parallel: calls at a time.
    """

    url: str
    model: str
    temperature: float = 0.7
    max_tokens: int = 600
    timeout: float = 60.0
    retries: int = 2
    backoff: float = 0.5
    parallel: int = 4

    def check(self) -> None:
        """Raise ChatError for settings that cannot work, or that would give a key away."""
        parts = self._parts()
        asked = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} - {*QUERY}
        if parts.username or parts.password or parts.fragment or asked:
            raise ChatError(
                f"url holds more than an address (a key, token, password or query): workflows are shared, so give the "
                f"address alone, e.g. {EXAMPLE}, and the key in the environment variable {KEY_VARIABLE}"
            )
        if not self.model.strip():
            raise ChatError("model is empty: give the name under which the server offers the model")
        if not 0 <= self.temperature < math.inf:
            raise ChatError(f"temperature is {self.temperature}: it must be >= 0")
        if not 0 < self.timeout <= LONGEST_TIMEOUT or self.retries < 0 or self.max_tokens < 16 or self.parallel < 1:
            raise ChatError(
                f"timeout {self.timeout}, retries {self.retries}, max_tokens {self.max_tokens}, parallel "
                f"{self.parallel}: timeout > 0 (at most a day), retries >= 0, max_tokens >= 16 and parallel >= 1 are "
                f"needed"
            )
        self.key()

    @property
    def host(self) -> str:
        """Host of the address, lower case."""
        return (self._parts().hostname or "").lower()

    @property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        host = self.host.rstrip(".")
        if host == "localhost":
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified

    @property
    def address(self) -> str:
        """Where chat completions are asked for."""
        parts = self._parts()
        query = f"?{parts.query}" if parts.query else ""
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/chat/completions{query}"

    def key(self) -> str | None:
        """The key to send, or None. A key that may not go to this host is named in the log, once.

        Raises:
            ChatError: the environment holds a key that no header can carry.
        """
        key = _key()
        if not key:
            return None
        if not (key.isascii() and key.isprintable()):
            raise ChatError(
                f"the environment variable {KEY_VARIABLE} holds a line break or another character that no key has: set "
                f"it to the key alone, in one line"
            )
        allowed = [host.strip().lower() for host in os.environ.get(HOSTS_VARIABLE, "").split(",")]
        if self.local or self.host in allowed:
            return key
        _say_once(
            "key", self.host, f"{KEY_VARIABLE} is not sent to {self.host}: add the host to {HOSTS_VARIABLE} to allow it"
        )
        return None

    def _parts(self) -> SplitResult:
        """The address in parts, of which each is what it seems: what is odd here may be read otherwise elsewhere."""
        wrong = f"it must be the base address of an OpenAI-compatible server, e.g. {EXAMPLE}"
        if not (self.url.isascii() and self.url.isprintable()) or " " in self.url or "\\" in self.url:
            raise ChatError(f"url holds a space, a line break or a letter that no address has: {wrong}")
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise ChatError(f"url cannot be read ({error}): {wrong}") from error
        if parts.scheme not in ("http", "https") or not _HOST.fullmatch(parts.hostname or "") or port == 0:
            # A key may stand before the host or in the query: neither is repeated.
            seen = self.url.split("?")[0].split("#")[0].rpartition("@")[2]
            raise ChatError(f"url is {seen!r}: {wrong}")
        return parts


def redacted(text: str, shortest: int = 4) -> str:
    """``text`` with ``***`` for the key, if it has it and the key has at least ``shortest`` characters.

    To be cut afterwards, never before: half a key is one, too.
    """
    key = _key()
    return text.replace(key, "***") if len(key) >= shortest else text


def _key() -> str:
    return os.environ.get(KEY_VARIABLE, "").strip()


def _say_once(kind: str, about: str, text: str) -> None:
    if (kind, about) not in _said:
        _said.add((kind, about))
        log.warning(text)
