"""The search while it runs, for the front end: records and thumbnails as messages, and a store for tabs that come late.

The sampling thread only turns previews into bytes; shrinking, encoding and sending happen on a thread of their own,
behind a bounded queue that gives up thumbnails before it makes the search wait.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...reports.messages import compact
from ...reports.names import method_name
from ...reports.thumbs import film, thumbnail
from ...samplers.frames import still
from ...samplers.protocols import State
from ...samplers.run.notes import brief
from ...samplers.run.trace import StepRecord, Trace
from .audience import OFF, audience, may_see, queued_by, sender

log = logging.getLogger("testtime")

RUNS_KEPT = 4
THUMB_SIDE = 96
THUMBS_PER_STEP = 64
THUMB_BYTES_PER_RUN = 24_000_000
CLIP_BYTES_PER_RUN = 24_000_000
QUEUE = 6  # steps whose thumbnails may wait
SCHEMA = 1


def shown_rows(record: StepRecord, limit: int = THUMBS_PER_STEP) -> list[int]:
    """Rows that get a thumbnail: all, or the ``limit`` best where there are more."""
    rows = list(range(len(record.particles)))
    if len(rows) <= limit:
        return rows
    scores = [e["score"] if e["score"] is not None else float("-inf") for e in record.particles]
    return sorted(sorted(rows, key=lambda row: -scores[row])[:limit])


def as_bytes(images: Tensor) -> Tensor:
    """uint8 on the CPU of images ``[n, ..., H, W, 3]`` in 0..1: a quarter of the memory, and a copy of its own."""
    return (images.detach() * 255).round_().clamp_(0, 255).to(torch.uint8).cpu()


def quick_thumbnail(pixels: Tensor, side: int = THUMB_SIDE) -> str:
    """``reports.thumbs.thumbnail`` of uint8 ``[H, W, 3]``, averaged instead of filtered: half the time."""
    return thumbnail(pixels.numpy(), side, 80, Image.Resampling.BOX)


class LiveStore:
    """The latest runs, as a tab that is opened or reloaded needs them. Thread-safe, bounded in runs and thumbnails."""

    def __init__(self, kept: int = RUNS_KEPT):
        self._enabled = True
        self._owners: dict[str, str | None] = {}
        self._runs: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self._clips: dict[str, dict[tuple[int, int], bytes]] = {}
        self._kept = kept
        self._lock = threading.Lock()

    @property
    def enabled(self) -> bool:
        """Whether searches are shown; ``TESTTIME_PANEL=off`` overrules the setting."""
        return self._enabled and audience() != OFF

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value

    def begin(self, run: dict[str, Any], owner: str | None = None) -> None:
        """A run begins, queued by the window ``owner``; the oldest one beyond ``kept`` is dropped."""
        with self._lock:
            self._runs[run["run"]] = {**run, "records": [], "status": "running"}
            self._bytes[run["run"]] = 0
            self._owners[run["run"]] = owner
            while len(self._runs) > self._kept:
                name, _ = self._runs.popitem(last=False)
                self._bytes.pop(name, None)
                self._clips.pop(name, None)
                self._owners.pop(name, None)

    def add(self, run: str, record: dict[str, Any]) -> None:
        """A step; thumbnails are kept while the run's allowance lasts."""
        with self._lock:
            if run not in self._runs:
                return
            size = sum(len(text) for text in record["thumbs"] or () if text)
            if self._bytes[run] + size > THUMB_BYTES_PER_RUN:
                record, size = {**record, "thumbs": None}, 0
            self._bytes[run] += size
            self._runs[run]["records"].append(record)

    def keep_clips(self, run: str, index: int, clips: dict[int, bytes]) -> list[int]:
        """Keep moving pictures of rows of a step, as many as the run's allowance has room for; those that are kept."""
        with self._lock:
            if run not in self._runs:
                return []
            known = self._clips.setdefault(run, {})
            left = CLIP_BYTES_PER_RUN - sum(map(len, known.values()))
            kept = []
            for row, clip in clips.items():
                if len(clip) <= left:
                    known[index, row], left = clip, left - len(clip)
                    kept.append(row)
            return kept

    def clip(self, run: str, index: int, row: int) -> bytes | None:
        """The moving picture of a row of a step, None where there is none."""
        with self._lock:
            return self._clips.get(run, {}).get((index, row))

    def end(self, run: str, fields: dict[str, Any]) -> None:
        """The run is over."""
        with self._lock:
            if run in self._runs:
                self._runs[run].update(fields)

    def listing(self, client: str | None = None) -> list[dict[str, Any]]:
        """Runs that the window ``client`` may see, without their records, newest last."""
        with self._lock:
            shown = [run for name, run in self._runs.items() if may_see(self._owners[name], client)]
            return [{key: value for key, value in run.items() if key != "records"} for run in shown]

    def snapshot(self, run: str) -> dict[str, Any] | None:
        """Everything about a run so far, or None if it is not kept."""
        with self._lock:
            found = self._runs.get(run)
            return None if found is None else {**found, "records": list(found["records"])}

    def shows(self, run: str, client: str | None) -> bool:
        """Whether the window ``client`` may see a run; one that is not kept is nobody's."""
        with self._lock:
            return may_see(self._owners.get(run), client)


store = LiveStore()


class LiveRun:
    """Listener of one search: shows it in every open tab. Create one per run, ``finish`` it in any case.

    Args:
        about: method, title, prompts, verifier, budgets: what the panel's heading says. The title is that of the
            method where it is not given.
        sink: ``(event, payload)`` that sends a message; None sends to the windows that may see this run.

    Attributes:
        process: what is searched, for its ledger; set when it is known.
    """

    def __init__(self, about: dict[str, Any], sink=None):
        self.run = uuid.uuid4().hex[:12]
        owner = queued_by()
        self._send = sink or sender(owner)
        self._trace = Trace()  # the records so far, which say who won
        self.process: Any = None
        self._waiting: queue.Queue = queue.Queue()
        title = method_name(str(about.get("method", "search")))
        start = {"schema": SCHEMA, "run": self.run, "started": time.time(), **place(), "title": title, **about}
        store.begin(start, owner)
        self._send("testtime.start", start)
        self._thread = threading.Thread(target=self._work, name="testtime-live", daemon=True)
        self._thread.start()

    def __call__(self, record: StepRecord, state: State, images: Tensor | None) -> None:
        """See ``samplers.run.trace.Listener``."""
        message = compact(record, len(self._trace.records), self._costs())
        self._trace.add(record, state)
        rows, pixels = [], None
        if images is not None and self._waiting.qsize() < QUEUE:
            rows = shown_rows(record)
            pixels = as_bytes(images[torch.tensor(rows)] if len(rows) < len(images) else images)
        self._waiting.put((message, rows, pixels))

    def finish(self, status: str, warnings: Sequence[str], winners: Sequence[int] | None = None) -> None:
        """Tell the tabs that the run is over, after everything that still waits.

        Args:
            status: how it ended; warnings: for the user, cut to one line each.
            winners: particle ids of the winners, an image each; None takes those of the last record.
        """
        self._waiting.put(None)
        self._thread.join(timeout=5.0)
        if winners is None:
            winners = [entry["id"] for entry in self._trace.winners()]
        fields = {"status": status, "warnings": [brief(text) for text in warnings], "winners": list(winners)}
        fields["ledger"] = self._costs()
        store.end(self.run, fields)
        self._send("testtime.end", {"run": self.run, **fields})

    def _costs(self) -> dict[str, Any]:
        return {} if self.process is None else self.process.ledger.to_dict()

    def _work(self) -> None:
        while True:
            item = self._waiting.get()
            if item is None:
                return
            message, rows, pixels = item
            if pixels is not None:
                thumbs: list[str | None] = [None] * len(message["particles"])
                for row, picture in zip(rows, still(pixels), strict=True):
                    thumbs[row] = quick_thumbnail(picture)
                message["thumbs"] = thumbs
                if pixels.dim() == 5:
                    clips = {row: film(clip.numpy()) for row, clip in zip(rows, pixels, strict=True)}
                    kept = store.keep_clips(self.run, message["index"], clips)
                    message["clips"] = [int(row in kept) for row in range(len(thumbs))]
            store.add(self.run, message)
            self._send("testtime.step", {"run": self.run, **message})


def place() -> dict[str, Any]:
    """Which prompt and node is executing, where the host says so."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return {"prompt_id": None, "node": None}
    context = get_executing_context()
    return {"prompt_id": getattr(context, "prompt_id", None), "node": getattr(context, "node_id", None)}
