"""Traces as files: the whole record as JSON, and the few numbers that go into an image's metadata.

A trace file is ``Trace.to_json`` plus ``format``, the pack's ``version`` and ``thumbs`` (particle id -> JPEG, base64).
The essentials of a run hold settings, cost and the winners' lineages: seed and lineage make a winner again, so nothing
as large as a latent is ever stored.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ... import __version__
from ..run.trace import SCHEMA_VERSION, ParticleEntry, StepRecord, Trace, TraceMeta, todays
from .trace_check import TraceFileError, check_meta, check_schema, check_trace, check_winner, is_int, parsed

FORMAT = "testtime-trace"
ESSENTIALS_KEY = "testtime"
"""Name of the text chunk of a PNG that holds the essentials."""
KEPT_SETTINGS = (
    "title", "method", "prompts", "verifier", "sampler", "runs", "eta", "sigmas", "cfg", "stream_ids", "status",
    "continued", "rounds",
)  # fmt: skip
KEPT_COSTS = ("nfe", "decodes", "verifier_images", "rewriter_calls", "total_seconds")
LARGEST_FILE = 512 << 20
"""Bytes of a trace file that are read."""


@dataclass(frozen=True)
class TraceFile:
    """What a file held.

    Attributes:
        trace: the record; of an image's metadata only the winners' paths.
        thumbs: particle id -> JPEG, base64.
        version: of the pack that wrote it, "" where it does not say.
    """

    trace: Trace
    thumbs: dict[int, str] = field(default_factory=dict)
    version: str = ""


def to_text(trace: Trace, thumbs: Mapping[int, str] | None = None) -> str:
    """The text of a trace file; ``thumbs``: particle id -> JPEG, base64."""
    head: dict[str, Any] = {"format": FORMAT, "version": __version__}
    if thumbs:
        head["thumbs"] = {str(key): value for key, value in thumbs.items()}
    # Two objects become one without parsing the long one again.
    return json.dumps(head)[:-1] + ", " + trace.to_json()[1:]


def from_text(text: str) -> TraceFile:
    """Read a trace file.

    Raises:
        TraceFileError: not JSON, cut off, written by a newer version, or with damaged records.
    """
    if not text.strip():
        raise TraceFileError("the trace file is empty")
    body = parsed(text, "the trace file")
    return TraceFile(trace_of(body), _thumbs(body.get("thumbs")), _version(body))


def trace_of(body: Any) -> Trace:
    """The trace of a file's content. Raises TraceFileError where it is none, damaged, or too new."""
    check_trace(body)
    trace = Trace(seed=body.get("seed", 0))
    trace.meta = body.get("meta", {})
    trace.records = [StepRecord(**todays(record)) for record in body["records"]]
    trace._next_id = 1 + max((entry["id"] for record in trace.records for entry in record.particles), default=-1)
    return trace


def read_trace_file(path: Path | str) -> TraceFile:
    """Read a trace from a JSON file, or from the metadata of a PNG that this pack saved.

    Raises:
        TraceFileError: as ``from_text``, a file above ``LARGEST_FILE``, or an image without the pack's metadata.
        OSError: no such file, or one that may not be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise TraceFileError(f"{path.name} has {size >> 20} MB: a trace has at most {LARGEST_FILE >> 20}")
    if path.suffix.lower() == ".png":
        return _from_png(path)
    try:
        return from_text(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise TraceFileError(f"not a trace: {path.name} is not a text file") from error


def essentials(trace: Trace) -> dict[str, Any]:
    """What an image's metadata says of the search that made it: settings, cost, and how to make the winners again."""
    meta: dict[str, Any] = {**trace.meta}
    winners = []
    for entry in trace.winners():
        lineage = trace.lineage(entry["id"])
        winners.append(
            {
                "particle": entry["id"],
                "image": entry["group"],
                "score": entry["score"],
                **({"held_out": entry["held_out"]} if "held_out" in entry else {}),
                "slots": list(lineage.slots),
                "gradient_scales": list(lineage.gradient_scales),
                **({"prompts": list(lineage.prompts)} if lineage.prompts else {}),
            }
        )
    spent = meta.get("ledger") or {}
    body = {
        "schema": SCHEMA_VERSION,
        "version": __version__,
        "seed": trace.seed,
        **{name: meta[name] for name in KEPT_SETTINGS if meta.get(name) is not None},
        "cost": {name: spent[name] for name in KEPT_COSTS if name in spent},
        "winners": winners,
    }
    return json.loads(json.dumps(_finite(body)))


def from_essentials(body: Any) -> TraceFile:
    """A trace that holds the winners' paths only: enough to replay them, or to go on from them.

    Raises:
        TraceFileError: not what ``essentials`` writes.
    """
    if not isinstance(body, dict) or not isinstance(body.get("winners"), list):
        raise TraceFileError("not a trace: the image's metadata has no winners")
    check_schema(body)
    if not is_int(body.get("seed", 0)):
        raise TraceFileError("the image's metadata is damaged: seed is not a whole number")
    trace = Trace(seed=body.get("seed", 0))
    meta = {**{name: body[name] for name in KEPT_SETTINGS if name in body}, "ledger": body.get("cost", {})}
    check_meta(meta, "the image's metadata")
    trace.meta = cast(TraceMeta, meta)
    known: set[int] = set()
    for number, winner in enumerate(body["winners"]):
        check_winner(number, winner, known)
    paths = [_path(winner) for winner in body["winners"]]
    steps = max((len(path) for path in paths), default=1) - 1
    taken = -sum(map(len, paths))
    for step in range(steps + 1):
        found = [path[step] for path in paths if step < len(path)]
        for entry in found:
            if "id" not in entry:  # winners keep their number, their ancestors get new ones below zero
                entry["id"] = taken
                taken += 1
        for path in paths:
            if 0 < step < len(path):
                path[step]["parent"] = path[step - 1]["id"]
        particles = cast("list[ParticleEntry]", found)  # checked above
        trace.records.append(StepRecord(step, steps, 0.0, particles, phase="final" if step == steps else "search"))
    trace._next_id = 1 + max((path[-1]["id"] for path in paths), default=-1)
    return TraceFile(trace, {}, _version(body))


def _path(winner: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of a checked winner's way, from noise to image."""
    slots, scales = winner["slots"], [0.0, *winner["gradient_scales"]]
    blank = {"parent": None, "group": winner["image"], "score": None, "log_weight": None, "selected": True}
    entries = [{**blank, "slot": slot, "gradient_scale": scale} for slot, scale in zip(slots, scales, strict=True)]
    for entry, prompt in zip(entries, winner.get("prompts") or (), strict=False):
        entry["prompt"] = prompt
    entries[-1].update(id=winner["particle"], score=winner.get("score"))
    return entries


def _from_png(path: Path) -> TraceFile:
    from PIL import Image

    try:
        # Only the header and the texts are read, never the pixels. Pillow itself bounds the texts.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                text = image.info.get(ESSENTIALS_KEY)
    except Image.DecompressionBombError as error:
        raise TraceFileError(f"{path.name} claims to be larger than any image of a search: {error}") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the file system, not of the image
            raise
        raise TraceFileError(f"{path.name} is not an image that can be read") from error
    if not isinstance(text, str):
        raise TraceFileError(
            f"{path.name} says nothing about a search: it was not saved by Save Search or Search Report, or its "
            f"metadata was removed"
        )
    return from_essentials(parsed(text, f"the metadata of {path.name}"))


def _thumbs(found: Any) -> dict[int, str]:
    """Pictures that are what they claim to be; anything else is left out."""
    good: dict[int, str] = {}
    for key, text in found.items() if isinstance(found, dict) else ():
        try:
            if base64.b64decode(text, validate=True)[:2] == b"\xff\xd8":
                good[int(key)] = text
        except (binascii.Error, TypeError, ValueError):
            continue
    return good


def _version(body: dict[str, Any]) -> str:
    version = body.get("version", "")
    return version[:40] if isinstance(version, str) else ""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
