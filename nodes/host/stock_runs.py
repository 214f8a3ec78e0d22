"""Runs of any SAMPLER object as moves of a process: whole, or stopped at a model call and resumed from a record.

A sampler function is a function of its start, the model's answers and its noise. The answers are kept; a run is stopped
by raising after one of them, and resumed by starting it again and answering the earlier calls from the record. Nothing
inside the sampler is touched, no model call is made twice, and a resumed run is the run that was never stopped, to the
last bit. One candidate is one run of the user's whole batch, so the first candidate is the image without a search.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from torch import Tensor

from ...samplers.movers import FRESH, NEVER, KernelMover, Runs, joint
from ...samplers.processes.sde import ratio_of, sigma_of
from ...samplers.state import State
from .process import HostProcess
from .sampling_call import SamplingCall
from .stock_record import Diverged, Paused, Record, Run, RunNoise
from .stock_samplers import HostSampler

log = logging.getLogger("testtime")

RECORD = "record"
"""Key of ``State.extra``: the particle's record in its mover, -1 for particles that the kernel moves."""
Progress = Callable[[int, Tensor, Tensor, int], None]


class StockMover:
    """Moves particles by runs of a SAMPLER.

    Args:
        runs: how it is run. call: arguments of ``Sampler.sample``. progress: the host's callback. total: model calls
            that are expected, one per candidate and step, for the progress bar.

    Attributes:
        warnings: sentences for the user.
    """

    can_differentiate = can_renoise = can_reprompt = False

    def __init__(self, runs: Runs, call: SamplingCall, progress: Progress | None = None, total: int = 1):
        sampler = runs.sampler
        assert isinstance(sampler, HostSampler)
        self.runs, self.call, self.sampler, self.name = runs, call, sampler, sampler.name
        self.clones = None if runs.first_only else sampler.clones if runs.stops else NEVER
        self.can_differentiate = self.can_renoise = self.can_reprompt = runs.first_only
        self.records: list[Record] = []
        self.warnings: list[str] = []
        self.progress, self.total, self.done = progress, total, 0
        self._kernel, self._batches, self._pauses = KernelMover(), 0, True
        self._whole_batch = sampler.clones == NEVER  # what another sampler draws for a batch cannot be split

    # -------------------------------------------------------------------------------------------- the moves

    def begin(self, process: HostProcess, state: State, noise: Tensor) -> State:
        """A record for every particle, or for the first of every image where the kernel has the others."""
        slots, groups = state.slot.tolist(), state.group.tolist()
        ids, batches = [], {}
        for row, (image, slot) in enumerate(zip(groups, slots, strict=True)):
            if self.runs.first_only and not self._is_hosts(process, image, slot, noise[row]):
                ids.append(-1)
                continue
            rank = sum(groups[r] == image and slots[r] == slot for r in range(row))
            if (slot, rank) not in batches:
                batches[slot, rank] = self._new_batch(process, slot)
            record = batches[slot, rank][image]
            record.noise = noise[row]
            ids.append(self.records.index(record))
        return replace(state, extra={**state.extra, RECORD: torch.tensor(ids)})

    def predict(self, process: HostProcess, state: State) -> State:
        """Answers of the runs, which go on to the next stop where they have not come that far."""
        ours, kernels = self._split(state)
        parts = []
        if len(kernels):
            parts.append(self._kernel.predict(process, state.select(kernels)))
            self.tell(parts[0].x0, parts[0].x, len(kernels) / process.groups)
        if len(ours):
            mine = state.select(ours)
            records = self._records(mine)
            self._bring(process, [r for r in records if state.step not in r.at and r.result is None], state.step)
            x0 = [self._shown(process, record, state.step) for record in records]
            parts.append(replace(mine, x0=torch.stack(x0)))
        return _in_order(parts, kernels, ours)

    def advance(self, process: HostProcess, state: State, gradient: Tensor | None) -> tuple[State, Tensor]:
        """On to the next step: of a run nothing happens before somebody looks, or it ends."""
        ours, kernels = self._split(state)
        parts, ratio = [], torch.zeros(len(state), dtype=torch.float64)
        if len(kernels):
            moved, ratio[kernels] = self._kernel.advance(process, state.select(kernels), None)
            parts.append(moved)
        if len(ours):
            parts.append(self._advance_runs(process, state.select(ours)))
        return _in_order(parts, kernels, ours), ratio

    def _advance_runs(self, process: HostProcess, state: State) -> State:
        step = state.step
        if self.runs.joints and step in self.runs.stops:
            return self._joined(process, state)
        ids = state.extra[RECORD].clone()
        for row, (number, slot) in enumerate(zip(ids.tolist(), state.slot.tolist(), strict=True)):
            if self.records[number].slot != slot and self.clones == FRESH:
                ids[row] = self._add(self.records[number].fork(slot, self._seed(process, slot, step)))
        state = replace(state, x0=None, step=step + 1, extra={**state.extra, RECORD: ids})
        if state.step < process.steps:
            return state
        self._bring(process, [r for r in self._records(state) if r.result is None], None)
        return replace(state, x=torch.stack([record.result for record in self._records(state)]))

    def _joined(self, process: HostProcess, state: State) -> State:
        """New parts, from the ends of the old ones with noise added up to the next level."""
        step, path = state.step, process.interpolant
        records = self._records(state)
        a, _ = path.coefficients(self._low(process, step))
        a_next, b_next = path.coefficients(process.sigmas[step + 1])
        _, b = path.coefficients(self._low(process, step))
        noise = process.streams.normals(process.shape, state.group, state.slot, step=step, purpose="move").to(state.x)
        std = math.sqrt(max(b_next * b_next - (a_next / a * b) ** 2, 0.0))
        x = a_next / a * torch.stack([record.result for record in records]) + std * noise
        ids = [
            self._add(
                Record(record.image, int(slot), record.batch, record.noise, record.seed, begins=step + 1, start=x[row])
            )
            for row, (record, slot) in enumerate(zip(records, state.slot.tolist(), strict=True))
        ]
        return replace(state, x=x, x0=None, step=step + 1, extra={**state.extra, RECORD: torch.tensor(ids)})

    def _low(self, process: HostProcess, step: int) -> float:
        """Noise level that a part with its last call at ``step`` ends at."""
        path = process.interpolant
        ratios = (ratio_of(path, process.sigmas[i]) for i in (step, step + 1))
        return sigma_of(path, joint(*ratios, self.runs.eta))

    # -------------------------------------------------------------------------------------------- the runs

    def _bring(self, process: HostProcess, records: Sequence[Record], step: int | None) -> None:
        """Let runs go on to the next stop from ``step`` on, or to their end."""
        later = [stop for stop in self.runs.stops if step is not None and stop >= step]
        until = later[0] if later and self._pauses and not self.runs.joints else None
        for rows in self._calls(process, records):
            self._run(process, rows, until)

    def _calls(self, process: HostProcess, records: Sequence[Record]) -> list[list[Record]]:
        """Records that go into one run: at most one per image, of one seed and equally far."""
        if self._whole_batch:
            wanted = dict.fromkeys(record.batch for record in records)
            return [[r for r in self.records if r.batch == batch] for batch in wanted]
        calls: dict[tuple, list[Record]] = {}
        for record in dict.fromkeys(records):
            key, rank = (record.seed, len(record.answers), record.begins), 0
            while any(other.image == record.image for other in calls.get((*key, rank), ())):
                rank += 1
            calls.setdefault((*key, rank), []).append(record)
        return [sorted(rows, key=lambda record: record.image) for rows in calls.values()]

    def _run(self, process: HostProcess, rows: list[Record], until: int | None) -> None:
        run = Run(self, process, rows, until)
        try:
            result = self._sample(process, rows, run)
        except Paused:
            return
        except Diverged:
            self.cannot_pause("asks at another state when it is run again")
            for record in rows:
                record.answers, record.at = [], {}
            self._run(process, rows, None)
            return
        for record, latent in zip(rows, result, strict=True):
            record.result = latent

    def _sample(self, process: HostProcess, rows: list[Record], run: Run) -> Tensor:
        call, sampler, images = self.call, self.sampler.sampler, [record.image for record in rows]
        noise = torch.stack([record.noise for record in rows]).to(call.noise)
        latent, mask = _rows(call.latent_image, images), _rows(call.denoise_mask, images)
        options = comfy.model_patcher.create_model_options_clone(process.denoise.model_options)
        run.options = options
        extra_args = {"model_options": options, "seed": rows[0].seed}
        if self.clones == FRESH or (self.sampler.clones == FRESH and len(rows) < call.groups):
            source = RunNoise(self.name, rows, run, call)
            if source.needed:
                sampler = copy.copy(sampler)
                sampler.extra_options = {**sampler.extra_options, "noise_sampler": source}
        if not self.runs.joints:
            sigmas = call.sigmas.clone()  # uni_pc writes into the schedule that it is given
            result = sampler.sample(run, sigmas, extra_args, None, noise, latent, mask, True)
            return self._unscaled(process, result)
        return self._part(process, rows, run, extra_args, (noise, latent, mask))

    def _part(self, process, rows: list[Record], run: Run, extra_args: dict[str, Any], at) -> Tensor:
        """One part of a run with joints: as ``KSAMPLER.sample``, on some of the schedule."""
        noise, latent, mask = at
        begins, sampler, model = rows[0].begins, self.sampler.sampler, self.call.steady.model_sampling
        stop = next((stop for stop in self.runs.stops if stop >= begins), None)
        ends = [] if stop is None else [self._low(process, stop)]
        levels = process.sigmas[begins:] if stop is None else [*process.sigmas[begins : stop + 1], *ends]
        sigmas = torch.tensor(levels, dtype=self.call.sigmas.dtype, device=self.call.sigmas.device)
        inner = comfy.samplers.KSamplerX0Inpaint(run, sigmas)
        inner.latent_image, inner.noise = latent, noise
        if rows[0].start is None:
            x = model.noise_scaling(sigmas[0], noise, latent, sampler.max_denoise(self.call.guider, sigmas))
        else:
            x = torch.stack([record.start for record in rows])
        extra_args["denoise_mask"] = mask
        # Distilled models and context windows look their place up in this.
        extra_args["model_options"].setdefault("transformer_options", {})["sample_sigmas"] = sigmas
        return sampler.sampler_function(
            inner, x, sigmas.clone(), extra_args=extra_args, callback=None, disable=True, **sampler.extra_options
        )

    def _unscaled(self, process: HostProcess, result: Tensor) -> Tensor:
        """A result in the scale of the process's states; the same where the schedule ends at 0."""
        last = self.call.sigmas[-1]
        if float(last) == 0.0:
            return result
        ones = torch.ones((), device=result.device)
        return result / self.call.steady.model_sampling.inverse_noise_scaling(last, ones)

    # -------------------------------------------------------------------------------------------- the books

    def _split(self, state: State) -> tuple[Tensor, Tensor]:
        ids = state.extra[RECORD]
        return torch.nonzero(ids >= 0).flatten(), torch.nonzero(ids < 0).flatten()

    def _records(self, state: State) -> list[Record]:
        return [self.records[number] for number in state.extra[RECORD].tolist()]

    def _add(self, record: Record) -> int:
        self.records.append(record)
        return len(self.records) - 1

    def _new_batch(self, process: HostProcess, slot: int) -> list[Record]:
        """Records of all images: a run is of the whole batch, even where a search wants some of it."""
        self._batches += 1
        every = torch.arange(process.groups)
        noise = process.initial_noise(every, torch.full_like(every, slot))
        seed = self._seed(process, slot)
        made = [
            Record(image, slot, self._batches, noise[image], seed, sources=((0, seed),)) for image in every.tolist()
        ]
        self.records += made
        return made

    def _seed(self, process: HostProcess, slot: int, step: int | None = None) -> int:
        """The user's seed for the first candidate, else 63 bits that depend on it, the slot and the step."""
        if slot == 0 and step is None:
            return self.call.seed if self.call.seed is not None else 0
        key = (process.streams.seed, "sampler", slot) if step is None else (process.streams.seed, "sampler", slot, step)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    @staticmethod
    def _is_hosts(process: HostProcess, image: int, slot: int, noise: Tensor) -> bool:
        own = process.start_at.noise
        return slot == 0 and own is not None and torch.equal(noise.cpu(), own[image].cpu())

    def _shown(self, process: HostProcess, record: Record, step: int) -> Tensor:
        """The clean estimate with the known area of an inpainting put in."""
        x0 = record.answer(step)
        if process.inpainting is None:
            return x0
        return process.with_known(x0[None], process.sigmas[step], torch.tensor([record.image]))[0]

    def tell(self, x0: Tensor, x: Tensor, calls: float = 1.0) -> None:
        """Move the bar on by ``calls`` steps of a candidate."""
        self.done += calls
        if self.progress is not None:
            total = max(self.total, math.ceil(self.done))
            self.progress(max(math.ceil(self.done) - 1, 0), x0, x, total)

    def cannot_pause(self, why: str) -> None:
        """From now on runs go to their end; the user is told why."""
        self._pauses = False
        said = f"sampler {self.name} {why}: candidates are finished before the worse ones go"
        if said not in self.warnings:
            log.info(said)
            self.warnings.append(said)


def _rows(tensor: Tensor | None, images: list[int]) -> Tensor | None:
    """Rows of a batch; all of it where all are meant, so that nothing is copied."""
    if tensor is None or (len(tensor) == 1 and images == [0]) or images == list(range(len(tensor))):
        return tensor
    return tensor[[image % len(tensor) for image in images]]


def _in_order(parts: list[State], first: Tensor, second: Tensor) -> State:
    """States of two sets of rows, back in the rows' order."""
    if len(parts) == 1:
        return parts[0]
    return State.joined(parts).select(torch.cat([first, second]).argsort())
