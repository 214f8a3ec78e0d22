"""What is saved of a search: its trace with small pictures, its page, and the essentials inside images."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...installation.files import write_text
from ...reports.page import render
from ...reports.thumbs import thumbnail
from ...reports.tree import particles_of, winner_ids
from ...samplers.after.trace_file import ESSENTIALS_KEY, essentials, to_text
from ...samplers.run.trace import Trace
from .live import store as live_store

THUMBS = 64
"""Finished images that get a picture in the trace file."""


def with_essentials(cls: Any, trace: Trace) -> Any:
    """What the host's saving helpers take as the node class, with the essentials of ``trace`` beside the workflow."""
    hidden = getattr(cls, "hidden", None)
    extra = dict(getattr(hidden, "extra_pnginfo", None) or {})
    extra[ESSENTIALS_KEY] = essentials(trace)
    return SimpleNamespace(hidden=SimpleNamespace(prompt=getattr(hidden, "prompt", None), extra_pnginfo=extra))


def thumbs_of(
    trace: Trace, images: np.ndarray | Sequence[np.ndarray] = (), particles: Sequence[int] = ()
) -> dict[int, str]:
    """Pictures of finished images uint8 ``[n, H, W, 3]`` (of ``particles``), and the previews of the winners' ways.

    Previews come from the live panel's store; where that is switched off, or has forgotten the run, there are none.
    """
    found: dict[int, str] = {}
    run = live_store.snapshot(str(trace.meta.get("run")))
    if run is not None and trace.records:
        last = trace.records[-1].particles[:THUMBS]
        parents = {entry["id"]: entry["parent"] for entry in last}
        wanted = _ancestors(trace, winner_ids(trace)) | set(parents) | set(parents.values())
        for record in run["records"]:
            for row, thumb in zip(record["particles"], record["thumbs"] or (), strict=False):
                if thumb and row[0] in wanted:
                    found[row[0]] = thumb
        for particle, parent in parents.items():
            # The last move out of a clean estimate changes nothing: the preview of before is the finished image.
            if particle not in found and parent in found:
                found[particle] = found[parent]
    for particle, image in list(zip(particles, images, strict=False))[:THUMBS]:
        found[particle] = thumbnail(image)
    return found


def films_of(trace: Trace) -> dict[int, str]:
    """Moving pictures, base64, of the particles of the last record, where they are clips that the panel's store has."""
    run = live_store.snapshot(str(trace.meta.get("run")))
    if run is None or not trace.records:
        return {}
    last = {entry["id"]: entry["parent"] for entry in trace.records[-1].particles}
    found: dict[int, str] = {}
    for record in run["records"]:
        for row, (values, there) in enumerate(zip(record["particles"], record.get("clips") or (), strict=False)):
            wanted = [particle for particle, parent in last.items() if values[0] in (particle, parent)]
            clip = live_store.clip(run["run"], record["index"], row) if there and wanted else None
            if clip is not None:
                found.update(dict.fromkeys(wanted, base64.b64encode(clip).decode()))
    return found


def write_trace(file: Path, trace: Trace, thumbs: dict[int, str], page: bool = False) -> None:
    """Write the trace beside ``file`` (same name, ``.json``), and on request its page (``.html``)."""
    write_text(file.with_suffix(".json"), to_text(trace, thumbs))
    if page:
        write_text(file.with_suffix(".html"), render(trace, thumbs, films=films_of(trace), name=f"{file.stem}.json"))


def _ancestors(trace: Trace, particles: Sequence[int]) -> set[int]:
    table, found = particles_of(trace), set()
    for particle in particles:
        current: int | None = particle
        while current is not None and current not in found:
            found.add(current)
            current = table[current]["parent"]
    return found
