"""``Plan``: what a search is before it meets a model, and ``prepare``, the only place that reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from .budget import Budget, NoiseOutline, Pace
from .checks import one_of
from .few_steps import MANY, Setting, auto_moves, check_points, joints
from .movers import END, STEPS, Runs, StockSampler, native_of, runs_of
from .needs import check_needs
from .processes.kernel import Noise
from .processes.sde import SDE, Schedule
from .processes.stock import STOCK, AtLevels
from .protocols import Capabilities, Outline, Process, Rewriter, SearchError, Verifier
from .tournament import Tournament

if TYPE_CHECKING:
    from .after.origin import Origin
    from .method import SearchMethod
    from .rewriting import Rewriting
    from .workers import Workers

OUTPUTS = ("score", "weight", "sample")
"""Which finalist is handed out: the highest score, the highest weight, or one drawn in proportion to the weights."""


@dataclass(frozen=True)
class Plan:
    """A method and what modifies it. Nodes edit it with ``dataclasses.replace``.

    Attributes:
        method: Best-of-N, SVDD, ...
        sampler: whose moves these are: None for Euler's under an eta, the name of a sampler that the kernel has
            (``processes.stock``), or a host's sampler object (``movers.StockSampler``).
        moves: noise of the moves, eta or an SDE; None leaves the process's.
        schedule: another grid of noise levels, None leaves the process's.
        budget: what the search may cost; its width (and steps) are chosen to use that up.
        rewriting: prompts are rewritten on the way.
        origin: a particle of an earlier search to go on from.
        output: which finalist is handed out: "score" (the highest), "weight" (the highest weight), or "sample" (drawn
            in proportion to the weights: an exact draw from the target as N grows).
        tournament: the best finished images are compared two at a time, and the winner is handed out.
        encoder: a host's text encoder for prompts of particles, None where the process brings its own.
        workers: predict and judge rows instead of this process, see ``scale.rows``.
    """

    method: SearchMethod
    sampler: str | StockSampler | None = None
    moves: float | Noise | None = None
    schedule: Schedule | None = None
    budget: Budget | None = None
    rewriting: Rewriting | None = None
    origin: Origin | None = None
    output: str = "score"
    tournament: Tournament | None = None
    encoder: Any = None
    workers: Workers | None = None

    @property
    def title(self) -> str:
        """The search in words: "SVDD, re-prompted, within 500 passes"."""
        parts = [self.method.title]
        if self.origin is not None:
            parts.append(f"from step {self.origin.step}")
        if self.rewriting is not None:
            parts.append("re-prompted")
        if isinstance(self.moves, SDE):
            parts.append(f"on the {'VP' if self.moves.path == 'vp' else 'linear'} SDE")
        if self.budget is not None:
            parts.append(self.budget.title)
        if self.tournament is not None:
            parts.append(f"tournament of {self.tournament.finalists}")
        return ", ".join(parts)

    def settings(self) -> dict[str, Any]:
        """Settings of method and modifiers for people to read, ready for JSON."""
        parts = {"method": self.method, "moves": self.moves, "schedule": self.schedule, "budget": self.budget}
        told = {name: _told(part) for name, part in parts.items() if part is not None}
        if self.sampler is not None:
            told["sampler"] = self.sampler if isinstance(self.sampler, str) else self.sampler.name
        return {"title": self.title, "output": self.output, **told}

    @property
    def needs(self) -> frozenset[str]:
        """Names of ``Capabilities`` that this search cannot go without."""
        needs = set(self.method.needs)
        if self.schedule is not None or isinstance(self.moves, SDE):
            needs.add("can_renoise")
        if self.rewriting is not None:
            needs.add("can_reprompt")
        if self.origin is not None:
            needs |= self.origin.needs
        return frozenset(needs)

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong whatever the model is."""
        one_of(OUTPUTS, output=self.output)
        if self.output != "score" and not self.method.weighted:
            raise SearchError(f"output is {self.output!r}: {self.method.title} has no weights, choose 'score'")
        if self.output != "score" and self.tournament is not None:
            raise SearchError(f"output is {self.output!r} with a tournament: both name the winner, choose 'score'")
        for part in (self.method, self.budget, self.rewriting, self.origin, self.tournament):
            if part is not None:
                part.check_settings()
        if self.rewriting is not None and "can_differentiate" in self.method.needs:
            raise SearchError(
                f"{self.method.title} follows gradients: prompt rewriting goes with searches without guidance, e.g. SMC"
            )
        if self.origin is not None and self.method.from_noise:
            raise SearchError(f"{self.method.title} searches among starting noises: it cannot go on from a particle")

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError where this search cannot run on ``process`` with ``verifier``, before the first pass."""
        self.check_settings()
        self.check_needs(process.capabilities, process.eta)
        if verifier is None and self.method.needs_verifier:
            raise SearchError(f"verifier is missing: connect one, {self.method.title} needs a judge")
        if "can_differentiate" in self.needs and verifier is not None and not verifier.differentiable:
            raise SearchError(
                f"verifier {verifier.name!r} is not differentiable: guidance must be 0 with it (SMC instead of DAS)"
            )
        if self.origin is not None:
            self.origin.check(process, verifier)
            process = self.origin.rest(process)
        self.method.check(process, verifier)

    def check_needs(self, capabilities: Capabilities, eta: float | Noise) -> None:
        """Raise SearchError for what a kind of process cannot do."""
        check_needs(self.method.title, self.method.needs, capabilities, eta)
        modifiers = (
            ("Set SDE", self.schedule is not None or isinstance(self.moves, SDE), {"can_renoise"}),
            ("Prompt rewriting", self.rewriting is not None, {"can_reprompt"}),
            ("Continue Search", self.origin is not None, set() if self.origin is None else self.origin.needs),
        )
        for title, there, needs in modifiers:
            if there:
                check_needs(title, needs, capabilities, eta)

    def asking(self, change: Callable[[Rewriter], Rewriter]) -> Plan:
        """The same search with its rewriter exchanged, where it has one."""
        plan = replace(self, method=self.method.asking(change))
        if self.rewriting is not None and self.rewriting.rewriter is not None:
            plan = replace(plan, rewriting=replace(self.rewriting, rewriter=change(self.rewriting.rewriter)))
        return plan

    def unguided(self) -> Plan:
        """The same search without gradients."""
        origin = None if self.origin is None else replace(self.origin, guided=False)
        return replace(self, method=self.method.unguided(), origin=origin)


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


def _told(value: Any) -> Any:
    """Numbers and texts as they are, data classes by field, of everything else no more than its class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _told(getattr(value, field.name)) for field in fields(value)}
    return type(value).__name__


def as_plan(search: Plan | SearchMethod) -> Plan:
    """A method alone is a plan without modifiers."""
    return search if isinstance(search, Plan) else Plan(search)


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
