"""Any OpenAI-compatible endpoint as a rewriter: vLLM, Ollama, llama.cpp's server, hosted services.

The key comes from the environment and from nowhere else, because workflows are shared: ``TESTTIME_API_KEY``. It is
sent only to the hosts named in ``TESTTIME_API_HOSTS`` (comma separated), so that a workflow from somewhere else cannot
have it sent to a server of its choice; a server on this machine needs no entry.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import logging
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..rewriters.base import ChatRewriter, Poll, RewriterError, Turn, Unanswered, data_url
from ..rewriters.template import SCHEMA, Template
from ..samplers.protocols import Rewrite, RewriteRequest

log = logging.getLogger("testtime")

KEY_VARIABLE = "TESTTIME_API_KEY"
HOSTS_VARIABLE = "TESTTIME_API_HOSTS"
LOCAL = ("localhost", "127.0.0.1", "::1")
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
LARGEST_ANSWER = 1_000_000
LONGEST_WAIT = 10.0

# Structured output, from the strictest form down; not every server knows every form.
_FORMATS: tuple[dict[str, Any] | None, ...] = (
    {"type": "json_schema", "json_schema": {"name": "rewrites", "strict": True, "schema": SCHEMA}},
    {"type": "json_object"},
    None,
)


@dataclass(frozen=True)
class Endpoint:
    """Where the model is and how it is asked.

    Attributes:
        url: base address, with the version: ``http://127.0.0.1:8000/v1``.
        model: name that the server knows.
        temperature: of its sampling, >= 0.
        max_tokens: longest answer.
        timeout: seconds for one call.
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
        """Raise RewriterError for settings that cannot work."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RewriterError(
                f"url is {self.url!r}: it must be the base address of an OpenAI-compatible server, "
                f"e.g. http://127.0.0.1:8000/v1"
            )
        if parts.username or parts.password or "key=" in parts.query:
            raise RewriterError(
                f"url holds a key or password: workflows are shared, set the environment variable {KEY_VARIABLE}"
            )
        if not self.model.strip():
            raise RewriterError("model is empty: give the name under which the server offers the model")
        if not self.temperature >= 0:
            raise RewriterError(f"temperature is {self.temperature}: it must be >= 0")
        if not self.timeout > 0 or self.retries < 0 or self.max_tokens < 16 or self.parallel < 1:
            raise RewriterError(
                f"timeout {self.timeout}, retries {self.retries}, max_tokens {self.max_tokens}, parallel "
                f"{self.parallel}: timeout > 0, retries >= 0, max_tokens >= 16 and parallel >= 1 are needed"
            )

    @property
    def host(self) -> str:
        """Host of the address, lower case."""
        return (urlsplit(self.url).hostname or "").lower()

    def key(self) -> str | None:
        """The key to send, or None. A key that may not go to this host is named in the log."""
        key = os.environ.get(KEY_VARIABLE, "").strip()
        allowed = [host.strip().lower() for host in os.environ.get(HOSTS_VARIABLE, "").split(",")]
        if key and self.host not in (*LOCAL, *allowed):
            log.warning("%s is not sent to %s: add the host to %s to allow it", KEY_VARIABLE, self.host, HOSTS_VARIABLE)
            return None
        return key or None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *arguments):
        return None


class EndpointRewriter(ChatRewriter):
    """Asks an OpenAI-compatible server. See the module for where the key comes from.

    Args:
        endpoint: address, model and manners.
        template: instructions.
    """

    def __init__(self, endpoint: Endpoint, template: Template | None = None):
        endpoint.check()
        super().__init__(f"{endpoint.model} at {endpoint.host}", template)
        self.endpoint = endpoint
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._format = 0  # the strictest form of structured output that the server has not refused
        self._with_seed = True

    def _answers(self, requests: list[RewriteRequest], poll: Poll) -> list[Rewrite]:
        """All questions at once, as far as ``parallel`` allows; ``poll`` runs on the calling thread."""
        if not requests:
            return []
        stop = threading.Event()

        def cancelled() -> None:
            if stop.is_set():
                raise Unanswered("cancelled", calls=0)

        pool = concurrent.futures.ThreadPoolExecutor(min(self.endpoint.parallel, len(requests)))
        try:
            waiting = [pool.submit(self.answer, request, cancelled) for request in requests]
            while concurrent.futures.wait(waiting, timeout=0.1).not_done:
                poll()
            return [future.result() for future in waiting]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def complete(self, turns: Sequence[Turn], seed: int, poll: Poll) -> tuple[str, int]:
        """One answer, after retries where they make sense."""
        calls, wait, reason = 0, self.endpoint.backoff, ""
        tries = self.endpoint.retries + 1
        while tries > 0:
            poll()
            tries -= 1
            calls += 1
            try:
                return self._content(self._post(self._body(turns, seed))), calls
            except urllib.error.HTTPError as error:
                with error:
                    detail = _detail(error)
                if error.code in (400, 422) and self._step_down():
                    tries += 1  # the server refused a field, not the question
                    continue
                reason = f"HTTP {error.code} {error.reason}{detail}"
                if error.code not in RETRIED:
                    raise Unanswered(reason + _advice(error.code), calls) from error
                wait = _retry_after(error) or wait
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                reason = _why(error, self.endpoint)
            except _Unreadable as error:
                reason = str(error)
            if tries:
                log.info("rewriter %s: %s; trying again", self.name, reason)
                _sleep(min(wait, LONGEST_WAIT), poll)
                wait *= 2
        raise Unanswered(f"{reason} ({calls} calls)", calls)

    def _step_down(self) -> bool:
        """Ask for less after a refusal; False when there is nothing left to give up."""
        if self._format + 1 < len(_FORMATS):
            self._format += 1
            return True
        if self._with_seed:
            self._with_seed = False
            return True
        return False

    def _body(self, turns: Sequence[Turn], seed: int) -> dict[str, Any]:
        settings = self.endpoint
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [_message(turn) for turn in turns],
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "stream": False,
        }
        if self._with_seed:
            body["seed"] = seed % 2**31
        if _FORMATS[self._format] is not None:
            body["response_format"] = _FORMATS[self._format]
        return body

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = self.endpoint.key()
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        address = self.endpoint.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        with self._opener.open(request, timeout=self.endpoint.timeout) as response:
            return response.read(LARGEST_ANSWER)

    @staticmethod
    def _content(raw: bytes) -> str:
        """The text in a server's answer."""
        try:
            message = json.loads(raw)["choices"][0]["message"]
            content = message.get("content") or message.get("reasoning_content") or message.get("refusal") or ""
            if isinstance(content, list):  # parts
                content = "".join(part.get("text", "") for part in content)
            return str(content)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            shown = raw[:80].decode(errors="replace")
            raise _Unreadable(f"the server's answer is not a chat completion: {shown!r}") from error


class _Unreadable(Exception):
    """The body is not what the protocol promises."""


def _message(turn: Turn) -> dict[str, Any]:
    if turn.image is None:
        return {"role": turn.role, "content": turn.text}
    image = {"type": "image_url", "image_url": {"url": data_url(turn.image)}}
    return {"role": turn.role, "content": [{"type": "text", "text": turn.text}, image]}


def _sleep(seconds: float, poll: Poll) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        poll()
        time.sleep(min(0.1, max(0.0, end - time.monotonic())))


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the server asks to wait, where it gives a number."""
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return None


def _detail(error: urllib.error.HTTPError) -> str:
    """What the server says about an error, short; "" where it says nothing."""
    try:
        text = error.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        said = json.loads(text)["error"]
        text = said["message"] if isinstance(said, dict) else str(said)
    except (ValueError, KeyError, TypeError):
        pass
    flat = " ".join(text.split())[:160]
    return f": {flat}" if flat else ""


def _advice(code: int) -> str:
    if code in (401, 403):
        return f"; the key is read from {KEY_VARIABLE} and sent to hosts in {HOSTS_VARIABLE} and to this machine"
    if code == 404:
        return "; check the address (it ends with the version, e.g. /v1) and the model's name"
    return ""


def _why(error: Exception, endpoint: Endpoint) -> str:
    """A failed connection in words."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, (TimeoutError, socket.timeout)):
        return f"no answer from {endpoint.url} in {endpoint.timeout:g} s"
    if isinstance(cause, (http.client.RemoteDisconnected, http.client.IncompleteRead, ConnectionResetError)):
        return f"{endpoint.url} dropped the connection"
    return f"{endpoint.url} cannot be reached ({cause})"
