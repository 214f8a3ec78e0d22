"""Automatic budgets: costs told in advance are the costs of a run, and what is chosen uses the budget up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from testtime.samplers.after.origin import Origin
from testtime.samplers.budget import Budget, Cost, Pace, widened, width_of
from testtime.samplers.method import SearchMethod
from testtime.samplers.methods import (
    RBF,
    SMC,
    SVDD,
    BeamSearch,
    BestOfN,
    PathSearch,
    RandomSearch,
    TTGen,
    ZeroOrderSearch,
)
from testtime.samplers.outline import NoiseOutline, thinned
from testtime.samplers.plan import Plan, as_plan
from testtime.samplers.prepare import prepare_on
from testtime.samplers.processes.denoise import PlainDenoiser
from testtime.samplers.processes.kernel import VE, Flow
from testtime.samplers.processes.schedules import karras
from testtime.samplers.protocols import SearchError
from testtime.samplers.rewriting import Rewriting
from testtime.samplers.run.search import run_search

from . import oracles
from .searches import SHARP as ALPHA
from .searches import TARGET, searches
from .test_ttgen import FAR, NEAR, Canned, prompted

METHODS = {name: search for name, search in searches(ALPHA).items() if name != "tts_var"}
METHODS |= {
    "beam_window": BeamSearch(2, 3, 2, start=0.3, end=0.6),
    "random_twice": RandomSearch(7, (0.3, 0.6)),
    "svdd_sparse": SVDD(3, every=2, start=0.2, end=0.7),
    "svdd_learned": SVDD(3, value_function=lambda x, sigma: x[:, 0]),
    "smc_learned": SMC(3, value_function=lambda x, sigma: x[:, 0]),
    "one_of_one": BestOfN(1),
    "path_long": PathSearch(1, 3, 0.3, 0.4, 0.5, 3),
}


PROMPTED = TTGen(Canned(NEAR, FAR), 2, injection_step=5)
WRAPPED = {
    "ttgen": PROMPTED,
    "ttgen_late": replace(PROMPTED, start_step=3, interval=2, particles=2),
    "reprompted_svdd": Plan(SVDD(3), rewriting=Rewriting(Canned(NEAR, FAR), 2)),
    "reprompted_smc": Plan(SMC(3, alpha=ALPHA), rewriting=Rewriting(Canned(NEAR, FAR), 2)),
    "reprompted_rbf": Plan(RBF(budget=90), rewriting=Rewriting(Canned(NEAR, FAR), 2)),
}
ORIGIN = (SVDD(3), BestOfN(4), SMC(4, alpha=ALPHA), BeamSearch(2, 3, 2), RBF(budget=90))


def outline(process):
    return NoiseOutline(process.interpolant, process.sigmas, process.eta)


def calls_of(search, outline):
    plan = as_plan(search)
    return Cost(plan, outline).calls(plan.method)


def fitted(search, process, prompts, **settings):
    """The search prepared for a budget."""
    return prepare_on(replace(as_plan(search), budget=Budget(**settings)), process, TARGET, prompts)


def auto(search, process, prompts, **settings):
    """(method, process) for a budget."""
    prepared = fitted(search, process, prompts, **settings)
    return prepared.plan.method, process.variant(sigmas=prepared.sigmas)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("name", list(METHODS))
def test_costs_told_in_advance_are_those_of_a_run(name, flow):
    search, process = METHODS[name], oracles.keyed(steps=9, groups=2, flow=flow)
    ledger = run_search(search, process, TARGET, ["p", "q"]).ledger
    told = 2 * search.denoiser_calls(outline(process))
    if name.startswith("rbf"):  # never above, and at most one round below
        assert told - 2 * search.chains <= ledger.nfe <= told
        return
    assert ledger.nfe == told
    if name in ("smc_learned", "svdd_learned"):
        assert ledger.decodes <= 2 * search.verifications(outline(process))
    elif not (name.startswith(("smc", "das", "fk", "importance"))):  # whose tempering may leave early looks out
        assert ledger.decodes == pytest.approx(2 * search.verifications(outline(process)), abs=2 * width_of(search))
    else:
        assert ledger.decodes <= 2 * search.verifications(outline(process))


@pytest.mark.parametrize("nfe", [60, 100, 500])
@pytest.mark.parametrize("name", list(METHODS))
def test_the_budget_is_used_up_and_not_more(name, nfe):
    process = oracles.keyed(steps=9, groups=2)
    search, chosen = auto(METHODS[name], process, ["p", "q"], nfe=nfe)
    result = run_search(search, chosen, TARGET, ["p", "q"], max_nfe=2 * nfe)
    assert result.status == "complete"
    assert result.ledger.nfe <= 2 * nfe
    if name.endswith("learned") and name.startswith("svdd"):
        return  # candidates cost no denoiser calls: the budget cannot be used up
    if name.startswith("rbf"):
        assert result.ledger.nfe >= 2 * nfe - 2 * 2 * search.chains
        return
    more = widened(search, width_of(search) + 1).denoiser_calls(outline(chosen))
    assert more > nfe  # one more particle would not have been paid for


@pytest.mark.parametrize("name", list(WRAPPED))
def test_searches_with_a_rewriter_fit_a_budget_too(name):
    process, prompts = prompted(steps=9, eta=1.0), ["p", "q"]
    told = calls_of(WRAPPED[name], outline(process))
    ledger = run_search(WRAPPED[name], prompted(steps=9, eta=1.0), TARGET, prompts).ledger
    assert ledger.nfe <= 2 * told
    assert ledger.nfe == 2 * told or name.endswith("rbf")
    prepared = fitted(WRAPPED[name], process, prompts, nfe=100, steps="keep")
    assert prepared.plan.rewriting == as_plan(WRAPPED[name]).rewriting
    spent = run_search(prepared, prompted(steps=9, eta=1.0), TARGET, prompts).ledger.nfe
    assert spent <= 200
    plan = prepared.plan
    wider = name.endswith("rbf") or replace(plan, method=widened(plan.method, width_of(plan.method) + 1))
    assert wider is True or calls_of(wider, outline(process)) > 100


def test_rewritten_candidates_share_their_other_branches():
    process = outline(prompted(steps=9))
    assert PROMPTED.nfe(process, 2) == 2 * 9 + 5 * 2 < 2 * calls_of(PROMPTED, process)
    wide, _ = Budget(nfe=100, steps="keep").fit(Plan(PROMPTED), process, 2)
    assert wide.particles == 3
    with pytest.raises(SearchError, match=r"with 9 steps needs at least 28 forward passes per image .19 denoiser call"):
        Budget(nfe=20, steps="keep").fit(Plan(PROMPTED), process, 2)


@pytest.mark.parametrize("search", ORIGIN, ids=[search.name for search in ORIGIN])
def test_going_on_from_a_particle_fits_a_budget_and_keeps_the_schedule(search):
    first = run_search(SVDD(3), oracles.keyed(steps=9, groups=2), TARGET, ["p", "q"])
    later = Plan(search, origin=Origin.at(first.trace, step=4))
    process = oracles.keyed(steps=9, groups=2)
    told = calls_of(later, outline(process))
    ledger = run_search(later, process, TARGET, ["p", "q"]).ledger
    assert ledger.nfe <= 2 * told
    assert ledger.nfe == 2 * told or search.name == "rbf"
    prepared = fitted(later, process, ["p", "q"], nfe=40)
    assert list(prepared.sigmas) == process.sigmas and prepared.plan.origin == later.origin
    assert run_search(prepared, oracles.keyed(steps=9, groups=2), TARGET, ["p", "q"]).ledger.nfe <= 80
    with pytest.raises(SearchError, match=r"nfe is 6: .* with 9 steps needs at least"):
        fitted(later, process, ["p", "q"], nfe=6)


def test_steps_become_fewer_before_particles_become_few():
    process = oracles.keyed(steps=20, groups=1)
    chosen = {}
    for nfe in (200, 80, 60, 40, 24, 10):
        search, shorter = auto(BestOfN(), process, ["p"], nfe=nfe)
        chosen[nfe] = (search.particles, shorter.steps)
    assert chosen == {200: (10, 20), 80: (4, 20), 60: (4, 15), 40: (4, 10), 24: (2, 12), 10: (1, 10)}
    kept, same = auto(BestOfN(), process, ["p"], nfe=60, steps="keep")
    assert (kept.particles, same.steps) == (3, 20)
    assert auto(BestOfN(), process, ["p"], nfe=60, least=2)[0].particles == 3


def test_forward_passes_count_guidance():
    process = oracles.keyed(steps=10, groups=1)
    process.denoise.nfe_per_call = 2
    search, _ = auto(BestOfN(), process, ["p"], nfe=100)
    assert search.particles == 5
    del process.denoise.nfe_per_call


def test_seconds_are_kept():
    """A clock that is the same everywhere: calls cost 1 ms, looks 3 ms."""
    pace = Pace(call=0.001, look=0.003)
    budget = Budget(seconds=1.0, steps="keep")
    process = outline(oracles.keyed(steps=10))
    search, steps = budget.fit(Plan(BestOfN()), process, 1, groups=4, pace=pace)
    assert steps == 10 and search.particles == math.floor(1.0 / (4 * (10 * 0.001 + 0.003)))
    greedy, _ = budget.fit(Plan(SVDD()), process, 1, groups=1, pace=pace)
    spent = greedy.denoiser_calls(process) * 0.001 + greedy.verifications(process) * 0.003
    assert 0.95 < spent <= 1.0
    rbf, _ = budget.fit(Plan(RBF()), process, 1, groups=1, pace=pace)
    assert rbf.budget == 250


def test_pace_is_measured_and_a_run_stays_near_it():
    import time

    process = oracles.keyed(steps=8, groups=1)
    inner = process.denoise

    def slow(x, sigma, group):
        time.sleep(0.002 * len(x))
        return inner(x, sigma, group).x0

    process.denoise = PlainDenoiser(slow)
    search, chosen = auto(BestOfN(), process, ["p"], seconds=0.5)
    assert 5 < search.particles < 32
    result = run_search(search, chosen, TARGET, ["p"])
    assert result.ledger.total_seconds < 1.0


def test_thinned_schedules_keep_their_ends():
    sigmas = [10.0, 8.0, 6.0, 4.0, 2.0, 1.0, 0.0]
    assert thinned(sigmas, 6) == sigmas
    assert thinned(sigmas, 3) == [10.0, 6.0, 1.0, 0.0]
    assert thinned(sigmas, 1) == [10.0, 0.0]
    for steps in range(1, 7):
        short = thinned(sigmas, steps)
        assert len(short) == steps + 1 and short == sorted(set(short), reverse=True)
    for steps in (0, 7):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            thinned(sigmas, steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nfe and seconds are both 0"),
        ({"nfe": -1}, "nfe is -1"),
        ({"nfe": 5}, "nfe is 5: Best-of-N with 10 steps needs at least 10 forward passes per image"),
        ({"nfe": 15, "steps": "keep"}, "nfe is 15: Best-of-N with 20 steps needs at least 20"),
        ({"seconds": math.nan}, "seconds is nan"),
        ({"seconds": 1e-9}, "seconds is 1e-09: measuring the pace alone took longer"),
        ({"nfe": 50, "steps": "many"}, "steps is 'many'"),
        ({"nfe": 50, "least": 0}, "least is 0"),
    ],
)
def test_budgets_that_cannot_work_are_named(settings, message):
    with pytest.raises(SearchError, match=message):
        auto(BestOfN(), oracles.keyed(steps=20, groups=1), ["p"], **settings)


def test_rbf_shrinks_into_small_budgets_and_names_too_small_ones():
    process = oracles.keyed(steps=10, groups=1, flow=True)
    for nfe, expected in ((500, (2, 25)), (60, (2, 3)), (16, (1, 1))):
        search, chosen = auto(RBF(), process, ["p"], nfe=nfe, steps="keep")
        assert (search.budget, search.chains, search.initial) == (nfe, *expected)
        assert run_search(search, chosen, TARGET, ["p"]).ledger.nfe <= nfe
    with pytest.raises(SearchError, match="nfe is 5: Rollover Budget Forcing with 10 steps needs at least 11"):
        auto(RBF(), process, ["p"], nfe=5, steps="keep")


def test_methods_without_a_price_are_named():
    class Odd(SearchMethod):
        name = "odd"

    with pytest.raises(SearchError, match="odd has no automatic budget"):
        Budget(nfe=10).fit(Plan(Odd()), NoiseOutline(Flow(), [1.0, 0.5, 0.0], 1.0), 1)


def test_a_budget_in_seconds_that_pays_for_no_image_says_what_one_takes():
    pace = Pace(call=0.1, look=0.1)
    with pytest.raises(SearchError, match=r"seconds is 0.01: Best-of-N with 10 steps needs at least 10 .* here"):
        Budget(seconds=0.01).fit(Plan(BestOfN()), outline(oracles.keyed(steps=20)), 1, pace=pace)


def test_zero_order_search_takes_more_rounds():
    search, _ = auto(ZeroOrderSearch(4, 1), oracles.keyed(steps=10, groups=1), ["p"], nfe=500, steps="keep")
    assert (search.start, search.neighbours, search.rounds) == (4, 4, 11)
    assert torch.isfinite(run_search(search, oracles.keyed(steps=10, groups=1), TARGET, ["p"]).scores).all()


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("name", [name for name in searches(ALPHA) if not name.startswith("rbf")])
def test_the_estimate_is_what_a_run_costs_wherever_the_schedule_ends(name, above):
    """RBF may leave up to one call per chain; nothing else is a call off, at sigma 0 or above it."""
    process = oracles.keyed()
    process = process.variant(sigmas=process.sigmas[:-1]) if above else process
    if name == "path_search" and above:
        return  # refused
    search = searches(ALPHA)[name]
    result = run_search(search, process, TARGET, ["p"] * process.groups)
    assert result.ledger.nfe == process.groups * search.denoiser_calls(process)
    again = run_search(search, process, TARGET, ["p"] * process.groups, max_nfe=result.ledger.nfe)
    assert again.status == "complete"


@pytest.mark.parametrize("above", [False, True])
def test_rbf_leaves_at_most_one_call_per_chain(above):
    process = oracles.keyed()
    process = process.variant(sigmas=process.sigmas[:-1]) if above else process
    for budget in range(30, 60, 7):
        search = RBF(budget=budget, chains=2, initial=3)
        result = run_search(search, process, TARGET, ["p"] * process.groups)
        assert process.groups * (budget - 2) <= result.ledger.nfe <= process.groups * budget


def test_a_plans_budget_is_for_each_image_of_the_batch():
    plan = Plan(BestOfN(1), budget=Budget(nfe=45, steps="keep"))
    result = run_search(plan, oracles.keyed(steps=9, groups=2), TARGET, ["p", "q"])
    assert result.status == "complete" and result.ledger.nfe == 2 * 45 and len(result.finalists) == 2 * 5


@pytest.mark.parametrize(("own", "run", "nfe"), [(45, 20, 20), (45, 1000, 45)])
def test_the_stricter_of_two_budgets_holds(own, run, nfe):
    """The plan's chooses the width, the run's stops it."""
    plan = Plan(BestOfN(1), budget=Budget(nfe=own, steps="keep"))
    result = run_search(plan, oracles.keyed(steps=9, groups=1), TARGET, ["p"], max_nfe=run)
    assert result.ledger.nfe == nfe and result.status == ("complete" if nfe == own else "budget")


@dataclass(frozen=True)
class TwiceAStep:
    """A sampler like heun, as a plan sees it."""

    name = "twice"
    native = None
    clones = "never"
    pauses = True
    calls_per_step = 2

    def calls(self, steps: int) -> int:
        return 2 * steps - 1


def test_samplers_that_ask_twice_a_step_are_counted_so():
    outline = NoiseOutline(VE(), karras(6), 0.0)
    cost = Cost(Plan(BestOfN(4), sampler=TwiceAStep()), outline, nfe_per_call=2)
    assert cost.calls(BestOfN(4)) == 4 * 11 and cost.nfe(BestOfN(4)) == 2 * 4 * 11
    culled = RandomSearch(4, (0.5,))
    assert cost.calls(culled) == 2 * culled.denoiser_calls(outline)  # at most: runs that end save a call
    method, steps = Budget(nfe=100, steps="keep").fit(Plan(BestOfN(1), sampler=TwiceAStep()), outline, 2)
    assert (method.particles, steps) == (100 // 22, 6)
