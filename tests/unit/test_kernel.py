"""The transition kernel against closed forms: ODE, ancestral and SDE moves, their log-ratios, start and re-noising."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.processes.kernel import (
    VE,
    VP,
    Flow,
    check_sigmas,
    clean_jacobian,
    noise_scaling,
    renoise_coefficients,
    transition,
    transition_variance,
)
from testtime.samplers.processes.schedules import (
    flow_schedule,
    karras,
    normal_schedule,
    scaled_linear_sigmas,
    timestep_at,
)
from testtime.samplers.processes.sde import SDE, LinearClock, VPClock, clock_grid, ratio_of, sigma_of

SCALED = Flow(scale=8.0)
PATHS = [(VE(), 7.0, 3.0), (VP(), 7.0, 3.0), (Flow(), 0.9, 0.6), (Flow(), 1.0, 0.8)]
PATHS += [(SCALED, 0.9, 0.6), (SCALED, 1.0, 0.8)]
generator = torch.Generator().manual_seed(0)


def states(n=4, d=50):
    return torch.randn(n, d, generator=generator, dtype=torch.float64), torch.randn(n, d, generator=generator).double()


@pytest.mark.parametrize(("path", "high", "low"), PATHS)
def test_without_noise_it_is_the_euler_step(path, high, low):
    """eta = 0: x' = a' x0 + b' eps, in k-diffusion's and flow's form x + (low - high) (x - x0) / high."""
    x, x0 = states()
    move = transition(path, x, x0, high, low, 0.0)
    a, b = path.coefficients(high)
    a2, b2 = path.coefficients(low)
    assert torch.allclose(move.mean, a2 * x0 + b2 * (x - a * x0) / b, atol=1e-12) and move.std == 0
    if not isinstance(path, VP):
        assert torch.allclose(move.mean, x + (low - high) * (x - x0) / high, atol=1e-12)


def test_full_noise_is_the_ancestral_step_of_k_diffusion():
    """VE, eta = 1: sigma_up^2 = low^2 (high^2 - low^2) / high^2, then Euler down to sigma_down."""
    x, x0 = states()
    high, low = 5.0, 2.0
    up = math.sqrt(low**2 * (high**2 - low**2) / high**2)
    down = math.sqrt(low**2 - up**2)
    move = transition(VE(), x, x0, high, low, 1.0)
    assert move.std == pytest.approx(up, rel=1e-12)
    assert torch.allclose(move.mean, x + (down - high) * (x - x0) / high, atol=1e-12)


def test_full_noise_is_ddpm_in_variance_preserving_coordinates():
    """VP, eta = 1: the posterior N(mu(x, x0), beta~) of Ho et al. 2020, eq. 7."""
    x, x0 = states()
    high, low = 4.0, 3.9
    abar, abar_prev = 1 / (1 + high**2), 1 / (1 + low**2)
    alpha = abar / abar_prev
    mean = math.sqrt(abar_prev) * (1 - alpha) / (1 - abar) * x0 + math.sqrt(alpha) * (1 - abar_prev) / (1 - abar) * x
    move = transition(VP(), x, x0, high, low, 1.0)
    assert torch.allclose(move.mean, mean, atol=1e-12)
    assert move.std**2 == pytest.approx((1 - abar_prev) / (1 - abar) * (1 - alpha), rel=1e-10)


def test_flow_ancestral_step_is_a_step_down_and_renoising():
    """The usual ancestral flow step (down to s_down, then noise up to s') is this kernel at the variance it injects."""
    x, x0 = states()
    high, low = 0.8, 0.5
    down = low * low / high
    scale = (1 - low) / (1 - down)
    variance = low**2 - down**2 * scale**2
    mean = scale * (x + (down - high) * (x - x0) / high)
    eta = math.sqrt(variance / transition_variance(Flow(), high, low, 1.0))
    assert 0 < eta <= 1
    move = transition(Flow(), x, x0, high, low, eta)
    assert move.std**2 == pytest.approx(variance, rel=1e-12)
    assert torch.allclose(move.mean, mean, atol=1e-12)


@pytest.mark.parametrize(("path", "high", "low"), PATHS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_marginals_are_kept(path, high, low, eta):
    """For known x0 the move takes N(a x0, b^2) to N(a' x0, b'^2), whatever eta."""
    n = 400_000
    a, b = path.coefficients(high)
    a2, b2 = path.coefficients(low)
    x0 = torch.full((n, 1), 1.3, dtype=torch.float64)
    x = a * x0 + b * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    move = transition(path, x, x0, high, low, eta)
    out, _ = move.sample(torch.randn(n, 1, generator=generator, dtype=torch.float64))
    assert float(out.mean()) == pytest.approx(a2 * 1.3, abs=5 * b2 / math.sqrt(n))
    assert float(out.std()) == pytest.approx(b2, rel=5 / math.sqrt(2 * n))


@pytest.mark.parametrize("path", [VE(), Flow(), SCALED])
@pytest.mark.parametrize("noise", [SDE("linear", "square", 3.0), SDE("vp", "square", 3.0), SDE("vp", "linear", 2.0)])
def test_any_sde_keeps_the_marginals(path, noise):
    """The variance of another path's SDE, in this path's coordinates, still belongs to a marginal-preserving move."""
    n, (high, low) = 200_000, ((7.0, 5.0) if isinstance(path, VE) else (0.9, 0.8))
    a, b = path.coefficients(high)
    a2, b2 = path.coefficients(low)
    x = a * 1.3 + b * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    move = transition(path, x, torch.full_like(x, 1.3), high, low, noise)
    assert move.std > 0
    out, _ = move.sample(torch.randn(n, 1, generator=generator, dtype=torch.float64))
    assert float(out.mean()) == pytest.approx(a2 * 1.3, abs=5 * b2 / math.sqrt(n))
    assert float(out.std()) == pytest.approx(b2, rel=5 / math.sqrt(2 * n))


def test_conversion_between_paths_changes_nothing():
    """One SDE step taken in VE, VP and flow coordinates gives the same clean-signal-to-noise state."""
    x0, eps, z = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    high, low, noise = 4.0, 2.5, SDE("vp")
    results = []
    for path in (VE(), VP(), Flow(), SCALED):
        sigma, sigma2 = sigma_of(path, high), sigma_of(path, low)
        a, b = path.coefficients(sigma)
        out, _ = transition(path, a * x0 + b * eps, x0, sigma, sigma2, noise).sample(z)
        results.append(out / path.coefficients(sigma2)[0])
    assert all(torch.allclose(results[0], result, atol=1e-12) for result in results[1:])


def test_grid_of_the_published_flow_sde():
    """Times of the adaptive grid with ten levels, as the paper's code visits them (linear path)."""
    expected = [0.9935, 0.9931, 0.9920, 0.9898, 0.9856, 0.9776, 0.9617, 0.9289, 0.8591, 0.7087, 0.0]
    assert clock_grid(Flow(), 10, "vp", "exp").tolist() == pytest.approx(expected, abs=1e-4)
    with_tail = clock_grid(Flow(), 10, "vp", "exp", tail=10)
    assert len(with_tail) == 20 and with_tail[9] == pytest.approx(0.7087, abs=1e-4)
    assert ratio_of(VE(), float(clock_grid(VE(), 10, "vp", "exp")[0])) == pytest.approx(VPClock().ratio(1.0))


def test_shifted_proposals_weigh_what_densities_weigh():
    """log p - log q against torch's normal densities, for one particle in few dimensions (float64)."""
    x, x0 = states(6, 3)
    move = transition(VE(), x, x0, 3.0, 2.0, 1.0)
    z, gradient = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    out, ratio = move.sample(z, gradient)
    shifted = move.mean + move.std**2 * gradient
    p = torch.distributions.Normal(move.mean, move.std).log_prob(out).sum(1)
    q = torch.distributions.Normal(shifted, move.std).log_prob(out).sum(1)
    assert torch.allclose(ratio, p - q, atol=1e-10)


def test_non_finite_gradients_shift_nothing_and_weigh_nothing():
    x, x0 = states(3, 4)
    move = transition(VE(), x, x0, 3.0, 2.0, 1.0)
    z = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    gradient = torch.ones(3, 4, dtype=torch.float64)
    gradient[1, 2] = math.nan
    out, ratio = move.sample(z, gradient)
    assert ratio[1] == 0 and torch.equal(out[1], (move.mean + move.std * z)[1])
    assert torch.isfinite(out).all() and torch.isfinite(ratio).all() and (ratio[[0, 2]] != 0).all()


def test_the_last_move_lands_on_the_clean_estimate():
    """No noise is left unscored at the end: sigma' = 0 gives x0, with log-ratio 0."""
    x, x0 = states()
    move = transition(VE(), x, x0, 0.5, 0.0, 1.0)
    out, ratio = move.sample(None, torch.ones_like(x))
    assert torch.equal(out, x0) and not ratio.any()


def test_noise_of_a_flow_has_a_strength_above_zero():
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="scale is"):
            Flow(scale=scale)


def test_start_and_renoising():
    noise, latent = states()
    assert torch.allclose(noise_scaling(VE(), noise, None, 14.6, True), noise * math.sqrt(1 + 14.6**2))
    assert torch.allclose(noise_scaling(VE(), noise, latent, 3.0, False), latent + 3.0 * noise)
    assert torch.allclose(noise_scaling(Flow(), noise, latent, 0.7, False), 0.3 * latent + 0.7 * noise)
    assert torch.allclose(noise_scaling(SCALED, noise, latent, 0.7, False), 0.3 * latent + 5.6 * noise)
    for path, low, high in ((VE(), 1.0, 4.0), (VP(), 1.0, 4.0), (Flow(), 0.3, 0.8), (SCALED, 0.3, 0.8)):
        scale, std = renoise_coefficients(path, low, high)
        a, b = path.coefficients(low)
        a2, b2 = path.coefficients(high)
        assert scale * a == pytest.approx(a2) and (scale * b) ** 2 + std**2 == pytest.approx(b2**2)
    with pytest.raises(ValueError, match="re-noising goes up"):
        renoise_coefficients(VE(), 4.0, 1.0)
    with pytest.raises(ValueError, match="cannot be re-noised"):
        renoise_coefficients(Flow(), 1.0, 1.0)


def test_ideal_jacobian_of_white_data():
    """For N(0, 1) data the ideal denoiser is linear with exactly this slope."""
    for path, sigma in ((VE(), 2.0), (Flow(), 0.6), (Flow(), 1.0), (SCALED, 0.6)):
        a, b = path.coefficients(sigma)
        assert clean_jacobian(path, sigma) == pytest.approx(a / (a * a + b * b))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VE(), 3.0, 3.0, 1.0), "must decrease"),
        ((VE(), 3.0, -1.0, 1.0), "must decrease"),
        ((VE(), 3.0, 1.0, 1.5), "eta is 1.5"),
        ((VE(), 3.0, 1.0, -0.1), "eta is -0.1"),
        ((Flow(), 1.5, 1.0, 1.0), "sigma is 1.5"),
    ],
)
def test_bad_moves_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        transition_variance(*arguments)


def test_bad_schedules_are_named():
    for sigmas, message in (
        ([1.0], "at least one step"),
        ([1.0, 2.0], r"sigmas\[0\] = 1.0"),
        ([1.0, math.nan], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            check_sigmas(torch.tensor(sigmas))
    with pytest.raises(ValueError, match="steps is 0"):
        karras(0)
    with pytest.raises(ValueError, match="path is 'x'"):
        SDE("x")
    with pytest.raises(ValueError, match="norm is -1"):
        SDE(norm=-1)


def test_schedules_have_the_known_ends():
    assert karras(20)[0] == pytest.approx(14.6146) and karras(20)[-2] == pytest.approx(0.0292, rel=1e-4)
    table = scaled_linear_sigmas()
    assert float(table[0]) == pytest.approx(0.0292, abs=1e-4) and float(table[-1]) == pytest.approx(14.6146, abs=1e-3)
    assert normal_schedule(20)[0] == pytest.approx(float(table[-1]), rel=1e-6) and normal_schedule(20)[-1] == 0
    assert flow_schedule(4).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert flow_schedule(4, shift=3.0)[1] == pytest.approx(3 * 0.75 / (1 + 2 * 0.75))
    assert int(timestep_at(float(table[500]), table)) == 500


def published_step(u, x, s, d, norm=3.0):
    """Euler-Maruyama step of the converted SDE, by the formulas of the publication (Kim et al. 2025, section 4).

    ``u`` is the linear model's velocity at its own state and time; ``x`` the state on the VP path at time ``s``.
    Returns (mean, std, velocity on the VP path, score).
    """
    low, high = 0.1, 20.0
    integral, beta = low * s + 0.5 * (high - low) * s * s, low + (high - low) * s
    a, b = math.exp(-integral / 2), math.sqrt(1 - math.exp(-integral))
    da, db = -beta * a / 2, beta * a * a / (2 * b)
    scale, dscale, dtime = a + b, da + db, (a * db - b * da) / (a + b) ** 2
    velocity = dscale / scale * x + scale * dtime * u
    score = (a / da * velocity - x) / (b * b - a / da * db * b)
    g = norm * s * s
    return x - d * velocity + 0.5 * g * g * d * score, g * math.sqrt(d), velocity, score


@pytest.mark.parametrize("s", [0.3, 0.6, 0.8, 0.95])
def test_the_kernel_is_the_published_conversion(s):
    """No velocity is converted here, only a variance; the moves are those of the converted SDE all the same."""
    clock, flow = VPClock(), Flow()
    u, state = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    time = LinearClock().at(clock.ratio(s))
    a, b = clock.noise_level(s) / clock.ratio(s), clock.noise_level(s)
    x0, eps = state - time * u, state + (1 - time) * u
    errors = []
    for d in (2e-4, 1e-4):
        mean, std, velocity, score = published_step(u, (a + b) * state, s, d)
        later = LinearClock().at(clock.ratio(s - d))
        rescaled = clock.noise_level(s - d) * (1 + 1 / clock.ratio(s - d))  # a + b at the later time
        move = transition(flow, state, x0, time, later, SDE("vp"))
        assert rescaled * float(move.std) == pytest.approx(std, rel=1e-6)
        errors.append(float((rescaled * move.mean - mean).abs().max()))
    assert torch.allclose(score, -eps / b, atol=1e-6)
    # The publication's step is the first order of ours: the rest falls with the square of the step.
    assert errors[1] < 1e-6 and errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
    h = 1e-5
    slope = [(clock.noise_level(s + e) / clock.ratio(s + e), clock.noise_level(s + e)) for e in (h, -h)]
    da, db = ((slope[0][k] - slope[1][k]) / (2 * h) for k in (0, 1))
    assert torch.allclose(velocity, da * x0 + db * eps, atol=1e-6)
