"""``Plan``: what a search is before it meets a model; ``prepare`` is the only place that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from .budget import Budget
from .checks import one_of
from .movers import StockSampler
from .needs import check_needs
from .processes.kernel import Noise
from .processes.sde import SDE, Schedule
from .protocols import Capabilities, Process, Rewriter, SearchError, Verifier
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
