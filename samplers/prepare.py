"""``prepare``: a plan meets a model. The only place that reads a plan: moves, grid and budget are chosen here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .budget import Pace
from .few_steps import MANY, Setting, auto_moves, check_points, joints
from .movers import END, STEPS, Runs, StockSampler, native_of, runs_of
from .outline import NoiseOutline
from .plan import Plan
from .processes.kernel import Noise
from .processes.sde import SDE
from .processes.stock import STOCK, AtLevels
from .protocols import Outline, Process, SearchError, Verifier

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Prepared:
    """A plan that has met a model.

    Attributes:
        plan: its method has the width that the budget pays for.
        title: of the plan as it was made.
        sigmas, eta: schedule and noise of the moves.
        runs: how the host's sampler is run, None where the kernel moves everything.
        notes: lines that say what was chosen where nothing was given. warnings: sentences for the user.
        max_nfe, max_seconds: what the budget allows the whole run, None for no limit.
    """

    plan: Plan
    title: str
    sigmas: Sequence[float]
    eta: float | Noise
    runs: Runs | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    max_nfe: int | None = None
    max_seconds: float | None = None


def prepare(
    plan: Plan,
    outline: Outline,
    eta: float | Noise | None,
    *,
    nfe_per_call: int,
    groups: int = 1,
    top: float = math.inf,
    pace: Callable[[Sequence[float], float | Noise], Pace] | None = None,
    setting: Setting | None = None,
) -> Prepared:
    """Choose the moves, set the grid and fit the budget.

    Args:
        plan: the search.
        outline: schedule of the process; one that ``can_renoise`` may get another.
        eta: noise of its moves where the plan has none; None for what suits method, sampler, steps and model.
        nfe_per_call: forward passes per denoiser call. groups: images of the run, which share its seconds.
        top: largest sigma of the model.
        pace: measures this machine's seconds on (sigmas, eta); only called for a budget in seconds.
        setting: what is known of the model.

    Raises:
        SearchError: a modifier that this kind of process cannot have, a sampler that the method cannot have, or a
            budget that does not pay for one image.
    """
    plan.check_settings()
    given = eta if plan.moves is None else plan.moves
    moves, runs, note = _moves(plan, outline, given, setting or Setting())
    plan.check_needs(replace(outline.capabilities, can_branch=True, can_reprompt=True, can_differentiate=True), moves)
    sigmas = [float(sigma) for sigma in outline.sigmas]
    interpolant = None
    if outline.capabilities.can_renoise:
        interpolant = outline.interpolant
        if plan.schedule is not None:
            sigmas, moves = plan.schedule.apply(interpolant, moves, top)
        outline = NoiseOutline(interpolant, sigmas, moves, outline.capabilities)
    method, max_nfe, max_seconds = plan.method, None, None
    if plan.budget is not None:
        budget, measured = plan.budget, None
        if budget.seconds:
            if pace is None:
                raise SearchError("a budget in seconds needs the pace of this machine: measure it (Pace.measure)")
            measured = pace(sigmas, moves)
            budget = budget.after(measured.spent)
        method, steps = budget.fit(plan, outline, nfe_per_call, groups, measured)
        if steps < outline.steps:
            outline = outline.thinned(steps)  # type: ignore[attr-defined]  # only a NoiseOutline is thinned
            sigmas = list(outline.sigmas)
            moves, runs, note = _moves(plan, outline, given, setting or Setting())
        max_nfe, max_seconds = budget.nfe * groups or None, budget.seconds or None
    if runs is not None and runs.method is not None:
        method = replace(method, **runs.method)
    warning = None if plan.origin is not None or interpolant is None else check_points(method, outline, interpolant)
    return Prepared(
        replace(plan, method=method),
        plan.title,
        sigmas,
        moves,
        runs,
        (note,) if note else (),
        (warning,) if warning else (),
        max_nfe,
        max_seconds,
    )


def _moves(
    plan: Plan, outline: Outline, given: float | Noise | None, setting: Setting
) -> tuple[float | Noise, Runs | None, str]:
    """(moves of the kernel, how the sampler is run besides, what was chosen where nothing was given)."""
    method, sampler = plan.method, plan.sampler
    native = native_of(sampler)
    if not outline.capabilities.can_renoise:  # a next-scale model: no sampler, and eta is another thing
        return (1.0 if given is None else given), None, ""
    if sampler is not None and not isinstance(sampler, str) and native is None:
        return _run_moves(plan, sampler, outline, given)
    moves: float | Noise
    note = ""
    if given is None:
        moves, note = auto_moves(method, sampler, outline, setting)
    elif native is None:
        moves = given
    elif isinstance(given, int | float):
        moves = native.with_eta(float(given))
    elif native.draws:
        raise SearchError(f"Set SDE and sampler {native.name} both say how noise is drawn: take euler or dpmpp_2m")
    else:
        moves = native.with_noise(given)
    if sampler is None or isinstance(sampler, str) or moves != native:
        return moves, None, note
    plain = plan.schedule is None and plan.rewriting is None and plan.origin is None and plan.workers is None
    if not plain or method.decides == STEPS or "can_branch" in method.needs:
        return moves, None, note
    # The first candidate is the sampler's own run, so that it is the image without a search to the last bit.
    stops = () if method.decides == END else tuple(method.decisions(outline))
    return moves, Runs(sampler, stops, first_only=True), note


def _run_moves(
    plan: Plan, sampler: StockSampler, outline: Outline, given: float | Noise | None
) -> tuple[float | Noise, Runs, str]:
    """The same for a sampler that the kernel does not have: noise is drawn at the joints, or by the sampler itself."""
    _check_modifiers(plan, sampler)
    eta = given.eta if isinstance(given, AtLevels) else given
    runs = runs_of(plan.method, sampler, outline, float(eta) if isinstance(eta, int | float) else None)
    if runs.joints and outline.steps < MANY and getattr(plan.method, "every", None) == 0:
        stops = tuple(joints(outline.steps))
        runs = replace(runs, stops=stops, method={"points": stops})
    levels = tuple(float(outline.sigmas[stop]) for stop in runs.stops)
    return AtLevels(runs.eta, levels) if runs.joints else 0.0, runs, f"sampler {sampler.name}: one candidate per run"


def _check_modifiers(plan: Plan, sampler: StockSampler) -> None:
    """Raise SearchError for what a sampler that the kernel does not have cannot go with."""
    if plan.workers is not None:
        raise SearchError(
            f"sampler is {sampler.name}: workers share out single steps, and {sampler.name} runs as a whole; take one "
            f"of {', '.join(STOCK)}"
        )
    modifiers = (
        ("Set SDE", plan.schedule is not None or isinstance(plan.moves, SDE)),
        ("Prompt rewriting", plan.rewriting is not None),
        ("Continue Search", plan.origin is not None),
    )
    for title, there in modifiers:
        if there:
            raise SearchError(
                f"sampler is {sampler.name}: {title} changes a run on its way, and {sampler.name} runs as a whole; "
                f"take one of {', '.join(STOCK)}"
            )


def prepare_on(plan: Plan, process: Process, verifier: Verifier | None, prompts: Sequence[str]) -> Prepared:
    """``prepare`` with everything that a process knows."""

    def pace(sigmas: Sequence[float], eta: float | Noise) -> Pace:
        return Pace.measure(process.variant(sigmas=sigmas, eta=eta), verifier, prompts)

    return prepare(
        plan,
        process,
        process.eta,
        nfe_per_call=process.nfe_per_call,
        groups=process.groups,
        top=process.sigmas[0],
        pace=pace,
    )
