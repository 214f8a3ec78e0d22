"""A worker that is a ComfyUI: it executes the driver's workflow up to the node that searches, and answers there.

So a worker's model is made by the same nodes, patches and guiders as the driver's, and there is no second way to make
one. Nothing behind that node is executed, so files are saved by the driver alone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...installation.answers import explain_failure, explain_refusal
from ...installation.comfyui import HeadlessComfyUI, HeadlessOptions
from ...installation.errors import ServerTrouble
from ...installation.locate import Installation, read_version
from ...samplers.protocols import SearchError
from ..gpus import on_gpu
from .pool import LinkLost

TOKEN_VARIABLE = "TESTTIME_WORKER"
"""Set in a ComfyUI that is a worker: what its driver shows with every question."""
TOKEN_HEADER = "X-Testtime-Token"
ASK, STATE, RELEASE = "/testtime/worker/ask", "/testtime/worker", "/testtime/worker/release"
END = "testtime_end"
"""Id of a node behind the one that searches: the host wants an output. It is never executed."""
POLL_SECONDS = 0.1
LARGEST_MIB = 65536


def worker_prompt(prompt: Mapping[str, Any], node: str) -> dict[str, Any]:
    """What a worker executes: a node of an API-format workflow and everything upstream of it."""
    wanted, waiting = set(), [node]
    while waiting:
        key = waiting.pop()
        if key in wanted:
            continue
        wanted.add(key)
        links = [value for value in prompt[key]["inputs"].values() if isinstance(value, list) and len(value) == 2]
        waiting += [str(source) for source, _ in links if str(source) in prompt]
    kept: dict[str, Any] = {key: prompt[key] for key in prompt if key in wanted}
    return {**kept, END: {"class_type": "PreviewAny", "inputs": {"source": [node, 0]}}}


class ComfyLink:
    """A ComfyUI of our own that serves one workflow at a time. It stays between searches, see ``end``.

    Args:
        number: counted from 0; it gets a GPU of its own where there are several.
        options: how to start it. root: of the ComfyUI, None to find one.

    Attributes:
        prompt: what it shall execute, see ``worker_prompt``.
    """

    def __init__(self, number: int, options: HeadlessOptions, root: Path | None = None):
        self.number, self.options, self.root, self.name = number, options, root, f"comfyui-{number}"
        self.prompt: dict[str, Any] = {}
        self.server: HeadlessComfyUI | None = None
        self._token = ""
        self._served: tuple[str, str] | None = None

    def start(self) -> None:
        """See ``Link``: the process where there is none, then the workflow where it is another one."""
        try:
            if self.server is None or not self.server.running():
                self._launch()
            self._serve(json.dumps(self.prompt, sort_keys=True))
        except ServerTrouble as error:
            raise LinkLost(str(error)) from error

    def ask(self, data: bytes) -> bytes:
        """See ``Link``."""
        status, answer = self._request("POST", ASK, data)
        if status != 200:
            raise LinkLost(f"it does not serve any more (status {status}){self._why()}")
        return answer

    def close(self) -> None:
        """Nothing: the process and its models stay for the next search."""

    def end(self) -> None:
        """End the process."""
        server, self.server, self._served = self.server, None, None
        if server is not None:
            server.stop()

    def _launch(self) -> None:
        self.end()
        self._token = secrets.token_hex(16)
        environment = (*self.options.environment, (TOKEN_VARIABLE, self._token))
        arguments = (*self.options.arguments, "--max-upload-size", str(LARGEST_MIB))
        options = on_gpu(replace(self.options, environment=environment, arguments=arguments), self.number)
        found = None if self.root is None else Installation(self.root, "the driver", read_version(self.root))
        self.server = HeadlessComfyUI(options, found)
        self.server.start()

    def _serve(self, text: str) -> None:
        """Execute the workflow until its search node answers."""
        if self._served is not None and self._served[0] == text and self._state() == self._served[1]:
            return
        self._served = None
        self._request("POST", RELEASE)
        status, body = self._request("POST", "/prompt", json.dumps({"prompt": self.prompt}).encode())
        told = json.loads(body)
        if status != 200:
            refused = explain_refusal(told, self.prompt).removeprefix("ComfyUI refuses the workflow:\n").strip()
            raise SearchError(f"{self.name} cannot run this workflow: {refused}")
        while self._state() != told["prompt_id"]:
            failed = self._failure(told["prompt_id"])
            if failed:
                raise SearchError(f"{self.name}: {failed}")
            time.sleep(POLL_SECONDS)
        self._served = (text, told["prompt_id"])

    def _state(self) -> str | None:
        """Id of the prompt whose search node waits for questions."""
        status, body = self._request("GET", STATE)
        if status != 200:
            raise SearchError(f"{self.name} does not know how to be a worker: its pack is of another version")
        return json.loads(body)["serves"]

    def _failure(self, prompt_id: str) -> str:
        """Why a prompt has ended, "" while it has not."""
        ended = json.loads(self._request("GET", f"/history/{prompt_id}")[1]).get(prompt_id)
        if ended is None:
            return ""
        for kind, data in ended.get("status", {}).get("messages", []):
            if kind == "execution_error":
                return explain_failure(data)
        return "the workflow came to its end without a search"

    def _why(self) -> str:
        if self._served is None:
            return ""
        with contextlib.suppress(LinkLost):
            return f": {self._failure(self._served[1])}"
        return ""

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """(status, body). Raises LinkLost."""
        if self.server is None:
            raise LinkLost("it is not started")
        connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc)
        kind = "application/json" if path == "/prompt" else "application/octet-stream"
        try:
            connection.request(method, path, body, {TOKEN_HEADER: self._token, "Content-Type": kind})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            with contextlib.suppress(subprocess.TimeoutExpired, AttributeError):
                self.server.process.wait(timeout=5)  # type: ignore[union-attr]
            raise LinkLost(f"the process ended ({error or type(error).__name__})") from error
        finally:
            connection.close()
