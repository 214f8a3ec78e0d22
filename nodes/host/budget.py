"""Particles and steps of a search that is to fit a budget, once model and schedule are known."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...samplers.budget import Outline, Pace, WithinBudget, method_of, thinned
from ...samplers.processes.kernel import Noise
from ...samplers.protocols import Search, SearchError
from .denoiser import announced_rows
from .interpolants import interpolant_for
from .pixels import HostVerifier
from .process import HostSettings, SamplingCall, distinct_sigmas, host_process

log = logging.getLogger("testtime")

Limits = tuple[int | None, float | None]
"""(forward passes, seconds) of a whole run, None for no limit."""
TIMED = 4  # particles per image that the pace is measured on


@dataclass(frozen=True)
class Judged:
    """What turns latents into scores: a VAE, a verifier, and the prompt for it."""

    vae: Any
    verifier: Any
    prompt: str


def fit_budget(
    budget: WithinBudget, call: SamplingCall, noise: float | Noise, judged: Judged, limits: Limits
) -> tuple[Search, SamplingCall, Limits]:
    """The method with its particles, the call with its (thinned) schedule, and the limits of the run.

    A budget in seconds is measured on a few particles, which counts as part of it.

    Raises:
        SearchError: a budget that does not pay for one image.
    """
    started, pace = time.perf_counter(), None
    outline = Outline(interpolant_for(call.model.model_sampling), distinct_sigmas(call.sigmas).tolist(), noise)
    if budget.seconds:
        process = host_process(call, HostSettings(judged.vae, noise, TIMED * call.groups))
        verifier = None if judged.verifier is None else HostVerifier(judged.verifier, process.residency)
        pace = Pace.measure(process, verifier, [judged.prompt] * call.groups, TIMED)
        left = budget.seconds - (time.perf_counter() - started)
        if left <= 0:
            raise SearchError(f"seconds is {budget.seconds:g}: measuring the pace alone took longer, give more")
        budget = replace(budget, seconds=left)
    search, steps = budget.fit(method_of(budget), outline, announced_rows(call.guider), call.groups, pace)
    if steps < outline.steps:
        call = replace(call, sigmas=torch.tensor(thinned(outline.sigmas, steps), device=call.sigmas.device))
    width = getattr(search, "width_field", "budget")
    log.info("budget: %s = %d, %d steps", width, getattr(search, width), steps)
    most = (budget.nfe * call.groups, budget.seconds)
    smaller = [min(filter(None, pair), default=None) for pair in zip(limits, most, strict=True)]
    return search, call, (smaller[0], smaller[1])
