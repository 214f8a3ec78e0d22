"""The one life of a search inside ComfyUI: live panel, budget, run, interruption, what is kept, what is handed on.

Diffusion samplers and next-scale models differ in how a process is built (``HostCall``); everything else is here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from ...samplers.after.replay import Replay
from ...samplers.method import SearchMethod
from ...samplers.movers import StockSampler
from ...samplers.needs import check_needs
from ...samplers.plan import Plan, as_plan
from ...samplers.prepare import Prepared
from ...samplers.processes.kernel import is_stochastic
from ...samplers.protocols import Capabilities, Process, SearchError, SearchResult, Verifier
from ...samplers.run.journal import Journal
from ...samplers.run.notes import brief
from ...samplers.run.search import run_search
from ...samplers.run.trace import Listener
from ...samplers.sources import Sources
from . import serving
from .compat import InterruptProcessing
from .journals import finished_candidates, new_journal
from .live import LiveRun
from .live import store as live_store
from .pixels import HostVerifier
from .progress import both
from .residency import GradientUnavailable, Residency
from .results import HostResult, host_result, store
from .rewriting import HostRewriter
from .sampling_call import AUTO, BREADTH, DEPTH

log = logging.getLogger("testtime")

STOP = "stop"
FINISH = "finish with best so far"
AUTO_ETA = -1.0
"""The eta that leaves the choice to method, sampler, steps and model."""


@dataclass(frozen=True)
class SearchOptions:
    """What a search needs besides the model.

    Attributes:
        search: the plan.
        verifier: the judge (None only where the method needs none).
        vae: decodes previews for the judge.
        prompt: what the images should show; one for all images of the batch.
        eta: noise of the moves where the plan has none of its own: 0 = ODE, 1 = ancestral, ``AUTO_ETA`` = what suits.
        held_out: a verifier that is reported and never steers, or None.
        max_nfe: forward passes allowed, 0 = no limit.
        max_seconds: seconds allowed, 0 = no limit.
        on_cancel: ``STOP`` keeps the best so far for Recover Search and cancels; ``FINISH`` goes on with it.
        stream_ids: see ``HostSettings.stream_ids``.
        on_result: called with the ``HostResult`` of every run, whole or cut short.
        listener: called after every step besides the progress report.
        before_run: called with the process before the search begins, to refuse it (SearchError).
        output: which finalist is handed out, see ``Plan``; "" leaves that to the plan.
        preview_vae, skip_latents, order: see ``HostSettings``.
        source, source_mask: IMAGE that is edited and MASK of what may change of it, or None.
    """

    search: Plan
    verifier: Verifier | None
    vae: Any
    prompt: str
    eta: float = 1.0
    held_out: Verifier | None = None
    max_nfe: int = 0
    max_seconds: float = 0.0
    on_cancel: str = STOP
    stream_ids: Sequence[int] | None = None
    on_result: Callable[[HostResult], None] | None = None
    listener: Listener | None = None
    before_run: Callable[[Process], None] | None = None
    output: str = ""
    preview_vae: Any = None
    skip_latents: int = 0
    order: str = AUTO
    source: Any = None
    source_mask: Any = None

    def __post_init__(self):
        if isinstance(self.search, SearchMethod):  # a method alone, as Python code may give it
            object.__setattr__(self, "search", as_plan(self.search))
        if self.output and self.search is not None:
            object.__setattr__(self, "search", replace(self.search, output=self.output))

    def check(self, kind: str = "diffusion or flow") -> None:
        """Raise SearchError for options that are wrong whatever the model of this kind is."""
        plan = self.search
        if plan is None:
            raise SearchError("search is missing: connect a method node, e.g. Best-of-N")
        if self.eta != AUTO_ETA and not 0.0 <= self.eta <= 1.0:
            raise SearchError(f"eta is {self.eta}: it must lie in 0 (ODE) .. 1 (ancestral), or be {AUTO_ETA:g} (auto)")
        if not self.prompt.strip():
            raise SearchError("prompt is empty: write what the image should show, the verifier judges against it")
        if self.on_cancel not in (STOP, FINISH):
            raise SearchError(f"on_cancel is {self.on_cancel!r}: choose {STOP!r} or {FINISH!r}")
        if self.vae is None and (self.verifier is not None or not isinstance(plan.method, Replay)):
            raise SearchError("vae is missing: connect one, a verifier judges decoded images")
        if self.order not in (AUTO, DEPTH, BREADTH):
            raise SearchError(f"order is {self.order!r}: choose {AUTO!r}, {DEPTH!r} or {BREADTH!r}")
        if self.order == DEPTH and not plan.method.compares_last:
            raise SearchError(
                f"{plan.method.title} compares candidates on the way: order must be {BREADTH!r} or {AUTO!r}"
            )
        plan.check_settings()
        if self.verifier is None and plan.method.needs_verifier:
            raise SearchError(f"verifier is missing: connect one, {plan.method.title} needs a judge")
        if kind == "next-scale":
            return  # what it can do is known, and said, when its process is there
        eta = self.given_eta if plan.moves is None else plan.moves
        # What a sampler draws by itself, and what auto will choose, is known when the schedule is there.
        branches = eta is None or plan.sampler is not None or is_stochastic(eta)
        can = Capabilities(kind=kind, can_branch=branches, can_reprompt=plan.encoder is not None)
        check_needs(plan.method.title, plan.method.needs, can, eta)

    @property
    def given_eta(self) -> float | None:
        """The eta, None for ``AUTO_ETA``."""
        return None if self.eta == AUTO_ETA else self.eta

    def sampled_by(self, sampler: StockSampler) -> SearchOptions:
        """These options with a sampler of the host."""
        return replace(self, search=replace(self.search, sampler=sampler))


class HostCall(Protocol):
    """A call of a sampler node, as far as its search has to know it."""

    @property
    def groups(self) -> int:
        """Images G of the batch."""
        ...

    def prepare(self, options: SearchOptions) -> Prepared:
        """The plan with its schedule and what its budget pays for."""
        ...

    def process(self, prepared: Prepared, options: SearchOptions) -> tuple[Process, Residency]:
        """The process to search, and who keeps its models loaded."""
        ...

    def report(self, process: Process) -> Listener:
        """What moves the progress bar and shows previews on the node."""
        ...

    def to_graph(self, status: str) -> Callable[[Tensor], Tensor]:
        """Map of the latents of a search that ended so to latents of the graph."""
        ...

    def sources(self, options: SearchOptions) -> Sequence[Sources]:
        """What every image is made from, ``[G]``; empty where it is made from nothing, or nobody compares."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the trace's meta says of the call: cfg and such."""
        ...

    def warnings(self) -> list[str]:
        """Sentences about the call that a user should know."""
        ...


def run_in_host(call: HostCall, options: SearchOptions) -> SearchResult:
    """Run a search; keep what it found whatever happens.

    Raises:
        The host's interruption exception when cancelled under ``STOP``; SearchError for bad input; what a model, VAE
        or verifier raised, after the best so far was kept for Recover Search.
    """
    if serving.TOKEN:
        serving.serve(call, options)
    live = live_run(options)

    def keep(result: SearchResult, journal: Journal | None) -> None:
        hosted = host_result(result, options.verifier, options.held_out, call.to_graph(result.status), journal)
        store.add(hosted)
        if options.on_result is not None:
            options.on_result(hosted)

    try:
        result, journal = _guided_if_possible(call, options, live, keep)
    except BaseException as error:
        if live is not None:
            live.finish("failed", [brief(f"{type(error).__name__}: {error}")])
        raise
    if live is not None:
        live.finish(result.status, result.warnings, result.trace.meta.get("winners"))
    keep(result, journal)
    if result.status == "interrupted" and options.on_cancel == STOP:
        log.info("search cancelled: the best so far is kept, see the Recover Search node")
        raise InterruptProcessing()
    if result.status != "complete":
        log.warning("search ended early (%s): returning the best so far", result.status)
    return result


Keep = Callable[[SearchResult, "Journal | None"], None]


def _guided_if_possible(
    call: HostCall, options: SearchOptions, live: LiveRun | None, keep: Keep
) -> tuple[SearchResult, Journal | None]:
    """Run; once more without guidance where the first gradient cannot be had."""
    prepared = call.prepare(options)
    try:
        return _run(call, prepared, options, live, keep)
    except GradientUnavailable as reason:
        message = f"no gradient through this model, VAE or verifier ({reason}): searching without guidance"
    log.warning(message)
    result, journal = _run(call, replace(prepared, plan=prepared.plan.unguided()), options, live, keep)
    result.warnings.append(brief(message))
    return result, journal


def _run(
    call: HostCall,
    prepared: Prepared,
    options: SearchOptions,
    live: LiveRun | None,
    keep: Keep,
) -> tuple[SearchResult, Journal | None]:
    process, residency = call.process(prepared, options)
    if options.before_run is not None:
        options.before_run(process)
    if live is not None:
        live.process = process
    facts = {
        "run": None if live is None else live.run,
        "stream_ids": None if options.stream_ids is None else list(options.stream_ids),
        "sigmas": list(process.sigmas),
        **call.facts(),
    }

    journal = new_journal(facts, lambda latents, status: call.to_graph(status)(latents))

    finished = finished_candidates({**call.facts(), "stream_ids": facts["stream_ids"]}, process)

    def rescue(result: SearchResult) -> None:
        result.trace.meta.update(facts)
        keep(result, journal)

    sources = call.sources(options)
    if sources:
        residency.leave()
    result = run_search(
        replace(prepared, plan=_in_host(prepared.plan, residency)),
        process,
        _hosted(options.verifier, residency),
        [options.prompt] * call.groups,
        held_out=_hosted(options.held_out, residency),
        listener=both(both(call.report(process), options.listener), live),
        max_nfe=options.max_nfe or None,
        max_seconds=options.max_seconds or None,
        interrupts=(InterruptProcessing,),
        rescue=rescue,
        journal=journal,
        sources=sources,
        finished=finished,
    )
    if finished is not None and finished.taken:
        log.info("%d finished candidates taken from an earlier run that was cut short", finished.taken)
    told = getattr(getattr(process, "mover", None), "warnings", ())
    result.warnings[:] = [brief(message) for message in (*result.warnings, *call.warnings(), *told)]
    devices = getattr(process, "devices", None)
    if devices is not None:
        facts["devices"] = devices
        log.info("%d devices, %d rows per call", len(devices["rows"]), devices["rows_per_call"])
    result.trace.meta.update({**facts, "warnings": result.warnings})
    return result, journal


def live_run(options: SearchOptions) -> LiveRun | None:
    """What shows a run in the front end, or None when that is switched off."""
    if not live_store.enabled:
        return None
    return LiveRun(
        {
            "method": options.search.method.name,
            "title": options.search.title,
            "prompts": [options.prompt],
            "verifier": None if options.verifier is None else options.verifier.name,
            "held_out": None if options.held_out is None else options.held_out.name,
            "max_nfe": options.max_nfe or None,
            "max_seconds": options.max_seconds or None,
        }
    )


def _in_host(plan: Plan, residency: Residency) -> Plan:
    """The plan with everybody whom it asks announced to ``residency``."""
    plan = plan.asking(lambda rewriter: HostRewriter(rewriter, residency))
    if plan.tournament is None:
        return plan
    judge = HostVerifier(plan.tournament.judge, residency)
    return replace(plan, tournament=replace(plan.tournament, judge=judge))


def _hosted(verifier: Verifier | None, residency: Residency) -> HostVerifier | None:
    return None if verifier is None else HostVerifier(verifier, residency)
