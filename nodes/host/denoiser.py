"""The host's guided model as the ``Denoise`` of a ``DiffusionProcess``."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from torch import Tensor

from ...samplers.processes.denoise import Denoised
from ...samplers.processes.sharing import SharedRows
from . import backward
from .compat import throw_if_interrupted
from .conditioning import Conds, GroupConditioning
from .devices import SHARDS_KEY, Part, RowShards, devices_of
from .prompts import POSITIVE, PromptConditions
from .residency import Residency

COUNTER_KEY = "testtime_nfe"
SHARE_KEY = "testtime_shared"


class HostDenoise:
    """Clean estimates from a ComfyUI guider, for particles in any order and number.

    Args:
        guider: ``model_wrap`` of ``Sampler.sample``: callable ``(x, sigma, model_options, seed) -> x0``.
        conditioning: its conditions, or None where a guider keeps them out of sight.
        model_options: the options of this sampling run; a copy gets the counter, the caller's stay untouched.
        seed: passed on to the guider.
        residency: brings the model back after others were loaded.
        prompts: conditions of prompts that particles are given, None where that is not possible.
        bytes_per_row: working memory of one particle, to size calls on several devices.

    Attributes:
        nfe_per_call: forward passes per particle; an estimate before the first call, then measured. ControlNets are
            not counted.
    """

    def __init__(
        self,
        guider: Any,
        conditioning: GroupConditioning | None,
        model_options: dict[str, Any],
        seed: int | None,
        residency: Residency,
        prompts: PromptConditions | None = None,
        bytes_per_row: float = 0.0,
    ):
        self.guider = guider
        self.conditioning = conditioning
        self.seed = seed
        self.residency = residency
        self.nfe_per_call = announced_nfe(guider)
        self.model_options = comfy.model_patcher.create_model_options_clone(model_options)
        self.prompts = prompts
        self._rows = 0
        self._lock = threading.Lock()
        self._thawed: GroupConditioning | None = None
        self.shards = RowShards(bytes_per_row)
        self._negatives = SharedNegatives(self)
        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.APPLY_MODEL,
            COUNTER_KEY,
            self._count,
            self.model_options,
            is_model_options=True,
        )
        if prompts is not None:
            comfy.patcher_extension.add_wrapper_with_key(
                comfy.patcher_extension.WrappersMP.CALC_COND_BATCH,
                SHARE_KEY,
                self._negatives,
                self.model_options,
                is_model_options=True,
            )
        if devices_of(model_options):
            comfy.patcher_extension.add_wrapper_with_key(
                comfy.patcher_extension.WrappersMP.CALC_COND_BATCH,
                SHARDS_KEY,
                self.shards,
                self.model_options,
                is_model_options=True,
            )

    @property
    def can_encode(self) -> bool:
        """Whether the search brought a text encoder."""
        return self.prompts is not None

    def encode(self, texts: Sequence[str]) -> None:
        """Prepare prompts of particles."""
        self.residency.leave()
        self.prompts.encode(texts)

    def forget(self) -> None:
        """Forget earlier calls, so that an answer is a function of its question."""
        self._negatives.forget()

    def _count(self, executor, x: Tensor, *args, **kwargs):
        with self._lock:  # devices count at the same time
            self._rows += x.shape[0]
        # Here and not around the search's gradient: a checkpoint runs the network again in the backward pass.
        with backward.passes_of(executor.class_obj.diffusion_model):
            return executor(x, *args, **kwargs)

    def __call__(self, x: Tensor, sigma: float, group: Tensor, prompts: Sequence[str | None] | None = None) -> Denoised:
        """Clean estimates float32 ``[n, ...]`` of states ``x`` at ``sigma``; row i is conditioned as ``group[i]``.

        With ``prompts``, row i has prompt i (None: its image's own), and rows of equal state share what does not depend
        on the prompt.
        """
        throw_if_interrupted()
        if getattr(self.guider, "takes_turns", False):
            self.residency.hand_over(self.guider.expert_at(sigma), self.guider.experts)
        self.residency.ensure()
        self._rows = 0
        x0 = self._guided(x, sigma, group, prompts)
        if self._rows and prompts is None:  # rows that were shared say nothing about the next call
            self.nfe_per_call = math.ceil(self._rows / len(group))
        return Denoised(x0, self._rows if self._rows or prompts is not None else len(group) * self.nfe_per_call)

    def as_sampler(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None, group: Tensor | None = None
    ) -> Denoised:
        """What the guider answers a sampler that calls it with options of its own (made from ``model_options``).

        ``group`` int64 ``[n]`` are the images of the rows; None for the whole batch: the guider's own call.
        """
        throw_if_interrupted()
        self.residency.ensure()
        self._rows = 0
        if group is None or self.conditioning is None:
            x0 = self.guider(x, timestep, model_options=model_options, seed=seed)
        else:
            parts, order = [], []
            for rows, groups in self.conditioning.calls(group):
                mine = rows.to(x.device)
                with self.conditioning.hints_of(groups), self._conds(self.conditioning.gather(groups)):
                    parts.append(self.guider(x[mine], timestep[mine], model_options=model_options, seed=seed))
                order.append(rows)
            x0 = torch.cat(parts)[torch.cat(order).argsort().to(x.device)]
        if self._rows:
            self.nfe_per_call = math.ceil(self._rows / len(x))
        return Denoised(x0, self._rows or len(x) * self.nfe_per_call)

    def prompt_embedding(self, group: Tensor) -> Tensor | None:
        """Prompt embedding ``[n, W]`` per particle, the mean of the (first) positive text states over the tokens."""
        conds = {} if self.conditioning is None else self.conditioning.conds
        for entry in conds.get("positive") or []:
            states = getattr(entry.get("model_conds", {}).get("c_crossattn"), "cond", None)
            if isinstance(states, Tensor) and states.dim() == 3:
                pooled = states.float().mean(1)
                return pooled[(group % len(pooled)).to(pooled.device)]
        return None

    def _guided(self, x: Tensor, sigma: float, group: Tensor, prompts: Sequence[str | None] | None) -> Tensor:
        conditioning = self._conditioning(x)
        if conditioning is None:
            return self._call(x, sigma)
        parts, order = [], []
        for rows, groups in conditioning.calls(group):
            for mine, conds in self._batches(conditioning, rows, groups, prompts):
                whole = len(mine) == len(group) and torch.equal(mine, torch.arange(len(group)))
                part = self._part(conditioning, group[mine], prompts, mine)
                with (
                    conditioning.hints_of(groups),
                    self._conds(conds),
                    self._negatives.of(group[mine], prompts),
                    self.shards.of(conds, len(mine), part),
                ):
                    parts.append(self._call(x if whole else x[mine.to(x.device)], sigma))
                order.append(mine)
        if len(parts) == 1 and whole:
            return parts[0]
        back = torch.cat(order).argsort().to(x.device)
        return torch.cat(parts)[back]

    def _batches(
        self, conditioning: GroupConditioning, rows: Tensor, groups: Tensor, prompts: Sequence[str | None] | None
    ) -> Iterator[tuple[Tensor, Conds]]:
        """(rows, their conditions) of the calls that ``rows`` are split into."""
        if prompts is None or self.prompts is None:
            yield rows, conditioning.gather(groups)
            return
        for mine, conds in self.prompts.calls(conditioning, groups, [prompts[row] for row in rows.tolist()]):
            yield rows[mine], conds

    def _part(
        self, conditioning: GroupConditioning, groups: Tensor, prompts: Sequence[str | None] | None, mine: Tensor
    ) -> Part:
        """How to get the conditions of some rows of a call."""

        def part(rows: Tensor) -> Conds | None:
            if prompts is None or self.prompts is None:
                return conditioning.gather(groups[rows])
            texts = [prompts[row] for row in mine[rows].tolist()]
            calls = list(self.prompts.calls(conditioning, groups[rows], texts))
            return calls[0][1] if len(calls) == 1 else None

        return part

    def _call(self, x: Tensor, sigma: float) -> Tensor:
        sigmas = torch.full((x.shape[0],), sigma, dtype=torch.float32, device=x.device)
        return self.guider(x, sigmas, model_options=self.model_options, seed=self.seed)

    def _conditioning(self, x: Tensor) -> GroupConditioning | None:
        if self.conditioning is None or not (torch.is_grad_enabled() and x.requires_grad):
            return self.conditioning
        if self._thawed is None:
            self._thawed = self.conditioning.without_inference_tensors()
        return self._thawed

    def _conds(self, conds):
        return _Swapped(self.guider, "conds", conds)


class SharedNegatives:
    """A CALC_COND_BATCH wrapper: what does not depend on the prompt is computed once for rows of equal state.

    Candidates that differ in their prompt only have the same negative prediction, and so has the call that came before
    them at the same state. Calls with other model options than the run's own (perturbed attention and its like) are
    left alone.
    """

    def __init__(self, denoise: HostDenoise):
        self._denoise = weakref.proxy(denoise)  # which keeps this object, and through its options the model
        self._shared: dict[tuple[str, ...], SharedRows] = {}
        self._group: Tensor | None = None

    def forget(self) -> None:
        """Compute everything anew from now on."""
        self._shared.clear()

    @contextmanager
    def of(self, group: Tensor, prompts: Sequence[str | None] | None):
        """Share within the calls inside, whose rows are of ``group``; nothing is shared where ``prompts`` is None."""
        self._group = None if prompts is None or self._denoise.prompts is None else group
        try:
            yield
        finally:
            self._group = None

    def __call__(self, executor, model, conds, x: Tensor, timestep: Tensor, model_options):
        """Around the host's calculation of all conditions of a batch."""
        guider, group = self._denoise.guider, self._group
        names = {id(entries): name for name, entries in guider.conds.items()}
        called = [None if entries is None else names.get(id(entries)) for entries in conds]
        others = tuple(name for name in called if name not in (None, POSITIVE))
        plain = group is None or len(group) != len(x) or model_options is not self._denoise.model_options
        if plain or not others or POSITIVE not in called or len(set(called)) != len(called):
            return executor(model, conds, x, timestep, model_options)
        shared = self._shared.setdefault(others, SharedRows())
        plan = shared.plan(x, float(timestep[0]), group)
        new = plan.new
        if len(new) == len(x):  # nothing to share: one call for everything, as ever
            outputs = list(executor(model, conds, x, timestep, model_options))
            results = torch.stack([outputs[called.index(name)] for name in others], 1)
        else:
            only = [entries if name == POSITIVE else None for name, entries in zip(called, conds, strict=True)]
            outputs = list(executor(model, only, x, timestep, model_options))
            results = x.new_empty(0, len(others), *x.shape[1:])
            if len(new):
                rows = new.to(x.device)
                conditioning = self._denoise.conditioning
                gathered = conditioning.gather(group[new])
                with self._denoise.shards.of(gathered, len(new), lambda some: conditioning.gather(group[new][some])):
                    made = executor(model, [gathered[n] for n in others], x[rows], timestep[rows], model_options)
                results = torch.stack(list(made), 1)
        whole = shared.complete(plan, results)
        for place, name in enumerate(others):
            outputs[called.index(name)] = whole[:, place]
        return outputs


class _Swapped:
    """Context manager that sets an attribute and puts the old value back whatever happens."""

    def __init__(self, target: Any, name: str, value: Any):
        self.target, self.name, self.value = target, name, value

    def __enter__(self):
        self.saved = getattr(self.target, self.name)
        setattr(self.target, self.name, self.value)

    def __exit__(self, *exception):
        setattr(self.target, self.name, self.saved)


def announced_nfe(guider: Any) -> int:
    """Forward passes per particle to expect from a guider before the first call was measured.

    Stock guidance at cfg = 1 leaves the negative branch out; a guider with its own ``predict_noise`` is expected to run
    all of its conditions.
    """
    if getattr(guider, "takes_turns", False):
        return guider.announced_nfe()
    conds = getattr(guider, "conds", None) or {}
    stock = getattr(type(guider), "predict_noise", None) is comfy.samplers.CFGGuider.predict_noise
    if not stock:
        return max(1, sum(len(entries) for entries in conds.values()))
    rows = len(conds.get("positive") or [])
    skipped = math.isclose(guider.cfg, 1.0) and not guider.model_options.get("disable_cfg1_optimization", False)
    if not skipped:
        rows += len(conds.get("negative") or [])
    return max(1, rows)
