"""``run_search``: a plan meets a process; the run ends whole, at its budget, at a cancellation, or at an error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from ..ledger import Ledger
from ..method import SearchMethod
from ..movers import Runs
from ..plan import Plan, as_plan
from ..prepare import Prepared, prepare_on
from ..processes.stock import NativeSampler, number_of
from ..protocols import BudgetSpent, Interrupted, Process, SearchError, SearchResult, Verifier
from ..sources import Sources, check_sources
from ..state import State
from ..workers import Shared, WorkersLost
from .finished import FinishedCandidates
from .journal import Journal
from .judging import Broken
from .session import Session
from .trace import Listener, Trace

log = logging.getLogger("testtime")


def run_search(
    search: Plan | SearchMethod | Prepared,
    process: Process,
    verifier: Verifier | None,
    prompts: Sequence[str],
    *,
    held_out: Verifier | None = None,
    listener: Listener | None = None,
    max_nfe: int | None = None,
    max_seconds: float | None = None,
    interrupts: tuple[type[BaseException], ...] = (),
    rescue: Callable[[SearchResult], None] | None = None,
    journal: Journal | None = None,
    sources: Sequence[Sources] = (),
    instruction: str = "",
    finished: FinishedCandidates | None = None,
) -> SearchResult:
    """Run a search to the end, to the end of its budget, or until the user interrupts.

    Args:
        search: a method from ``samplers.methods``, or a ``Plan`` of one with what modifies it. (Hosts that prepared it
            themselves hand over the ``Prepared`` and a process that was built on it.)
        process: what is searched.
        verifier: the judge (None only for methods that need none).
        prompts: one per group.
        held_out: reported, never steers.
        listener: called after every step, see ``trace.Listener``.
        max_nfe, max_seconds: budgets; when one is spent the best so far is returned with status "budget".
        interrupts: a host's own cancellation exceptions. They end the run like ``Interrupted``: the best so far comes
            back with status "interrupted". If nothing was computed yet the exception goes through.
        rescue: called with the best so far, status "failed", before an error of a model, VAE or verifier goes through.
        journal: written as the run goes, for what comes after a process that was killed; see ``after.recovery``.
        sources: what every image is made from, one per group, for judges and rewriters of edits.
        instruction: what is done to it, where that is not the prompt.
        finished: candidates that are finished one by one are kept there until the run ends, and taken from there.

    Raises:
        SearchError: bad input, a search that this kind of process cannot run, or a budget that does not pay for the
            first step.
    """
    prepared = search if isinstance(search, Prepared) else prepare_on(as_plan(search), process, verifier, prompts)
    if list(prepared.sigmas) != [float(sigma) for sigma in process.sigmas] or prepared.eta != process.eta:
        process = process.variant(sigmas=prepared.sigmas, eta=prepared.eta)
    plan = prepared.plan
    if sources and len(sources) != len(prompts):
        raise SearchError(f"{len(sources)} sources for {len(prompts)} images: give one source per image")
    check_sources((verifier, held_out), sources)
    alone = nullcontext(Shared(process, None))
    with alone if plan.workers is None else plan.workers.sharing(process, verifier, prompts) as shared:
        ledger = Ledger(_least(max_nfe, prepared.max_nfe), _least(max_seconds, prepared.max_seconds))
        trace = Trace(listener, seed=process.streams.seed, propagate=interrupts)
        session = Session(shared.process, verifier, prompts, ledger, trace, held_out, plan.output)
        session.tournament = plan.tournament
        session.sources, session.instruction = tuple(sources), instruction
        session.carries_on, session.looker = plan.method.carries_on, shared.looker
        _note_begin(session, prepared)
        plan.check(process, verifier)
        if journal is not None:
            journal.begin(trace.seed, trace.meta, plan.settings())
            session.journal = journal
        if finished is not None and process.capabilities.whole_first:
            meta = trace.meta
            begun = {"seed": trace.seed, "sigmas": meta["sigmas"], "sampler": meta["sampler"], "eta": meta["eta"]}
            finished.begin({**begun, "moves": repr(process.eta)})
            session.finished = finished
        result = _search(plan, session, rescue, (Interrupted, *interrupts))
        if plan.workers is not None:
            result.warnings.extend(note for note in shared.notes if note not in result.warnings)
            trace.meta.update({"devices": shared.facts, "warnings": result.warnings})
    return result


def _search(
    plan: Plan, session: Session, rescue: Callable[[SearchResult], None] | None, stops: tuple[type[BaseException], ...]
) -> SearchResult:
    """Run to whatever end it has; see ``run_search``."""
    journal, held_out = session.journal, session.held_out
    try:
        result = _run(plan, session)
    except BudgetSpent as spent:
        session.warn(f"budget spent: {spent}; returning the best so far")
        kept = _judged_if_possible(session, "budget", stops)
        if kept is None:
            _drop(journal)
            raise SearchError(
                f"the budget does not pay for the first step ({spent}): raise it, or use fewer particles"
            ) from spent
        result = kept
    except Broken as broken:
        session.warn(f"{broken}; this is the best of before")
        kept = _judged_if_possible(session, "failed", stops)
        if kept is None:
            _drop(journal)
            raise SearchError(f"{broken}; there is nothing from before to hand out") from broken
        result = kept
    except stops as stop:
        if isinstance(stop, WorkersLost):
            session.warn(f"{stop}; returning the best so far")
        kept = session.cut_short("interrupted", may_score=False)
        if kept is None:
            _drop(journal)
            raise
        result = kept
    except BaseException as error:
        _rescue(session, rescue, error)
        raise
    if held_out is not None and result.status != "interrupted":
        try:
            _report_held_out(session, result, stops)
        except BaseException as error:  # Ctrl-C, say: the search itself is done
            _rescue(session, rescue, error)
            raise
    _note_end(session, result)
    if session.finished is not None and result.status == "complete":
        session.finished.forget()
    return result


def _note_begin(session: Session, prepared: Prepared) -> None:
    """What is known of the run before it begins into the trace, and what was chosen or warned of."""
    process, verifier, held_out = session.process, session.verifier, session.held_out
    meta = session.trace.meta
    meta.update(
        {
            "method": prepared.plan.method.name,
            "title": prepared.title,
            "prompts": list(session.prompts),
            "verifier": None if verifier is None else verifier.name,
            "held_out": None if held_out is None else held_out.name,
            "sampler": sampler_of(process, prepared.runs),
            "eta": number_of(process.eta),
            "sigmas": [float(sigma) for sigma in process.sigmas],
        }
    )
    if prepared.notes:
        meta["chosen"] = list(prepared.notes)
    if prepared.runs is not None:
        meta["runs"] = prepared.runs.to_dict()
    for warning in prepared.warnings:
        session.warn(warning)


def sampler_of(process: Process, runs: Runs | None) -> str | None:
    """Name of the sampler whose moves a process makes; None for Euler's under an eta."""
    if isinstance(process.eta, NativeSampler):
        return process.eta.name
    return None if runs is None else runs.sampler.name


def _note_end(session: Session, result: SearchResult) -> None:
    """Status, costs and warnings into the trace, and the last line of the journal."""
    meta = session.trace.meta
    if session.process.cheap_looks is not None:
        meta["preview_agreement"] = session.agreement.correlation()
    meta.update({"status": result.status, "ledger": session.ledger.to_dict(), "warnings": session.warnings})
    if session.journal is not None:
        session.journal.end(result.status, meta, result)


def _run(plan: Plan, session: Session) -> SearchResult:
    """The way to the particle that the search goes on from, then the method."""
    if plan.rewriting is not None:
        session.rewriting = plan.rewriting.begin(session)
    if plan.origin is not None:
        plan.origin.walk(session)
    return plan.method.run(session)


def _drop(journal: Journal | None) -> None:
    if journal is not None:
        journal.drop()


def _judged_if_possible(session: Session, status: str, stops: tuple[type[BaseException], ...]) -> SearchResult | None:
    """The best so far, judged where it was not; what fails or is cancelled in there costs no more than the scores."""
    try:
        return session.cut_short(status, may_score=True)
    except stops:
        return session.cut_short("interrupted", may_score=False)
    except Exception as error:  # noqa: BLE001 - see the docstring
        session.warn(f"the best so far could not be judged: {type(error).__name__}: {error}")
        return session.cut_short(status, may_score=False)


def _rescue(session: Session, rescue: Callable[[SearchResult], None] | None, error: BaseException) -> None:
    """Hand the best so far to ``rescue`` and the journal; a failure in there must not hide ``error``."""
    if rescue is None and session.journal is None:
        return
    try:
        session.warn(f"failed: {type(error).__name__}: {error}; this is the best so far")
        result = session.cut_short("failed", may_score=False)
        if result is None:
            _drop(session.journal)
            return
        _note_end(session, result)
        if rescue is not None:
            rescue(result)
    except Exception as other:  # noqa: BLE001 - see the docstring
        log.warning("the best so far could not be kept: %s: %s", type(other).__name__, other)


def _least(*limits: float | None):
    return min((limit for limit in limits if limit is not None), default=None)


def _report_held_out(session: Session, result: SearchResult, interrupts: tuple[type[BaseException], ...]) -> None:
    """Held-out scores of the finished latents (decoded once more: they may differ from the last previews).

    They are only a report: neither an error in there nor a cancellation may cost a search that is done.
    """
    if session.held_out is None:
        return
    session.ledger.max_seconds = None
    final, ledger = session.process.steps, session.ledger
    flops = ledger.flops, ledger.decode_flops
    state = State(result.finalists, result.group, torch.zeros_like(result.group), final, x0=result.finalists)
    try:
        images = session.process.preview(state)
        result.held_out = session.judge(images, session.context(state), held_out=True).score
    except interrupts:
        result.status = "interrupted"
        return
    except Exception as error:  # noqa: BLE001 - see the docstring
        session.warn(
            f"held-out verifier {session.held_out.name!r} failed, its scores are missing: "
            f"{type(error).__name__}: {error}"
        )
        return
    finally:
        ledger.flops, ledger.decode_flops = flops  # what a report costs is no cost of the search
    session.trace.add_held_out(result.particles, result.held_out)
