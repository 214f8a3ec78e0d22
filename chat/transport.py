"""One HTTP request with a deadline for all of it: connection, headers and the last byte of the answer.

Python's own ``timeout`` counts anew with every packet, so a server that sends a byte now and then could hold a search
for hours. Redirects are not followed, since they would carry the key to another host, and a server on this machine is
never asked through a proxy, which would be shown the key and the picture.
"""

from __future__ import annotations

import functools
import http.client
import io
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST_ANSWER = 1_000_000
LARGEST_ERROR = 4_000


class Unreachable(Exception):
    """No answer came; the message says from where, and why."""


@dataclass(frozen=True)
class Response:
    """Status, reason phrase, headers and body of an answer, whatever its status."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


def post(address: str, body: bytes, headers: Mapping[str, str], timeout: float, direct: bool) -> Response:
    """Send ``body`` and wait for the whole answer.

    Args:
        address: http or https.
        timeout: seconds for everything, > 0.
        direct: not through a proxy, whatever the environment says.

    Raises:
        Unreachable: no connection, or one that was dropped, or no whole answer in time, or one that is too large.
    """
    end = time.monotonic() + timeout
    proxies = [urllib.request.ProxyHandler({})] if direct else []
    opener = urllib.request.build_opener(_NoRedirects, _Plain(end), _Secure(end), *proxies)
    request = urllib.request.Request(address, body, dict(headers), method="POST")
    try:
        try:
            answer = opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            with error:
                return Response(error.code, str(error.reason), dict(error.headers), error.read(LARGEST_ERROR))
        with answer:
            received = answer.read(LARGEST_ANSWER + 1)
            if len(received) > LARGEST_ANSWER:
                raise Unreachable(f"the answer of {address} is larger than {LARGEST_ANSWER // 1000} kB")
            return Response(answer.status, str(answer.reason), dict(answer.headers), received)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(_why(error, address.split("?")[0], timeout)) from error


def _why(error: Exception, address: str, timeout: float) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer from {address} in {timeout:g} s"
    if isinstance(cause, http.client.RemoteDisconnected | http.client.IncompleteRead | ConnectionResetError):
        return f"{address} dropped the connection"
    return f"{address} cannot be reached ({cause})"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None


def _left(end: float) -> float:
    seconds = end - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


class _Until(io.RawIOBase):
    """Bytes of a socket, each wait no longer than what is left."""

    def __init__(self, raw: Any, sock: Any, end: float):
        self._raw, self._sock, self._end = raw, sock, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._end))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, end: float, sock: Any, *arguments: Any, **options: Any):
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Until(self.fp.detach(), sock, end))


class _PlainConnection(http.client.HTTPConnection):
    def __init__(self, host: str, end: float, **options: Any):
        super().__init__(host, **options)
        self._end = end
        self.response_class = functools.partial(_Answer, end)  # type: ignore[assignment]

    def connect(self) -> None:
        self.timeout = _left(self._end)
        super().connect()

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(_left(self._end))
        super().send(data)


class _SecureConnection(_PlainConnection, http.client.HTTPSConnection):
    pass


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, end: float):
        super().__init__()
        self._end = end

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_PlainConnection, req, end=self._end)  # type: ignore[arg-type]


class _Secure(urllib.request.HTTPSHandler):
    def __init__(self, end: float):
        super().__init__(context=_trust())
        self._end = end

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, req, end=self._end, context=_trust())  # type: ignore[arg-type]


@functools.cache
def _trust() -> ssl.SSLContext:
    """The authorities that this machine trusts; reading them takes longer than a request."""
    return ssl.create_default_context()
