"""Workers on this machine: processes of the library, one per GPU, or in this process for tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable

from ..gpus import gpu_environment
from ..recipes import Recipe
from .pool import LinkLost
from .server import Server
from .share import RowWorkers
from .wire import pack, receive, send, unpack


class ProcessLink:
    """A worker process, started again when it dies.

    Args:
        number: counted from 0; it gets a GPU of its own where there are several.
    """

    def __init__(self, number: int):
        self.number, self.name = number, f"worker-{number}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """See ``Link``."""
        self.close()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "testtime.scale.rows.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **gpu_environment(self.number)},
                start_new_session=os.name != "nt",  # Ctrl-C is for the driver
            )
        except OSError as error:
            raise LinkLost(str(error)) from error

    def ask(self, data: bytes) -> bytes:
        """See ``Link``."""
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            raise LinkLost("it is not started")
        try:
            send(process.stdin, data)
            return receive(process.stdout)
        except (OSError, EOFError, ValueError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            raise LinkLost(f"the process ended (status {process.poll()})") from error

    def close(self) -> None:
        """See ``Link``."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class LocalWorkers(RowWorkers):
    """Processes of the library on this machine.

    Args:
        recipe: how each makes its model. count: processes, >= 1; each gets a GPU of its own where there are several.
        rows_per_call: see ``RowWorkers``.
    """

    def __init__(self, recipe: Recipe, count: int = 2, rows_per_call: int = 0):
        super().__init__([ProcessLink(number) for number in range(count)], recipe, rows_per_call)


class InlineLink:
    """A worker in this process, which may be told to die.

    Args:
        name: of it. server: makes the worker. dies: told the number of each question, counted from 1 over all lives;
            True: the worker dies instead of answering.
    """

    def __init__(self, name: str, server: Callable[[], Server], dies: Callable[[int], bool] = lambda _: False):
        self.name, self._make, self._dies = name, server, dies
        self._server: Server | None = None
        self.asked = 0

    def start(self) -> None:
        """See ``Link``."""
        self._server = self._make()

    def ask(self, data: bytes) -> bytes:
        """See ``Link``."""
        self.asked += 1
        if self._server is None or self._dies(self.asked):
            self._server = None
            raise LinkLost("told to die")
        return pack(self._server.answer(unpack(data)))

    def close(self) -> None:
        """See ``Link``."""
        self._server = None
