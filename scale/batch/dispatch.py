"""The loop of a batch: who is free takes the next row; what fails is tried elsewhere; what always fails is set aside.

Attempts are made at least once, outputs exist exactly once: a worker writes into a folder of its attempt, and the
manifest renames the first that is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...samplers.run.notes import brief
from .manifest import Manifest

log = logging.getLogger("testtime")


class RowError(Exception):
    """A run of a row that failed. ``final``: it would fail everywhere, so that it is not tried again."""

    def __init__(self, message: str, final: bool = False):
        super().__init__(message)
        self.final = final


class WorkerLost(Exception):
    """The worker died or stopped answering, and must be opened again."""


@dataclass(frozen=True)
class Job:
    """One row, ready to run.

    Attributes:
        key: of its row. work: what the slot is handed. values: as the row's file had them, for the books.
    """

    key: str
    work: Any
    values: dict[str, Any]


class Slot(Protocol):
    """A place where one row runs at a time.

    Attributes:
        name: for messages and the manifest.
    """

    name: str

    async def open(self) -> None:
        """Start the worker. Raises WorkerLost."""
        ...

    async def run(self, job: Job, folder: Path) -> dict[str, Any]:
        """Run a row, files into ``folder``; facts for the manifest (score, nfe, ..). Raises RowError, WorkerLost."""
        ...

    async def close(self) -> None:
        """End the worker, whatever its state."""
        ...


@dataclass(frozen=True)
class Patience:
    """When to give up.

    Attributes:
        attempts: of a row, >= 1. backoff: seconds before the second, doubled for each further one.
        sick_after: different rows in a row that a worker fails before it rests. rest: seconds.
        opens: failed starts of a worker in a row before it is given up.
    """

    attempts: int = 3
    backoff: float = 1.0
    sick_after: int = 3
    rest: float = 60.0
    opens: int = 3


@dataclass
class Health:
    """How a worker is doing: rows in a row that it failed, how often it was rested, starts in a row that failed."""

    failed: list[str] = field(default_factory=list)
    rests: int = 0
    opens: int = 0


@dataclass
class Waiting:
    """A row that waits. ``after``: not before this time; ``tried``: ``id`` of slots that failed it."""

    job: Job
    after: float = 0.0
    tried: set[int] = field(default_factory=set)


Progress = Callable[[str], None]
"""Told "done", "failed" or "retry" after each attempt."""


class Dispatcher:
    """Runs jobs on slots.

    Args:
        manifest: the books. slots: at least one. patience: when to give up. progress: see ``Progress``.
    """

    def __init__(
        self,
        manifest: Manifest,
        slots: Sequence[Slot],
        patience: Patience | None = None,
        progress: Progress = lambda _: None,
    ):
        self.manifest, self.slots, self.patience, self.progress = (
            manifest,
            list(slots),
            patience or Patience(),
            progress,
        )
        self.stopping = False
        self._waiting: deque[Waiting] = deque()
        self._running = 0
        self._alive: set[int] = set()
        self._changed = asyncio.Event()

    async def run(self, jobs: Sequence[Job]) -> bool:
        """Run all jobs that are not done or set aside; whether none is left over (workers may all be lost)."""
        self._waiting = deque(Waiting(job) for job in jobs if self.manifest.entry(job.key).status == "new")
        work = [asyncio.create_task(self._work(slot)) for slot in self.slots[: max(1, len(self._waiting))]]
        self._alive = {id(slot) for slot in self.slots[: len(work)]}
        try:
            await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        return not self._waiting

    def stop(self) -> None:
        """Finish what runs, begin nothing."""
        self.stopping = True
        self._changed.set()

    async def _work(self, slot: Slot) -> None:
        """The life of a slot: opened with the first row, opened again when lost, given up when sick."""
        health, opened = Health(), False
        try:
            while (waiting := await self._next(slot)) is not None:
                if not opened:
                    opened = await self._open(slot, health)
                    if not opened:
                        self._back(waiting)
                        if health.opens >= self.patience.opens:
                            log.warning("%s is given up: it does not start", slot.name)
                            return
                        continue
                opened = await self._attempt(slot, waiting, health)
                if len(health.failed) >= (self.patience.sick_after if not health.rests else 1):
                    if health.rests:
                        log.warning("%s is given up: rows keep failing on it", slot.name)
                        return
                    await self._rest(slot, health)
        finally:
            self._alive.discard(id(slot))
            self._changed.set()
            await slot.close()

    async def _open(self, slot: Slot, health: Health) -> bool:
        try:
            await slot.open()
        except WorkerLost as error:
            health.opens += 1
            log.warning("%s does not start: %s", slot.name, brief(str(error)))
            await slot.close()
            await asyncio.sleep(self.patience.backoff * 2 ** (health.opens - 1))
            return False
        health.opens = 0
        return True

    async def _attempt(self, slot: Slot, waiting: Waiting, health: Health) -> bool:
        """Run a row once; whether the slot is still open."""
        job, began = waiting.job, time.monotonic()
        folder = self.manifest.started(job.key, slot.name)
        self._running += 1
        try:
            facts = await slot.run(job, folder)
        except RowError as error:
            self._failed(slot, waiting, str(error), error.final)
            if not error.final:
                health.failed = [key for key in health.failed if key != job.key] + [job.key]
            return True
        except WorkerLost as error:
            self._failed(slot, waiting, str(error), False)
            health.failed = [key for key in health.failed if key != job.key] + [job.key]
            await slot.close()
            return False
        finally:
            self._running -= 1
            self._changed.set()
        seconds = round(time.monotonic() - began, 3)
        self.manifest.done(job.key, folder, job.values, {"worker": slot.name, "seconds": seconds, **facts})
        health.failed.clear()
        health.rests = 0
        self.progress("done")
        return True

    def _failed(self, slot: Slot, waiting: Waiting, error: str, final: bool) -> None:
        """Note it, and put the row back where it has attempts left."""
        job, past = waiting.job, self.manifest.entry(waiting.job.key).attempts + 1
        final = final or past >= self.patience.attempts
        self.manifest.failed_attempt(job.key, slot.name, error, final)
        log.warning("row %s failed on %s (attempt %d%s): %s", job.key, slot.name, past,
                    ", set aside" if final else "", brief(error))  # fmt: skip
        self.progress("failed" if final else "retry")
        if not final:
            waiting.tried.add(id(slot))
            waiting.after = time.monotonic() + self.patience.backoff * 2 ** (past - 1)
            self._waiting.append(waiting)

    async def _rest(self, slot: Slot, health: Health) -> None:
        log.warning(
            "%s failed %d rows in a row and rests for %.0f s", slot.name, len(health.failed), self.patience.rest
        )
        health.failed.clear()
        health.rests += 1
        ends = time.monotonic() + self.patience.rest
        while time.monotonic() < ends and not self.stopping and (self._waiting or self._running):
            await self._wait(min(1.0, self.patience.rest))

    def _back(self, waiting: Waiting) -> None:
        self._waiting.appendleft(waiting)
        self._changed.set()

    async def _next(self, slot: Slot) -> Waiting | None:
        """The next row for a slot; None when nothing is left for it to wait for."""
        while not self.stopping and (self._waiting or self._running):
            now = time.monotonic()
            for waiting in self._waiting:
                elsewhere = id(slot) in waiting.tried and not self._alive <= waiting.tried
                if waiting.after <= now and not elsewhere:
                    self._waiting.remove(waiting)
                    return waiting
            await self._wait(0.2 if self._waiting else None)
        return None

    async def _wait(self, seconds: float | None) -> None:
        """Until something changes, or for ``seconds``."""
        self._changed.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
