"""A journal of a run on the disk: enough to go on from after the process was killed.

A line of JSON for every step (who descends from whom by which noise slot, and the scores), appended and flushed as the
run goes, and beside it the latents of the best so far, replaced whole. The first line holds seed, plan and settings,
one near the end how the run ended; a journal without that line is of a process that did not come to it.

A journal never costs a run: what cannot be written is logged once and left out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from ... import __version__
from ...installation.files import write_bytes
from ..protocols import SearchResult
from .keeping import Finalists
from .trace import SCHEMA_VERSION, StepRecord, plain

log = logging.getLogger("testtime")

FORMAT = "testtime-journal"
FOLDER = "testtime"
"""Name of the folder of journals inside a host's output folder."""
SUFFIX = ".jsonl"
LATENTS = ".latent"
"""Ending of the file of the best latents, which ComfyUI's Load Latent reads."""
KEPT = 16
"""Journals of a folder; older ones are removed when a new one begins."""
LARGEST = 64 << 20
"""Bytes of a journal's text; later steps are left out of it, while the latents are still kept."""
SHARE = 0.02
"""Share of a run's time that writing latents may take; they are written more rarely where it would be more."""

PROCESS = secrets.token_hex(8)
"""Stands for this process: numbers of processes are used again, in a container at every start."""

STREAM = "stream_{}"
"""Names of further tensors of latents that are several streams (sound beside a clip), from 1."""

ToGraph = Callable[[Tensor, str], Any]
"""``(latents [n, ...], status) -> latents`` as they are to be stored: a tensor, or several with an ``unbind``."""


class Journal:
    """The journal of one run.

    Args:
        folder: where journals lie; it is made.
        facts: what the trace's meta will say of the run and does not know at its beginning (cfg, place in a batch).
        to_graph: the search's latents as they are to be stored; None stores them as they are.
    """

    def __init__(self, folder: Path | str, facts: Mapping[str, Any] | None = None, to_graph: ToGraph | None = None):
        self.path = Path(folder) / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}{SUFFIX}"
        self._facts, self._to_graph = dict(facts or {}), to_graph or (lambda latents, _status: latents)
        self._file: IO[str] | None = None
        self._bytes = 0
        self._next_latents = 0.0

    def begin(self, seed: int, meta: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Write the head and remove the oldest journals.

        Args:
            seed: of the run. meta: of its trace, as far as it is known. plan: its settings.
        """
        head = {
            "format": FORMAT,
            "version": __version__,
            "schema": SCHEMA_VERSION,
            "seed": seed,
            "plan": plan,
            "meta": {**meta, **self._facts},
            "started": time.time(),
            "process": {"host": socket.gethostname(), "pid": os.getpid(), "token": PROCESS},
        }
        with _Harmless(self):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            prune(self.path.parent, KEPT - 1)
            self._file = self.path.open("a", encoding="utf-8")
            lock(self._file)  # given back by the system, whatever ends this process
            self._line(head)

    def add(self, record: StepRecord, best: Callable[[], Finalists | None]) -> None:
        """Note a step, and now and then the latents of the best so far."""
        if self._file is None:
            return
        with _Harmless(self):
            found = best()
            winners = [] if found is None else found.node.tolist()
            if self._bytes < LARGEST:
                self._line({"record": asdict(record), "best": winners})
            if found is not None and time.monotonic() >= self._next_latents:
                self._write_latents(found.latents, winners, "interrupted")

    def select(self, particles: Sequence[int]) -> None:
        """Note that particles (ids) were selected after their step was written down."""
        if self._file is not None:
            with _Harmless(self):
                self._line({"selected": list(particles)})

    def end(self, status: str, meta: Mapping[str, Any], result: SearchResult | None) -> None:
        """Note how the run ended, with what it hands out, and close the file."""
        if self._file is None:
            return
        with _Harmless(self):
            if result is not None:
                self._write_latents(result.latents, list(meta.get("winners", [])), result.status)
            self._line({"end": status, "meta": dict(meta)})
        self.close()

    def drop(self) -> None:
        """Remove it: the run ended before there was anything to recover."""
        self.close()
        with _Harmless(self):
            self.path.with_suffix(LATENTS).unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def deliver(self) -> None:
        """Note that whoever asked for the run has got and kept what it found: there is nothing to recover."""
        with _Harmless(self):
            if self.path.exists():
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"delivered": True}) + "\n")

    def close(self) -> None:
        """Close the file without a word; a run that is cut off so is one that was killed."""
        if self._file is not None:
            with _Harmless(self):
                self._file.close()
        self._file = None

    def _line(self, body: Mapping[str, Any]) -> None:
        assert self._file is not None
        text = json.dumps(plain(body), allow_nan=False, default=repr) + "\n"
        self._file.write(text)
        self._file.flush()  # what was handed to the system outlives the process
        self._bytes += len(text)

    def _write_latents(self, latents: Tensor, particles: Sequence[int], status: str) -> None:
        begun = time.monotonic()
        found = self._to_graph(latents, status)
        stored = [
            stream.detach().float().cpu().contiguous()
            for stream in ([found] if isinstance(found, Tensor) else found.unbind())
        ]
        named = {"latent_tensor": stored[0], "latent_format_version_0": torch.tensor([])}
        named |= {STREAM.format(place): stream for place, stream in enumerate(stored[1:], 1)}
        note = {"particles": json.dumps(list(particles)), "testtime": self.path.name}
        write_bytes(self.path.with_suffix(LATENTS), safetensors.torch.save(named, note))
        now = time.monotonic()
        self._next_latents = now + (now - begun) / SHARE


class _Harmless:
    """What goes wrong inside is logged and ends the journal, not the run."""

    def __init__(self, journal: Journal):
        self._journal = journal

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> bool:
        if not isinstance(error, Exception):
            return False
        file, self._journal._file = self._journal._file, None
        log.warning(
            "the journal %s cannot be written (%s: %s): after a crash this run could not be recovered",
            self._journal.path,
            type(error).__name__,
            error,
        )
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
        return True


def lock(file: IO[Any]) -> bool:
    """Lock a journal that is being written; False where another one has the lock. Where there are no locks: True."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def journals(folder: Path | str) -> list[Path]:
    """The journals in a folder, newest first; none where it cannot be read."""
    try:
        found = [(path.stat().st_mtime_ns, path) for path in Path(folder).glob("*" + SUFFIX)]
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)]


def prune(folder: Path, keep: int) -> None:
    """Remove all journals of a folder but the newest ``keep``, with their latents."""
    for path in journals(folder)[keep:]:
        for file in (path.with_suffix(LATENTS), path):
            file.unlink(missing_ok=True)
