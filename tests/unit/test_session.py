"""A run that is cut short, fed with nonsense or set up wrongly: nothing is lost, nothing wins that must not."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from testtime.samplers import ledger as ledger_module
from testtime.samplers.ledger import Ledger
from testtime.samplers.methods import DAS, RBF, SMC, SVDD, BestOfN, FKSteering
from testtime.samplers.protocols import Interrupted, SearchError
from testtime.samplers.session import run_search
from testtime.samplers.tempering import Alpha
from testtime.samplers.trace import Trace

from . import oracles
from .test_methods import ABSOLUTE, every_method, table

TARGET = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1), "target")
OTHER = oracles.FunctionVerifier(lambda x: x[:, 2] - x[:, 0], "other")


class Counting:
    """A verifier that counts images and calls, and can do something at a given call."""

    differentiable = True

    def __init__(self, inner=TARGET, at=None, action=None, name="counting"):
        self.inner, self.at, self.action, self.name = inner, at, action, name
        self.calls = self.images = 0

    def score(self, images, prompts):
        self.calls += 1
        if self.calls == self.at:
            self.action()
        self.images += len(images)
        return self.inner.score(images, prompts)


class CountingDenoiser:
    """The denoiser of a process, which calls ``action`` before call number ``at``."""

    def __init__(self, inner, at=None, action=None):
        self.inner, self.at, self.action, self.calls = inner, at, action, 0
        self.rows_per_particle = 1

    def __call__(self, x, sigma, group):
        self.calls += 1
        if self.calls == self.at:
            self.action()
        return self.inner(x, sigma, group)


def raising(error):
    def action():
        raise error

    return action


def run(search, verifier=TARGET, process=None, **options):
    process = process or oracles.keyed()
    return run_search(search, process, verifier, ["p"] * process.groups, **options)


def watched(at=None, action=None, **settings):
    """(process, its counting denoiser)."""
    process = oracles.keyed(**settings)
    process.denoise = CountingDenoiser(process.denoise, at, action)
    return process, process.denoise


def check_whole(result, status, groups=2):
    """What every result must be, however it came about."""
    assert result.status == status == result.trace.meta["status"]
    assert len(result.latents) == groups and torch.isfinite(result.finalists).all()
    for g in range(groups):
        mine = result.group == g
        assert torch.equal(result.latents[g], result.finalists[mine][0])
    assert len(result.finalists) == len(result.scores) == len(result.particles) == len(result.group)
    assert Trace.from_json(result.trace.to_json()).meta["status"] == status


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
    expected = [record for record in full.trace.records if record.nfe <= budget]
    assert len(records) >= max(len(expected) - 1, 0)  # the record of finished images may share its count
    for record, other in zip(records, expected, strict=False):
        assert [replace(record, seconds=0.0)] == [replace(other, seconds=0.0)]


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
        return inner(x, sigma, group)

    process.denoise = slow
    slow.rows_per_particle = 1
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


class HostCancel(BaseException):
    """A host's own interruption, not even an Exception."""


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
    search = FKSteering(6, alpha=Alpha(5.0, "absolute"), start=0.3, end=0.9, every=4, tau=0.2)
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
    assert [r.particles for r in records] == [r.particles for r in full.trace.records[: len(records)]]


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
        def score(self, images, prompts):
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


# --- broken scores ---------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_scores_never_win_nor_poison(name, bad):
    """Every image beyond .8 gets a broken score, where honest scores are highest."""
    counted = []

    def function(x):
        scores = TARGET.score(x, [])
        broken = x[:, 0] > 0.8
        counted.append(int(broken.sum()))
        return torch.where(broken, torch.full_like(scores, bad), scores)

    process = oracles.keyed(groups=6)
    result = run(ABSOLUTE[name], oracles.FunctionVerifier(function, "shaky"), process)
    check_whole(result, "complete", 6)
    assert result.ledger.rejected_rewards == sum(counted) > 0
    assert "verifier 'shaky' gave NaN or infinite scores: such particles cannot win" in result.warnings
    for g in range(6):
        if torch.isfinite(result.scores[result.group == g]).any():
            assert float(result.latents[g, 0]) <= 0.8 + 1e-9
    assert result.log_z is None or not torch.isnan(result.log_z).any()
    assert math.isfinite(result.optimism)


@every_method
def test_one_image_of_broken_scores_leaves_the_others_alone(name):
    class Partial(Counting):
        def score(self, images, prompts):
            scores = super().score(images, prompts)
            bad = torch.tensor([prompt == "bad" for prompt in prompts])
            return torch.where(bad, torch.full_like(scores, math.nan), scores)

    broken = run_search(ABSOLUTE[name], oracles.keyed(groups=3), Partial(), ["p", "bad", "p"])
    sound = run_search(ABSOLUTE[name], oracles.keyed(groups=3), TARGET, ["p", "p", "p"])
    for g in (0, 2):
        assert torch.equal(broken.latents[g], sound.latents[g])
    assert torch.isfinite(broken.latents[1]).all()
    assert torch.isnan(broken.scores[broken.group == 1]).all()


@every_method
def test_nothing_but_broken_scores_still_gives_images(name):
    nothing = oracles.FunctionVerifier(lambda x: x[:, 0] * math.nan)
    result = run(ABSOLUTE[name], nothing)
    check_whole(result, "complete")
    assert torch.isnan(result.scores).all() and result.ledger.rejected_rewards > 0


def test_broken_gradients_leave_the_move_unguided():
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return torch.full_like(grad, math.nan)

    verifier = oracles.FunctionVerifier(lambda x: TARGET.score(Steep.apply(x), []))
    alpha = Alpha(0.3, "absolute")
    result = run(DAS(4, alpha=alpha), verifier)
    assert torch.equal(result.finalists, run(DAS(4, alpha=alpha, guidance=0.0)).finalists)


# --- settings --------------------------------------------------------------------------------------------------------

SIZES = {
    "best_of_n": "particles",
    "importance_sampling": "particles",
    "svdd": "candidates",
    "smc": "particles",
    "das": "particles",
    "fk": "particles",
    "rbf": "chains",
    "beam_search": "beams",
    "random_search": None,
    "zero_order_search": None,
    "path_search": "paths",
}


@pytest.mark.parametrize("name", [name for name, field in SIZES.items() if field])
@pytest.mark.parametrize("value", [0, -3])
def test_no_particles_at_all_are_refused(name, value):
    with pytest.raises(SearchError, match=f"{SIZES[name]} is {value}: at least 1 is needed"):
        run(replace(ABSOLUTE[name], **{SIZES[name]: value}))


@every_method
def test_a_missing_verifier_is_named(name):
    with pytest.raises(SearchError, match="verifier is missing"):
        run(ABSOLUTE[name], None)


def test_one_sample_needs_no_verifier():
    result = run(BestOfN(1), None)
    check_whole(result, "complete")
    assert torch.isnan(result.scores).all() and result.ledger.verifier_images == 0


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_temperatures_below_zero_are_named(value):
    with pytest.raises(SearchError, match=f"alpha is {value}"):
        Alpha(value)
    with pytest.raises(SearchError, match="alpha mode is 'some'"):
        Alpha(1.0, "some")


def test_guidance_needs_a_differentiable_verifier():
    verifier = oracles.FunctionVerifier(TARGET.function, "jpeg")
    verifier.differentiable = False
    with pytest.raises(SearchError, match="verifier 'jpeg' is not differentiable: guidance must be 0"):
        run(DAS(4), verifier)
    check_whole(run(DAS(4, guidance=0.0), verifier), "complete")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tempering": "fast"}, "tempering is 'fast'"),
        ({"scheme": "fair"}, "resampling is 'fair'"),
        ({"output": "worst"}, "output is 'worst'"),
        ({"start": 0.6, "end": 0.5}, "start 0.6 and end 0.5"),
        ({"start": -0.1}, "start -0.1"),
        ({"end": 1.5}, "end 1.5"),
        ({"every": 0}, "every is 0"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"tau": -0.5}, "tau is -0.5"),
        ({"tau": math.nan}, "tau is nan"),
        ({"gamma": 0.0}, "gamma is 0.0"),
        ({"tempering": "adaptive", "adaptive_target": 1.5}, "adaptive_target is 1.5"),
        ({"potential": "sum"}, "potential is 'sum'"),
        ({"particles": 1, "guidance": 1.0}, "alpha mode is 'relative' with 1 particle"),
    ],
)
def test_settings_of_the_engine_are_named(settings, message):
    with pytest.raises(SearchError, match=message):
        SMC(**settings).check_settings()


def test_gradients_go_through_denoiser_or_decoder():
    with pytest.raises(SearchError, match="gradient_through is 'verifier'"):
        DAS(gradient_through="verifier").check_settings()


def test_a_threshold_that_can_never_be_met_is_raised_aloud():
    result = run(SMC(2, tau=0.5))
    assert "tau is 0.5: with 2 particles it could never resample, 0.75 is used" in result.warnings
    assert run(SMC(4, tau=0.5)).warnings == []


def test_prompts_must_match_images():
    with pytest.raises(SearchError, match="3 prompts for 2 images"):
        run_search(SMC(4), oracles.keyed(), TARGET, ["a", "b", "c"])


def test_a_ledger_counts_only_calls_that_were_made():
    ledger = Ledger(max_nfe=10)
    with pytest.raises(RuntimeError), ledger.model(4):
        raise RuntimeError("failed")
    assert ledger.nfe == ledger.model_calls == 0
    with ledger.model(10, backward=True):
        pass
    assert (ledger.nfe, ledger.backward, ledger.model_calls) == (10, 10, 1)


# --- held-out verifiers and optimism ---------------------------------------------------------------------------------


@every_method
def test_a_held_out_verifier_never_steers(name):
    """Bit-identical images and trace with and without; its scores are those of the finished images."""
    without, held = run(ABSOLUTE[name]), run(ABSOLUTE[name], held_out=OTHER)
    assert torch.equal(without.finalists, held.finalists) and torch.equal(without.scores, held.scores)
    assert without.particles == held.particles and without.held_out is None
    assert torch.allclose(held.held_out, OTHER.score(held.finalists, []), atol=1e-9)
    assert held.ledger.held_out_images == len(held.finalists)
    assert held.ledger.verifier_images == without.ledger.verifier_images
    known = table(held.trace)
    for particle, score in zip(held.particles, held.held_out.tolist(), strict=True):
        assert known[particle][1]["held_out"] == pytest.approx(score)


@pytest.mark.parametrize("name", ["smc", "random_search", "zero_order_search", "svdd", "rbf"])
def test_runs_out_of_budget_report_it_too(name):
    total = run(ABSOLUTE[name]).ledger.nfe
    seen = 0
    for budget in range(1, total, 5):
        try:
            result = run(ABSOLUTE[name], max_nfe=budget, held_out=OTHER)
        except SearchError:
            continue
        seen += 1
        assert torch.allclose(result.held_out, OTHER.score(result.finalists, []), atol=1e-9)
    assert seen > 1


def test_a_held_out_verifier_that_fails_costs_nothing_but_its_scores():
    judge = Counting(OTHER, 1, raising(OSError("no weights")), "late")
    result = run(SMC(4), held_out=judge)
    check_whole(result, "complete")
    assert result.held_out is None and torch.equal(result.finalists, run(SMC(4)).finalists)
    assert "held-out verifier 'late' failed, its scores are missing: OSError: no weights" in result.warnings
    assert result.trace.meta["warnings"] == result.warnings


def test_cancelling_the_held_out_verifier_keeps_the_result():
    result = run(SMC(4), held_out=Counting(OTHER, 1, raising(HostCancel())), interrupts=(HostCancel,))
    check_whole(result, "interrupted")
    assert torch.equal(result.finalists, run(SMC(4)).finalists) and torch.isfinite(result.scores).all()


@pytest.mark.parametrize("name", ["smc", "fk", "fk_max", "importance_sampling"])
def test_optimism_is_the_last_score_used_minus_the_final_one(name):
    """From the trace: the score of each finalist's ancestor at the latest resampling, less its own."""
    search = replace(ABSOLUTE[name], alpha=Alpha(0.1, "absolute"), end=0.6)
    result = run(search, process=oracles.keyed(steps=12))
    known, gaps = table(result.trace), []
    for final in result.trace.records[-1].particles:
        parent = final["parent"]
        while parent is not None:
            record, entry = known[parent]
            if record.resampled[entry["group"]]:
                gaps.append(entry["score"] - final["score"])
                break
            parent = entry["parent"]
    assert gaps and result.optimism == pytest.approx(sum(gaps) / len(gaps), abs=1e-9)
    assert abs(result.optimism) > 1e-6


def test_without_a_selection_there_is_no_optimism():
    assert run(BestOfN(4)).optimism == 0.0
    assert run(SMC(4, alpha=Alpha(1e9, "absolute"))).optimism == 0.0


def test_budget_of_rbf_is_named_too():
    with pytest.raises(SearchError, match="budget is 5: 2 chains"):
        run(RBF(budget=5, chains=2, initial=3))
