"""One test for each known defect of the published implementations: what they get wrong must stay right here."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.methods import DAS, SMC, SVDD, BestOfN, FKSteering
from testtime.samplers.processes.kernel import VE
from testtime.samplers.processes.schedules import karras
from testtime.samplers.processes.streams import Streams
from testtime.samplers.protocols import SearchError, Verifier
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.population import Population
from testtime.samplers.smc.potentials import Potential
from testtime.samplers.smc.resampling import SCHEMES, resample
from testtime.samplers.smc.tempering import Alpha
from testtime.samplers.smc.weights import best_index, clean_scores, ess_threshold, normalise

from . import oracles

pytestmark = pytest.mark.slow

MIX = oracles.MixtureDenoiser(torch.tensor([[-1.5, 0.0], [1.0, 0.5]]), torch.tensor([0.3, 0.7]), 0.16, VE())
GAUSS = oracles.MixtureDenoiser(torch.tensor([[0.7]]), torch.ones(1), 0.5, VE())
LINEAR = oracles.FunctionVerifier(lambda x: x[:, 0], "x")
SHARP = Alpha(0.05, "absolute")


def mixture(groups=1, seed=0, steps=12, eta=1.0, denoiser=MIX, dim=2):
    return oracles.process(denoiser, steps, groups, seed, eta=eta, dim=dim)


def test_01_gradients_and_past_potentials_follow_their_ancestors(monkeypatch):
    """DAS permutes states but neither gradients nor twists: Z comes out wrong by orders of magnitude.

    The defect is put in here to see that this test would notice it.
    """
    runs, steps = 1500, 20
    m, v = oracles.linear_gaussian(steps)
    log_z = m / 0.5 + v / (2 * 0.25)
    search = DAS(16, alpha=Alpha(0.5, "absolute"), end=1.0)

    def ratio():
        process = oracles.process(GAUSS, steps, runs, 11)
        return float(torch.exp(run_search(search, process, LINEAR, ["p"] * runs).log_z - log_z).mean())

    assert ratio() == pytest.approx(1.0, abs=0.04)
    monkeypatch.setattr(Potential, "reindex", lambda self, ancestors: None)
    assert ratio() != pytest.approx(1.0, abs=0.2)


def test_01b_the_shift_of_a_move_is_the_gradient_at_its_own_state():
    """DAS moves survivors by the reward gradients of those whose places they took; Z does not show that, this does."""
    quadratic = oracles.FunctionVerifier(lambda x: -(x - 0.5).square().sum(1))
    process, seen = mixture(groups=4, seed=2), []
    advance = process.advance

    def spy(state, gradient=None):
        if gradient is not None:
            x = state.x.clone().requires_grad_()
            reward = quadratic.function(process.denoise(x, process.sigmas[state.step], state.group).x0)
            seen.append((gradient, torch.autograd.grad(reward.sum(), x)[0]))
        return advance(state, gradient)

    process.advance = spy
    result = run_search(DAS(6, alpha=SHARP, ess_threshold=0.9), process, quadratic, ["p"] * 4)
    assert sum(any(record.resampled) for record in result.trace.records) > 2 and len(seen) == 11
    for record, (shift, gradient) in zip(result.trace.records[1:], seen, strict=False):
        scale = torch.tensor([entry["gradient_scale"] for entry in record.particles], dtype=torch.float64)
        assert torch.allclose(shift, scale[:, None] * gradient, rtol=1e-9) and scale.min() > 0


def test_02_clean_estimates_belong_to_their_states():
    """After resampling D(x) must be the stored x0, or the next mean mixes two parents."""
    process = mixture(groups=3, seed=4)
    state = process.predict(process.start(5))
    picked = state.select(torch.randint(0, 15, (15,), generator=torch.Generator().manual_seed(0)))
    again = process.denoise(picked.x, process.sigmas[0], picked.group).x0
    assert torch.allclose(again, picked.x0, atol=1e-12)


def test_03_the_noise_free_last_step_weighs_nothing():
    """Variance 0 in the last step: log-ratio 0, no 0/0, and the terminal weights stay finite."""
    result = run_search(DAS(8, alpha=SHARP), mixture(), LINEAR, ["p"])
    weights = [entry["log_weight"] for entry in result.trace.records[-1].particles]
    assert all(weight is not None and math.isfinite(weight) for weight in weights)


def test_04_weights_are_right_for_any_eta():
    """Noise and log-ratio come from one object, so Z is unbiased for eta below 1 too (not so in DAS's LCM code).

    For eta != 1 the chain's own law is linear Gaussian as well.
    """
    runs = 1500
    m, v = oracles.linear_gaussian(10, eta=0.5)
    result = run_search(
        DAS(16, alpha=Alpha(0.5, "absolute")), mixture(runs, 2, 10, 0.5, GAUSS, 1), LINEAR, ["p"] * runs
    )
    ratio = torch.exp(result.log_z - (m / 0.5 + v / (2 * 0.25)))
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(runs)


def test_05_every_prompt_of_a_batch_gets_its_own_winner():
    """DAS scores the first prompt only and takes one global argmax."""
    result = run_search(SMC(4, alpha=SHARP), mixture(groups=3), LINEAR, ["a", "b", "c"])
    assert len(result.latents) == 3
    for g in range(3):
        mine = result.scores[result.group == g]
        assert float(mine.max()) == pytest.approx(float(result.latents[g, 0]))


def test_06_the_best_is_the_best_by_reward():
    """Right after a resampling weights carry only the last increments: argmax of weight is not the best image."""
    result = run_search(SMC(16, alpha=SHARP), mixture(groups=20), LINEAR, ["p"] * 20)
    for g in range(20):
        assert float(result.scores[result.group == g][0]) == float(result.scores[result.group == g].max())


@pytest.mark.parametrize("search", [BestOfN(6), SMC(6, alpha=SHARP), FKSteering(6, alpha=SHARP), SVDD(6)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_07_a_broken_score_never_wins(search, bad):
    """DAS turns NaN into 0, the best score there is where rewards are negative; SVDD's argmax picks the NaN itself."""
    verifier = oracles.FunctionVerifier(lambda x: torch.where(x[:, 0] > 0.5, bad, -(x[:, 0] - 3).square()))
    result = run_search(search, mixture(groups=8, seed=3), verifier, ["p"] * 8)
    assert result.ledger.rejected_scores > 0
    for g in range(8):
        mine = result.scores[result.group == g]
        if torch.isfinite(mine).any():
            assert float(result.latents[g, 0]) <= 0.5
    assert clean_scores(torch.tensor([-5.0, math.nan]))[0].argmax() == 0


def test_07b_if_all_scores_are_broken_the_run_goes_on_and_says_so():
    """Published code stops at an all-zero weight vector or samples by NaN; here such a group just does not select."""
    verifier = oracles.FunctionVerifier(lambda x: torch.full((len(x),), math.nan))
    result = run_search(SMC(4, alpha=SHARP), mixture(), verifier, ["p"])
    assert torch.isfinite(result.latents).all() and torch.isnan(result.scores).all()
    assert any("no particle has a finite score" in text for text in result.warnings)

    class Half(Verifier):
        name, differentiable = "half", False

        def score(self, images, prompts, context=None):
            return torch.tensor([math.nan if p == "a" else float(x[0]) for p, x in zip(prompts, images, strict=True)])

    result = run_search(SMC(4, alpha=SHARP), mixture(groups=2), Half(), ["a", "b"])
    assert torch.isfinite(result.latents).all() and torch.isfinite(result.log_z).all()


def test_08_large_rewards_neither_tie_nor_overflow():
    """exp(lambda r) clamped at 1e10 makes every r above 2.3 tie for lambda = 10."""
    log_w = 10.0 * torch.tensor([[2.4, 2.5, 300.0, 301.0]], dtype=torch.float64)
    weights = normalise(log_w)[0]
    assert weights[3] > 0.9999 and torch.isfinite(weights).all()
    far = oracles.FunctionVerifier(lambda x: 1e6 * x[:, 0])
    result = run_search(FKSteering(8, alpha=Alpha(0.1, "absolute")), mixture(), far, ["p"])
    assert torch.isfinite(result.latents).all() and torch.isfinite(result.scores).all()


def test_09_rewards_between_resamplings_are_not_forgotten():
    """Adaptive FK drops the weights when it does not resample; then Z is biased and the mean falls short."""
    runs = 300
    search = FKSteering(64, alpha=Alpha(0.5, "absolute"), ess_threshold=0.5)
    result = run_search(search, mixture(runs, 5, 20, 1.0, GAUSS, 1), LINEAR, ["p"] * runs)
    m, v = oracles.linear_gaussian(20)
    assert float(oracles.weighted_mean(result, runs).mean()) == pytest.approx(m + v / 0.5, abs=0.06)


def test_10_running_maximum_starts_below_every_reward():
    """A floor of 0 is silent while rewards are negative; and the end counts r(x0), not the running maximum."""
    potential = Potential("max", 1, 2)
    one = torch.ones(1, dtype=torch.float64)
    first = potential.weigh(torch.tensor([[-2.0, -1.0]], dtype=torch.float64), one)
    last = potential.weigh(torch.tensor([[-3.0, -0.5]], dtype=torch.float64), one, final=True)
    assert first.tolist() == [[-2.0, -1.0]]
    assert (first + last).tolist() == [[-3.0, -0.5]]


def test_11_two_particles_can_resample():
    """ESS is at least 1 and the test is strict: tau = .5 with N = 2 would never resample."""
    assert ess_threshold(2, 0.5) * 2 > 1
    result = run_search(FKSteering(2, alpha=SHARP, ess_threshold=0.5), mixture(groups=10), LINEAR, ["p"] * 10)
    assert any(any(record.resampled) for record in result.trace.records)


def test_12_explicit_settings_are_honoured():
    """FK steering's command line overwrites the number of particles by that of a numbered preset."""
    result = run_search(FKSteering(particles=3), mixture(), LINEAR, ["p"])
    assert len(result.scores) == 3


def test_13_the_report_says_whether_anything_was_resampled():
    """One published comparison shows identical images with and without steering: a silent no-op must be visible."""
    constant = oracles.FunctionVerifier(lambda x: torch.zeros(len(x)))
    result = run_search(SMC(4, alpha=SHARP), mixture(), constant, ["p"])
    assert not any(any(record.resampled) for record in result.trace.records)
    assert all(record.ess == [pytest.approx(4.0)] for record in result.trace.records)
    steered = run_search(SMC(4, alpha=SHARP), mixture(), LINEAR, ["p"])
    assert any(record.resampled == [True] for record in steered.trace.records)


def test_14_conditioning_belongs_to_the_group():
    """SVDD's batched pipeline repeats embeddings in another order than latents: particles must keep their prompt."""
    seen = []

    class Spy(oracles.MixtureDenoiser):
        def __call__(self, x, sigma, group=None, prompts=None):
            seen.append(group.clone())
            return super().__call__(x, sigma)

    denoiser = Spy(MIX.means, MIX.weights, 0.16, VE())
    run_search(SMC(3, alpha=SHARP), mixture(groups=2, denoiser=denoiser), LINEAR, ["a", "b"])
    assert all(group.tolist() == [0, 0, 0, 1, 1, 1] for group in seen)


def test_15_estimates_use_the_time_of_their_states():
    """SVDD's SMC baseline estimates the new states' images with the old timestep."""
    sigmas = []

    class Spy(oracles.MixtureDenoiser):
        def __call__(self, x, sigma, group=None, prompts=None):
            sigmas.append(sigma)
            return super().__call__(x, sigma)

    denoiser = Spy(MIX.means, MIX.weights, 0.16, VE())
    run_search(SVDD(4), mixture(denoiser=denoiser), LINEAR, ["p"])
    assert sigmas == pytest.approx(karras(12).double().tolist()[:-1])


def test_16_no_noise_is_left_unscored_at_the_end():
    """SVDD's last step adds noise that no selection sees; here the last candidates are the finished images."""
    result = run_search(SVDD(6), mixture(groups=5), LINEAR, ["p"] * 5)
    for g in range(5):
        assert float(result.scores[result.group == g][0]) == float(result.latents[g, 0])
    assert abs(result.selection_bias) < 1e-9


@pytest.mark.parametrize("search", [SMC(4), FKSteering(4), SVDD(4), DAS(4)])
def test_17_clones_that_cannot_separate_are_refused(search):
    """Without noise duplicates never part, and the published samplers quietly make the same image N times."""
    with pytest.raises(SearchError, match=r"eta is 0.0"):
        run_search(search, mixture(eta=0.0), LINEAR, ["p"])


def test_18_resampling_stops_before_clones_cannot_diverge():
    """Published code resamples to the end, where clones cannot part any more; here never in the last tenth.

    And never before the noise-free move, whatever the settings.
    """
    result = run_search(SMC(8, alpha=SHARP, ess_threshold=1.5), mixture(steps=30), LINEAR, ["p"])
    steps = [record.step for record in result.trace.records if any(record.resampled)]
    assert steps and max(steps) <= 27
    ends = run_search(SMC(8, alpha=SHARP, ess_threshold=1.5, end=1.0), mixture(steps=30), LINEAR, ["p"])
    assert max(r.step for r in ends.trace.records if any(r.resampled)) == 28


def test_19_a_particle_does_not_depend_on_its_neighbours():
    """One global generator makes every particle depend on all others; here noise is a function of its place."""
    a = run_search(BestOfN(2), oracles.keyed(), LINEAR, ["p", "q"])
    b = run_search(BestOfN(7), oracles.keyed(), LINEAR, ["p", "q"])
    for group in range(2):
        kept = {round(float(x), 6) for x in a.finalists[a.group == group, 0]}
        assert len(kept) == 2 and kept <= {round(float(x), 6) for x in b.finalists[b.group == group, 0]}


def test_19b_clones_get_different_noise():
    """Noise that followed the ancestor would keep clones together for ever: the slot owns the stream."""
    process = oracles.keyed()
    state = process.predict(process.start(2)).select(torch.tensor([0, 0]), slot=torch.tensor([0, 1]))
    moved, _ = process.advance(state)
    assert not torch.allclose(moved.x[0], moved.x[1])
    result = run_search(SMC(6, alpha=SHARP), oracles.keyed(), LINEAR, ["p", "q"])
    assert any(any(record.resampled) for record in result.trace.records)
    assert all([e["slot"] for e in record.particles] == [*range(6)] * 2 for record in result.trace.records)
    assert len({round(float(x), 6) for x in result.finalists[:, 0]}) == 12


@pytest.mark.parametrize("search", [SMC(6, alpha=SHARP), DAS(6, alpha=SHARP), SVDD(6), FKSteering(6, alpha=SHARP)])
def test_20_chunks_change_nothing(search):
    """Where noise is drawn per micro-batch the batch size changes the images."""
    from testtime.samplers.processes.chunking import Chunker

    results = []
    for size in (1, 3, None):
        process = mixture(groups=2)
        process.streams, process.chunker = Streams(2), Chunker(size)
        results.append(run_search(search, process, LINEAR, ["p", "q"]))
    for other in results[:2]:
        assert torch.equal(other.latents, results[2].latents)
        assert other.particles == results[2].particles


def test_21_weights_are_float64_and_the_last_one_catches_all():
    """A float32 cumulative sum that ends at .9999 makes systematic resampling return index N."""
    weights = torch.tensor([0.3, 0.6, 0.1 - 5e-10], dtype=torch.float64)
    uniforms = torch.full((3,), 1 - 1e-12, dtype=torch.float64)  # points beyond the sum of the weights
    for scheme in SCHEMES:
        assert int(resample(scheme, weights, uniforms).max()) <= 2
    with pytest.raises(ValueError, match="float64"):
        resample("systematic", weights.float(), torch.rand(3, dtype=torch.float64))


def test_22_verifiers_read_the_prompt_of_their_group():
    """Published rewards take prompts in batch order, which is not that of repeated and resampled particles."""

    class Reader(Verifier):
        name, differentiable = "reader", False

        def score(self, images, prompts, context=None):
            return torch.tensor([1.0 if prompt == "b" else 0.0 for prompt in prompts])

    result = run_search(BestOfN(3), mixture(groups=3), Reader(), ["a", "b", "c"])
    assert [float(result.scores[result.group == g].max()) for g in range(3)] == [0.0, 1.0, 0.0]


def test_23_masks_are_applied_after_selection():
    """Per-item conditions go wrong with clones: the known area must stay exact however often particles are swapped."""
    from testtime.samplers.processes.diffusion import Inpainting

    process = mixture(groups=2, seed=6)
    known = torch.tensor([[0.25, -0.75], [0.5, 0.125]], dtype=torch.float64)
    process.inpainting = Inpainting(known, torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64))
    result = run_search(SMC(6, alpha=SHARP, ess_threshold=1.5), process, LINEAR, ["p", "q"])
    assert torch.allclose(result.finalists[:, 1], known[result.group, 1], atol=1e-12)
    assert result.finalists[:, 0].std() > 0.01


def test_24_early_guesses_count_little():
    """Early blurred estimates differ by far more than alpha: without tempering the first resampling picks by luck."""
    result = run_search(SMC(8, alpha=Alpha(0.25, "absolute")), mixture(steps=20), LINEAR, ["p"])
    first = next(r for r in result.trace.records if r.inverse_temperature and r.inverse_temperature[0] > 0)
    last = result.trace.records[-2]
    assert first.inverse_temperature[0] < 0.2 * last.inverse_temperature[0]


def test_25_ess_is_one_over_the_sum_of_squares():
    """The formula is also printed as the sum of the inverse squares."""
    from testtime.samplers.smc.weights import effective_sample_size

    log_w = torch.log(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64))
    assert float(effective_sample_size(log_w)) == pytest.approx(1 / (0.25 + 0.0625 + 0.0625))
    population = Population(1, 3, "diff")
    population.add(log_w)
    assert float(population.ess()) == pytest.approx(2.6667, abs=1e-4)


def test_26_memory_errors_halve_the_chunk_and_keep_the_noise():
    """A run that dies of memory in one scoring call loses everything."""
    from testtime.samplers.processes.chunking import Chunker

    class Tight(oracles.MixtureDenoiser):
        def __call__(self, x, sigma, group=None, prompts=None):
            if len(x) > 3:
                raise torch.OutOfMemoryError("too many")
            return super().__call__(x, sigma)

    plain, tight = mixture(), mixture(denoiser=Tight(MIX.means, MIX.weights, 0.16, VE()))
    plain.streams = tight.streams = Streams(3)
    tight.chunker = Chunker()
    a = run_search(SMC(8, alpha=SHARP), plain, LINEAR, ["p"])
    b = run_search(SMC(8, alpha=SHARP), tight, LINEAR, ["p"])
    assert torch.equal(a.latents, b.latents) and tight.chunker.size <= 3


def test_27_ties_are_broken_by_place_not_by_chance():
    """torch's argmax promises no order of equal entries, so equal scores could differ between devices."""
    assert best_index(torch.tensor([[2.0, 2.0, 1.0]])).tolist() == [0]
