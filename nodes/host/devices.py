"""Particle rows over the devices of a machine, where the MODEL carries the host's multi-GPU clones.

The host deals out *conditions*: at cfg 1 all but one device idle. A search has many rows, and rows do not know each
other, so rows are dealt out instead, in calls of one size: whichever device is free takes the next, so that unequal
devices share the work as their speeds are, and every row is in the same call whatever the devices are. Only passes
through the network are split; guidance, patches after it, moves and noise stay where they are.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from torch import Tensor

from .compat import is_oom, throw_if_interrupted
from .conditioning import Conds
from .residency import chunk_now

log = logging.getLogger("testtime")
CLONES, POOL = "multigpu_clones", "multigpu_thread_pool"
SHARDS_KEY = "testtime_shards"
CALLS_PER_DEVICE = 2
"""Calls that a device gets of a batch when all are equally fast: one leaves nothing to deal, many run small batches."""
Part = Callable[[Tensor], "Conds | None"]
"""Conditions of some rows of a call, None where they cannot be told apart."""


@dataclass
class _Batch:
    """The rows of the guider's call that runs: its conditions, and how to get those of some rows."""

    conds: Conds
    rows: int
    part: Part


class RowShards:
    """A CALC_COND_BATCH wrapper that runs rows on all clones of a model.

    Args:
        bytes_per_row: working memory of one particle, see ``residency.memory_per_particle``; 0 for no limit.

    Attributes:
        rows: rows that each device ran, by its name.
        rows_per_call: of the latest batch that was dealt out, 0 before.
    """

    def __init__(self, bytes_per_row: float = 0.0):
        self.rows: dict[str, int] = {}
        self.rows_per_call = 0
        self._bytes = bytes_per_row
        self._batch: _Batch | None = None
        self._largest: int | None = None  # calls may not be larger, since memory ran out
        self._faults: dict[Any, int] = {}  # errors per clone
        self._told: set[str] = set()
        self._moved: dict[tuple[Any, int], tuple[Any, Any]] = {}  # conditions that stay, on each device

    @contextmanager
    def of(self, conds: Conds, rows: int, part: Part) -> Iterator[None]:
        """Calls inside are about ``rows`` rows conditioned on ``conds``; ``part(rows)`` are those of some of them."""
        before, self._batch = self._batch, _Batch(conds, rows, part)
        try:
            yield
        finally:
            self._batch = before

    def __call__(self, executor, model, conds, x: Tensor, timestep: Tensor, model_options: dict[str, Any]):
        """Around the host's calculation of all conditions of a batch."""
        if CLONES not in model_options:
            return executor(model, conds, x, timestep, model_options)
        if torch.is_grad_enabled() and x.requires_grad:
            self._tell("gradients go through one device: the others wait while a search is guided by them")
            return executor(model, conds, x, timestep, alone(model_options))
        names = self._names(conds, x, model_options)
        if names is None:
            return executor(model, conds, x, timestep, model_options)
        clones = {key: clone for key, clone in model_options[CLONES].items() if self._faults.get(key, 0) < 2}
        prepare_hooks(model, conds, timestep, model_options)
        run = _Run(self, executor, clones, conds, names, x, timestep, model_options)
        return run.outputs(model_options[POOL])

    def _names(self, conds: Sequence[Any], x: Tensor, options: dict[str, Any]) -> list[str | None] | None:
        """The guider's name of each condition; None where the call cannot be dealt out."""
        batch = self._batch
        if batch is None or batch.rows != len(x) or len(x) < 2 or options.get(POOL) is None:
            return None
        if options.get("context_handler") is not None:
            return None
        known = {id(entries): name for name, entries in batch.conds.items()}
        names = [None if entries is None else known.get(id(entries), "") for entries in conds]
        gligen = any("gligen" in entry for entries in conds if entries for entry in entries)
        return None if gligen or "" in names else names

    def size(self, rows: int, devices: Sequence[Any]) -> int:
        """Rows of a call: what fits the smallest device, and small enough that a slow one can be spared some."""
        dealt = math.ceil(rows / (CALLS_PER_DEVICE * len(devices)))
        fits = min(chunk_now(device, self._bytes) for device in devices) if self._bytes else rows
        self.rows_per_call = max(1, min(dealt, fits, self._largest or rows))
        return self.rows_per_call

    def smaller(self, rows: int) -> None:
        """Memory ran out with ``rows`` rows in a call."""
        self._largest = max(1, rows // 2)
        self._tell(f"out of memory with {rows} rows on one device: going on with {self._largest}")

    def fault(self, device: Any, error: BaseException) -> None:
        """A clone failed; after the second time it gets no more rows."""
        self._faults[device] = self._faults.get(device, 0) + 1
        if self._faults[device] == 2:
            self._tell(f"{device} failed twice ({type(error).__name__}: {error}): the search goes on without it")

    def on(self, device: Any, value: Any) -> Any:
        """A processed condition on a device, remembered while the object stays the same."""
        key = (device, id(value))
        if key not in self._moved or self._moved[key][0] is not value:
            if len(self._moved) > 256:
                self._moved.clear()
            self._moved[key] = (value, moved(value, device))
        return self._moved[key][1]

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            log.warning(sentence)


class _Run:
    """One batch, cut into calls that the devices take from a queue."""

    def __init__(self, shards: RowShards, executor, clones, conds, names, x: Tensor, timestep: Tensor, options):
        self.shards, self.executor, self.clones, self.names = shards, executor, clones, names
        self.x, self.timestep, self.options = x, timestep, options
        self.main = next(iter(options[CLONES]))
        self.own = {device: own_options(options, device, device == self.main) for device in clones}
        size = shards.size(len(x), list(clones))
        parts = torch.arange(len(x)).split(size)
        batch = shards._batch
        assert batch is not None
        self.calls: list[tuple[Tensor, list[Any]]] = []
        for rows in parts:
            gathered = batch.part(rows)
            if gathered is None:
                self.calls = [(torch.arange(len(x)), list(conds))]
                break
            self.calls.append((rows, [None if name is None else gathered[name] for name in names]))
        self.results: dict[int, list[Tensor]] = {}
        self.errors: dict[int, tuple[Any, BaseException]] = {}
        self.waiting = deque(range(len(self.calls)))
        self.inference = torch.is_inference_mode_enabled()
        self.lock = threading.Lock()

    def outputs(self, pool) -> list[Tensor]:
        """One tensor ``[n, ...]`` per condition, rows in order. Raises the first error in the order of rows."""
        for device in self.clones:
            pool.submit(device, self._work, device)
        for device in self.clones:
            _, error = pool.get_result(device)
            if error is not None:
                self.errors.setdefault(len(self.calls), (device, error))
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)
        for number in sorted(self.errors):
            self._settle(number, *self.errors[number])
        for number, (rows, conds) in enumerate(self.calls):  # left over where devices stopped early
            if number not in self.results:
                self.results[number] = self._in_pieces(rows, conds)
        ordered = [self.results[number] for number in range(len(self.calls))]
        return [torch.cat(column) for column in zip(*ordered, strict=True)]

    def _work(self, device: Any) -> None:
        """Take calls until none is left, or until this device fails."""
        with torch.inference_mode(self.inference), torch.no_grad():
            while self.waiting:
                try:
                    number = self.waiting.popleft()
                except IndexError:
                    return
                try:
                    throw_if_interrupted()
                    self.results[number] = self._call(device, *self.calls[number])
                except BaseException as error:  # noqa: BLE001 - raised by the calling thread, in the order of rows
                    self.errors[number] = (device, error)
                    if not isinstance(error, Exception) or (device == self.main and not is_oom(error)):
                        self.waiting.clear()
                    return

    def _call(self, device: Any, rows: Tensor, conds: Sequence[Any]) -> list[Tensor]:
        """One call on one device; outputs on the main one."""
        model = self.clones[device].model
        index = rows.to(self.x.device)
        x, timestep = self.x[index].to(device), self.timestep[index].to(device)
        here = [None if entries is None else self._here(entries, device) for entries in conds]
        outputs = [part.to(self.x.device) for part in self.executor(model, here, x, timestep, self.own[device])]
        with self.lock:
            self.shards.rows[str(device)] = self.shards.rows.get(str(device), 0) + len(rows)
        return outputs

    def _here(self, entries: Sequence[dict[str, Any]], device: Any) -> list[dict[str, Any]]:
        """Entries of a condition with everything on a device."""
        if device == self.main:
            return list(entries)
        there = []
        for entry in entries:
            entry = dict(entry)
            entry["model_conds"] = {key: self.shards.on(device, v) for key, v in entry.get("model_conds", {}).items()}
            if isinstance(entry.get("mask"), Tensor):
                entry["mask"] = entry["mask"].to(device)
            if entry.get("control") is not None:
                entry["control"] = entry["control"].get_instance_for_device(device)
            there.append(entry)
        return there

    def _settle(self, number: int, device: Any, error: BaseException) -> None:
        """What becomes of a call that failed: in smaller pieces, on the main device, or the error."""
        if number == len(self.calls) or not isinstance(error, Exception):
            raise error
        rows, conds = self.calls[number]
        if is_oom(error) and len(rows) > 1:
            self.shards.smaller(len(rows))
        elif device == self.main:
            raise error
        else:
            self.shards.fault(device, error)
        if number not in self.results:
            self.results[number] = self._in_pieces(rows, conds)

    def _in_pieces(self, rows: Tensor, conds: Sequence[Any]) -> list[Tensor]:
        """A call on the main device, in pieces where memory ran out before."""
        batch, parts = self.shards._batch, []
        assert batch is not None
        if len(rows) <= (self.shards._largest or len(rows)):
            return self._call(self.main, rows, conds)
        for piece in rows.split(self.shards._largest):
            gathered = batch.part(piece)
            if gathered is None:
                return self._call(self.main, rows, conds)
            mine = [None if name is None else gathered[name] for name in self.names]
            parts.append(self._call(self.main, piece, mine))
        return [torch.cat(column) for column in zip(*parts, strict=True)]


def alone(options: dict[str, Any]) -> dict[str, Any]:
    """Model options that keep a call on the device where it is."""
    own = dict(options)
    own.pop(CLONES, None)
    own.pop(POOL, None)
    return own


def own_options(options: dict[str, Any], device: Any, main: bool) -> dict[str, Any]:
    """Model options of a device. Patches are moved in place, in lists, so every device needs its own."""
    own = comfy.model_patcher.create_model_options_clone(alone(options))
    transformer = own.setdefault("transformer_options", {})
    transformer["multigpu_thread_device"] = device
    if not main:
        if isinstance(transformer.get("sample_sigmas"), Tensor):
            transformer["sample_sigmas"] = transformer["sample_sigmas"].to(device)
        comfy.samplers.cast_transformer_options(transformer, device=device)
    return own


def prepare_hooks(model, conds, timestep: Tensor, options: dict[str, Any]) -> None:
    """Let every clone know which keyframe of a hook counts now: only the first to ask would learn that it changed."""
    for entries in conds:
        for entry in entries or ():
            if entry.get("hooks") is not None:
                model.current_patcher.prepare_hook_patches_current_keyframe(timestep, entry["hooks"], options)


def moved(value: Any, device: Any) -> Any:
    """A processed condition with its tensors on a device."""
    cond = getattr(value, "cond", None)
    if isinstance(cond, Tensor):
        return value._copy_with(cond.to(device))
    if isinstance(cond, list) and cond and isinstance(cond[0], Tensor):
        return value._copy_with([item.to(device) for item in cond])
    return value


def devices_of(options: dict[str, Any]) -> list[Any]:
    """Devices that a run's rows are shared out to, the main one first; empty where the model has no clones."""
    clones = options.get(CLONES) or {}
    return list(clones) if len(clones) > 1 and options.get(POOL) is not None else []
