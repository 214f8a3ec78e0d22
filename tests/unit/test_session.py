"""A run that is cut short, fed with nonsense or set up wrongly: nothing is lost, nothing wins that must not."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from testtime.samplers import ledger as ledger_module
from testtime.samplers.methods import DAS, SMC, SVDD, BestOfN, FKSteering
from testtime.samplers.processes.denoise import PlainDenoiser
from testtime.samplers.protocols import Interrupted, SearchError
from testtime.samplers.smc.tempering import Alpha

from . import oracles
from .searches import ABSOLUTE, TARGET, Counting, HostCancel, check_whole, every_method, raising, run, table, watched

# --- budgets ---------------------------------------------------------------------------------------------------------


@every_method
def test_every_budget_gives_the_best_so_far_or_says_what_is_too_little(name):
    full = run(ABSOLUTE[name])
    total, refused, cut = full.ledger.nfe, 0, 0
    for budget in sorted({1, 2, 3, 5, 8, 13, total // 3, total // 2, total - 3, total - 1, total, total + 5}):
        try:
            result = run(ABSOLUTE[name], max_nfe=budget)
        except SearchError as error:
            assert "the budget does not pay for the first step" in str(error) and cut == 0
            refused += 1
            continue
        assert result.ledger.nfe <= budget
        if budget >= total:
            check_whole(result, "complete")
            assert torch.equal(result.finalists, full.finalists) and result.warnings == full.warnings
            continue
        cut += 1
        check_whole(result, "budget")
        assert any(f"of {budget} NFE are spent" in warning for warning in result.warnings)
        assert torch.isfinite(result.scores).all()
        # The score of the best so far is that of the very latents handed out.
        first = torch.stack([result.scores[result.group == g][0] for g in range(2)])
        assert torch.allclose(TARGET.score(result.latents, []), first, atol=1e-9)
        assert torch.equal(first, torch.stack([result.scores[result.group == g].max() for g in range(2)]))
    assert refused > 0 and cut > 0


@every_method
def test_nothing_that_was_paid_for_is_lost(name):
    """A run that is cut has, up to there, the trace of the whole run."""
    full = run(ABSOLUTE[name])
    budget = 2 * full.ledger.nfe // 3
    records = run(ABSOLUTE[name], max_nfe=budget).trace.records
    # up to the first record beyond: chains at steps of their own are written in order of the steps
    expected = list(itertools.takewhile(lambda record: record.nfe <= budget, full.trace.records))
    assert len(records) >= max(len(expected) - 1, 0)  # the record of finished images may share its count
    for record, other in zip(records, expected, strict=False):
        assert [bare(record)] == [bare(other)]


def bare(record):
    """A record without what is added to it later: the clock's part, and who was chosen in the end."""
    particles = [{**entry, "selected": None} for entry in record.particles]
    return replace(record, seconds=0.0, particles=particles)


def test_more_budget_is_never_worse_for_greedy_svdd():
    best = [
        run(SVDD(4), max_nfe=budget).scores.view(2, -1).max(1).values.sum().item() for budget in (20, 30, 40, 50, 66)
    ]
    assert best[-1] > best[0]


class Clock:
    """Seconds that pass only in the denoiser."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def tick(self):
        self.now += 1.0


@every_method
@pytest.mark.parametrize("seconds", [0.5, 3.5])
def test_time_is_a_budget(name, seconds, monkeypatch):
    """The call in progress is finished; none starts after the time is up; what is there is still judged."""
    clock = Clock()
    monkeypatch.setattr(ledger_module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    process = oracles.keyed()
    inner = process.denoise

    def slow(x, sigma, group):
        clock.tick()
        return inner(x, sigma, group).x0

    process.denoise = PlainDenoiser(slow)
    verifier = Counting()
    try:
        result = run(ABSOLUTE[name], verifier, process, max_seconds=seconds)
    except SearchError as error:  # methods that score, then remember, have nothing yet
        assert "s are spent" in str(error) and clock.now <= seconds + 1
        return
    check_whole(result, "budget")
    assert clock.now <= seconds + (2 if name == "das" else 1)  # a backward pass computes its forward pass again
    assert any("s are spent" in warning for warning in result.warnings)
    assert torch.isfinite(result.scores).any()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"max_nfe": 0}, "max_nfe is 0"),
        ({"max_nfe": -5}, "max_nfe is -5"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0"),
        ({"max_seconds": -1.5}, "max_seconds is -1.5"),
        ({"max_seconds": math.nan}, "max_seconds is nan"),
    ],
)
def test_budgets_that_are_none_are_named(budget, message):
    with pytest.raises(SearchError, match=message):
        run(SMC(4), **budget)


# --- cancellation ----------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("error", [Interrupted, HostCancel])
def test_cancelling_stops_at_once_and_keeps_the_best(name, error):
    """Cancelled in a model call: no further model or verifier call, and the best so far comes back."""
    process, plain = watched()
    run(ABSOLUTE[name], process=process)
    cut = 0
    for at in {2, plain.calls // 2, plain.calls}:
        process, denoiser = watched(at, raising(error()))
        images = []
        verifier = Counting()
        try:
            result = run(
                ABSOLUTE[name],
                verifier,
                process,
                interrupts=(HostCancel,),
                listener=lambda *_, v=verifier, i=images: i.append(v.calls),
            )
        except error:
            assert at == 2  # nothing was there yet
            continue
        cut += 1
        check_whole(result, "interrupted")
        assert denoiser.calls == at
        assert verifier.calls <= (images[-1] if images else 0) + 1
    assert cut > 0


@every_method
def test_a_listener_can_cancel_after_any_step(name):
    """Not one more model call is made, and what that very step found is handed out, the finished images included."""
    for k in range(len(run(ABSOLUTE[name]).trace.records)):
        process, denoiser = watched()
        seen = []

        def listener(record, state, images, seen=seen, denoiser=denoiser, k=k):
            seen.append(denoiser.calls)
            if len(seen) == k + 1:
                raise Interrupted("enough")

        result = run(ABSOLUTE[name], process=process, listener=listener)
        check_whole(result, "interrupted")
        assert denoiser.calls == seen[k] and len(result.trace.records) == k + 1
        scores = [e for e in result.trace.records[-1].particles if e["score"] is not None and e["selected"]]
        for entry in scores:
            assert float(result.scores[result.group == entry["group"]].max()) >= entry["score"] - 1e-12


def test_cancelling_before_anything_was_computed_goes_through():
    process, _ = watched(1, raising(HostCancel()))
    with pytest.raises(HostCancel):
        run(SMC(4), process=process, interrupts=(HostCancel,))


def test_what_is_no_interruption_goes_through():
    process, _ = watched(5, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(SMC(4), process=process)


def test_cancelled_between_scores_the_last_known_leader_comes_first():
    """FK scores every other step; cancelled in between, the descendant of the best score is handed out."""
    search = FKSteering(6, alpha=Alpha(5.0, "absolute"), start=0.3, end=0.9, every=4, ess_threshold=0.2)
    process, _ = watched(6, raising(Interrupted()))
    result = run(search, process=process)
    scored = next(r for r in result.trace.records if r.particles[0]["score"] is not None)
    assert scored.step == 3 and len(result.trace.records) == 5
    known = table(result.trace)
    for g in range(2):
        winner = known[result.particles[result.group.tolist().index(g)]][1]
        while winner["id"] not in {e["id"] for e in scored.particles}:
            winner = known[winner["parent"]][1]
        assert winner["score"] == max(e["score"] for e in scored.particles if e["group"] == g)
    assert torch.isnan(result.scores).all()  # these very images were never judged


# --- errors of others ------------------------------------------------------------------------------------------------


@every_method
def test_an_error_of_the_verifier_is_its_own_error(name):
    """It goes through as it is; everything before it has reached the listener."""
    full = run(ABSOLUTE[name])
    calls = Counting()
    run(ABSOLUTE[name], calls)
    failure = RuntimeError("the judge has left")
    records = []
    with pytest.raises(RuntimeError) as caught:
        run(
            ABSOLUTE[name],
            Counting(at=max(calls.calls // 2, 1), action=raising(failure)),
            listener=lambda record, state, images: records.append(record),
        )
    assert caught.value is failure
    assert [bare(r).particles for r in records] == [bare(r).particles for r in full.trace.records[: len(records)]]


@every_method
def test_a_broken_listener_is_left_out(name):
    calls = []

    def listener(record, state, images):
        calls.append(record)
        raise OSError("the display is gone")

    result = run(ABSOLUTE[name], listener=listener)
    check_whole(result, "complete")
    assert torch.equal(result.finalists, run(ABSOLUTE[name]).finalists) and len(calls) == 1


def test_listeners_see_every_record_with_running_totals():
    seen = []
    result = run(SMC(4), listener=lambda record, state, images: seen.append((record, len(state), images)))
    assert [record for record, _, _ in seen] == result.trace.records
    assert all(n == 8 for _, n, _ in seen)
    totals = [record.nfe for record, _, _ in seen]
    assert totals == sorted(totals) and totals[-1] == result.ledger.nfe
    assert all(images is None or len(images) == 8 for _, _, images in seen)


def test_a_verifier_that_runs_out_of_memory_gets_less_at_once():
    class Tight(Counting):
        def score(self, images, prompts, context=None):
            if len(images) > 3:
                raise torch.OutOfMemoryError("too many")
            return super().score(images, prompts)

    for search in (SMC(4), DAS(4), SVDD(4), BestOfN(4)):
        assert torch.allclose(run(search, Tight()).finalists, run(search).finalists, atol=1e-9)


def test_scores_of_the_wrong_shape_are_named():
    for shape, wrong in (("\\(8, 1\\)", lambda x: x[:, :1]), ("\\(\\)", lambda x: x.mean())):
        verifier = oracles.FunctionVerifier(wrong, "crooked")
        with pytest.raises(SearchError, match=f"verifier 'crooked' returned shape {shape} for 8 images"):
            run(BestOfN(4), verifier)
