"""The record of a search: a family tree of particles, streamed to a listener and kept as JSON.

A particle is a node of the tree: it gets an id when it appears at a step, and names its parent at the step before.
``lineage`` walks from a node to its root and yields the noise slots that made it: with the seed that is all that is
needed to run the winner alone. ``trace.schema.json`` beside this file is the schema of the JSON; the web panel reads
its field names from there.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

from torch import Tensor

from ..diversity import Diversity
from ..protocols import Interrupted, State

SCHEMA_VERSION = 2
SCHEMA_FILE = Path(__file__).with_name("trace.schema.json")
log = logging.getLogger("testtime")

# (record, state, images or None) after every step; images are the decoded previews [n, H, W, 3] where there were any.
Listener = Callable[["StepRecord", State, "Tensor | None"], None]


class _Always(TypedDict):
    id: int
    parent: int | None
    group: int
    slot: int
    score: float | None
    log_weight: float | None
    gradient_scale: float
    selected: bool


class ParticleEntry(_Always, total=False):
    """One particle of one step.

    Keys:
        id, parent: node of the tree, and the node at the step before (None at the root).
        group, slot: image of the batch, and the noise stream that made the particle.
        score: of the verifier (or value function), None where there is none.
        log_weight: since the last resampling, None where there is none.
        gradient_scale: multiplier of the score's gradient in the move that made it, 0 without guidance.
        selected: lives on; in the final record: is handed out.
        held_out: score of the held-out verifier, finalists only.
        members: scores of the parts that the score was made of, by name.
        prompt: rewritten prompt, None for the original; only in searches that rewrite.
        strength: in the tournament of the finished images, of those that took part.
    """

    strength: float
    held_out: float | None
    members: dict[str, float | None]
    prompt: str | None


class RewriteEntry(TypedDict):
    """What the rewriter was asked and said: one question about one particle's preview."""

    group: int
    slot: int
    missing: list[str]
    prompts: list[str]
    aligned: bool
    failed: bool
    note: str
    calls: int


class TraceMeta(TypedDict, total=False):
    """What is known of the whole run.

    Keys:
        method, title: key of the method, and the search in words ("SVDD, re-prompted, within 500 passes").
        prompts: one per image. verifier, held_out, rewriter: names.
        sampler: whose moves they are; None for Euler's under an eta. runs: how the host's sampler was run, if it was.
        eta: noise of the moves, a number or a rule's description. sigmas: schedule. cfg: guidance scale.
        chosen: what was chosen where nothing was given, and why.
        run: number of the run in the host. stream_ids: places of the images in the batch they were taken from.
        continued: where the search began, for one that went on from a particle.
        rounds, noise_square: rounds in which SVDD turned the noise of its moves, and the mean square of the chosen
            noise per image (1 is usual). heredity: exponent p per image, see ``samplers.heredity``; None where unknown.
        diversity: of the finished pictures, one per image, see ``samplers.diversity``; None where there is one picture.
        devices: rows per network call, and rows that every device or worker ran, where several shared them.
        preview_agreement: rank correlation of scores through the quick decoder and the full one, where there are two;
            None where too few candidates were seen both ways.
        winners: ids of the particles that were handed out, one per image.
        status, ledger, warnings: how it ended.
    """

    method: str
    title: str
    prompts: list[str]
    verifier: str | None
    held_out: str | None
    rewriter: str
    sampler: str | None
    runs: dict[str, Any]
    chosen: list[str]
    eta: float | str | None
    sigmas: list[float]
    cfg: float | list[float] | None
    run: str | None
    stream_ids: list[int] | None
    continued: dict[str, Any]
    rounds: int
    noise_square: list[float]
    heredity: list[float | None]
    diversity: list[Diversity | None]
    devices: dict[str, Any]
    preview_agreement: float | None
    winners: list[int]
    status: str
    ledger: dict[str, Any]
    warnings: list[str]


@dataclass
class StepRecord:
    """One step of a search.

    Attributes:
        step, steps: which of how many; ``step == steps`` is the record of the finished images.
        sigma: noise level of the states that were scored.
        particles: one entry per particle.
        ess: effective sample size per group; resampled: per group.
        inverse_temperature: lambda / alpha in force per group (0 = not scored).
        nfe, seconds: ledger totals after the step.
        phase: "search" or "final".
        rewrites: questions to the rewriter before this step's particles were predicted.
    """

    step: int
    steps: int
    sigma: float
    particles: list[ParticleEntry]
    ess: list[float] = field(default_factory=list)
    resampled: list[bool] = field(default_factory=list)
    inverse_temperature: list[float] = field(default_factory=list)
    nfe: int = 0
    seconds: float = 0.0
    phase: str = "search"
    rewrites: list[RewriteEntry] = field(default_factory=list)


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

    def __init__(
        self, listener: Listener | None = None, seed: int = 0, propagate: tuple[type[BaseException], ...] = ()
    ):
        self.seed = seed
        self.records: list[StepRecord] = []
        self.meta: TraceMeta = {}
        self._listener = listener
        self._propagate: tuple[type[BaseException], ...] = (Interrupted, *propagate)
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
        known = self.table()
        for particle, score in zip(particles, finite(scores), strict=True):
            if particle in known:
                known[particle]["held_out"] = score

    def table(self) -> dict[int, ParticleEntry]:
        """All entries by id; of a particle that stands in several records the latest."""
        return {entry["id"]: entry for record in self.records for entry in record.particles}

    def node(self, particle: int) -> tuple[StepRecord, ParticleEntry]:
        """Record and entry of a particle id. KeyError if unknown."""
        for record in self.records:
            for entry in record.particles:
                if entry["id"] == particle:
                    return record, entry
        raise KeyError(f"particle {particle} is not in this trace")

    def lineage(self, particle: int) -> Lineage:
        """The chain of stream slots from the initial noise to ``particle``. KeyError if unknown."""
        table = self.table()
        if particle not in table:
            raise KeyError(f"particle {particle} is not in this trace")
        chain = [table[particle]]
        while (parent := chain[-1]["parent"]) is not None:
            chain.append(table[parent])
        chain.reverse()
        return Lineage(
            seed=self.seed,
            group=chain[0]["group"],
            slots=tuple(entry["slot"] for entry in chain),
            gradient_scales=tuple(entry["gradient_scale"] for entry in chain[1:]),
            prompts=tuple(entry.get("prompt") for entry in chain) if any(e.get("prompt") for e in chain) else (),
        )

    def finalists(self) -> list[ParticleEntry]:
        """Entries of the last record, best score first within each group."""
        if not self.records:
            return []
        return sorted(self.records[-1].particles, key=lambda e: (e["group"], -_rank(e["score"]), e["id"]))

    def winners(self) -> list[ParticleEntry]:
        """The entry that was handed out for every image, in order; empty while nothing was recorded.

        The run says which (``meta["winners"]``). Traces that do not (of earlier versions, or of a run that goes on)
        have the selected particle with the best score of the last record.
        """
        if not self.records:
            return []
        table, told = self.table(), self.meta.get("winners", [])
        if told and all(particle in table for particle in told):
            return [table[particle] for particle in told]
        best: dict[int, ParticleEntry] = {}
        for entry in self.records[-1].particles:
            kept = best.get(entry["group"])
            if kept is None or (entry["selected"], _rank(entry["score"])) > (kept["selected"], _rank(kept["score"])):
                best[entry["group"]] = entry
        return [best[group] for group in sorted(best)]

    def to_json(self) -> str:
        """JSON text (versioned; NaN and infinities as null), see ``trace.schema.json``."""
        body = {
            "schema": SCHEMA_VERSION,
            "seed": self.seed,
            "meta": self.meta,
            "records": [asdict(record) for record in self.records],
        }
        return json.dumps(plain(body), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read ``to_json``'s text, of this schema or an earlier one. ValueError names what is wrong with another."""
        try:
            body = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a trace: the text is not JSON ({error})") from error
        if not isinstance(body, dict) or "records" not in body:
            raise ValueError("not a trace: the JSON has no 'records'")
        if body.get("schema", 0) > SCHEMA_VERSION:
            raise ValueError(f"trace schema {body['schema']} is newer than what this version reads: update the pack")
        trace = cls(seed=int(body.get("seed", 0)))
        trace.meta = cast(TraceMeta, body.get("meta", {}))
        trace.records = [StepRecord(**todays(record)) for record in body["records"]]
        trace._next_id = 1 + max((e["id"] for r in trace.records for e in r.particles), default=-1)
        return trace


def todays(record: dict[str, Any]) -> dict[str, Any]:
    """A stored record with the field names of this schema: version 1 called the inverse temperature a temperature."""
    return {"inverse_temperature" if name == "temperature" else name: value for name, value in record.items()}


def finite(values: Tensor) -> list[float | None]:
    """Numbers for JSON: non-finite ones as None."""
    return [value if math.isfinite(value) else None for value in values.detach().cpu().double().tolist()]


def _rank(score: float | None) -> float:
    return score if score is not None and math.isfinite(score) else -math.inf


def plain(value: Any) -> Any:
    """A copy for JSON: lists for tuples, None for NaN and infinities."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
