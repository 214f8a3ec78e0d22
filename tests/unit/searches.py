"""One setting of every search method, and how to run it on a closed-form process."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import (
    DAS,
    RBF,
    SMC,
    SVDD,
    TTSVAR,
    BeamSearch,
    BestOfN,
    FKSteering,
    ImportanceSampling,
    PathSearch,
    RandomSearch,
    ZeroOrderSearch,
)
from testtime.samplers.methods.population_plan import PopulationPlan
from testtime.samplers.protocols import Verifier
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import Trace
from testtime.samplers.smc.tempering import Alpha

from . import oracles

TARGET = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1), "target")
OTHER = oracles.FunctionVerifier(lambda x: x[:, 2] - x[:, 0], "other")
LINEAR = oracles.FunctionVerifier(lambda x: x[:, 0], "x")
SHARP = Alpha(0.3, "absolute")
RELATIVE = Alpha(0.5, "relative")


def searches(alpha):
    """One setting of every method that there is."""
    return {
        "best_of_n": BestOfN(4),
        "importance_sampling": ImportanceSampling(4, alpha=alpha),
        "svdd": SVDD(4, alpha=alpha),
        "svdd_greedy": SVDD(4),
        "smc": SMC(4, alpha=alpha),
        "smc_adaptive": SMC(4, alpha=alpha, tempering="adaptive"),
        "das": DAS(4, alpha=alpha),
        "fk": FKSteering(4, alpha=alpha, every=2),
        "fk_max": FKSteering(4, alpha=alpha, every=2, potential="max"),
        "svdd_rounds": SVDD(2, alpha=alpha, rounds=2),
        "svdd_blocks": SVDD(3, alpha=alpha, block=3),
        "rbf": RBF(budget=40, chains=2, initial=3),
        "rbf_quantile": RBF(budget=40, chains=2, initial=3, threshold="quantile", level=0.8),
        "rbf_stopping": RBF(budget=60, chains=2, initial=3, threshold="stopping"),
        "beam_search": BeamSearch(2, 3, 2),
        "random_search": RandomSearch(4),
        "zero_order_search": ZeroOrderSearch(2, 2, 0.95, "restart", 1),
        "zero_order_auto": ZeroOrderSearch(2, 2),
        "zero_order_recombine": ZeroOrderSearch(2, 2, mutation="recombine"),
        "path_search": PathSearch(2, 2),
        "tts_var": TTSVAR(1, plan=PopulationPlan(4, {}, {3: 3, 5: 2}), strength=1 / alpha.value),
    }


ABSOLUTE = searches(SHARP)
every_method = pytest.mark.parametrize("name", list(ABSOLUTE))


def run(search, verifier=TARGET, process=None, **options):
    """Run on ``process`` (default ``oracles.keyed()``) with ``run_search``'s ``options``."""
    process = process or oracles.keyed()
    return run_search(search, process, verifier, ["p"] * process.groups, **options)


def run_on(search, verifier=TARGET, **settings):
    """Run on ``oracles.keyed(**settings)``."""
    return run(search, verifier, oracles.keyed(**settings))


def table(trace):
    """{particle id: (record, entry)} of a trace."""
    return {entry["id"]: (record, entry) for record in trace.records for entry in record.particles}


def best_scores(result):
    """Highest score per group ``[G]``."""
    return torch.stack([result.scores[result.group == g].max() for g in range(int(result.group.max()) + 1)])


class Counting(Verifier):
    """A verifier that counts images and calls, and can do something at a given call."""

    differentiable = True

    def __init__(self, inner=TARGET, at=None, action=None, name="counting"):
        self.inner, self.at, self.action, self.name = inner, at, action, name
        self.calls = self.images = 0

    def score(self, images, prompts, context=None):
        self.calls += 1
        if self.calls == self.at:
            self.action()
        self.images += len(images)
        return self.inner.score(images, prompts, context)


class CountingDenoiser:
    """The denoiser of a process, which calls ``action`` before call number ``at``."""

    def __init__(self, inner, at=None, action=None):
        self.inner, self.at, self.action, self.calls = inner, at, action, 0
        self.nfe_per_call, self.can_encode = 1, False

    def __call__(self, x, sigma, group, prompts=None):
        self.calls += 1
        if self.calls == self.at:
            self.action()
        return self.inner(x, sigma, group, prompts)


def raising(error):
    def action():
        raise error

    return action


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


class HostCancel(BaseException):
    """A host's own interruption, not even an Exception."""
