"""Slots that are processes of the library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..gpus import gpu_environment
from .dispatch import Job, RowError, WorkerLost

LONGEST_ANSWER = 1 << 20
START_SECONDS = 300.0


class LibrarySlot:
    """A process that runs rows of the library, and is started again when it dies.

    Args:
        number: counted from 0; it gets a GPU of its own where there are several. timeout: seconds for a row, or None.
    """

    def __init__(self, number: int, timeout: float | None = None):
        self.number, self.timeout = number, timeout
        self._process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        """With the process id, as soon as there is one."""
        return f"worker-{self.number}" + ("" if self._process is None else f" (process {self._process.pid})")

    async def open(self) -> None:
        """Start the process and wait until it answers."""
        environment = {**os.environ, **gpu_environment(self.number)}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "testtime.scale.batch.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            limit=LONGEST_ANSWER,
            start_new_session=os.name != "nt",  # Ctrl-C is for the driver, which lets rows finish
        )
        await self._answer(START_SECONDS)

    async def run(self, job: Job, folder: Path) -> dict[str, Any]:
        """Run a row of ``library.work_of``."""
        process = self._process
        assert process is not None and process.stdin is not None
        process.stdin.write((json.dumps({"work": job.work, "folder": str(folder.absolute())}) + "\n").encode())
        answer = await self._answer(self.timeout)
        if answer.get("fatal"):
            raise WorkerLost(answer["error"])  # memory is not given back for sure: a fresh process tries again
        if "error" in answer:
            raise RowError(answer["error"], final=answer["final"])
        return answer["facts"]

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()

    async def _answer(self, seconds: float | None) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), seconds)
        except asyncio.TimeoutError:
            raise WorkerLost(f"no answer within {seconds:g} s") from None
        if not line.endswith(b"\n"):
            status = await process.wait()
            raise WorkerLost(f"the process ended (status {status})")
        return json.loads(line)
