"""Next-scale generation as a process: independence of particles, selection, costs, and the searches on it."""

import pytest
import torch

from testtime.models.infinity.bits import codes_of
from testtime.models.infinity.flops import decode_flops, scale_flops
from testtime.models.infinity.sampling import ScaleSampling
from testtime.samplers.after.replay import replay_of
from testtime.samplers.methods import (
    DAS,
    RBF,
    SMC,
    SVDD,
    BeamSearch,
    BestOfN,
    FKSteering,
    ImportanceSampling,
    RandomSearch,
)
from testtime.samplers.processes.chunking import is_out_of_memory
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search

from .scale_world import SAMPLING, SCHEDULE, Brightness, networks, process


@pytest.fixture(scope="module")
def nets():
    return networks()


def draw(proc, particles=1, state=None, until=None):
    """Advance to scale ``until``."""
    state = state or proc.start(particles)
    for _ in range(state.step, proc.steps if until is None else until):
        state, ratio = proc.advance(proc.predict(state))
        assert not ratio.any()
    return state


def test_particles_do_not_depend_on_their_number_or_chunks(nets):
    alone = draw(process(nets)).x
    many = draw(process(nets), 5).x
    chunked = draw(process(nets, chunk=2), 5).x
    assert torch.allclose(many[:1], alone, atol=1e-5) and torch.allclose(many, chunked, atol=1e-5)
    assert (many[0] - many[1]).abs().max() > 0.1


def test_groups_have_their_own_prompts_and_noise(nets):
    both = draw(process(nets, groups=2), 2)
    assert both.group.tolist() == [0, 0, 1, 1]
    shared = draw(process(nets, groups=2, lengths=[3]), 2).x
    assert torch.allclose(both.x[:2], shared[:2], atol=1e-5)
    assert not torch.allclose(both.x[2:], shared[2:], atol=1e-2)


def test_seed_decides(nets):
    assert torch.equal(draw(process(nets, seed=3)).x, draw(process(nets, seed=3)).x)
    assert not torch.equal(draw(process(nets, seed=3)).x, draw(process(nets, seed=4)).x)


def test_codes_add_up_to_unit_steps(nets):
    """The first scale is one code everywhere; the last adds a code of length one at every place."""
    proc = process(nets)
    first = draw(proc, until=1)
    assert torch.allclose(first.x.norm(dim=1), torch.ones(())) and first.x.std((2, 3)).max() < 1e-6
    before = draw(proc, until=5)
    after = draw(proc, state=before)
    assert torch.allclose((after.x - before.x).norm(dim=1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_selected_particles_continue_as_if_they_had_been_alone(nets, after):
    """Survivors keep their own streams here, so each must end exactly where it ends without the others."""
    proc = process(nets)
    whole = draw(proc, 4).x
    state = draw(proc, 4, until=after).select(torch.tensor([3, 1]))
    assert torch.allclose(draw(proc, state=state).x, whole[[3, 1]], atol=1e-5)


def test_clones_separate_when_slots_own_the_streams(nets):
    proc = process(nets)
    state = draw(proc, 2, until=3)
    clones = state.select(torch.tensor([1, 1]), slot=torch.tensor([0, 1]))
    assert torch.equal(clones.x[0], clones.x[1])
    done = draw(proc, state=clones).x
    assert (done[0] - done[1]).abs().max() > 0.1
    assert torch.allclose(done[1], draw(proc, 2).x[1], atol=1e-5)  # it kept its own stream


def test_one_state_may_be_advanced_twice(nets):
    proc = process(nets)
    state = draw(proc, 2, until=3)
    one, _ = proc.advance(state)
    other, _ = proc.advance(state.select(torch.tensor([0, 1]), slot=torch.tensor([5, 6])))
    assert not torch.equal(one.x, other.x)
    assert torch.equal(draw(proc, state=one).x, draw(proc, 2).x)


def test_patches_of_codes_run(nets):
    proc = process(networks(patchify=True))
    state = draw(proc, 2)
    assert state.x.shape == (2, 2, 16, 16)
    assert proc.preview(proc.predict(state)).shape == (2, 64, 64, 3)


def test_without_guidance_only_one_branch_runs(nets):
    plain = process(nets, sampling=ScaleSampling(cfg=1.0, tau=1.0))
    draw(plain, 2)
    assert plain.ledger.nfe == 2 * len(SCHEDULE)
    partly = process(nets, sampling=ScaleSampling(cfg=(1.0,) * 5 + (2.0,), tau=1.0))
    draw(partly, 2)
    assert partly.ledger.nfe == 4 * len(SCHEDULE)


def test_low_temperature_is_greedy(nets):
    cold = draw(process(nets, sampling=ScaleSampling(cfg=1.5, tau=1e-4)), 2).x
    greedy = draw(process(nets).variant(eta=0.0), 2).x
    assert torch.allclose(cold, greedy, atol=1e-5) and torch.allclose(greedy[0], greedy[1], atol=1e-5)
    assert not process(nets).variant(eta=0.0).capabilities.can_branch


def test_costs_are_in_the_books(nets):
    proc = process(nets, preview=4)
    state = draw(proc, 3, until=4)
    expected = 3 * sum(scale_flops(proc.model.config, SCHEDULE, k, 3) for k in range(4))
    assert proc.ledger.flops == expected and proc.ledger.nfe == 24
    assert proc.preview(proc.predict(state)).shape == (3, 16, 16, 3)
    expected += 3 * decode_flops(proc.decoder.config, 4, 4)
    assert proc.ledger.flops == expected and proc.ledger.decodes == 3
    assert 0 < proc.ledger.decode_flops < proc.ledger.flops
    done = draw(proc, state=state)
    assert proc.preview(proc.predict(done)).shape == (3, 32, 32, 3)
    assert proc.sigmas[0] == 1.0 and proc.sigmas[-1] == 0.0 and len(proc.sigmas) == 7


def test_cache_is_as_large_as_promised_and_reserved_once(nets):
    proc = process(nets)
    state = draw(proc, 3, until=2)
    assert state.cache.bytes() == proc.memory(3, 5) == proc.memory(3, 4)
    buffer = state.cache.buffer
    assert draw(proc, state=state, until=5).cache.buffer is buffer
    assert draw(proc, state=state).cache.buffer is None


def test_announced_populations_reserve_no_more_than_they_need(nets):
    proc = process(nets)
    proc.expect([8, 8, 8, 2, 2, 2])
    state = draw(proc, 8, until=1)
    assert state.cache.bytes() == proc.memory(8, 2)
    fewer = draw(proc, state=draw(proc, state=state, until=3).select(torch.tensor([0, 1])), until=4)
    assert fewer.cache.bytes() == proc.memory(2, 4)


def test_memory_runs_out_and_the_result_stays(nets, monkeypatch):
    proc = process(nets)
    whole = draw(proc, 4).x
    step, failures = proc.model.step, []

    def scarce(codes, rows, *args):
        if len(rows) > 2:
            failures.append(len(rows))
            raise torch.OutOfMemoryError("too much")
        return step(codes, rows, *args)

    monkeypatch.setattr(proc.model, "step", scarce, raising=False)
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert torch.allclose(draw(proc, 4).x, whole, atol=1e-5)
    assert failures == [4] and proc.chunker.size == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cfg": (1.0, 2.0)}, "cfg has 2 numbers for 6 scales"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"layers": (2,)}, "cfg layers are"),
        ({"layers": (-2,)}, "-1 .. -1"),
    ],
)
def test_bad_sampling_settings(nets, settings, message):
    with pytest.raises(SearchError, match=message):
        process(nets, sampling=ScaleSampling(**settings))


def test_prompts_must_match_the_groups(nets):
    with pytest.raises(SearchError, match="2 prompts for 3 images"):
        process(nets, groups=3, lengths=[3, 4])
    model = nets[0]
    unguided = process(nets, sampling=ScaleSampling(cfg=1.0)).prompt
    assert unguided.branches == 1
    from testtime.models.infinity.process import ScalewiseProcess
    from testtime.models.infinity.scale_state import Decoder
    from testtime.samplers.processes.streams import Streams

    with pytest.raises(SearchError, match="no unconditional branch"):
        ScalewiseProcess(model, unguided, SCHEDULE, Decoder(nets[1].decode), 1, Streams(0), sampling=SAMPLING)


SEARCHES = {
    "best_of_n": BestOfN(4),
    "importance_sampling": ImportanceSampling(particles=4, start=0.3, every=2),
    "smc": SMC(particles=4),
    "fk": FKSteering(particles=4),
    "svdd": SVDD(),
    "random_search": RandomSearch(particles=4),
    "beam_search": BeamSearch(),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_run_and_their_winner_is_the_best(nets, name):
    result = run_search(SEARCHES[name], process(nets, groups=2), Brightness(), ["a", "b"], held_out=Brightness())
    assert result.status == "complete" and result.latents.shape == (2, 8, 8, 8)
    images = process(nets).decoder.decode(result.finalists)
    assert torch.allclose(images[..., 0].mean((1, 2)).double(), result.scores, atol=1e-6)
    assert torch.allclose(result.held_out, result.scores, atol=1e-6)
    unwatched = run_search(SEARCHES[name], process(nets, groups=2), Brightness(), ["a", "b"])
    assert result.ledger.flops == unwatched.ledger.flops > 0  # who only watches costs the search nothing
    assert result.ledger.decode_flops == unwatched.ledger.decode_flops > 0


def test_best_of_n_scores_rise_with_n(nets):
    def best(n):
        return float(run_search(BestOfN(n), process(nets), Brightness(), ["a"]).scores[0])

    assert best(8) > best(1)


@pytest.mark.parametrize("search", [BestOfN(4), SMC(particles=4)])
def test_winner_is_replayed_alone(nets, search):
    result = run_search(search, process(nets), Brightness(), ["a"])
    again = run_search(replay_of(result.trace, result.particles[0]), process(nets), Brightness(), ["a"])
    assert torch.allclose(again.latents, result.latents, atol=1e-5)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (DAS(2), "next-scale model: it follows the gradient"),
        (BeamSearch(2, 2, 2), "next-scale model: it moves between noise levels"),
        (RBF(), "next-scale model: its chains stand at different steps"),
    ],
)
def test_searches_that_cannot_work_say_why(nets, search, message):
    judge = Brightness()
    judge.differentiable = True
    with pytest.raises(SearchError, match=message):
        run_search(search, process(nets), judge, ["a"])


def test_codes_of_a_sample_are_bits(nets):
    state = draw(process(nets), until=1)
    bits = (state.x[:, :, :1, :1] > 0).flatten(2).transpose(1, 2)
    assert torch.allclose(codes_of(bits, (1, 1)), state.x[:, :, :1, :1])
