"""Is this a trace? Everything that readers of traces rely on is checked here, once, with a sentence for what is wrong.

A trace file may come from anybody. After ``parsed`` and ``check_trace`` (or ``check_essentials``) every number is
finite and of a size that can be computed with, every chain of parents ends, and nothing is nested deeply.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeGuard

from ... import __version__
from ..run.trace import SCHEMA_VERSION

DEEPEST = 32
"""Levels of nesting that are read; this pack writes less than ten."""
LARGEST_INT = 2**62  # fits an int64 tensor, sums of two as well
LARGEST_FLOAT = 1e100  # differences and squares stay finite
MOST_IMAGES = 1 << 16

Check = Callable[[Any], bool]


class TraceFileError(ValueError):
    """A file that is no trace, damaged, or too new. The message says which, and what would be right."""


def is_int(value: Any, least: int = -LARGEST_INT) -> TypeGuard[int]:
    """A whole number (no truth value) of a computable size."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST_INT


def is_number(value: Any) -> bool:
    """A finite number of a computable size."""
    return is_int(value) or (isinstance(value, float) and abs(value) <= LARGEST_FLOAT)


def _count(value: Any) -> bool:
    return is_int(value, 0)


def _group(value: Any) -> bool:
    return is_int(value, 0) and value < MOST_IMAGES


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _scalar(value: Any) -> bool:
    return isinstance(value, str | bool) or is_number(value)


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _table_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _cost(name: str, value: Any) -> bool:
    """A count, the seconds per kind of work, or a limit, which may be missing."""
    if name == "seconds":
        return _table_of(is_number)(value)
    return is_number(value) or (value is None and name.startswith("max_"))


def _diversity(value: Any) -> bool:
    return isinstance(value, dict) and all(is_number(value.get(key)) for key in ("images", "distance", "vendi"))


_maybe_number = _maybe(is_number)
PARTICLE: dict[str, Check] = {
    "id": is_int,
    "parent": _maybe(is_int),
    "group": _group,
    "slot": _count,
    "score": _maybe_number,
    "log_weight": _maybe_number,
    "gradient_scale": is_number,
    "selected": lambda value: isinstance(value, bool),
}
PARTICLE_MORE: dict[str, Check] = {
    "held_out": _maybe_number,
    "members": _maybe(_table_of(_maybe_number)),
    "prompt": _maybe(_text),
    "strength": _maybe_number,
}
REWRITE: dict[str, Check] = {
    "group": _maybe(_group),
    "slot": _maybe(_count),
    "missing": _maybe(lambda value: _text(value) or _list_of(_scalar)(value)),
    "prompts": _maybe(_list_of(_text)),
    "note": _maybe(_text),
}
RECORD: dict[str, Check] = {
    "step": is_int,
    "steps": is_int,
    "sigma": is_number,
    "ess": _list_of(_maybe_number),
    "resampled": _list_of(lambda value: isinstance(value, bool)),
    "inverse_temperature": _list_of(_maybe_number),
    "temperature": _list_of(_maybe_number),  # its name in schema 1
    "nfe": is_int,
    "seconds": is_number,
    "phase": _text,
}
META: dict[str, Check] = {
    "method": _text,
    "title": _text,
    "held_out": _text,
    "rewriter": _text,
    "winners": _list_of(is_int),
    "prompts": _list_of(_text),
    "verifier": _text,
    "eta": _scalar,
    "sampler": _text,
    "runs": lambda value: isinstance(value, dict) and _list_of(is_int)(value.get("stops", [])),
    "chosen": _list_of(_text),
    "sigmas": _list_of(is_number),
    "cfg": lambda value: _scalar(value) or _list_of(_maybe_number)(value),
    "stream_ids": _list_of(is_int),
    "status": _text,
    "run": _scalar,
    "warnings": _list_of(_text),
    "ledger": lambda value: isinstance(value, dict) and all(_cost(*part) for part in value.items()),
    "rounds": is_int,
    "noise_square": _list_of(is_number),
    "heredity": _list_of(_maybe_number),
    "diversity": _list_of(_maybe(_diversity)),
    "continued": lambda value: isinstance(value, dict),
}


def parsed(text: str, what: str) -> Any:
    """The JSON in ``text``, NaN and infinities as None. Raises ``TraceFileError`` that calls the text ``what``."""
    try:
        body = json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{") and not text.rstrip().endswith("}"):
            raise TraceFileError(
                f"{what} ends in the middle, after {len(text)} characters: it was not written or copied to its end"
            ) from error
        raise TraceFileError(f"not a trace: the text is not JSON ({error})") from error
    except (RecursionError, MemoryError) as error:
        raise TraceFileError("not a trace: the JSON is nested too deeply") from error
    except ValueError as error:  # Python refuses numbers of thousands of digits
        raise TraceFileError(f"not a trace: the JSON has a number that is too long ({error})") from error
    if isinstance(body, dict | list) and _too_deep(body):
        raise TraceFileError("not a trace: the JSON is nested too deeply")
    return body


def check_schema(body: dict[str, Any]) -> None:
    """Raise TraceFileError for a trace of a newer version of the pack, and for one without a version."""
    schema = body.get("schema")
    if not is_int(schema, 1):
        raise TraceFileError(f"not a trace: its schema is {_shown(schema)}, a number from 1 on is needed")
    if schema > SCHEMA_VERSION:
        writer = f" by version {_shown(body['version'])[1:-1]}" if isinstance(body.get("version"), str) else ""
        raise TraceFileError(
            f"the trace has schema {schema}, written{writer}, and this version ({__version__}) reads up to "
            f"{SCHEMA_VERSION}: update the pack"
        )


def check_trace(body: Any) -> None:
    """Raise TraceFileError unless ``body`` is the content of a whole trace file."""
    if not isinstance(body, dict) or not isinstance(body.get("records"), list):
        raise TraceFileError("not a trace: the JSON has no list of records")
    check_schema(body)
    if not is_int(body.get("seed", 0)):
        raise TraceFileError(f"the trace file is damaged: seed is {_shown(body['seed'])}")
    check_meta(body.get("meta", {}), "the trace file")
    known: set[int] = set()
    for number, record in enumerate(body["records"]):
        _check_record(f"the trace file is damaged: record {number}", record, known)


def check_meta(meta: Any, what: str) -> None:
    """Raise TraceFileError unless the settings in a trace are of the types that they are written in."""
    if not isinstance(meta, dict):
        raise TraceFileError(f"{what} is damaged: meta is not an object")
    for name, check in META.items():
        if meta.get(name) is not None and not check(meta[name]):
            raise TraceFileError(f"{what} is damaged: {name} is {_shown(meta[name])}")


def check_winner(number: int, winner: Any, known: set[int]) -> None:
    """Raise TraceFileError unless a winner in an image's metadata is a path that can be walked.

    ``known``: particles so far; this one is added.
    """

    def wrong(what: str) -> TraceFileError:
        return TraceFileError(f"the image's metadata is damaged: winner {number} {what}")

    if not isinstance(winner, dict):
        raise wrong("is not an object")
    checks: dict[str, Check] = {
        "particle": _count,
        "image": _group,
        "slots": lambda value: _list_of(_count)(value) and len(value) > 0,
        "gradient_scales": _list_of(is_number),
        "score": _maybe_number,
        "held_out": _maybe_number,
        "prompts": _maybe(_list_of(_maybe(_text))),
    }
    for name, check in checks.items():
        if name not in winner and name not in ("score", "held_out", "prompts"):
            raise wrong(f"has no {name}")
        if not check(winner.get(name)):
            raise wrong(f"has {name} {_shown(winner[name])}")
    if len(winner["slots"]) != len(winner["gradient_scales"]) + 1:
        raise wrong(f"has {len(winner['slots'])} slots and {len(winner['gradient_scales'])} moves")
    if winner["particle"] in known:
        raise wrong(f"is particle {winner['particle']} a second time")
    known.add(winner["particle"])


def _check_record(place: str, record: Any, known: set[int]) -> None:
    """``known``: ids of the particles so far; those of this record are added."""
    if not isinstance(record, dict) or not isinstance(record.get("particles"), list):
        raise TraceFileError(f"{place} has no list of particles")
    unknown = sorted(set(record) - set(RECORD) - {"particles", "rewrites"})
    if unknown:
        raise TraceFileError(f"{place} has a part that is not known: {_shown(unknown[0])}")
    for name in ("step", "steps", "sigma"):
        if name not in record:
            raise TraceFileError(f"{place} has no {name}")
    for name, check in RECORD.items():
        if name in record and not check(record[name]):
            raise TraceFileError(f"{place} has {name} {_shown(record[name])}")
    _check_rewrites(place, record.get("rewrites", []))
    for entry in record["particles"]:
        _check_particle(place, entry, known)
    known.update(entry["id"] for entry in record["particles"])


def _check_rewrites(place: str, rewrites: Any) -> None:
    if not isinstance(rewrites, list):
        raise TraceFileError(f"{place} has rewrites {_shown(rewrites)}")
    for answer in rewrites:
        if not isinstance(answer, dict):
            raise TraceFileError(f"{place} has a rewrite that is not an object")
        for name, check in REWRITE.items():
            if not check(answer.get(name)):
                raise TraceFileError(f"{place} has a rewrite with {name} {_shown(answer[name])}")


def _check_particle(place: str, entry: Any, known: set[int]) -> None:
    if not isinstance(entry, dict):
        raise TraceFileError(f"{place} has a particle that is not an object")
    for name, check in PARTICLE.items():
        if name not in entry:
            named = f"particle {entry['id']}" if is_int(entry.get("id")) else "a particle"
            raise TraceFileError(f"{place} has {named} without {name}")
        if not check(entry[name]):
            raise TraceFileError(f"{place} has a particle with {name} {_shown(entry[name])}")
    for name, check in PARTICLE_MORE.items():
        if name in entry and not check(entry[name]):
            raise TraceFileError(f"{place} has a particle with {name} {_shown(entry[name])}")
    parent = entry["parent"]
    if parent is not None and not (parent in known and parent < entry["id"]):  # so that no chain is a ring
        raise TraceFileError(
            f"{place} has particle {entry['id']} with parent {parent}, which is not an earlier particle"
        )


def _too_deep(body: Any) -> bool:
    """Whether lists and objects are nested more than ``DEEPEST`` levels (without recursion)."""
    level = [body]
    for _ in range(DEEPEST):
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [child for values in inner for child in values if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _shown(value: Any) -> str:
    """A value in a message: as Python writes it, cut after 60 characters; whole structures by their type."""
    if isinstance(value, dict | list) and value:
        return f"a {'list' if isinstance(value, list) else 'table'} with {len(value)} entries of the wrong kind"
    if isinstance(value, int) and not is_int(value) and not isinstance(value, bool):
        return "a number that is too large"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
