"""Every method against exact answers: tilted Gaussians and mixtures with closed-form denoisers.

The target is p(x0) exp(r(x0) / alpha). Discretisation is part of the oracle where its law is known in closed form
(linear Gaussian); elsewhere tolerances are those of many samples plus the known bias of few steps.
"""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.methods import DAS, SMC, SVDD, BestOfN, FKSteering, ImportanceSampling
from testtime.samplers.plan import Plan
from testtime.samplers.processes.kernel import VE
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha

from . import oracles

pytestmark = pytest.mark.slow

M0, V0, ALPHA = 0.7, 0.5, 0.5
LINEAR = oracles.FunctionVerifier(lambda x: x[:, 0], "x")


PATHS = list(oracles.INTERPOLANTS)


def gaussian(steps, groups, seed, path="ve"):
    denoiser = oracles.MixtureDenoiser(torch.tensor([[M0]]), torch.ones(1), V0, oracles.INTERPOLANTS[path])
    return oracles.process(denoiser, steps, groups, seed)


def exact(steps, path="ve"):
    """(tilted mean, log Z) of the chain that really runs, at finite T."""
    m, v = oracles.linear_gaussian(steps, M0, V0, widened=path == "ve")
    return m + v / ALPHA, m / ALPHA + v / (2 * ALPHA**2)


METHODS = {
    "smc": lambda n: SMC(n, alpha=Alpha(ALPHA, "absolute"), end=1.0),
    "das": lambda n: DAS(n, alpha=Alpha(ALPHA, "absolute"), end=1.0),
    "fk_diff": lambda n: FKSteering(n, alpha=Alpha(ALPHA, "absolute"), potential="diff"),
    "fk_max": lambda n: FKSteering(n, alpha=Alpha(ALPHA, "absolute"), potential="max"),
    "fk_rt": lambda n: FKSteering(n, alpha=Alpha(ALPHA, "absolute"), potential="rt"),
    "importance_sampling": lambda n: ImportanceSampling(n, alpha=Alpha(ALPHA, "absolute")),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", list(METHODS))
def test_normalising_constant_is_unbiased(name, path):
    """E[Z_hat] = Z for any N: the mean of exp(log Z_hat - log Z) is 1 within four standard errors."""
    runs, steps = 1000, 20
    result = run_search(METHODS[name](16), gaussian(steps, runs, 1234, path), LINEAR, ["p"] * runs)
    ratio = torch.exp(result.log_z - exact(steps, path)[1])
    error = float(ratio.std()) / math.sqrt(runs)
    assert abs(float(ratio.mean()) - 1) < 4 * error
    assert error < 0.05


@pytest.mark.parametrize("name", list(METHODS))
def test_weighted_mean_is_the_tilted_mean(name):
    runs = 120
    result = run_search(METHODS[name](256), gaussian(20, runs, 5), LINEAR, ["p"] * runs)
    found = oracles.weighted_mean(result, runs)[:, 0]
    error = float(found.std()) / math.sqrt(runs)
    assert abs(float(found.mean()) - exact(20)[0]) < 0.03 + 3 * error


def test_few_particles_have_the_known_bias_and_spread():
    """N = 16, T = 20: self-normalised means fall short by O(1 / N), and gradients shrink bias and sd log Z alike."""
    runs, bias, spread = 1500, {}, {}
    for name in ("smc", "das"):
        result = run_search(METHODS[name](16), gaussian(20, runs, 1234), LINEAR, ["p"] * runs)
        bias[name] = float(oracles.weighted_mean(result, runs).mean()) - exact(20)[0]
        spread[name] = float(result.log_z.std())
    assert bias["smc"] == pytest.approx(-0.11, abs=0.04) and bias["das"] == pytest.approx(-0.045, abs=0.03)
    assert spread["smc"] == pytest.approx(0.38, abs=0.05) and spread["das"] == pytest.approx(0.22, abs=0.04)
    assert spread["das"] < 0.7 * spread["smc"]


def test_the_best_of_n_gaussians_is_the_expected_maximum():
    """E[max of 8 draws] = mean + 1.4236 standard deviations."""
    runs = 2000
    x = run_search(BestOfN(8), gaussian(20, runs, 4), LINEAR, ["p"] * runs).latents[:, 0]
    m, v = oracles.linear_gaussian(20, M0, V0)
    assert float(x.mean()) == pytest.approx(m + 1.4236 * math.sqrt(v), abs=4 * math.sqrt(v / runs))


def test_finite_step_law_is_the_known_one():
    """Plain ancestral sampling ends with exactly the mean and variance of the recursion (.6984, .3579 at T = 20)."""
    assert oracles.linear_gaussian(20) == (pytest.approx(0.6984, abs=1e-4), pytest.approx(0.3579, abs=1e-4))
    n = 6000
    x = run_search(BestOfN(1), gaussian(20, n, 0), None, ["p"] * n).latents[:, 0]
    assert float(x.mean()) == pytest.approx(0.6984, abs=4 * math.sqrt(0.3579 / n))
    assert float(x.var()) == pytest.approx(0.3579, rel=4 * math.sqrt(2 / n))


MEANS_1D, WEIGHTS_1D = torch.tensor([[-3.0], [3.0]]), torch.tensor([0.9, 0.1])
HALF = oracles.FunctionVerifier(lambda x: 0.5 * x[:, 0], "half")


def two_modes(groups, seed, path="ve", steps=50):
    denoiser = oracles.MixtureDenoiser(MEANS_1D, WEIGHTS_1D, 0.25, oracles.INTERPOLANTS[path])
    return oracles.process(denoiser, steps, groups, seed)


# These potentials count a score anew at every resampling; here more than one would lose the other mode altogether.
ONCE = {"start": 0.5, "end": 0.5}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "search",
    [
        Plan(SMC(200, alpha=Alpha(1.0, "absolute")), output="sample"),
        Plan(DAS(200, alpha=Alpha(1.0, "absolute")), output="sample"),
        FKSteering(200, alpha=Alpha(1.0, "absolute"), potential="diff"),
        FKSteering(200, alpha=Alpha(1.0, "absolute"), potential="max", **ONCE),
        FKSteering(200, alpha=Alpha(1.0, "absolute"), potential="rt", **ONCE),
        ImportanceSampling(200, alpha=Alpha(1.0, "absolute"), **ONCE),
    ],
    ids=["smc", "das", "fk_diff", "fk_max", "fk_rt", "importance_sampling"],
)
def test_modes_are_reweighted(search, path):
    """A rare mode with the better reward: P(x > 0) is .6906 tilted and .1 before, Z = exp(-.4011).

    Tilting by x / 2 moves each mean by .125 and leaves the variance .25. Fifty steps take a little off all of these.
    """
    runs = 60
    result = run_search(search, two_modes(runs, 1, path), HALF, ["p"] * runs)
    share = weighted(result, runs, lambda x: (x[..., 0] > 0).double())
    mean = float(weighted(result, runs, lambda x: x[..., 0].clamp(min=0)).sum() / share.sum())
    square = float(weighted(result, runs, lambda x: x[..., 0].clamp(min=0).square()).sum() / share.sum())
    assert float(share.mean()) == pytest.approx(0.672, abs=0.05)
    assert mean == pytest.approx(3.08, abs=0.06)
    assert square - mean**2 == pytest.approx(0.228, abs=0.04)
    assert float(torch.exp(result.log_z + 0.4011).mean()) == pytest.approx(0.957, abs=0.09)


def weighted(result, groups, function):
    """Weighted mean per group of ``function(x [G, N, d])`` by the final weights."""
    record = result.trace.records[-1]
    n = len(record.particles) // groups
    log_w = torch.tensor([-math.inf if e["log_weight"] is None else e["log_weight"] for e in record.particles])
    weights = torch.softmax(log_w.double().view(groups, n), 1)
    place = {particle: row for row, particle in enumerate(result.particles)}
    rows = torch.tensor([place[e["id"]] for e in record.particles])
    return (weights * function(result.finalists[rows].view(groups, n, -1))).sum(1)


def test_greedy_svdd_hacks_the_reward_and_posterior_mean_is_biased():
    """alpha = 0 leaves the data far behind; SVDD-PM lands between prior and target, a bias and not noise."""
    runs = 400
    greedy = run_search(SVDD(8), two_modes(runs, 2), HALF, ["p"] * runs).latents[:, 0]
    assert float((greedy > 0).double().mean()) == 1.0 and float(greedy.mean()) > 5.5
    soft = run_search(SVDD(8, alpha=Alpha(1.0, "absolute")), two_modes(1500, 2), HALF, ["p"] * 1500).latents[:, 0]
    assert 0.35 < float((soft > 0).double().mean()) < 0.47


def test_svdd_with_the_exact_value_converges_to_the_target():
    """With v = alpha log E[exp(r / alpha) | x_t] SVDD samples the target as M grows; closed form of a mixture."""
    denoiser = oracles.MixtureDenoiser(MEANS_1D, WEIGHTS_1D, 0.25, VE())

    def value(x, sigma):
        v0, b = 0.25, 0.5
        gap = x[:, None, :] - MEANS_1D.double()
        gamma = torch.log_softmax(WEIGHTS_1D.double().log() - gap.square().sum(-1) / (2 * (v0 + sigma**2)), 1)
        mean = (MEANS_1D.double() + v0 / (v0 + sigma**2) * gap)[..., 0]
        variance = v0 * sigma**2 / (v0 + sigma**2)
        return torch.logsumexp(gamma + b * mean + 0.5 * b * b * variance, 1)

    shares, runs = [], 1000
    for m in (2, 8, 32):
        search = SVDD(m, alpha=Alpha(1.0, "absolute"), value_function=value)
        process = oracles.process(denoiser, 50, runs, 3)
        x = run_search(search, process, HALF, ["p"] * runs).latents[:, 0]
        shares.append(float((x > 0).double().mean()))
    assert shares[0] < shares[1] < shares[2] + 0.03
    assert 0.6 < shares[2] < 0.72


NINE = torch.tensor([[float(i), float(j)] for i in (-4, 0, 4) for j in (-4, 0, 4)])
QUADRATIC = oracles.FunctionVerifier(lambda x: -x[:, 0].square() / 100 - x[:, 1].square(), "quadratic")


def grid_mixture(groups, seed, steps=100):
    return oracles.process(
        oracles.MixtureDenoiser(NINE, torch.full((9,), 1 / 9), 0.3, VE()), steps, groups, seed, dim=2
    )


@pytest.mark.parametrize("method", [SMC, DAS], ids=["smc", "das"])
def test_nine_modes_become_three(method):
    """E r = -.2907 and nearly all mass in the middle row, a third in each column."""
    runs = 100
    search = Plan(method(100, alpha=Alpha(1.0, "absolute")), output="sample")
    result = run_search(search, grid_mixture(runs, 1), QUADRATIC, ["p"] * runs)
    reward = weighted(result, runs, lambda x: -x[..., 0].square() / 100 - x[..., 1].square()).mean()
    middle = weighted(result, runs, lambda x: (x[..., 1].abs() < 2).double()).mean()
    column = weighted(result, runs, lambda x: (x[..., 0].abs() < 2).double()).mean()
    assert float(reward) == pytest.approx(-0.29, abs=0.03)
    assert float(middle) > 0.997
    assert float(column) == pytest.approx(0.37, abs=0.08)


def test_greedy_svdd_collapses_to_a_point():
    runs = 500
    x = run_search(SVDD(20), grid_mixture(runs, 2), QUADRATIC, ["p"] * runs).latents
    assert float(x[:, 1].abs().max()) < 0.05 and float((x[:, 0].abs() < 2).double().mean()) > 0.99


@pytest.mark.parametrize("method", [SMC, FKSteering], ids=["smc", "fk"])
def test_what_is_handed_out_follows_the_target_only_where_it_is_drawn(method):
    """Output "sample" hands out draws of p(x) exp(r / alpha), P(x > 0) = .672 here; "score" the best: one mode."""
    settings = {"alpha": Alpha(1.0, "absolute"), **({} if method is SMC else {"potential": "diff"})}
    shares = {}
    for output in ("sample", "score"):
        plan = Plan(method(100, **settings), output=output)
        runs = 400
        handed = run_search(plan, two_modes(runs, 5, steps=30), HALF, ["p"] * runs).latents[:, 0]
        shares[output] = float((handed > 0).double().mean())
    assert shares["sample"] == pytest.approx(0.672, abs=0.07)
    assert shares["score"] > 0.95
