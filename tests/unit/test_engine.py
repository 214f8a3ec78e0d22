"""The SMC engine: weights, potentials, resampling steps and output rules, recomputed from the trace."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.methods import DAS, SMC, FKSteering
from testtime.samplers.plan import Plan
from testtime.samplers.run.search import run_search
from testtime.samplers.run.session import Session
from testtime.samplers.smc.tempering import TEMPERINGS, Alpha

from . import oracles
from .searches import LINEAR, SHARP, TARGET, run_on, table


def engine_run(search, groups=6, steps=12, verifier=TARGET):
    return run_on(search, verifier, groups=groups, steps=steps)


@pytest.mark.parametrize("tau", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("tempering", ["exponential", "linear", "none", "adaptive"])
def test_weights_ess_and_resampling_can_be_read_off_the_trace(tau, tempering):
    """Every weight recomputed from the scores: lambda_i r_i / alpha - lambda_{i-1} r_parent / alpha, 0 at birth."""
    n, groups, steps = 6, 5, 12
    search = SMC(n, alpha=Alpha(0.2, "absolute"), tempering=tempering, ess_threshold=tau)
    result = engine_run(search, groups, steps)
    known = table(result.trace)
    allowed = search.resampling_steps(steps)
    assert allowed == list(range(11))
    for record in result.trace.records[:-1]:
        for entry in record.particles:
            group, expected = entry["group"], 0.0
            if record.inverse_temperature[group] > 0:
                expected = record.inverse_temperature[group] * entry["score"]
            if entry["parent"] is not None:
                before, parent = known[entry["parent"]]
                expected += 0.0 if before.resampled[group] else parent["log_weight"]
                if before.inverse_temperature[group] > 0:
                    expected -= before.inverse_temperature[group] * parent["score"]
            assert entry["log_weight"] == pytest.approx(expected, abs=1e-9)
        weights = torch.tensor([entry["log_weight"] for entry in record.particles]).double().view(groups, n)
        ess = 1.0 / torch.softmax(weights, 1).square().sum(1)
        assert record.ess == pytest.approx(ess.tolist())
        if tempering != "adaptive":  # which is resampled where it stopped, see test_tempering
            assert record.resampled == [record.step in allowed and float(e) < tau * n for e in ess]
    assert any(any(record.resampled) for record in result.trace.records)


@pytest.mark.parametrize("tempering", ["none", "exponential"])
@pytest.mark.parametrize("potential", ["diff", "max", "rt", "sum"])
def test_potentials_telescope_to_the_final_reward(potential, tempering):
    """Whatever was added on the way, the weights along every path sum up to r(x0) / alpha, through all resamplings."""
    search = FKSteering(4, alpha=SHARP, potential=potential, tempering=tempering, every=2, ess_threshold=0.7)
    result = engine_run(search)
    known = table(result.trace)
    resampled = 0
    for final in result.trace.records[-1].particles:
        total, parent = final["log_weight"], final["parent"]
        while parent is not None:
            record, entry = known[parent]
            if record.resampled[entry["group"]]:
                total += entry["log_weight"]
                resampled += 1
            parent = entry["parent"]
        assert total == pytest.approx(final["score"] / 0.3, abs=1e-9)
    assert resampled > 0


def test_resampling_happens_at_the_given_steps_only():
    search = FKSteering(4, alpha=SHARP, start=0.25, end=0.8, every=3)
    assert search.resampling_steps(20) == [5, 8, 11, 14]
    result = engine_run(search, steps=20)
    assert [r.step for r in result.trace.records if any(r.resampled)] == [5, 8, 11, 14]
    scored = [r.step for r in result.trace.records if r.particles[0]["score"] is not None]
    assert scored == [5, 8, 11, 14, 19, 20]


def test_the_last_move_is_never_resampled_before():
    """It draws no noise: clones would stay clones."""
    assert max(SMC(4, end=1.0).resampling_steps(20)) == 18


def wins_of_the_heaviest(output):
    """(share of images won by their heaviest particle, mean weight of the heaviest) over 1500 images."""
    groups = 1500
    denoiser = oracles.MixtureDenoiser(torch.tensor([[0.7]]), torch.ones(1), 0.5, oracles.INTERPOLANTS["ve"])
    search = Plan(SMC(4, alpha=Alpha(0.5, "absolute"), start=0.5, end=0.5), output=output)
    result = run_search(search, oracles.process(denoiser, 6, groups, 8), LINEAR, ["p"] * groups)
    entries = result.trace.records[-1].particles
    weights = torch.softmax(torch.tensor([e["log_weight"] for e in entries]).double().view(groups, 4), 1)
    chosen = torch.tensor([e["selected"] for e in entries]).view(groups, 4)
    first = torch.tensor([result.particles[4 * g] for g in range(groups)])
    assert torch.equal(first, torch.tensor([e["id"] for e in entries]).view(groups, 4)[chosen])
    heaviest = weights.argmax(1)
    share = chosen.gather(1, heaviest[:, None]).double().mean()
    return float(share), float(weights.max(1).values.mean())


def test_output_by_weight_takes_the_heaviest():
    assert wins_of_the_heaviest("weight")[0] == 1.0


def test_output_by_sampling_follows_the_weights():
    share, expected = wins_of_the_heaviest("sample")
    assert share == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(1500))
    assert 0.3 < expected < 0.95


@pytest.mark.parametrize("output", ["score", "weight", "sample"])
def test_the_heaviest_particle_does_not_win_without_a_score(output):
    process = oracles.keyed(groups=2)
    session = Session(process, TARGET, ["p", "q"], output=output)
    score = torch.tensor([-math.inf, 0.1, 0.3, 0.2, -math.inf, -math.inf], dtype=torch.float64)
    log_weight = torch.tensor([50.0, -3.0, -80.0, 0.0, 50.0, 50.0], dtype=torch.float64)
    won = session.winners(process.start(3), score, log_weight).tolist()
    assert won == [2 if output == "score" else 1, 3]


def test_a_guided_move_follows_the_next_lambda():
    """DAS, eq. 12: the move into step i + 1 is drawn by ``lambda_{i+1} grad r / alpha``; the last one is not guided."""
    steps = 9
    search = DAS(4, alpha=Alpha(0.5, "absolute"), tempering="linear", guidance=0.6)
    result = engine_run(search, 3, steps)
    lambdas = TEMPERINGS["linear"](steps)
    for record in result.trace.records:
        expected = 0.6 * float(lambdas[record.step]) / 0.5 if 0 < record.step < steps - 1 else None
        for entry in record.particles:
            if expected is not None:
                assert entry["gradient_scale"] == pytest.approx(expected), record.step
    assert {entry["gradient_scale"] for entry in result.trace.records[-1].particles} == {0.0}
    assert {entry["gradient_scale"] for entry in result.trace.records[0].particles} == {0.0}
