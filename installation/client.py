"""A client of a running ComfyUI: queue an API-format workflow, follow it, fetch what it saved.

Everything goes through the server's public routes (/system_stats, /object_info, /prompt, /ws, /history, /view,
/interrupt, /queue, /upload/image), so a server of any kind will do: local, headless, or on another machine.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from .answers import explain_failure, explain_refusal
from .comfyui import check_version
from .errors import BadInput, ServerTrouble, WorkflowFailed
from .files import write_bytes
from .locate import MINIMUM_VERSION, parse_version

# Keys of a node's UI output that hold lists of files.
FILE_KEYS = ("filename", "subfolder", "type")
POLL_SECONDS = 5.0


@dataclass
class RunResult:
    """What a run left: ``files`` (paths on this machine) and ``texts`` (node id -> lines), both in order of arrival."""

    prompt_id: str
    files: list[Path] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    outputs: dict[str, dict] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)


def websocket_url(url: str, client_id: str) -> str:
    """``http://host:1234`` -> ``ws://host:1234/ws?clientId=...``."""
    return f"ws{url.removeprefix('http')}/ws?clientId={client_id}"


def normalise_url(url: str) -> str:
    """``host:8188`` and ``http://host:8188/`` -> ``http://host:8188``. Raises ``BadInput`` for other schemes."""
    full = url if "://" in url else f"http://{url}"
    if not full.startswith(("http://", "https://")) or not urlsplit(full).netloc:
        raise BadInput(f"--server {url or repr(url)}: expected an address such as http://127.0.0.1:8188")
    return full.rstrip("/")


class ComfyClient:
    """One connection to a server, as an async context manager.

    ``alive``: says whether the server process is still running, and what it last said (for a server of our own).
    """

    def __init__(self, url: str, alive: Callable[[], str | None] | None = None):
        self.url = normalise_url(url)
        self.client_id = uuid.uuid4().hex
        self.version = ""
        """Of the ComfyUI that answered, once connected."""
        self._alive = alive
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ComfyClient:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300))
        try:
            await self._check()
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, *exception) -> None:
        await self._session.close()

    def trouble(self, what: str) -> ServerTrouble:
        """The error for a server that stopped answering, with its last words when it is ours."""
        last_words = self._alive() if self._alive else None
        ending = f" Its last words:\n{last_words}" if last_words else ""
        return ServerTrouble(f"{what}.{ending}")

    async def _json(self, method: str, path: str, **arguments) -> tuple[int, Any]:
        try:
            async with self._session.request(method, self.url + path, **arguments) as response:
                text = await response.text()
                status = response.status
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise self.trouble(f"ComfyUI at {self.url} does not answer ({error or type(error).__name__})") from error
        try:
            return status, json.loads(text) if text else None
        except json.JSONDecodeError:
            raise ServerTrouble(
                f"{self.url}{path} answered status {status} with something that is not JSON: is this a ComfyUI?"
            ) from None

    async def _check(self) -> None:
        status, stats = await self._json("GET", "/system_stats")
        if status != 200 or not isinstance(stats, dict) or "system" not in stats:
            raise ServerTrouble(f"{self.url} is not a ComfyUI server (/system_stats answered status {status})")
        self.version = str(stats["system"].get("comfyui_version", ""))
        check_version(self.version, f"ComfyUI at {self.url}", parse_version(self.version) >= MINIMUM_VERSION)

    async def object_info(self) -> dict:
        """The definitions of all nodes the server knows."""
        return (await self._json("GET", "/object_info"))[1]

    async def upload(self, path: Path) -> str:
        """Send an image into the server's input folder; returns the name to use in Load Image."""
        if not path.is_file():
            raise BadInput(f"{path}: no such file to upload")
        form = aiohttp.FormData()
        form.add_field("image", path.read_bytes(), filename=path.name)
        status, answer = await self._json("POST", "/upload/image", data=form)
        if status != 200:
            raise BadInput(f"{path}: the server refused the upload (status {status})")
        return str(PurePosixPath(answer.get("subfolder", "")) / answer["name"])

    async def queue(self, workflow: dict, extra_pnginfo: dict | None = None) -> str:
        """Queue an API-format workflow; returns its prompt id. Raises ``BadInput`` with the server's node errors."""
        body: dict[str, Any] = {"prompt": workflow, "client_id": self.client_id}
        if extra_pnginfo:
            body["extra_data"] = {"extra_pnginfo": extra_pnginfo}
        status, answer = await self._json("POST", "/prompt", json=body)
        if status != 200:
            raise BadInput(explain_refusal(answer or {}, workflow))
        return answer["prompt_id"]

    async def interrupt(self, prompt_id: str) -> None:
        """Stop a prompt whether it is waiting or running."""
        await self._json("POST", "/queue", json={"delete": [prompt_id]})
        await self._json("POST", "/interrupt", json={"prompt_id": prompt_id})

    async def history(self, prompt_id: str) -> dict | None:
        """The server's record of a finished prompt, or None while it is not finished."""
        return (await self._json("GET", f"/history/{prompt_id}"))[1].get(prompt_id)

    async def fetch(self, reference: dict, folder: Path) -> Path:
        """Save a file that a node reported ({filename, subfolder, type}) under ``folder``; never overwrites."""
        name = PurePosixPath(str(reference["filename"]).replace("\\", "/")).name
        try:
            async with self._session.get(
                f"{self.url}/view", params={key: reference.get(key, "") for key in FILE_KEYS}
            ) as response:
                content = await response.read() if response.status == 200 else None
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise self.trouble(f"ComfyUI at {self.url} went away while {name} was fetched ({error})") from error
        if content is None:
            raise WorkflowFailed(f"the server reported {name} but could not deliver it")
        target = unused_path(folder / name)
        try:
            write_bytes(target, content)
        except OSError as error:
            raise WorkflowFailed(f"{target} cannot be written ({error})") from error
        return target

    async def follow(self, workflow: dict, listener: Listener, extra_pnginfo: dict | None = None) -> str:
        """Queue a workflow and hand its events to ``listener`` until it ends; returns the prompt id.

        When the task is cancelled (Ctrl-C), the prompt is interrupted on the server before the cancellation goes on.
        Raises ``WorkflowFailed`` when a node fails, ``ServerTrouble`` when the server goes away.
        """
        try:
            socket = await self._session.ws_connect(
                websocket_url(self.url, self.client_id), max_msg_size=0, heartbeat=30
            )
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise self.trouble(f"ComfyUI at {self.url} does not accept a websocket ({error})") from error
        async with socket:
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            prompt_id = await self.queue(workflow, extra_pnginfo)
            try:
                await self._events(socket, prompt_id, listener)
            except asyncio.CancelledError:
                await asyncio.shield(self.interrupt(prompt_id))
                raise
        return prompt_id

    async def _events(self, socket: aiohttp.ClientWebSocketResponse, prompt_id: str, listener: Listener) -> None:
        while True:
            try:
                message = await socket.receive(timeout=POLL_SECONDS)
            except asyncio.TimeoutError:
                # A message can get lost (another client with our id, a proxy); the history cannot.
                if await self.history(prompt_id) is not None:
                    return
                continue
            if message.type in (
                aiohttp.WSMsgType.CLOSE,
                aiohttp.WSMsgType.CLOSING,
                aiohttp.WSMsgType.CLOSED,
                aiohttp.WSMsgType.ERROR,
            ):
                raise self.trouble(f"ComfyUI at {self.url} went away while the workflow was running")
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            data = event.get("data") or {}
            if data.get("prompt_id") not in (None, prompt_id):
                continue
            await listener.on_event(event["type"], data)
            if event["type"] == "execution_error":
                raise WorkflowFailed(explain_failure(data), str(data.get("exception_type") or ""))
            if event["type"] == "execution_interrupted":
                raise WorkflowFailed("the run was interrupted on the server")
            if event["type"] == "execution_success" or (event["type"] == "executing" and data.get("node", "") is None):
                return


class Listener:
    """Receives the server's events of one prompt; the default ignores them."""

    async def on_event(self, kind: str, data: dict) -> None:
        """``kind`` is the message type (executing, progress_state, executed, ...), ``data`` its payload."""


def unused_path(path: Path) -> Path:
    """``path``, or the first of ``stem-2``, ``stem-3``, ... that does not exist."""
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


def file_references(output: dict) -> list[dict]:
    """All {filename, subfolder, type} entries in a node's UI output."""
    lists = [value for value in output.values() if isinstance(value, list)]
    return [entry for entries in lists for entry in entries if isinstance(entry, dict) and "filename" in entry]


def text_lines(output: dict) -> list[str]:
    """The text a node shows (``ui.PreviewText`` and kin)."""
    text = output.get("text", [])
    return [str(line) for line in (text if isinstance(text, (list, tuple)) else [text])]
