"""Searches over runs of ComfyUI's own samplers: whole, stopped and resumed, parted."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.after.replay import WINNER
from testtime.samplers.methods import RBF, SVDD, BeamSearch, BestOfN, FKSteering, RandomSearch, ZeroOrderSearch
from testtime.samplers.protocols import SearchError

from .conftest import watched

AUTO = -1.0


def names() -> list[str]:
    from testtime.installation.locate import find_comfyui

    if find_comfyui() is None:
        return []
    import comfy.samplers

    return list(comfy.samplers.KSampler.SAMPLERS)


# Draws its steps from an error that depends on the whole batch; our float64 rows are another matter.
ADAPTIVE = ("dpm_adaptive",)
PAUSED = (
    "euler heun dpm_2 dpmpp_2m res_multistep uni_pc ipndm deis lms gradient_estimation euler_ancestral dpmpp_2m_sde "
    "dpmpp_3m_sde er_sde lcm sa_solver seeds_2 dpmpp_sde dpmpp_2s_ancestral"
).split()
OTHERS = [name for name in PAUSED if name not in ("euler", "dpmpp_2m", "res_multistep", "euler_ancestral", "lcm")]


def first(result):
    """The latent of slot 0 among the finalists, whatever its rank."""
    starts = {e["id"]: e["slot"] for e in result.trace.records[0].particles}
    parents = {e["id"]: e["parent"] for record in result.trace.records for e in record.particles}
    for row, particle in enumerate(result.scores.particles):
        while parents.get(particle) is not None:
            particle = parents[particle]
        if starts.get(particle) == 0:
            return result.finalists["samples"][row : row + 1]
    raise AssertionError("slot 0 did not live")


@pytest.mark.parametrize("kind", ["eps", "sd3"])
@pytest.mark.parametrize("name", names())
def test_the_first_candidate_is_the_image_without_a_search(setup, search_ksampler, ksampler, kind, name):
    given = setup(kind)
    stock = ksampler(given, name, steps=5)["samples"]
    result = search_ksampler(given, BestOfN(2), sampler_name=name, eta=AUTO, steps=5)
    assert torch.equal(first(result), stock)
    assert result.trace.meta["sampler"] == name
    latents = result.finalists["samples"]
    assert not torch.equal(latents[0], latents[1])


@pytest.mark.parametrize("kind", ["eps", "sd3"])
@pytest.mark.parametrize("name", PAUSED)
def test_a_run_that_was_stopped_is_the_run_that_was_not(setup, search_ksampler, ksampler, kind, name):
    """Bit for bit, and no model call is made twice: calls are those of whole runs less what the culled ones save."""
    given = setup(kind)
    stock = ksampler(given, name, steps=6)["samples"]
    plain, rows = watched(given.model)
    given.model = plain
    ksampler(given, name, steps=6)
    whole = len(rows)
    rows.clear()
    result = search_ksampler(given, RandomSearch(2, (0.5,)), sampler_name=name, eta=AUTO, steps=6)
    assert len(result.finalists["samples"]) == 1
    calls = len(rows)
    assert whole < calls < 2 * whole, (whole, calls)
    slot = next(e["slot"] for e in result.trace.records[-1].particles)
    if slot == 0:
        assert torch.equal(result.finalists["samples"], stock)
    alone = search_ksampler(given, BestOfN(2), sampler_name=name, eta=AUTO, steps=6)
    kept = {e["slot"]: e["id"] for e in alone.trace.records[-1].particles}[slot]
    row = alone.scores.particles.index(kept)
    if name in OTHERS or slot == 0:
        assert torch.equal(result.finalists["samples"][0], alone.finalists["samples"][row])
    assert result.trace.meta["ledger"]["nfe"] == sum(rows[:calls])


FK = {"start": 0.25, "end": 0.75, "every": 2}


@pytest.mark.parametrize("name", ["seeds_2", "dpmpp_sde", "sa_solver", "dpm_2_ancestral", "heun", "uni_pc", "deis"])
def test_clones_separate_and_their_answers_are_not_asked_for_again(setup, search_ksampler, ksampler, name):
    """By the sampler's own noise, or by what a joint adds; every particle costs one run and no more."""
    given = setup("eps")
    given.model, rows = watched(given.model)
    ksampler(given, name, steps=8)
    whole = len(rows)
    rows.clear()
    # sa_solver draws noise in the middle of its schedule only.
    when = {**FK, "end": 0.5} if name == "sa_solver" else FK
    result = search_ksampler(given, FKSteering(4, **when), sampler_name=name, eta=AUTO, steps=8)
    # A part of a two-stage sampler that ends above 0 asks there once, where a whole run asks one of its own stages.
    assert len(rows) <= 4 * (whole + 1)
    assert float(torch.pdist(result.finalists["samples"].flatten(1)).min()) > 1e-3
    slots = [[e["parent"] for e in record.particles] for record in result.trace.records[1:]]
    assert any(len(set(parents)) < 4 for parents in slots), "nobody was cloned: the test shows nothing"
    assert result.trace.meta["runs"]["joints"] == (name in ("heun", "uni_pc", "deis"))


def test_a_joint_with_euler_is_the_kernels_move(setup, search_ksampler):
    """Noise of eta at the joint and none elsewhere: the chain that the kernel makes, with the same numbers."""
    from testtime.nodes.host.stock_samplers import HostSampler, sampler_named
    from testtime.samplers.movers import JOINT
    from testtime.samplers.plan import Plan
    from testtime.samplers.processes.stock import AtLevels

    given = setup("eps")
    search = FKSteering(4, **FK)
    known = sampler_named("euler")
    parted = search_ksampler(
        given, Plan(search, sampler=HostSampler("euler", known.sampler, None, JOINT)), eta=0.7, steps=8
    )
    sigmas = parted.trace.meta["sigmas"]
    stops = parted.trace.meta["runs"]["stops"]
    noise = AtLevels(0.7, tuple(sigmas[stop] for stop in stops))
    kernel = search_ksampler(given, Plan(search, moves=noise), steps=8)
    assert parted.scores.particles == kernel.scores.particles
    apart = (parted.finalists["samples"] - kernel.finalists["samples"]).abs().max()
    assert float(apart) < 1e-4 * float(kernel.finalists["samples"].std())


@pytest.mark.parametrize("name", ["heun", "er_sde", "seeds_2", "dpmpp_3m_sde"])
def test_images_of_a_batch_are_culled_each_on_its_own(setup, search_ksampler, ksampler, name):
    """What is left of an image is what it is in runs that nobody stopped, to rounding of the batch's size."""
    given = setup("sd3", batch=3)
    for seed in range(8, 14):
        settings = {"sampler_name": name, "eta": AUTO, "steps": 6, "seed": seed}
        result = search_ksampler(given, RandomSearch(4, (0.5,)), **settings)
        if len({e["slot"] for e in result.trace.records[-1].particles}) > 2:
            break
    alone = search_ksampler(given, BestOfN(4), **settings)
    made = {(e["group"], e["slot"]): e["id"] for e in alone.trace.records[-1].particles}
    last = {e["id"]: (e["group"], e["slot"]) for e in result.trace.records[-1].particles}
    assert len({slot for _, slot in last.values()}) > 2, "images chose alike: the test shows nothing"
    for row, particle in enumerate(result.scores.particles):
        other = alone.scores.particles.index(made[last[particle]])
        apart = (result.finalists["samples"][row] - alone.finalists["samples"][other]).abs().max()
        assert float(apart) < 1e-4


def test_zero_order_search_begins_with_the_image_without_a_search(setup, search_ksampler, ksampler):
    given = setup("sd3")
    stock = ksampler(given, "uni_pc", steps=4)["samples"]
    result = search_ksampler(given, ZeroOrderSearch(2, 2), sampler_name="uni_pc", eta=AUTO)
    assert any(torch.equal(one[None], stock) for one in result.finalists["samples"])
    assert len(result.finalists["samples"]) == 4 + 2 * 2
    assert float(torch.pdist(result.finalists["samples"].flatten(1)).min()) > 0


def test_the_callers_sigmas_are_not_written_to(setup):
    """uni_pc puts .001 for the 0 at the end of the schedule that it is given."""
    from testtime.nodes.host.run import SearchOptions
    from testtime.nodes.host.stock_samplers import sampler_named
    from testtime.nodes.search_ksampler import guided_sample, schedule
    from testtime.nodes.search_sampler import SearchSampler
    from testtime.samplers.plan import as_plan

    given = setup("eps")
    sigmas = schedule(given.model, "normal", 4, 1.0, "uni_pc")
    before = sigmas.clone()
    options = SearchOptions(as_plan(BestOfN(2)), given.verifier, given.vae, "x", eta=AUTO)
    sampler = SearchSampler(options.sampled_by(sampler_named("uni_pc")))
    with torch.inference_mode():
        guided_sample(given.model, (given.positive, given.negative), 2.0, sampler, sigmas, given.latent, 3, 2)
    assert torch.equal(sigmas, before)


class Opaque:
    """A SAMPLER of another pack: ComfyUI's heun under a class of its own."""

    def __new__(cls):
        import comfy.samplers

        class Foreign(comfy.samplers.KSAMPLER):
            def sample(self, *args, **kwargs):
                return super().sample(*args, **kwargs)

        return Foreign(comfy.samplers.sampler_object("heun").sampler_function)


def run_opaque(given, search, steps=6):
    from testtime.nodes.search_ksampler import guided_sample, schedule
    from testtime.nodes.search_sampler import SearchSamplerNode

    sigmas, conds = schedule(given.model, "normal", steps, 1.0), (given.positive, given.negative)
    with torch.inference_mode():
        made = SearchSamplerNode.execute(given.verifier, given.vae, search, AUTO, "a red square", sampler=Opaque())
        return guided_sample(given.model, conds, 2.0, made.result[0], sigmas, given.latent, 3, 1)


def test_a_sampler_of_another_pack_is_culled_but_not_cloned(setup, ksampler):
    given = setup("eps", batch=2)
    stock = ksampler(given, "heun", steps=6)["samples"]
    given.model, rows = watched(given.model)
    best = run_opaque(given, BestOfN(1))
    assert torch.equal(best, stock)
    rows.clear()
    run_opaque(given, RandomSearch(2, (0.5,)))
    # Of a foreign sampler the whole batch goes on while one of its images lives.
    assert len(set(rows)) == 1 and len(rows) <= 2 * 11
    with pytest.raises(SearchError, match="sampler is heun: FK Steering clones images on their way"):
        run_opaque(given, FKSteering(4, **FK))


@pytest.mark.parametrize("search", [SVDD(2), BeamSearch(2, 2), RBF(40, 1, 2)], ids=lambda search: search.name)
def test_methods_that_decide_at_every_step_refuse_what_runs_as_a_whole(setup, search_ksampler, search):
    with pytest.raises(SearchError, match=r"sampler is uni_pc: .* decides at every step.*take one of euler"):
        search_ksampler(setup("eps"), search, sampler_name="uni_pc", eta=AUTO)


def test_more_pauses_than_a_run_has_are_refused(setup, search_ksampler):
    from testtime.samplers.methods import SMC

    with pytest.raises(SearchError, match=r"SMC decides at 1. steps, and a run of heun can be stopped at 4 at most"):
        search_ksampler(setup("eps"), SMC(4, every=1), sampler_name="heun", eta=AUTO, steps=20)


def test_an_unknown_sampler_is_refused_by_name(setup, search_ksampler):
    with pytest.raises(SearchError, match=r"sampler_name is 'eulr': (this ComfyUI has|choose one of) euler"):
        search_ksampler(setup("eps"), BestOfN(2), sampler_name="eulr", eta=AUTO)


def test_dpm_adaptive_is_finished_before_the_worse_ones_go(setup, search_ksampler):
    result = search_ksampler(setup("eps"), RandomSearch(2, (0.5,)), sampler_name="dpm_adaptive", eta=AUTO, steps=6)
    assert len(result.finalists["samples"]) == 1


def test_cfg_pp_samplers_say_that_they_cannot_be_stopped(setup, search_ksampler, ksampler):
    """They read the unconditional answer as well, which no record of answers holds."""
    given = setup("eps")
    result = search_ksampler(given, RandomSearch(2, (0.5,)), sampler_name="dpmpp_2m_cfg_pp", eta=AUTO, steps=6)
    assert any("reads more of the model" in warning for warning in result.trace.meta["warnings"])
    if first_slot(result) == 0:
        stock = ksampler(given, "dpmpp_2m_cfg_pp", steps=6)["samples"]
        assert torch.equal(result.finalists["samples"], stock)


def first_slot(result) -> int:
    return result.trace.records[-1].particles[0]["slot"]


@pytest.mark.parametrize(
    ("name", "search"),
    [
        ("heun", BestOfN(3)),
        ("seeds_2", RandomSearch(3, (0.5,))),
        ("seeds_2", FKSteering(3, **FK)),
        ("heun", FKSteering(3, **FK)),
        ("dpmpp_2m", FKSteering(3, **FK)),
        ("er_sde", SVDD(2)),
        ("dpmpp_2m_sde", BestOfN(3)),
    ],
)
def test_a_winner_is_made_again_from_its_trace(setup, search_ksampler, name, search):
    """One run with the candidate's seed and parts."""
    from testtime.nodes.replay_node import RerenderParticleNode

    given = setup("eps")
    result = search_ksampler(given, search, sampler_name=name, eta=AUTO, steps=8)
    with torch.inference_mode():
        again = RerenderParticleNode.execute(
            result.trace, WINNER, 0, given.model, 3, 8, 2.0, "normal", given.positive, given.negative, given.latent,
            1.0, AUTO,
        ).result[0]  # fmt: skip
    apart = (again["samples"] - result.best["samples"]).abs().max()
    assert float(apart) < 1e-4 * float(result.best["samples"].std())


def test_the_bar_counts_candidates_times_steps(setup, search_ksampler, monkeypatch):
    """It never goes back, and arrives."""
    import latent_preview

    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        latent_preview, "prepare_callback", lambda model, steps: lambda step, x0, x, total: seen.append((step, total))
    )
    search_ksampler(setup("eps"), BestOfN(3), sampler_name="heun", eta=AUTO, steps=5)
    steps = [step for step, _ in seen]
    assert {total for _, total in seen} == {15}
    assert steps == sorted(steps) and steps[-1] == 14 and len(set(steps)) == 15


def test_the_calls_of_every_sampler_are_known(setup, ksampler):
    """What a budget counts for a run is what ComfyUI's sampler asks of the model."""
    from testtime.nodes.host.stock_samplers import sampler_named

    given, told = setup("eps"), {}
    given.model, rows = watched(given.model)
    for name in set(names()) - {"dpm_fast", "dpm_adaptive"}:  # they choose their own steps
        rows.clear()
        ksampler(given, name, steps=4, cfg=1.0)
        told[name] = (len(rows), sampler_named(name).calls(4))
    assert {name: both for name, both in told.items() if both[0] != both[1]} == {}
