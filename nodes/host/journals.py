"""Where the host keeps journals of runs, and what of them an earlier server left behind."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ...samplers.after.recovery import Recovered, recover, unfinished
from ...samplers.after.trace_file import TraceFileError
from ...samplers.run.finished import FOLDER as FINISHED
from ...samplers.run.finished import FinishedCandidates
from ...samplers.run.journal import FOLDER, Journal, ToGraph, journals
from .compat import nested
from .results import HostResult
from .scores import Scores

log = logging.getLogger("testtime")

SWITCH = "TESTTIME_JOURNAL"
"""Environment variable: ``off``, or another folder than ``testtime`` inside ComfyUI's output folder."""


def journal_folder() -> Path | None:
    """Where journals lie, None where they are switched off."""
    chosen = os.environ.get(SWITCH, "").strip()
    if chosen.lower() == "off":
        return None
    return Path(chosen) if chosen else Path(folder_paths.get_output_directory()) / FOLDER


def new_journal(facts: Mapping[str, Any], to_graph: ToGraph) -> Journal | None:
    """A journal for the run that begins."""
    folder = journal_folder()
    return None if folder is None else Journal(folder, facts, to_graph)


def finished_candidates(facts: Mapping[str, Any], process: Any) -> FinishedCandidates | None:
    """Where candidates that are finished one by one are kept until the run ends.

    None where candidates are made side by side, and where journals are off.
    """
    folder = journal_folder()
    if folder is None or not process.capabilities.whole_first:
        return None
    conditioning = getattr(getattr(process, "denoise", None), "conditioning", None)
    hasher = hashlib.blake2b(digest_size=16)
    _digest(getattr(conditioning, "conds", None), hasher)
    return FinishedCandidates(folder / FINISHED, {**facts, "conditions": hasher.hexdigest()})


def _digest(value: Any, hasher: Any) -> None:
    """Tensors, texts and numbers in conditions; of other objects (control nets) their classes only."""
    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            hasher.update(str(name).encode())
            _digest(value[name], hasher)
    elif isinstance(value, list | tuple):
        for part in value:
            _digest(part, hasher)
    elif isinstance(value, Tensor):
        hasher.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    elif value is None or isinstance(value, str | int | float):
        hasher.update(repr(value).encode())
    else:
        hasher.update(type(value).__name__.encode())
        _digest(getattr(value, "cond", None), hasher)


def left_behind(stopped: bool) -> HostResult | None:
    """The latest run with latents in a journal: one that nobody got (``stopped``), or any. None without one."""
    folder = journal_folder()
    if folder is None:
        return None
    for run in unfinished(folder) if stopped else _readable(folder):
        if run.latents is not None:
            log.info("recovered from %s: %s at step %d of %d", run.path, run.status, run.step, run.steps)
            return _as_result(run)
    return None


def newest_journal() -> str:
    """Name and time of the newest journal, for what depends on there being another one."""
    folder = journal_folder()
    found = [] if folder is None else journals(folder)[:1]
    try:
        return "".join(f"{path.name} {path.stat().st_mtime_ns}" for path in found)
    except OSError:
        return ""


def _readable(folder: Path):
    for path in journals(folder):
        try:
            yield recover(path)
        except (TraceFileError, OSError):
            continue


def _as_result(run: Recovered) -> HostResult:
    table, count = run.trace.table(), len(run.latents)
    particles = list(run.particles) if len(run.particles) == count else [0] * count
    scores = Scores(
        verifier=run.trace.meta.get("verifier") or "none",
        values=[table[particle]["score"] if particle in table else None for particle in particles],
        held_out=[],
        held_out_verifier="",
        group=list(range(count)),
        particles=particles,
    )
    latents = nested([run.latents, *run.streams]) if run.streams else run.latents
    return HostResult(latents, latents, scores, run.trace, run.status)
