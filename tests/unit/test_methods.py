"""What every method promises on any process: exactness, independence of images and chunks, masks, costs."""

from __future__ import annotations

import json
import math

import pytest
import torch

from testtime.samplers.methods import (
    DAS,
    METHODS,
    SMC,
    SVDD,
    BeamSearch,
    BestOfN,
    FKSteering,
    ImportanceSampling,
    PathSearch,
    RandomSearch,
    TTGen,
)
from testtime.samplers.processes.chunking import Chunker
from testtime.samplers.processes.diffusion import Inpainting, Start
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha

from . import oracles
from .searches import ABSOLUTE, LINEAR, RELATIVE, SHARP, TARGET, best_scores, every_method, run_on, searches, table


def test_every_method_is_in_these_tests():
    # TTGen needs a process with prompts: test_ttgen.py asks the same of it.
    assert {type(search) for search in ABSOLUTE.values()} == {row.method for row in METHODS.values()} - {TTGen}


# --- Best-of-N -------------------------------------------------------------------------------------------------------


def samples(result):
    """{(group, slot): final latents} of a Best-of-N run."""
    known = table(result.trace)
    places = [(known[p][1]["group"], known[p][1]["slot"]) for p in result.particles]
    return dict(zip(places, result.finalists, strict=True))


def test_more_samples_leave_the_first_ones_as_they_are():
    few, many = samples(run_on(BestOfN(4))), samples(run_on(BestOfN(8)))
    assert len(few) == 8 and all(torch.allclose(few[place], many[place], atol=1e-12) for place in few)


def test_best_of_n_is_the_best_by_final_score():
    result = run_on(BestOfN(8), groups=5)
    for g in range(5):
        scores = TARGET.score(result.finalists[result.group == g], [])
        assert torch.equal(result.latents[g], result.finalists[result.group == g][int(scores.argmax())])
        assert torch.allclose(result.scores[result.group == g], scores.sort(descending=True).values)


# --- one image among others ------------------------------------------------------------------------------------------


@every_method
def test_images_of_a_batch_are_the_images_of_single_runs(name):
    """B images with N particles are B runs of one image: no image ever competes with another."""
    batch = run_on(ABSOLUTE[name], groups=3)
    for g in range(3):
        alone = run_on(ABSOLUTE[name], groups=1, group_offset=g)
        assert torch.allclose(batch.latents[g], alone.latents[0], atol=1e-9)
        assert torch.allclose(batch.finalists[batch.group == g], alone.finalists, atol=1e-9)


@every_method
def test_relative_temperature_is_per_image_too(name):
    search = searches(RELATIVE)[name]
    assert torch.allclose(
        run_on(search, groups=2).latents[1], run_on(search, groups=1, group_offset=1).latents[0], atol=1e-9
    )


@every_method
def test_same_seed_same_run_to_the_bit(name):
    first, second = run_on(ABSOLUTE[name]), run_on(ABSOLUTE[name])
    assert torch.equal(first.finalists, second.finalists) and torch.equal(first.scores, second.scores)
    traces = []
    for result in (first, second):
        records = json.loads(result.trace.to_json())["records"]
        traces.append([{k: v for k, v in record.items() if k != "seconds"} for record in records])
    assert traces[0] == traces[1]
    assert not torch.allclose(run_on(ABSOLUTE[name], seed=4).latents, first.latents)


@every_method
def test_chunks_change_nothing(name):
    whole = run_on(ABSOLUTE[name])
    for size in (1, 3):
        pieces = run_on(ABSOLUTE[name], chunker=Chunker(size))
        assert pieces.particles == whole.particles
        assert torch.allclose(pieces.finalists, whole.finalists, atol=1e-9)
        assert pieces.ledger.nfe == whole.ledger.nfe


PLAIN = {
    "svdd": SVDD(1),
    "smc": SMC(1, alpha=SHARP),
    "fk": FKSteering(1, alpha=SHARP),
    "importance_sampling": ImportanceSampling(1, alpha=SHARP),
    "das_unguided": DAS(1, alpha=SHARP, guidance=0.0),
    "beam_search": BeamSearch(1, 1),
    "random_search": RandomSearch(1),
}


@pytest.mark.parametrize("name", list(PLAIN))
def test_one_particle_is_plain_sampling(name):
    assert torch.equal(run_on(PLAIN[name]).latents, run_on(BestOfN(1)).latents)


# --- masks and image to image ----------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("flow", [False, True])
def test_the_known_area_is_exact(name, flow):
    known = torch.tensor([[0.25, -0.75, 9.0], [0.5, 0.125, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64).expand(2, 3)
    result = run_on(ABSOLUTE[name], flow=flow, inpainting=Inpainting(known, mask))
    assert torch.allclose(result.finalists[:, 1], known[result.group, 1], atol=1e-12)
    assert float(result.latents[:, [0, 2]].abs().max()) < 4  # generated, and not a copy of the nines
    first = torch.stack([result.scores[result.group == g][0] for g in range(2)])
    assert torch.allclose(TARGET.score(result.latents, []), first, atol=1e-9)


@every_method
def test_image_to_image_stays_near_its_image(name):
    """From sigma = .3 nothing can leave its mode, whatever the verifier likes."""
    search = PathSearch(2, 2, 0.05, 0.1, 0.12) if name == "path_search" else ABSOLUTE[name]
    process = oracles.keyed(start=Start(latent=torch.tensor([[1.0] * 3, [-1.5] * 3]).double(), full_denoise=False))
    process.sigmas = [0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.0]
    process.steps = len(process.sigmas) - 1
    result = run_search(search, process, TARGET, ["p", "q"])
    assert (result.finalists[result.group == 0] > 0).all() and (result.finalists[result.group == 1] < 0).all()
    assert result.ledger.verifier_images > 0


# --- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ABSOLUTE if name != "tts_var"])  # its lambda is absolute
def test_relative_alpha_knows_no_units(name):
    """Rewards in other units and with another zero lead to the same images."""
    other = oracles.FunctionVerifier(lambda x: 8.0 * TARGET.score(x, []) - 5.0)
    search = searches(RELATIVE)[name]
    assert torch.allclose(run_on(search).finalists, run_on(search, other).finalists, atol=1e-6)


def test_absolute_alpha_knows_units():
    other = oracles.FunctionVerifier(lambda x: 8.0 * TARGET.score(x, []))
    assert not torch.allclose(run_on(ABSOLUTE["smc"]).finalists, run_on(ABSOLUTE["smc"], other).finalists, atol=1e-6)


@every_method
def test_a_constant_added_to_all_rewards_changes_nothing(name):
    other = oracles.FunctionVerifier(lambda x: TARGET.score(x, []) + 3.0)
    assert torch.allclose(run_on(ABSOLUTE[name]).finalists, run_on(ABSOLUTE[name], other).finalists, atol=1e-6)


@pytest.mark.parametrize("potential", ["diff", "max", "rt", "sum"])
def test_without_pressure_all_particles_are_samples_of_the_model(potential):
    """alpha -> infinity: no resampling, the particles of Best-of-N, log Z -> 0."""
    result = run_on(FKSteering(4, alpha=Alpha(1e9, "absolute"), ess_threshold=0.5, potential=potential))
    plain = run_on(BestOfN(4))
    assert torch.allclose(result.finalists, plain.finalists, atol=1e-12)
    assert float(result.log_z.abs().max()) < 1e-6


@pytest.mark.parametrize("method", [SMC, DAS, FKSteering, ImportanceSampling])
def test_the_sharpest_temperature_is_finite(method):
    extra = {"guidance": 0.0} if method is DAS else {}  # a gradient divided by 1e-8 leads anywhere
    result = run_on(method(4, alpha=Alpha(1e-8, "absolute"), **extra))
    assert torch.isfinite(result.finalists).all() and torch.isfinite(result.scores).all()


def test_constant_rewards_are_counted_exactly():
    constant = oracles.FunctionVerifier(lambda x: 0.0 * x[:, 0] + 0.6)
    for name in ("smc", "das", "fk", "fk_max", "importance_sampling"):
        assert run_on(ABSOLUTE[name], constant).log_z.tolist() == pytest.approx([2.0, 2.0], abs=1e-9)


# --- SVDD ------------------------------------------------------------------------------------------------------------


def choices(result):
    """(scores [G, M] in slot order, chosen slot [G]) of every searched step."""
    for record in result.trace.records[1:-1]:
        if record.particles[0]["score"] is None:
            continue
        groups = 1 + max(entry["group"] for entry in record.particles)
        scores = torch.tensor([entry["score"] for entry in record.particles]).view(groups, -1)
        chosen = torch.tensor([entry["selected"] for entry in record.particles]).view(groups, -1)
        yield scores, chosen


def test_greedy_svdd_takes_the_best_candidate_of_every_step():
    result = run_on(SVDD(5), groups=6)
    steps = list(choices(result))
    assert len(steps) == 8
    for scores, chosen in steps[:-1]:
        assert (chosen.sum(1) == 1).all()
        assert torch.equal(chosen.int().argmax(1), scores.argmax(1))
    assert torch.equal(best_scores(result), TARGET.score(result.latents, []))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_soft_svdd_draws_from_the_softmax(alpha):
    """Frequencies of the best, second, .. candidate against the softmax of the very values, over 4 x 1500 choices."""
    groups, m = 1500, 3
    denoiser = oracles.MixtureDenoiser(torch.tensor([[0.7]]), torch.ones(1), 0.5, oracles.INTERPOLANTS["ve"])
    process = oracles.process(denoiser, 6, groups, 8)
    result = run_search(SVDD(m, alpha=Alpha(alpha, "absolute"), end=0.6), process, LINEAR, ["p"] * groups)
    counted = 0
    for scores, chosen in choices(result):
        counted += 1
        order = scores.argsort(1, descending=True)
        expected = torch.softmax(scores / alpha, 1).gather(1, order)
        found = chosen.double().gather(1, order)
        error = (expected * (1 - expected)).sum(0).sqrt() / groups
        assert ((found - expected).mean(0).abs() < 4 * error + 1e-9).all()
    assert counted == 4


def test_learned_values_choose_without_the_denoiser():
    """SVDD-MC: fixed values 0, 1, 2 are drawn with softmax odds, and an image costs T denoiser calls."""
    groups = 3000
    denoiser = oracles.MixtureDenoiser(torch.tensor([[0.7]]), torch.ones(1), 0.5, oracles.INTERPOLANTS["ve"])
    process = oracles.process(denoiser, 3, groups, 8)
    values = torch.arange(3.0).repeat(groups)
    search = SVDD(3, alpha=Alpha(1.0, "absolute"), value_function=lambda x, sigma: values)
    result = run_search(search, process, LINEAR, ["p"] * groups)
    assert result.ledger.nfe == 3 * groups
    odds = torch.softmax(torch.arange(3.0), 0).double()
    for _, chosen in choices(result):
        assert torch.allclose(chosen.double().mean(0), odds, atol=4 * 0.5 / math.sqrt(groups))


# --- costs -----------------------------------------------------------------------------------------------------------

T = 9
COSTS = {  # denoiser calls, verified images; per image of T = 9 steps
    "best_of_n": (4 * T, 4),
    "svdd": (1 + (T - 1) * 4, (T - 1) * 4),
    "smc": (4 * T, 4 * 8),  # lambda is 0 at the first step; steps 1..7, and the end
    "das": (4 * T, 4 * T),
    "fk": (4 * T, 4 * 4),  # steps 2, 4, 6, and the end
    "importance_sampling": (4 * T, 4 * 2),  # step 4, and the end
}


@pytest.mark.parametrize("name", list(COSTS))
def test_costs_are_the_documented_ones(name):
    calls, verified = COSTS[name]
    ledger = run_on(ABSOLUTE[name], groups=2).ledger
    assert (ledger.nfe, ledger.verifier_images) == (2 * calls, 2 * verified)
    assert ledger.backward == (2 * 4 * (T - 1) if name == "das" else 0)


def test_two_schedules_of_the_oracle_agree():
    """A flow and its variance-exploding image are one process: SMC picks the same particles on both."""
    ve, flow = run_on(ABSOLUTE["smc"]), run_on(ABSOLUTE["smc"], flow=True)
    # The starts differ by the widening of the first state, which the denoiser all but forgets.
    assert torch.allclose(ve.latents, flow.latents, atol=0.02)
