"""Broken scores, wrong settings and judges that only report: nothing wins, steers or passes that must not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from testtime.samplers.ledger import Ledger
from testtime.samplers.methods import DAS, RBF, SMC, BestOfN
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.family import Family
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha

from . import oracles
from .searches import (
    ABSOLUTE,
    OTHER,
    TARGET,
    Counting,
    HostCancel,
    check_whole,
    every_method,
    raising,
    run,
    table,
)

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
    assert result.ledger.rejected_scores == sum(counted) > 0
    assert "verifier 'shaky' gave NaN or infinite scores: such particles cannot win" in result.warnings
    for g in range(6):
        if torch.isfinite(result.scores[result.group == g]).any():
            assert float(result.latents[g, 0]) <= 0.8 + 1e-9
    assert result.log_z is None or not torch.isnan(result.log_z).any()
    assert math.isfinite(result.selection_bias)


@every_method
def test_one_image_of_broken_scores_leaves_the_others_alone(name):
    class Partial(Counting):
        def score(self, images, prompts, context=None):
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
    assert torch.isnan(result.scores).all() and result.ledger.rejected_scores > 0


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
        ({"resampling": "fair"}, "resampling is 'fair'"),
        ({"start": 0.6, "end": 0.5}, "start 0.6 and end 0.5"),
        ({"start": -0.1}, "start -0.1"),
        ({"end": 1.5}, "end 1.5"),
        ({"every": -1}, "every is -1"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"ess_threshold": -0.5}, "ess_threshold is -0.5"),
        ({"ess_threshold": math.nan}, "ess_threshold is nan"),
        ({"gamma": 0.0}, "gamma is 0.0"),
        ({"tempering": "adaptive", "potential": "rt"}, "potential 'rt'"),
        ({"potential": "mean"}, "potential is 'mean'"),
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
    result = run(SMC(2, ess_threshold=0.5))
    assert "ess_threshold is 0.5: with 2 particles it could never resample, 0.75 is used" in result.warnings
    assert run(SMC(4, ess_threshold=0.5)).warnings == []


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
    assert gaps and result.selection_bias == pytest.approx(sum(gaps) / len(gaps), abs=1e-9)
    assert abs(result.selection_bias) > 1e-6


def test_optimism_counts_what_chose_an_ancestor_not_the_particle_itself():
    family, blank = Family(), {"group": 0, "slot": 0, "log_weight": None, "gradient_scale": 0.0, "selected": False}
    family.note([{**blank, "id": k, "parent": None, "score": s} for k, s in enumerate((0.5, 0.1))], True, [0])
    family.note([{**blank, "id": 2, "parent": 0, "score": None}], False, [])
    family.note([{**blank, "id": k, "parent": 2, "score": 0.3 + 0.1 * k} for k in (3, 4)], True, [1])
    assert family.selection_bias(torch.tensor([3, 4]), torch.tensor([0.6, 0.7])) == pytest.approx(0.5 - 0.65)
    assert family.selection_bias(torch.tensor([1]), torch.tensor([0.1])) == 0.0


def test_without_a_selection_there_is_no_optimism():
    assert run(BestOfN(4)).selection_bias == 0.0
    assert run(SMC(4, alpha=Alpha(1e9, "absolute"))).selection_bias == 0.0


def test_budget_of_rbf_is_named_too():
    with pytest.raises(SearchError, match="budget is 5: 2 chains"):
        run(RBF(budget=5, chains=2, initial=3))
