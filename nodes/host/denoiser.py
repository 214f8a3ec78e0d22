"""The host's guided model as the ``Denoise`` of a ``DiffusionProcess``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from torch import Tensor

from ..compat import throw_if_interrupted
from .conditioning import GroupConditioning
from .residency import Residency

COUNTER_KEY = "testtime_nfe"


class HostDenoise:
    """Clean estimates from a ComfyUI guider, for particles in any order and number.

    Args:
        guider: ``model_wrap`` of ``Sampler.sample``: callable ``(x, sigma, model_options, seed) -> x0``.
        conditioning: its conditions, or None where a guider keeps them out of sight.
        model_options: the options of this sampling run; a copy gets the counter, the caller's stay untouched.
        seed: passed on to the guider.
        residency: brings the model back after others were loaded.

    Attributes:
        rows_per_particle: forward passes per particle; an estimate before the first call, then measured. ControlNets
            are not counted.
        on_extra_rows: called with (measured - announced) rows after a call whose cost was announced wrongly.
    """

    def __init__(
        self,
        guider: Any,
        conditioning: GroupConditioning | None,
        model_options: dict[str, Any],
        seed: int | None,
        residency: Residency,
    ):
        self.guider = guider
        self.conditioning = conditioning
        self.seed = seed
        self.residency = residency
        self.on_extra_rows: Callable[[int], None] = ignore_extra_rows
        self.rows_per_particle = announced_rows(guider)
        self.model_options = comfy.model_patcher.create_model_options_clone(model_options)
        self._rows = 0
        self._thawed: GroupConditioning | None = None
        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.APPLY_MODEL,
            COUNTER_KEY,
            self._count,
            self.model_options,
            is_model_options=True,
        )

    def _count(self, executor, x: Tensor, *args, **kwargs):
        self._rows += x.shape[0]
        return executor(x, *args, **kwargs)

    def __call__(self, x: Tensor, sigma: float, group: Tensor) -> Tensor:
        """Clean estimates float32 ``[n, ...]`` of states ``x`` at ``sigma``; row i is conditioned as ``group[i]``."""
        throw_if_interrupted()
        self.residency.ensure()
        announced = len(group) * self.rows_per_particle
        self._rows = 0
        x0 = self._guided(x, sigma, group)
        if self._rows:
            self.rows_per_particle = math.ceil(self._rows / len(group))
            if self._rows != announced:
                self.on_extra_rows(self._rows - announced)
        return x0

    def _guided(self, x: Tensor, sigma: float, group: Tensor) -> Tensor:
        conditioning = self._conditioning(x)
        if conditioning is None:
            return self._call(x, sigma)
        parts, order = [], []
        for rows, groups in conditioning.calls(group):
            whole = len(rows) == len(group)
            with conditioning.hints_of(groups), self._conds(conditioning.gather(groups)):
                parts.append(self._call(x if whole else x[rows.to(x.device)], sigma))
            order.append(rows)
        if len(parts) == 1:
            return parts[0]
        back = torch.cat(order).argsort().to(x.device)
        return torch.cat(parts)[back]

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


def ignore_extra_rows(rows: int) -> None:
    """Default of ``HostDenoise.on_extra_rows``."""


class _Swapped:
    """Context manager that sets an attribute and puts the old value back whatever happens."""

    def __init__(self, target: Any, name: str, value: Any):
        self.target, self.name, self.value = target, name, value

    def __enter__(self):
        self.saved = getattr(self.target, self.name)
        setattr(self.target, self.name, self.value)

    def __exit__(self, *exception):
        setattr(self.target, self.name, self.saved)


def announced_rows(guider: Any) -> int:
    """Forward passes per particle to expect from a guider before the first call was measured.

    Stock guidance at cfg = 1 leaves the negative branch out; a guider with its own ``predict_noise`` is expected to run
    all of its conditions.
    """
    conds = getattr(guider, "conds", None) or {}
    stock = getattr(type(guider), "predict_noise", None) is comfy.samplers.CFGGuider.predict_noise
    if not stock:
        return max(1, sum(len(entries) for entries in conds.values()))
    rows = len(conds.get("positive") or [])
    skipped = math.isclose(guider.cfg, 1.0) and not guider.model_options.get("disable_cfg1_optimization", False)
    if not skipped:
        rows += len(conds.get("negative") or [])
    return max(1, rows)
