"""The record of a search: a family tree of particles, streamed to a listener and kept as JSON.

A particle is a node of the tree: it gets an id when it appears at a step, and names its parent at the step before.
``lineage`` walks from a node to its root and yields the noise slots that made it: with the seed that is all that is
needed to run the winner alone.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ..protocols import Interrupted, State

SCHEMA_VERSION = 1
log = logging.getLogger("testtime")

# (record, state, images or None) after every step; images are the decoded previews [n, H, W, 3] where there were any.
Listener = Callable[["StepRecord", State, "Tensor | None"], None]


@dataclass
class StepRecord:
    """One step of a search.

    Attributes:
        step, steps: which of how many; ``step == steps`` is the record of the finished images.
        sigma: noise level of the states that were scored.
        particles: one dict per particle: ``id``, ``parent`` (id or None), ``group``, ``slot`` (stream that made it),
            ``score`` (float or None), ``log_weight`` (float or None), ``selected`` (has children), ``gradient_scale``
            (multiplier of the reward gradient in the move that made it, 0 without guidance); finalists of a run with a
            held-out verifier also have ``held_out`` (float or None), particles that an ensemble or a rubric scored
            ``members`` (its own parts' scores by name, float or None), particles of a search that re-prompts ``prompt``
            (None: the original).
        ess: effective sample size per group; resampled: per group.
        temperature: lambda / alpha in force per group (0 = not scored).
        nfe, seconds: ledger totals after the step.
        phase: "search" or "final".
        rewrites: what the rewriter was asked and said before this step's particles were predicted, a dict per question:
            ``group``, ``slot``, ``missing``, ``prompts``, ``aligned``, ``failed``, ``note``, ``calls``.
    """

    step: int
    steps: int
    sigma: float
    particles: list[dict[str, Any]]
    ess: list[float] = field(default_factory=list)
    resampled: list[bool] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    nfe: int = 0
    seconds: float = 0.0
    phase: str = "search"
    rewrites: list[dict[str, Any]] = field(default_factory=list)


def particle_entries(
    state: State,
    ids: Sequence[int],
    parents: Sequence[int | None],
    scores: Tensor | None = None,
    *,
    log_w: Tensor | None = None,
    gradient_scale: Tensor | None = None,
    selected: Iterable[int] | None = None,
) -> list[dict[str, Any]]:
    """``StepRecord.particles`` of a population, rows in order.

    Args:
        state: ``n`` particles; ids, parents: ``n`` each.
        scores, log_w: float64 ``[n]`` or None; non-finite entries become None.
        gradient_scale: float64 ``[G]`` or None for an unguided move.
        selected: rows that live on, None for all.
    """
    group, n = state.group.tolist(), len(ids)
    score = [None] * n if scores is None else _finite(scores)
    weight = [None] * n if log_w is None else _finite(log_w)
    scale = None if gradient_scale is None else gradient_scale.tolist()
    chosen = set(range(n) if selected is None else selected)
    return [
        {
            "id": ids[row],
            "parent": parents[row],
            "group": group[row],
            "slot": slot,
            "score": score[row],
            "log_weight": weight[row],
            "gradient_scale": 0.0 if scale is None else scale[group[row]],
            "selected": row in chosen,
        }
        for row, slot in enumerate(state.slot.tolist())
    ]


def _finite(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


@dataclass(frozen=True)
class Lineage:
    """How to make one particle again: with ``seed`` and ``group``, the slot of its initial noise and of every move.

    ``slots[0]`` is the initial noise's; ``slots[i + 1]`` drove the move of step i, guided with strength
    ``gradient_scales[i]`` (0 without guidance). ``prompts[i]`` is the prompt of step i where it is not the original.
    """

    seed: int
    group: int
    slots: tuple[int, ...]
    gradient_scales: tuple[float, ...]
    prompts: tuple[str | None, ...] = ()


class Trace:
    """Collects step records and passes each to ``listener``.

    A listener that raises is reported once and then left out, because a broken display must not cost a run; only
    ``Interrupted`` (and anything that is not an ``Exception``) goes through.
    """

    def __init__(self, listener: Listener | None = None, seed: int = 0, propagate: tuple[type, ...] = ()):
        self.seed = seed
        self.records: list[StepRecord] = []
        self.meta: dict[str, Any] = {}
        self._listener = listener
        self._propagate = (Interrupted, *propagate)
        self._next_id = 0

    def new_ids(self, n: int) -> list[int]:
        """``n`` fresh particle ids."""
        ids = list(range(self._next_id, self._next_id + n))
        self._next_id += n
        return ids

    def add(self, record: StepRecord, state: State, images: Tensor | None = None) -> None:
        """Keep a record and tell the listener."""
        self.records.append(record)
        if self._listener is None:
            return
        try:
            self._listener(record, state, images)
        except self._propagate:
            raise
        except Exception as error:  # noqa: BLE001 - see the class docstring
            log.warning("the search listener failed and is switched off: %s: %s", type(error).__name__, error)
            self._listener = None

    def add_held_out(self, particles: Sequence[int], scores: Tensor) -> None:
        """Note the held-out scores ``[n]`` of finalists, as ``held_out`` of their entries.

        Finalists of a run that was cut short before they were recorded are left out.
        """
        known = {entry["id"]: entry for record in self.records for entry in record.particles}
        for particle, score in zip(particles, _finite(scores), strict=True):
            if particle in known:
                known[particle]["held_out"] = score

    def node(self, particle: int) -> tuple[StepRecord, dict[str, Any]]:
        """Record and entry of a particle id. KeyError if unknown."""
        for record in self.records:
            for entry in record.particles:
                if entry["id"] == particle:
                    return record, entry
        raise KeyError(f"particle {particle} is not in this trace")

    def lineage(self, particle: int) -> Lineage:
        """The chain of stream slots from the initial noise to ``particle``."""
        table = {entry["id"]: entry for record in self.records for entry in record.particles}
        if particle not in table:
            raise KeyError(f"particle {particle} is not in this trace")
        chain = [table[particle]]
        while chain[-1]["parent"] is not None:
            chain.append(table[chain[-1]["parent"]])
        chain.reverse()
        return Lineage(
            seed=self.seed,
            group=chain[0]["group"],
            slots=tuple(entry["slot"] for entry in chain),
            gradient_scales=tuple(entry["gradient_scale"] for entry in chain[1:]),
            prompts=tuple(entry.get("prompt") for entry in chain) if any(e.get("prompt") for e in chain) else (),
        )

    def finalists(self) -> list[dict[str, Any]]:
        """Entries of the last record, best score first within each group."""
        if not self.records:
            return []
        return sorted(self.records[-1].particles, key=lambda e: (e["group"], -_rank(e["score"]), e["id"]))

    def winners(self) -> list[dict[str, Any]]:
        """The entry that was handed out for every image, in order; empty while nothing was recorded.

        The run says which (``meta["winners"]``). Traces that do not (of earlier versions, or of a run that goes on)
        have the selected particle with the best score of the last record.
        """
        if not self.records:
            return []
        table = {entry["id"]: entry for record in self.records for entry in record.particles}
        told = self.meta.get("winners") or []
        if told and all(particle in table for particle in told):
            return [table[particle] for particle in told]
        best: dict[int, dict[str, Any]] = {}
        for entry in self.records[-1].particles:
            kept = best.get(entry["group"])
            if kept is None or (entry["selected"], _rank(entry["score"])) > (kept["selected"], _rank(kept["score"])):
                best[entry["group"]] = entry
        return [best[group] for group in sorted(best)]

    def to_json(self) -> str:
        """JSON text (versioned; NaN and infinities as null)."""
        body = {
            "schema": SCHEMA_VERSION,
            "seed": self.seed,
            "meta": self.meta,
            "records": [asdict(record) for record in self.records],
        }
        return json.dumps(_plain(body), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read ``to_json``'s text. ValueError names what is wrong with another file."""
        try:
            body = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a trace: the text is not JSON ({error})") from error
        if not isinstance(body, dict) or "records" not in body:
            raise ValueError("not a trace: the JSON has no 'records'")
        if body.get("schema", 0) > SCHEMA_VERSION:
            raise ValueError(f"trace schema {body['schema']} is newer than what this version reads: update the pack")
        trace = cls(seed=int(body.get("seed", 0)))
        trace.meta = body.get("meta", {})
        trace.records = [StepRecord(**record) for record in body["records"]]
        trace._next_id = 1 + max((e["id"] for r in trace.records for e in r.particles), default=-1)
        return trace


def _rank(score: float | None) -> float:
    return score if score is not None and math.isfinite(score) else -math.inf


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
