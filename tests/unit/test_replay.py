"""Replays: every finalist of every method comes back, alone, to the last bit of a closed-form model."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.after.replay import Replay, check_same_run, replay_of
from testtime.samplers.methods import (
    DAS,
    SMC,
    SVDD,
    BeamSearch,
    BestOfN,
    FKSteering,
    ImportanceSampling,
    RandomSearch,
    ZeroOrderSearch,
)
from testtime.samplers.processes.kernel import VE, Flow
from testtime.samplers.processes.streams import Streams
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import Trace
from testtime.samplers.smc.tempering import Alpha

from . import oracles

TARGET = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1))
ALPHA = Alpha(0.3, "absolute")
SEARCHES = [
    BestOfN(4),
    ImportanceSampling(4, alpha=ALPHA),
    SVDD(4),
    SVDD(3, alpha=ALPHA, start=0.3, end=0.7),
    SMC(4, alpha=ALPHA),
    DAS(4, alpha=ALPHA),
    FKSteering(4, alpha=ALPHA, potential="max"),
    BeamSearch(2, 3, 2),
    RandomSearch(6),
]


class OwnNoise(oracles.OracleProcess):
    """Keyed streams for the initial noise too, as in a real run."""

    def initial_noise(self, group, slot):
        return self.streams.normals(self.shape, group, slot, step=-1, purpose="initial").double()


def process(seed=3, groups=2, flow=False, steps=9, eta=1.0):
    interpolant = Flow() if flow else VE()
    denoiser = oracles.MixtureDenoiser(
        torch.tensor([[-1.5] * 3, [1.0] * 3]), torch.tensor([0.3, 0.7]), 0.16, interpolant
    )
    made = oracles.process(denoiser, steps, groups, seed, dim=3, flow=flow, eta=eta)
    made.__class__ = OwnNoise
    made.streams = Streams(seed)
    return made


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("search", SEARCHES, ids=[f"{search.name}-{k}" for k, search in enumerate(SEARCHES)])
def test_every_finalist_is_found_again(search, flow):
    result = run_search(search, process(flow=flow), TARGET, ["p", "q"])
    for row, particle in enumerate(result.particles):
        again = run_search(replay_of(result.trace, particle), process(flow=flow), TARGET, ["p", "q"])
        assert torch.allclose(again.latents[0], result.finalists[row], atol=1e-9)
        assert float(again.scores[0]) == pytest.approx(float(result.scores[row]), abs=1e-9)


def test_the_winner_of_each_image_needs_no_number():
    result = run_search(SMC(4, alpha=ALPHA), process(), TARGET, ["p", "q"])
    for group in range(2):
        again = run_search(replay_of(result.trace, group=group), process(), None, ["p", "q"])
        assert torch.allclose(again.latents[0], result.latents[group], atol=1e-9)
        assert again.ledger.verifier_images == 0


def test_a_trace_read_from_json_is_enough():
    result = run_search(SVDD(4), process(), TARGET, ["p", "q"])
    trace = Trace.from_json(result.trace.to_json())
    again = run_search(replay_of(trace), process(), None, ["p", "q"])
    assert torch.allclose(again.latents[0], result.latents[0], atol=1e-9)


def test_what_cannot_be_replayed_is_said():
    result = run_search(BestOfN(2), process(), TARGET, ["p", "q"])
    with pytest.raises(SearchError, match="particle is 999"):
        replay_of(result.trace, 999)
    with pytest.raises(SearchError, match="image is 5: the search made 2"):
        replay_of(result.trace, group=5)
    with pytest.raises(SearchError, match="trace is empty"):
        replay_of(Trace())
    noise = run_search(ZeroOrderSearch(2, 1), process(), TARGET, ["p", "q"])
    with pytest.raises(SearchError, match="Zero-Order Search"):
        replay_of(noise.trace)
    with pytest.raises(SearchError, match="this batch has 1"):
        run_search(replay_of(result.trace, group=1), process(groups=1), None, ["p"])
    with pytest.raises(SearchError, match="9 moves and this schedule has 4"):
        run_search(replay_of(result.trace), process(steps=4), None, ["p", "q"])
    guided = run_search(DAS(4, alpha=ALPHA), process(), TARGET, ["p", "q"])
    with pytest.raises(SearchError, match="guided by a gradient"):
        run_search(replay_of(guided.trace), process(), None, ["p", "q"])


def test_other_settings_are_refused():
    trace = Trace(seed=4)
    trace.meta = {"sigmas": [9.0, 1.0, 0.0], "eta": 1.0}
    check_same_run(trace, seed=4, sigmas=[9.0, 1.0, 0.0], eta=1.0)
    for settings, message in (
        ({"seed": 5}, "seed is 5: the search had 4"),
        ({"sigmas": [9.0, 0.0]}, "has 1 steps"),
        ({"sigmas": [9.0, 1.1, 0.0]}, "others in between"),
        ({"eta": 0.5}, "eta is 0.5: the search had 1.0"),
    ):
        with pytest.raises(SearchError, match=message):
            check_same_run(trace, **{"seed": 4, "sigmas": [9.0, 1.0, 0.0], "eta": 1.0, **settings})


def test_replay_is_one_particle():
    result = run_search(BestOfN(3), process(), TARGET, ["p", "q"])
    replay = replay_of(result.trace)
    assert isinstance(replay, Replay) and replay.guided == 0
    again = run_search(replay, process(), None, ["p", "q"])
    assert again.ledger.nfe == process().steps
