"""A batch from beginning to end: signals, progress, and what is left to be read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from ...installation.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_SERVER
from .dispatch import Dispatcher, Job, Patience, Slot
from .manifest import Manifest
from .rows import Row
from .summary import write_failed, write_index, write_page

log = logging.getLogger("testtime")
RECENT = 50


class Bar:
    """Progress on the terminal: done, set aside, images per minute and the time left at the pace of the last 50."""

    def __init__(self, total: int, manifest: Manifest, rows: Sequence[Row], quiet: bool):
        counts = [manifest.entry(row.key).status for row in rows]
        self.failed = counts.count("failed")
        self._ends: deque[float] = deque([time.monotonic()], maxlen=RECENT + 1)
        done = counts.count("done")
        self._bar = tqdm(
            total=total,
            initial=done + self.failed,
            unit="row",
            disable=quiet,
            file=sys.stderr,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}",
        )
        self._left = total - done - self.failed

    def __call__(self, kind: str) -> None:
        """See ``dispatch.Progress``."""
        if kind == "retry":
            return
        self._ends.append(time.monotonic())
        self._left -= 1
        self.failed += kind == "failed"
        self._bar.set_postfix_str(self.text(), refresh=False)
        self._bar.update()

    def text(self) -> str:
        """ "12.0 per minute, 3 min left, 1 set aside"."""
        spent = self._ends[-1] - self._ends[0]
        rate = (len(self._ends) - 1) / spent if spent > 0 else 0.0
        parts = [f"{60 * rate:.1f} per minute", f"{duration(self._left / rate)} left"] if rate else []
        return ", ".join([*parts, *([f"{self.failed} set aside"] if self.failed else [])])

    def close(self) -> None:
        """Leave the terminal tidy."""
        self._bar.close()


def duration(seconds: float) -> str:
    """A length of time in one or two words."""
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


def run_batch(
    manifest: Manifest,
    rows: Sequence[Row],
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    *,
    title: str,
    patience: Patience | None = None,
    quiet: bool = False,
) -> int:
    """Run what is not done yet, then write ``index.csv``, ``index.html`` and ``failed.csv``.

    Returns:
        exit status: 0 all done, 2 some rows were set aside, 3 no worker is left, 130 ended by Ctrl-C.
    """
    bar = Bar(len(rows), manifest, rows, quiet)
    dispatcher = Dispatcher(manifest, slots, patience, bar)
    interrupted = whole = False

    async def work() -> bool:
        with two_interrupts(dispatcher, asyncio.get_running_loop()):
            return await dispatcher.run(jobs)

    try:
        whole = asyncio.run(work())
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupted = True
    finally:
        bar.close()
        write_index(manifest, rows)
        write_failed(manifest, rows)
        write_page(manifest, rows, title)
        manifest.close()
    if interrupted or dispatcher.stopping:
        return EXIT_INTERRUPTED
    if not whole:
        log.error("no worker is left: %d rows are not done; the same command goes on from here", bar._left)
        return EXIT_SERVER
    return EXIT_BAD_INPUT if bar.failed else 0


@contextlib.contextmanager
def two_interrupts(dispatcher: Dispatcher, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) once: finish what runs; twice: stop now."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    task = asyncio.current_task()

    def told() -> None:
        if dispatcher.stopping:
            task.cancel()
        else:
            log.warning("finishing the rows that run; once more to stop at once")
            dispatcher.stop()

    names = [name for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), lambda *_: loop.call_soon_threadsafe(told)) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
