"""Stock samplers that *are* the one kernel: an extrapolation and a rule for the noise, by the name that ComfyUI has.

``native("dpmpp_2m")`` is passed wherever an eta is: as noise of a process's moves. Every method then moves as that
sampler does, to rounding where it draws no noise, and in law where it does (the numbers come from Streams).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .extrapolation import Er, Extrapolation, Res, TwoM, er_scale, half_log_snr, log_sigma, noise_to_signal, unit_of
from .kernel import Flow, Interpolant, Noise, is_stochastic, transition_variance


@dataclass(frozen=True)
class Ancestral:
    """``euler_ancestral``: the kernel's own rule, on a flow k-diffusion's (``sample_euler_ancestral_RF``).

    There ``d = s' (1 + (s' / s - 1) eta)`` is the level that the Euler step goes down to, and
    ``v = s'^2 - d^2 (1 - s')^2 / (1 - d)^2``.
    """

    eta: float = 1.0

    @property
    def stochastic(self) -> bool:
        """Whether moves draw noise."""
        return self.eta > 0

    def variance(self, interpolant: Interpolant, sigma: float, sigma_next: float) -> float:
        """See ``Noise``."""
        if not isinstance(interpolant, Flow):
            return transition_variance(interpolant, sigma, sigma_next, self.eta)
        a_next, b_next = interpolant.coefficients(sigma_next)
        a_down, b_down = interpolant.coefficients(sigma_next * (1.0 + (sigma_next / sigma - 1.0) * self.eta))
        return max(b_next * b_next - (b_down * a_next / a_down) ** 2, 0.0)


@dataclass(frozen=True)
class AtLevels:
    """The kernel's own rule with ``eta``, for moves out of given noise levels only; others draw none."""

    eta: float
    levels: tuple[float, ...]

    @property
    def stochastic(self) -> bool:
        """Whether any move draws noise."""
        return self.eta > 0 and bool(self.levels)

    def variance(self, interpolant: Interpolant, sigma: float, sigma_next: float) -> float:
        """See ``Noise``."""
        here = any(math.isclose(sigma, level, rel_tol=1e-6) for level in self.levels)
        return transition_variance(interpolant, sigma, sigma_next, self.eta) if here else 0.0


@dataclass(frozen=True)
class Fresh:
    """``lcm``: all noise is drawn anew, ``v = b'^2``."""

    stochastic: bool = True

    def variance(self, interpolant: Interpolant, sigma: float, sigma_next: float) -> float:
        """See ``Noise``."""
        return interpolant.coefficients(sigma_next)[1] ** 2


@dataclass(frozen=True)
class Exponential:
    """``dpmpp_2m_sde``: ``v = b'^2 (1 - exp(-2 h eta))``, ``h`` the step of ``log(a / b)``."""

    eta: float = 1.0

    @property
    def stochastic(self) -> bool:
        """Whether moves draw noise."""
        return self.eta > 0

    def variance(self, interpolant: Interpolant, sigma: float, sigma_next: float) -> float:
        """See ``Noise``."""
        if sigma_next == 0.0 or self.eta == 0.0:
            return 0.0
        h = half_log_snr(interpolant, sigma_next) - half_log_snr(interpolant, sigma)
        return -math.expm1(-2.0 * h * self.eta) * interpolant.coefficients(sigma_next)[1] ** 2


@dataclass(frozen=True)
class ErNoise:
    """``er_sde``: ``v = a'^2 (q'^2 - q^2 r^2)`` with ``q = b / a`` and ``r = g(q') / g(q)``.

    ``q`` is that of noise of standard deviation 1, and ``v`` is scaled where a flow's noise is stronger.
    """

    stochastic: bool = True

    def variance(self, interpolant: Interpolant, sigma: float, sigma_next: float) -> float:
        """See ``Noise``."""
        high, low = noise_to_signal(interpolant, sigma), noise_to_signal(interpolant, sigma_next)
        kept = 0.0 if math.isinf(high) or low == 0.0 else high * er_scale(low) / er_scale(high)
        signal = interpolant.coefficients(sigma_next)[0] * unit_of(interpolant)
        return max(signal * signal * (low * low - kept * kept), 0.0)


@dataclass(frozen=True)
class Stock:
    """A row of the table.

    Attributes:
        extrapolation: None for none.
        eta: default of the noise's one number; None where it has none.
        noise: of an eta; None: the kernel's own rule.
        leaves_pure_noise: on a flow it takes the first sigma of 1 for the noise level next to it, where the signal is
            not 0 and its clock not infinite.
    """

    extrapolation: Extrapolation | None = None
    eta: float | None = 0.0
    noise: type[Ancestral | Exponential] | Noise | None = None
    leaves_pure_noise: bool = False

    @property
    def draws(self) -> bool:
        """Whether the sampler draws noise by itself."""
        return self.eta is None or self.eta > 0

    def noise_of(self, eta: float | None) -> float | Noise:
        """The rule with this number (None: the sampler's own)."""
        number = self.eta if eta is None else eta
        if self.noise is None or isinstance(self.noise, type):
            number = 0.0 if number is None else number  # only a rule without a number has none
            return number if self.noise is None else self.noise(number)
        return self.noise


_TWO_M_SDE = Stock(TwoM(half_log_snr), 1.0, Exponential, leaves_pure_noise=True)

STOCK: dict[str, Stock] = {
    "euler": Stock(),
    "ddim": Stock(),
    "euler_ancestral": Stock(None, 1.0, Ancestral),
    "lcm": Stock(None, None, Fresh()),
    "dpmpp_2m": Stock(TwoM(log_sigma)),
    "dpmpp_2m_sde": _TWO_M_SDE,
    "dpmpp_2m_sde_gpu": _TWO_M_SDE,
    "res_multistep": Stock(Res()),
    "er_sde": Stock(Er(), None, ErNoise(), leaves_pure_noise=True),
}
"""Samplers of ComfyUI that the kernel reproduces, by name."""

ALMOST_NOISE = 1.0 - 1e-4
"""What a flow's first sigma of 1 becomes for the samplers that leave pure noise, on a schedule without shift."""


@dataclass(frozen=True)
class NativeSampler:
    """Moves of a stock sampler: goes wherever an eta goes.

    Attributes:
        name: a key of ``STOCK``.
        noise: of the moves; may be another than the sampler's own (dpmpp_2m with an eta, so that clones separate).
    """

    name: str
    noise: float | Noise = 0.0

    def __post_init__(self):
        if self.name not in STOCK:
            raise ValueError(f"sampler is {self.name!r}: choose one of {', '.join(STOCK)}")

    @property
    def stochastic(self) -> bool:
        """Whether moves draw noise."""
        return is_stochastic(self.noise)

    @property
    def extrapolation(self) -> Extrapolation | None:
        """How earlier estimates count."""
        return STOCK[self.name].extrapolation

    @property
    def leaves_pure_noise(self) -> bool:
        """See ``Stock``."""
        return STOCK[self.name].leaves_pure_noise

    def variance(self, interpolant: Interpolant, sigma: float, sigma_next: float) -> float:
        """Variance v of the move, see ``kernel.Noise``."""
        return transition_variance(interpolant, sigma, sigma_next, self.noise)

    @property
    def draws(self) -> bool:
        """Whether the sampler, as it is, draws noise."""
        return STOCK[self.name].draws

    def with_eta(self, eta: float) -> NativeSampler:
        """The same sampler with another number in its noise; lcm and er_sde have none."""
        return replace(self, noise=STOCK[self.name].noise_of(eta))

    def with_noise(self, noise: float | Noise) -> NativeSampler:
        """The same sampler with other noise in its moves; 0 for none."""
        return replace(self, noise=noise)


def native(name: str, eta: float | None = None) -> NativeSampler:
    """A sampler of the table.

    Args:
        name: a key of ``STOCK``. eta: its noise, in 0..1; None for its own. lcm and er_sde have one noise only.

    Raises:
        ValueError: an unknown name.
    """
    return NativeSampler(name, STOCK[name].noise_of(eta) if name in STOCK else 0.0)


def extrapolation_of(moves: float | Noise) -> Extrapolation | None:
    """How earlier estimates count in moves; None for moves that are not a multistep sampler's."""
    return moves.extrapolation if isinstance(moves, NativeSampler) else None


def with_noise(moves: float | Noise, noise: float | Noise) -> float | Noise:
    """Moves with other noise: of the same sampler where ``noise`` does not name its own."""
    if isinstance(noise, NativeSampler) or not isinstance(moves, NativeSampler):
        return noise
    return moves.with_noise(noise)


def number_of(moves: float | Noise) -> float | str | None:
    """Noise of moves for a trace: their eta, None where a sampler has none, else a rule's description."""
    noise = moves.noise if isinstance(moves, NativeSampler) else moves
    if isinstance(noise, Ancestral | Exponential):
        return noise.eta
    if isinstance(noise, Fresh | ErNoise):
        return None
    return noise if isinstance(noise, int | float) else repr(noise)
