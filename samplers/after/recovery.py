"""What is left of a run after its process was killed: its journal as a trace, and the best latents that it had.

From there ``Origin.at(found.trace)`` goes on from the best particle, ``replay_of`` makes it again, and the latents are
what it looked like.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from ..run.journal import FORMAT, LARGEST, LATENTS, PROCESS, STREAM, journals, lock
from ..run.trace import Trace
from .trace_check import TraceFileError, check_schema, is_int, parsed
from .trace_file import trace_of

KILLED = "killed"
"""Status of a run whose process did not come to say how it ended."""
LATELY = 120.0
"""Seconds."""


@dataclass(frozen=True)
class Recovered:
    """A run as its journal has it.

    Attributes:
        path: of the journal.
        trace: the steps that were written; ``winners`` are the best so far.
        status: how it ended, ``KILLED`` where nothing says so.
        delivered: whether what it found is known to have arrived (images decoded and saved).
        started: seconds since 1970.
        plan: settings of the search.
        process: host, number and token of the process that ran it.
        latents: ``[G, ...]`` the best that was stored, None where there is none.
        streams: what belongs to them where a latent is several tensors: sound beside a clip, ``[G, ...]`` each.
        particles: ids of what the latents are of; they may be of a step before the last.
    """

    path: Path
    trace: Trace
    status: str
    delivered: bool = False
    started: float = 0.0
    plan: Mapping[str, Any] = field(default_factory=dict)
    process: Mapping[str, Any] = field(default_factory=dict)
    latents: Tensor | None = None
    particles: tuple[int, ...] = ()
    streams: tuple[Tensor, ...] = ()

    @property
    def step(self) -> int:
        """Steps that were written."""
        return self.trace.records[-1].step if self.trace.records else 0

    @property
    def steps(self) -> int:
        """Steps of the whole run, 0 where none was written."""
        return self.trace.records[-1].steps if self.trace.records else 0


def recover(path: Path | str) -> Recovered:
    """Read a journal, whose last line may be cut off, and the latents beside it.

    Raises:
        TraceFileError: no journal, one of a newer version, or damaged before its last line.
        OSError: no such file, or one that may not be read.
    """
    path = Path(path)
    if path.stat().st_size > 2 * LARGEST:
        raise TraceFileError(f"{path.name} has {path.stat().st_size >> 20} MB: a journal has at most {LARGEST >> 20}")
    lines = _lines(path)
    head, ended, delivered = _head(lines, path.name), None, False
    meta: dict[str, Any] = {}
    body: dict[str, Any] = {"schema": head.get("schema"), "seed": head.get("seed"), "records": []}
    for number, line in enumerate(lines[1:], start=2):
        if "record" in line:
            body["records"].append(line["record"])
            meta["winners"] = line.get("best") or meta.get("winners", [])
        elif "selected" in line:
            _select(body["records"], line["selected"])
        elif "end" in line:
            ended, meta = line["end"], {**meta, **_table(line.get("meta"))}
        elif "delivered" in line:
            delivered = line["delivered"] is True
        else:
            raise TraceFileError(f"{path.name} is damaged: line {number} is neither a step nor an end")
    status = ended if isinstance(ended, str) else KILLED
    body["meta"] = {name: value for name, value in {**_table(head.get("meta")), **meta}.items() if value is not None}
    body["meta"]["status"] = status
    trace = trace_of(body)
    latents, particles, streams = _latents(path.with_suffix(LATENTS))
    started = head.get("started")
    return Recovered(
        path,
        trace,
        status,
        delivered,
        float(started) if isinstance(started, int | float) else 0.0,
        _table(head.get("plan")),
        _table(head.get("process")),
        latents,
        particles,
        streams,
    )


def unfinished(folder: Path | str) -> list[Recovered]:
    """Runs in a folder that may hold something that nobody got, newest first; what cannot be read is left out.

    These are the ones whose results were not delivered. What is being written, and what this very process brought to
    its end, is left out.
    """
    found = []
    for path in journals(folder):
        try:
            run = recover(path)
        except (TraceFileError, OSError):
            continue
        mine = run.process.get("token") == PROCESS and run.status in ("complete", "budget")
        if not run.delivered and not mine and not (run.status == KILLED and _is_written(path)):
            found.append(run)
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal. What follows the last line break was cut off when the process died."""
    try:
        text = path.read_bytes().decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:  # a kill may cut a sign in two, but only in the last line
        text = error.object[: error.start].decode("utf-8")
        if b"\n" in error.object[error.start :]:
            raise TraceFileError(f"no journal: {path.name} is not a text file") from error
    whole = text.split("\n")[:-1]
    found = []
    for number, line in enumerate(whole, start=1):
        body = parsed(line, f"line {number} of {path.name}")
        if not isinstance(body, dict):
            raise TraceFileError(f"{path.name} is damaged: line {number} is no JSON object")
        found.append(body)
    return found


def _head(lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    if not lines or lines[0].get("format") != FORMAT:
        raise TraceFileError(f"no journal: {name} does not begin as this pack begins one")
    check_schema(lines[0])
    if not is_int(lines[0].get("seed")):
        raise TraceFileError(f"{name} is damaged: seed is not a whole number")
    return lines[0]


def _select(records: list[Any], particles: Any) -> None:
    wanted = {particle for particle in particles if is_int(particle)} if isinstance(particles, list) else set()
    for record in reversed(records):
        entries = record.get("particles") if isinstance(record, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and entry.get("id") in wanted:
                entry["selected"] = True


def _latents(path: Path) -> tuple[Tensor | None, tuple[int, ...], tuple[Tensor, ...]]:
    """Latents, their particles and further streams; nothing where there is no such file or a broken one."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            latents = file.get_tensor("latent_tensor")
            names = [STREAM.format(place) for place in range(1, len(list(file.keys())))]
            streams = tuple(file.get_tensor(name) for name in names if name in file.keys())  # noqa: SIM118 - no dict
            particles = json.loads((file.metadata() or {}).get("particles", "[]"))
    except (OSError, safetensors.SafetensorError, ValueError):
        return None, (), ()
    good = isinstance(particles, list) and all(map(is_int, particles)) and len(particles) == len(latents)
    return latents, tuple(particles) if good else (), streams


def _is_written(path: Path) -> bool:
    """Whether a process is at work on a journal: it holds a lock on it. On Windows: has written lately."""
    try:
        if os.name == "nt":
            return time.time() - path.stat().st_mtime < LATELY
        with path.open("rb") as file:
            return not lock(file)
    except OSError:
        return False


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
