"""Native samplers against their papers' own formulas, on a closed-form denoiser in float64 with the same noise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from testtime.samplers.after.origin import Origin
from testtime.samplers.after.replay import replay_of
from testtime.samplers.methods import RBF, SMC, SVDD, BeamSearch, BestOfN, FKSteering, PathSearch
from testtime.samplers.plan import Plan
from testtime.samplers.processes.extrapolation import extrapolated, forgetting
from testtime.samplers.processes.kernel import VE, Flow
from testtime.samplers.processes.schedules import flow_schedule, karras
from testtime.samplers.processes.stock import ALMOST_NOISE, STOCK, native
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha
from testtime.samplers.state import SIGMA_PREV, X0_PREV, State

from . import oracles
from .searches import SHARP, run, searches

GRIDS = {"ve": (VE(), karras(10)), "flow": (Flow(), flow_schedule(10)), "shifted": (Flow(), flow_schedule(8, 3.0))}


def euler(x, x0, s, t, path, z, past):
    return x + (t - s) * (x - x0) / s


def euler_ancestral(x, x0, s, t, path, z, past):
    if isinstance(path, VE):
        up = math.sqrt(t * t * (s * s - t * t) / (s * s))
        down = math.sqrt(t * t - up * up)
        return x + (down - s) * (x - x0) / s + up * z
    down = t * t / s
    x = down / s * x + (1 - down / s) * x0
    shrink = (1 - t) / (1 - down)
    return shrink * x + math.sqrt(t * t - (down * shrink) ** 2) * z


def lcm(x, x0, s, t, path, z, past):
    a, b = path.coefficients(t)
    return a * x0 + b * z


def dpmpp_2m(x, x0, s, t, path, z, past):
    h, d = math.log(s / t), x0
    if past:
        r = math.log(past[0][1] / s) / h
        d = (1 + 1 / (2 * r)) * x0 - past[0][0] / (2 * r)
    return t / s * x + (1 - math.exp(-h)) * d


def res_multistep(x, x0, s, t, path, z, past):
    if not past:
        return euler(x, x0, s, t, path, z, past)
    h, c2 = math.log(s / t), math.log(s / past[0][1]) / math.log(s / t)
    phi1 = (math.exp(-h) - 1) / -h
    phi2 = (phi1 - 1) / -h
    return math.exp(-h) * x + h * ((phi1 - phi2 / c2) * x0 + phi2 / c2 * past[0][0])


def dpmpp_2m_sde(x, x0, s, t, path, z, past):
    (a, b), (a2, b2) = path.coefficients(s), path.coefficients(t)
    h = math.log(a2 / b2) - math.log(a / b)
    mean = b2 / b * math.exp(-h) * x + a2 * (1 - math.exp(-2 * h)) * x0
    if past:
        a1, b1 = path.coefficients(past[0][1])
        r = (math.log(a / b) - math.log(a1 / b1)) / h
        mean = mean + 0.5 * a2 * (1 - math.exp(-2 * h)) / r * (x0 - past[0][0])
    return mean + b2 * math.sqrt(1 - math.exp(-2 * h)) * z


def er_sde(x, x0, s, t, path, z, past):
    def g(q):
        return q * (math.exp(q**0.3) + 10)

    def ratio(sigma):
        a, b = path.coefficients(sigma)
        return b / a

    (a, _), (a2, _), q, q2 = path.coefficients(s), path.coefficients(t), ratio(s), ratio(t)
    r, step = g(q2) / g(q), (q - q2) / 200
    mean = a2 / a * r * x + a2 * (1 - r) * x0
    points = [q2 + i * step for i in range(200)]
    if past:
        slope = (x0 - past[0][0]) / (q - ratio(past[0][1]))
        mean = mean + a2 * (q2 - q + g(q2) * step * sum(1 / g(p) for p in points)) * slope
    if len(past) > 1:
        before = (past[0][0] - past[1][0]) / (ratio(past[0][1]) - ratio(past[1][1]))
        bend = 2 * (slope - before) / (q - ratio(past[1][1]))
        mean = mean + a2 * ((q2 - q) ** 2 / 2 + g(q2) * step * sum((p - q) / g(p) for p in points)) * bend
    return mean + a2 * math.sqrt(max(q2**2 - (q * r) ** 2, 0)) * z


MOVES = {
    "euler": euler,
    "ddim": euler,
    "euler_ancestral": euler_ancestral,
    "lcm": lcm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_gpu": dpmpp_2m_sde,
    "res_multistep": res_multistep,
    "er_sde": er_sde,
}


def made(name, grid, **options):
    """The process of a sampler on a grid."""
    path, sigmas = GRIDS[grid]
    process = oracles.keyed(flow=isinstance(path, Flow), eta=native(name), **options)
    process.sigmas = sigmas.double().tolist()
    process.steps = len(process.sigmas) - 1
    return process


def by_formula(name, process, state):
    """Final states of the sampler as its paper writes it."""
    path, sigmas, x, past = process.interpolant, list(process.sigmas), state.x, []
    if STOCK[name].leaves_pure_noise and sigmas[0] == 1.0:
        sigmas[0] = ALMOST_NOISE
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        x0 = process.denoise(x, s).x0
        if t == 0.0:
            return x0
        z = process.streams.normals(process.shape, state.group, state.slot, step=i, purpose="move").double()
        x = MOVES[name](x, x0, s, t, path, z, past)
        past = [(x0, s), *past]
    return x


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", STOCK)
def test_a_native_sampler_is_its_formula(name, grid):
    process = made(name, grid)
    start = process.start(3)
    result = run(BestOfN(3), process=process)
    order = torch.tensor(result.particles) - min(result.particles)
    expected = by_formula(name, process, start)[order]
    tolerance = 1e-9 if name == "er_sde" else 1e-11  # cancellation in its variance
    assert float((result.finalists - expected).abs().max()) < tolerance
    if name not in ("euler", "ddim"):
        assert float((result.finalists - by_formula("euler", process, start)[order]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["dpmpp_2m", "lcm", "er_sde"])
def test_every_method_works_with_it(name):
    """On moves that draw noise, candidates separate under every method; the memory follows them all."""
    for key, search in searches(SHARP).items():
        moves = native(name) if native(name).stochastic else native(name, 0.7)
        result = run(search, process=oracles.keyed(eta=moves, flow=True))
        assert result.status == "complete", key
        assert float(torch.pdist(result.finalists).min()) > 0, key


@pytest.mark.parametrize("name", ["dpmpp_2m", "er_sde", "res_multistep"])
def test_a_particle_of_a_search_is_replayed_with_its_memory(name):
    moves = native(name) if native(name).stochastic else native(name, 0.5)
    result = run(SMC(4, alpha=SHARP), process=oracles.keyed(eta=moves))
    again = run(replay_of(result.trace), process=oracles.keyed(eta=moves))
    assert torch.allclose(again.finalists[0], result.latents[0], atol=1e-12)


def test_a_search_that_is_continued_with_its_own_noise_makes_the_same_moves():
    """The way to the particle is walked, so the memory is there where the search goes on."""
    process = oracles.keyed(eta=native("dpmpp_2m_sde"))
    first = run(BestOfN(1), process=process)
    plan = Plan(BestOfN(1), origin=Origin.at(first.trace, step=5))
    again = run(plan, process=oracles.keyed(eta=native("dpmpp_2m_sde")))
    assert torch.allclose(again.latents, first.latents, atol=1e-12)


def test_the_memory_follows_the_ancestors():
    process = made("dpmpp_2m", "ve")
    state = process.predict(process.start(2))
    moved, _ = process.advance(state)
    assert torch.equal(moved.extra[X0_PREV[0]], state.x0)
    picked = moved.select(torch.tensor([3, 3, 0, 0]))
    assert torch.equal(picked.extra[X0_PREV[0]], state.x0[[3, 3, 0, 0]])
    assert "x0_prev" not in process.begin(state.x, state.group, state.slot).extra


def test_particles_without_memory_move_as_on_the_first_step():
    """Joined with others they have kappa = 0 for one move; so have those that noise was added to."""
    process = made("dpmpp_2m", "ve")
    state, _ = process.advance(process.predict(process.start(2)))
    state = process.predict(state)
    rule, levels = native("dpmpp_2m").extrapolation, process.sigmas[1:3]
    bare = State.joined([state.select(torch.tensor([0])), _forgot(state.select(torch.tensor([1])))])
    target = extrapolated(rule, process.interpolant, bare, bare.x0, *levels)
    whole = extrapolated(rule, process.interpolant, state, state.x0, *levels)
    assert torch.equal(target[0], whole[0]) and not torch.equal(whole[1], state.x0[1])
    assert torch.equal(target[1], bare.x0[1])


def _forgot(state):
    return State(state.x, state.group, state.slot, state.step, x0=state.x0, extra=forgetting(state.extra))


def test_another_prompt_drops_the_memory_of_its_particle_only():
    from .test_ttgen import NEAR, Prompted

    process = made("dpmpp_2m", "ve", groups=1)
    process.denoise = Prompted()
    state, _ = process.advance(process.predict(process.start(2)))
    state = process.reprompt(state, [None, NEAR])
    assert state.extra[SIGMA_PREV[0]].tolist() == [process.sigmas[0], 0.0]
    again = process.reprompt(state, [None, NEAR])  # nothing new
    assert again.extra[SIGMA_PREV[0]].tolist() == [process.sigmas[0], 0.0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "eta"), [("dpmpp_2m", 1.0), ("res_multistep", 0.6), ("euler_ancestral", None)])
def test_weights_stay_exact(name, eta):
    """E[Z_hat] = E[exp(r / alpha)] under the sampler's own law, whatever the selection does in between."""
    n, groups, steps = 4, 500, 6
    denoiser = oracles.MixtureDenoiser(torch.tensor([[-1.5], [1.0]]), torch.tensor([0.3, 0.7]), 0.16, Flow())
    judge = oracles.FunctionVerifier(lambda x: x[:, 0], "x")
    alpha = Alpha(1.0, "absolute")

    def chain(search, seed, groups):
        process = oracles.process(denoiser, steps, groups, seed, eta=native(name, eta), flow=True)
        return run_search(search, process, judge, ["p"] * groups)

    plain = chain(BestOfN(1), 1, 6000).finalists[:, 0].exp()
    steered = chain(FKSteering(n, alpha=alpha, start=0.2, end=0.8, every=1), 2, groups).log_z.exp()
    gap = float(steered.mean() - plain.mean())
    error = math.sqrt(float(steered.var()) / groups + float(plain.var()) / 6000)
    assert abs(gap) < 4 * error and error < 0.12


def test_noise_of_a_tail_is_switched_off_and_the_sampler_stays():
    process = made("dpmpp_2m_sde", "flow")
    quiet = process.variant(eta=0.0)
    assert quiet.eta.name == "dpmpp_2m_sde" and not quiet.capabilities.can_branch
    assert process.capabilities.can_branch


@pytest.mark.parametrize(
    "search",
    [RBF(budget=40, chains=2, initial=3), BeamSearch(2, 3, 2), PathSearch(2, 2), SVDD(4)],
    ids=lambda s: s.name,
)
def test_methods_that_move_between_levels_take_multistep_samplers(search):
    """Not as an Euler step of the same noise: the memory counts, also on grids of their own."""
    a = run(search, process=oracles.keyed(eta=native("dpmpp_2m", 0.5)))
    b = run(search, process=oracles.keyed(eta=native("euler", 0.5)))
    assert not torch.equal(a.latents, b.latents)


def test_an_unknown_sampler_is_refused_by_name():
    with pytest.raises(ValueError, match="sampler is 'unipc'"):
        native("unipc")
    assert issubclass(SearchError, ValueError)
