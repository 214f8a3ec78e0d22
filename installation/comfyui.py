"""Start a ComfyUI without a window, wait until it answers, and stop it.

Nothing is written into the user's installation: outputs, inputs, temporary files, user data and the database go into a
folder of their own, and this pack becomes visible through an extra model-paths file whose ``custom_nodes`` entry points
at a folder with one link to it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ServerTrouble
from .files import write_text
from .lifeline import ENDS_WITH_STDIN
from .locate import MINIMUM_VERSION, PACK_ROOT, Installation, explain_missing, find_comfyui, find_python

logger = logging.getLogger("testtime")

# The name of the link to this pack, which is also its name in --whitelist-custom-nodes.
PACK_LINK = "testtime"
LOG_TAIL_LINES = 25


@dataclass(frozen=True)
class HeadlessOptions:
    """How to start ComfyUI.

    Attributes:
        only_this_pack: leave other custom nodes out (faster, and independent of what the user has installed).
        arguments: further command line arguments of ComfyUI's ``main.py``.
        start_timeout: seconds to wait until the server answers.
        directory: folder for outputs, inputs, user data and the log; default: a temporary one, removed on ``stop``.
        environment: variables for the process, such as ("CUDA_VISIBLE_DEVICES", "1").
        like: command line of a ComfyUI to start another of, by the same interpreter: models, packs and memory as there.
            Its folders for outputs, user data and temporary files are left alone.
    """

    only_this_pack: bool = False
    arguments: tuple[str, ...] = ()
    start_timeout: float = 300.0
    directory: Path | None = None
    environment: tuple[tuple[str, str], ...] = ()
    like: tuple[str, ...] | None = None


def require_comfyui() -> Installation:
    """The ComfyUI to use. Raises ``ServerTrouble`` when there is none or it is too old."""
    installation = find_comfyui()
    if installation is None:
        raise ServerTrouble(explain_missing())
    check_version(installation.version, f"ComfyUI in {installation.root}", installation.supported)
    return installation


def check_version(version: str, what: str, supported: bool) -> None:
    """Raise ``ServerTrouble`` with one clear line unless ``supported``."""
    if not supported:
        needed = ".".join(map(str, MINIMUM_VERSION))
        raise ServerTrouble(f"{what} is version {version or 'unknown'}; {needed} or newer is needed. Update ComfyUI.")


def free_port() -> int:
    """A TCP port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_folder(link: Path, target: Path) -> None:
    """Make ``link`` point at the folder ``target``: a symbolic link, or a junction where Windows forbids those."""
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        if os.name != "nt":
            raise
        import _winapi

        _winapi.CreateJunction(str(target), str(link))


def has_cuda(python: Path) -> bool:
    """Whether PyTorch in ComfyUI's interpreter sees an accelerator (CUDA, ROCm, Apple)."""
    code = (
        "import torch; accelerator = torch.cuda.is_available() or torch.backends.mps.is_available();"
        "raise SystemExit(0 if accelerator else 1)"
    )
    return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


OWN = {"--cuda-device": 1, "--default-device": 1, "--tls-keyfile": 1, "--tls-certfile": 1, "--front-end-version": 1,
       "--auto-launch": 0, "--quick-test-for-ci": 0, "--enable-manager": 0}  # fmt: skip
"""Options that another ComfyUI must not have as well, and how many words follow them."""


def inherited(arguments: Sequence[str]) -> list[str]:
    """The options of a ComfyUI that another one may have as well; what comes later on a command line wins."""
    kept, skip = [], 0
    for word in arguments:
        name, equals, _ = word.partition("=")
        if skip:
            skip -= 1
        elif name in OWN:
            skip = 0 if equals else OWN[name]
        else:
            kept.append(word)
    return kept


class HeadlessComfyUI:
    """A ComfyUI process of our own, as a context manager.

    Attributes (after ``start``):
        url: ``http://127.0.0.1:PORT``.
        directory: its working folder, with ``output/``, ``input/``, ``user/``, ``temp/`` and ``comfyui.log``.
        process: the ``subprocess.Popen``.
    """

    def __init__(self, options: HeadlessOptions | None = None, installation: Installation | None = None):
        self.options = options or HeadlessOptions()
        self.installation = installation or require_comfyui()
        self.process: subprocess.Popen | None = None
        self.url = ""
        self._temporary = self.options.directory is None
        self.directory = self.options.directory

    def __enter__(self) -> HeadlessComfyUI:
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    @property
    def log_file(self) -> Path:
        """Everything the server printed."""
        return self.directory / "comfyui.log"

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of the log, for error messages."""
        try:
            text = self.log_file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process and return once it answers. Raises ``ServerTrouble`` with the tail of its log if not."""
        if self._temporary:
            self.directory = Path(tempfile.mkdtemp(prefix="testtime-comfyui-"))
        try:
            self._launch()
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process (politely, then by force) and remove the temporary folder."""
        if self.running():
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        if self._temporary and self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _pack_already_installed(self) -> bool:
        folder = self.installation.root / "custom_nodes"
        return folder.is_dir() and any(child.resolve() == PACK_ROOT for child in folder.iterdir())

    def _prepare_folder(self) -> Path:
        """Create the working folder; returns the extra model-paths file (JSON, which is YAML too)."""
        for name in ("output", "input", "user", "temp", "packs"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        link = self.directory / "packs" / PACK_LINK
        if not self._pack_already_installed() and not link.exists():
            link_folder(link, PACK_ROOT)
        paths = self.directory / "extra_model_paths.yaml"
        entry = {"testtime": {"custom_nodes": str(self.directory / "packs")}}
        write_text(paths, json.dumps(entry, indent=2))
        return paths

    def _command(self, python: Path, port: int) -> list[str]:
        paths = self._prepare_folder()
        like = self.options.like
        command = [str(python), "main.py", *([] if like is None else inherited(like))]
        command += ["--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
        if like is None:
            command += ["--extra-model-paths-config", str(paths)]
        for name in ("output", "input", "user", "temp"):
            command += [f"--{name}-directory", str(self.directory / name)]
        command += ["--database-url", f"sqlite:///{(self.directory / 'comfyui.db').as_posix()}"]
        if self.options.only_this_pack:
            names = {PACK_LINK, PACK_ROOT.name}
            command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", *sorted(names)]
            command += ["--disable-api-nodes"]
        if like is None and not has_cuda(python):
            command.append("--cpu")
        return command + list(self.options.arguments)

    def _launch(self) -> None:
        python = find_python(self.installation.root) if self.options.like is None else Path(sys.executable)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = self._command(python, port)
        logger.info("starting ComfyUI %s from %s", self.installation.version, self.installation.root)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", ENDS_WITH_STDIN: "1", **dict(self.options.environment)}
        # A session of its own: Ctrl-C in the terminal reaches us, and we tell the server what to do about it.
        own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.installation.root,
                env=environment,
                stdin=subprocess.PIPE,  # never written to: it closes when we end, see ENDS_WITH_STDIN
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=os.name != "nt",
                **own_group,
            )

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + self.options.start_timeout
        while time.monotonic() < deadline:
            if not self.running():
                raise ServerTrouble(
                    f"ComfyUI in {self.installation.root} ended while starting "
                    f"(exit status {self.process.returncode}). Set COMFYUI_PYTHON to the interpreter you normally "
                    f"start it with. Its last words:\n"
                    f"{self.log_tail()}"
                )
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
                urllib.request.urlopen(f"{self.url}/system_stats", timeout=5),
            ):
                return
            time.sleep(0.2)
        raise ServerTrouble(
            f"ComfyUI in {self.installation.root} did not answer within {self.options.start_timeout:.0f} s. "
            f"Its last words:\n{self.log_tail()}"
        )
