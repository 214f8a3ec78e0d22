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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import __version__
from ..run.trace import SCHEMA_VERSION, StepRecord, Trace

FORMAT = "testtime-trace"
ESSENTIALS_KEY = "testtime"
"""Name of the text chunk of a PNG that holds the essentials."""
KEPT_SETTINGS = ("method", "prompts", "verifier", "eta", "sigmas", "cfg", "stream_ids", "status", "continued")
KEPT_COSTS = ("nfe", "decodes", "verifier_images", "rewriter_calls", "total_seconds")
_NUMBER = (int, float)


class TraceFileError(ValueError):
    """A file that is no trace, damaged, or too new. The message says which, and what would be right."""


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
    head = {"format": FORMAT, "version": __version__}
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
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{") and not text.rstrip().endswith("}"):
            raise TraceFileError(
                f"the trace file ends in the middle, after {len(text)} characters: it was not written or copied to "
                f"its end"
            ) from error
        raise TraceFileError(f"not a trace: the text is not JSON ({error})") from error
    except RecursionError as error:
        raise TraceFileError("not a trace: the JSON is nested too deeply") from error
    if not isinstance(body, dict) or not isinstance(body.get("records"), list):
        raise TraceFileError("not a trace: the JSON has no list of records")
    _check_schema(body)
    known: set[int] = set()
    for number, record in enumerate(body["records"]):
        _check_record(number, record, known)
    if not isinstance(body.get("meta", {}), dict):
        raise TraceFileError("the trace file is damaged: meta is not an object")
    try:
        trace = Trace.from_json(text)
    except (TypeError, ValueError, KeyError) as error:
        raise TraceFileError(f"the trace file is damaged: {error}") from error
    return TraceFile(trace, _thumbs(body.get("thumbs")), str(body.get("version", "")))


def read_trace_file(path: Path | str) -> TraceFile:
    """Read a trace from a JSON file, or from the metadata of a PNG that this pack saved.

    Raises:
        TraceFileError: as ``from_text``, or an image without the pack's metadata.
        OSError: no such file.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        return _from_png(path)
    try:
        return from_text(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise TraceFileError(f"not a trace: {path.name} is not a text file") from error


def essentials(trace: Trace) -> dict[str, Any]:
    """What an image's metadata says of the search that made it: settings, cost, and how to make the winners again."""
    meta, winners = trace.meta, []
    for entry in _winners(trace):
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
    _check_schema(body)
    trace = Trace(seed=int(body.get("seed", 0)))
    trace.meta = {name: body[name] for name in KEPT_SETTINGS if name in body}
    trace.meta["ledger"] = body.get("cost", {})
    try:
        paths = [_path(winner) for winner in body["winners"]]
    except (KeyError, TypeError, ValueError) as error:
        raise TraceFileError(f"the image's metadata is damaged: {type(error).__name__}: {error}") from error
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
        trace.records.append(StepRecord(step, steps, 0.0, found, phase="final" if step == steps else "search"))
    trace._next_id = 1 + max((path[-1]["id"] for path in paths), default=-1)
    return TraceFile(trace, {}, str(body.get("version", "")))


def _path(winner: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of a winner's way, from noise to image."""
    slots, scales = [int(slot) for slot in winner["slots"]], [0.0, *map(float, winner["gradient_scales"])]
    if len(slots) != len(scales):
        raise ValueError(f"{len(slots)} slots and {len(scales) - 1} moves")
    blank = {"parent": None, "group": int(winner["image"]), "score": None, "log_weight": None, "selected": True}
    entries = [{**blank, "slot": slot, "gradient_scale": scale} for slot, scale in zip(slots, scales, strict=True)]
    for entry, prompt in zip(entries, winner.get("prompts") or (), strict=False):
        entry["prompt"] = None if prompt is None else str(prompt)
    entries[-1].update(id=int(winner["particle"]), score=winner.get("score"))
    return entries


def _winners(trace: Trace) -> list[dict[str, Any]]:
    """The winner of every image: selected, then by score."""
    best: dict[int, dict[str, Any]] = {}

    def rank(entry: dict[str, Any]) -> tuple[bool, float]:
        score = entry["score"]
        return bool(entry["selected"]), -math.inf if score is None or math.isnan(score) else score

    for entry in trace.records[-1].particles if trace.records else []:
        known = best.get(entry["group"])
        if known is None or rank(entry) > rank(known):
            best[entry["group"]] = entry
    return [best[group] for group in sorted(best)]


def _from_png(path: Path) -> TraceFile:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get(ESSENTIALS_KEY)
    except UnidentifiedImageError as error:
        raise TraceFileError(f"{path.name} is not an image that can be read") from error
    if not isinstance(text, str):
        raise TraceFileError(
            f"{path.name} says nothing about a search: it was not saved by Save Search or Search Report, or its "
            f"metadata was removed"
        )
    try:
        return from_essentials(json.loads(text))
    except json.JSONDecodeError as error:
        raise TraceFileError(f"the metadata of {path.name} is damaged: {error}") from error


def _check_schema(body: dict[str, Any]) -> None:
    schema = body.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise TraceFileError(f"not a trace: its schema is {schema!r}, a number from 1 on is needed")
    if schema > SCHEMA_VERSION:
        writer = f" by version {body['version']}" if body.get("version") else ""
        raise TraceFileError(
            f"the trace has schema {schema}, written{writer}, and this version ({__version__}) reads up to "
            f"{SCHEMA_VERSION}: update the pack"
        )


def _check_record(number: int, record: Any, known: set[int]) -> None:
    """Raise TraceFileError unless a record has what every reader relies on, in the right types.

    ``known``: ids of the particles so far; those of this record are added.
    """

    def wrong(what: str) -> TraceFileError:
        return TraceFileError(f"the trace file is damaged: record {number} {what}")

    if not isinstance(record, dict) or not isinstance(record.get("particles"), list):
        raise wrong("has no list of particles")
    for name, kinds in (("step", int), ("steps", int), ("sigma", _NUMBER), ("nfe", int), ("seconds", _NUMBER)):
        if not isinstance(record.get(name, 0), kinds):
            raise wrong(f"has {name} {record[name]!r}")
    for entry in record["particles"]:
        if not isinstance(entry, dict):
            raise wrong("has a particle that is not an object")
        for name in ("id", "group", "slot"):
            if not isinstance(entry.get(name), int):
                raise wrong(f"has a particle with {name} {entry.get(name)!r}")
        if not isinstance(entry.get("parent", ""), int | None):
            raise wrong(f"has a particle with parent {entry.get('parent', 'missing')!r}")
        for name in ("score", "log_weight", "gradient_scale", "held_out"):
            if not isinstance(entry.get(name), (*_NUMBER, type(None))):
                raise wrong(f"has a particle with {name} {entry[name]!r}")
        parent = entry["parent"]
        if parent is not None and not (parent in known and parent < entry["id"]):  # so that no chain is a ring
            raise wrong(f"has particle {entry['id']} with parent {parent}, which is not an earlier particle")
        missing = {"score", "log_weight", "gradient_scale", "selected"} - set(entry)
        if missing:
            raise wrong(f"has particle {entry['id']} without {', '.join(sorted(missing))}")
    known.update(entry["id"] for entry in record["particles"])


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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
