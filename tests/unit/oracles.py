"""Closed-form processes: Gaussian-mixture data, exact denoisers, exact tilted targets.

``x0`` plays both latent and image, so a verifier here is any function of x0. Everything is float64.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from testtime.samplers.processes.denoise import Denoised
from testtime.samplers.processes.diffusion import DiffusionProcess, Start
from testtime.samplers.processes.kernel import VE, VP, Flow, Interpolant
from testtime.samplers.processes.schedules import karras
from testtime.samplers.processes.streams import Streams
from testtime.samplers.protocols import Verifier


class FastStreams(Streams):
    """One generator for all: statistics over 10^5 particles need no per-particle streams."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self._all = torch.Generator().manual_seed(seed)

    def normals(self, shape, group, slot, *, step, purpose):
        return torch.randn((len(group), *shape), generator=self._all, dtype=torch.float64)

    def normal(self, shape, *, group, slot, step, purpose):
        return torch.randn(tuple(shape), generator=self._all, dtype=torch.float64)

    def uniform(self, n, *, group, step, purpose):
        return torch.rand(n, generator=self._all, dtype=torch.float64)


class MixtureDenoiser:
    """``E[x0 | x]`` of an isotropic Gaussian mixture under any interpolant.

    means ``[K, d]``, weights ``[K]``, one variance.
    """

    nfe_per_call = 1
    can_encode = False

    def __init__(self, means: Tensor, weights: Tensor, variance: float, interpolant: Interpolant):
        self.means, self.weights, self.variance = means.double(), weights.double(), variance
        self.interpolant = interpolant

    def __call__(self, x: Tensor, sigma: float, group: Tensor | None = None, prompts=None) -> Denoised:
        a, b = self.interpolant.coefficients(sigma)
        total = a * a * self.variance + b * b
        gap = x[:, None, :] - a * self.means[None]
        logits = self.weights.log() - gap.square().sum(-1) / (2 * total)
        gamma = torch.softmax(logits, 1)
        conditional = self.means[None] + a * self.variance / total * gap
        return Denoised((gamma[..., None] * conditional).sum(1), len(x))

    def prompt_embedding(self, group):
        return None


class OracleProcess(DiffusionProcess):
    """x0 is the image."""

    @staticmethod
    def to_pixels(images):
        return images

    def initial_noise(self, group, slot):
        return self.streams.normals(self.shape, group, slot, step=-1, purpose="initial")


class KeyedProcess(OracleProcess):
    """Noise as in a real run: every number a function of (seed, group, slot, step), so single particles compare."""

    def initial_noise(self, group, slot):
        return DiffusionProcess.initial_noise(self, group, slot).double()


class FunctionVerifier(Verifier):
    """A verifier from a function of x0 ``[n, d]``."""

    differentiable = True

    def __init__(self, function, name="function"):
        self.function, self.name = function, name

    def score(self, images, prompts, context=None):
        return self.function(images)


INTERPOLANTS = {"ve": VE(), "vp": VP(), "flow": Flow()}


def process(denoiser, steps, groups, seed, *, eta=1.0, dim=1, flow=False, **options) -> OracleProcess:
    """A Karras schedule for VE and VP, its image under s = sigma / (1 + sigma) for a flow."""
    sigmas = karras(steps).double()
    interpolant: Interpolant = Flow() if flow else denoiser.interpolant
    if interpolant.name == "flow":
        sigmas = sigmas / (1 + sigmas)
    return OracleProcess(
        denoiser,
        interpolant,
        sigmas,
        lambda x0: x0,
        (dim,),
        groups,
        FastStreams(seed),
        eta=eta,
        **{"start": Start(), **options},
    )


def keyed(steps=9, groups=2, seed=3, *, group_offset=0, flow=False, eta=1.0, dim=3, **options) -> KeyedProcess:
    """Two modes in ``dim`` dimensions, at -1.5 (weight .3) and 1 (.7), standard deviation .4; keyed noise."""
    denoiser = MixtureDenoiser(
        torch.tensor([[-1.5] * dim, [1.0] * dim]), torch.tensor([0.3, 0.7]), 0.16, Flow() if flow else VE()
    )
    made = process(denoiser, steps, groups, seed, eta=eta, dim=dim, flow=flow, **options)
    made.__class__ = KeyedProcess
    made.streams = Streams(seed, group_offset)
    return made


def linear_gaussian(steps: int, m0=0.7, v0=0.5, *, eta=1.0, widened=True) -> tuple[float, float]:
    """Mean and variance that the chain of a N(m0, v0) prior ends with at finite T (its exact law).

    In variance-exploding coordinates, to which VP and flow are equivalent; only VE starts from the widened
    N(0, sigma^2 + 1).
    """
    sigmas = karras(steps).double().tolist()
    m, v = 0.0, sigmas[0] ** 2 + (1 if widened else 0)
    for s, s_next in itertools.pairwise(sigmas):
        k = v0 / (v0 + s * s)
        up2 = eta**2 * s_next**2 * (s * s - s_next**2) / s**2
        down = math.sqrt(s_next**2 - up2)
        gain = k + down / s * (1 - k)
        m, v = gain * m + (1 - k) * m0 * (1 - down / s), gain**2 * v + up2
    return m, v


def weighted_mean(result, groups: int) -> Tensor:
    """Self-normalised weighted mean of the finalists per group ``[G, d]`` from the final trace weights."""
    record = result.trace.records[-1]
    n = len(record.particles) // groups
    log_w = torch.tensor([-math.inf if e["log_weight"] is None else e["log_weight"] for e in record.particles])
    weights = torch.softmax(log_w.double().view(groups, n), 1)
    # finalists are sorted; particles names their ids
    position = {particle: row for row, particle in enumerate(result.particles)}
    rows = torch.tensor([position[e["id"]] for e in record.particles])
    x = result.finalists[rows].view(groups, n, -1)
    return (weights[..., None] * x).sum(1)
