"""``DiffusionProcess``: any model that predicts the clean latent (eps-, v-, EDM- and flow-models) as a ``Process``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..frames import Shown
from ..ledger import Ledger
from ..protocols import Capabilities, SearchError, Values
from ..state import State
from .chunking import Chunker
from .conditions import Inpainting, Start
from .denoise import Denoise, Denoised
from .kernel import (
    Flow,
    Interpolant,
    Noise,
    as_float64_cpu,
    check_sigmas,
    clean_jacobian,
    is_stochastic,
    noise_scaling,
    transition_variance,
)
from .mover import NEVER, KernelMover, Mover
from .previews import CheapLooks
from .prompted import Prompted
from .stock import ALMOST_NOISE, NativeSampler, with_noise
from .streams import Streams

# x0 [n, ...] in the model's latent scale -> images [n, H, W, 3] around 0..1, of clips [n, F, H, W, 3]
# (the process clamps)
Decode = Callable[[Tensor], Tensor]


def straight_through_clamp(images: Tensor) -> Tensor:
    """Clamp to 0..1 whose gradient ignores the clamp, so that an over-bright pixel can still be pulled back."""
    return images + (images.clamp(0.0, 1.0) - images).detach()


class DiffusionProcess(Prompted):
    """N particles per group on a noise schedule, moved by the one transition kernel.

    ``shown`` is None: particles are pictures, unless a host says which frames of them a preview shows; ``whole_first``
    is of ``Capabilities``.

    Args:
        denoise: the model, see ``Denoise``.
        interpolant: ``VE()``, ``VP()`` or ``Flow()``: the scale of the states.
        sigmas: ``[T + 1]`` strictly decreasing; ends with 0 for finished images.
        decode: clean latents -> images.
        shape: shape of one particle, e.g. ``(4, 16, 16)``.
        groups: output slots G.
        streams: source of all noise.
        eta: 0 (ODE) .. 1 (ancestral), a rule of ``processes.sde``, or a sampler of ``processes.stock``.
        start: initial conditions.
        inpainting: known area, or None.
        chunker: how many particles fit a model call.
        device: where states live.
        gradient_through: "denoiser" (as DAS) or "decoder" (cheap: ideal-Gaussian Jacobian instead of the network's).
        grad_context: context manager factory that makes gradients possible (hosts leave inference mode in it).
        mover: who moves the particles, default the kernel.
        almost_noise: what a flow's first sigma of 1 is to samplers that leave pure noise, see ``stock.Stock``.

    Raises:
        SearchError, ValueError: on a schedule, eta or shape that cannot work.
    """

    shown: Shown | None = None
    cheap_looks: CheapLooks | None = None  # where ``decode`` has a ``final`` to be set, see ``TwoDecoders``
    whole_first: bool = False

    def __init__(
        self,
        denoise: Denoise,
        interpolant: Interpolant,
        sigmas: Tensor,
        decode: Decode,
        shape: Sequence[int],
        groups: int,
        streams: Streams,
        *,
        eta: float | Noise = 1.0,
        start: Start | None = None,
        inpainting: Inpainting | None = None,
        chunker: Chunker | None = None,
        device: torch.device | str = "cpu",
        gradient_through: str = "denoiser",
        grad_context: Callable[[], AbstractContextManager] = torch.enable_grad,
        almost_noise: float = ALMOST_NOISE,
        mover: Mover | None = None,
    ):
        if gradient_through not in ("denoiser", "decoder"):
            raise SearchError(f"gradient_through is {gradient_through!r}: choose 'denoiser' or 'decoder'")
        if groups < 1:
            raise SearchError(f"groups is {groups}: there must be at least one image to make")
        self.sigmas = check_sigmas(sigmas)
        for high, low in zip(self.sigmas, self.sigmas[1:], strict=False):
            transition_variance(interpolant, high, low, eta)  # refuses a bad eta or sigma now, not in mid-run
        self.denoise, self.decode, self.interpolant = denoise, decode, interpolant
        self.shape, self.groups, self.streams, self.eta = tuple(shape), groups, streams, eta
        self.steps = len(self.sigmas) - 1
        self.start_at = start or Start()
        self.inpainting = inpainting
        self.chunker = chunker or Chunker()
        self.device = torch.device(device)
        self.gradient_through = gradient_through
        self.grad_context, self.almost_noise = grad_context, almost_noise
        self.mover: Mover = mover or KernelMover()
        self.ledger = Ledger()
        self.origin: State | None = None
        self._initial_noise: dict[int, Tensor] = {}
        self._texts = []

    @property
    def capabilities(self) -> Capabilities:
        """See ``Capabilities``."""
        return Capabilities(
            kind="flow" if isinstance(self.interpolant, Flow) else "diffusion",
            can_branch=is_stochastic(self.eta) if self.mover.clones is None else self.mover.clones != NEVER,
            can_renoise=self.mover.can_renoise,
            can_differentiate=self.mover.can_differentiate,
            can_reprompt=self.denoise.can_encode and self.mover.can_reprompt,
            can_choose_noise=self.mover.clones is None,
            ends_clean=self.sigmas[-1] == 0.0,
            whole_first=self.whole_first,
        )

    @property
    def nfe_per_call(self) -> int:
        """Forward passes per denoiser call of one particle."""
        return self.denoise.nfe_per_call

    def branches(self, step: int) -> bool:
        """Whether the transition out of ``step`` draws noise."""
        return transition_variance(self.interpolant, self.level(step), self.sigmas[step + 1], self.eta) > 0

    def level(self, step: int) -> float:
        """Noise level that the model is asked at, and that the move out of ``step`` counts from."""
        sigma, moves = self.sigmas[step], self.eta
        if (
            isinstance(moves, NativeSampler)
            and moves.leaves_pure_noise
            and self.interpolant.coefficients(sigma)[0] == 0
        ):
            return self.almost_noise
        return sigma

    def variant(
        self,
        *,
        sigmas: Sequence[float] | None = None,
        eta: float | Noise | None = None,
        gradient_through: str | None = None,
        streams: Streams | None = None,
        origin: State | None = None,
    ) -> DiffusionProcess:
        """See ``Process.variant``."""
        other = copy.copy(self)
        other.sigmas = self.sigmas if sigmas is None else [float(sigma) for sigma in sigmas]
        other.steps = len(other.sigmas) - 1
        other.eta = self.eta if eta is None else with_noise(self.eta, eta)
        other.gradient_through = gradient_through or self.gradient_through
        other.origin = self.origin if origin is None else origin
        if streams is not None:
            other.streams, other._initial_noise = streams, {}
        return other

    def expect(self, populations: Sequence[int]) -> None:
        """Nothing is reserved beyond a step."""

    def start(self, particles: int) -> State:
        """``G * N`` initial states; slot 0 of a group uses the host's noise where there is one.

        From an ``origin`` they are clones of its particles.
        """
        if self.origin is not None:
            return self.origin.branched(particles)
        group = torch.arange(self.groups).repeat_interleave(particles)
        slot = torch.arange(particles).repeat(self.groups)
        return self.begin(self.initial_noise(group, slot), group, slot)

    def begin(self, noise: Tensor, group: Tensor, slot: Tensor) -> State:
        """Initial states that grow from ``noise`` ``[n, ...]`` (standard normal) for groups and slots ``[n]``."""
        latent = self.start_at.latent
        x = noise_scaling(
            self.interpolant,
            noise.to(self.device),
            None if latent is None else latent.to(self.device)[group],
            self.sigmas[0],
            self.start_at.full_denoise,
        )
        return self.mover.begin(self, State(x=x, group=group, slot=slot, step=0), noise)

    def initial_noise(self, group: Tensor, slot: Tensor) -> Tensor:
        """Noise ``[n, ...]`` that slot ``slot`` of ``group`` starts from."""
        rows = []
        for g, k in zip(group.tolist(), slot.tolist(), strict=True):
            if self.start_at.noise is not None and (k == 0 or self.start_at.shared_noise):
                rows.append(self.start_at.noise[g].to("cpu", torch.float32))
                continue
            key = g * 1_000_003 + k
            if key not in self._initial_noise:
                self._initial_noise[key] = self.streams.normal(self.shape, group=g, slot=k, step=-1, purpose="initial")
            rows.append(self._initial_noise[key])
        return torch.stack(rows).to(self.device)

    def predict(self, state: State) -> State:
        """Fill in ``x0``: one model call per chunk."""
        if state.x0 is not None:
            return state
        if self.sigmas[state.step] == 0.0:
            return replace(state, x0=state.x)
        return self.mover.predict(self, state)

    def preview(self, state: State, side: int | None = None) -> Tensor:
        """Expected final images ``[n, H, W, 3]`` in 0..1, float32; always of the latents' own size.

        Finished candidates are decoded in full, others quickly where there are ``cheap_looks``.
        """
        x0, looks = state.clean, self.cheap_looks
        if looks is None:
            return self.chunker.cat(lambda rows: self._decode(x0[rows]), len(state))
        finished = state.step >= self.steps - (1 if self.sigmas[-1] == 0.0 else 0)
        self.decode.final = finished or not looks.on  # type: ignore[attr-defined]
        try:
            return self.chunker.cat(lambda rows: self._decode(x0[rows]), len(state))
        finally:
            self.decode.final = True  # type: ignore[attr-defined]

    def advance(self, state: State, gradient: Tensor | None = None) -> tuple[State, Tensor]:
        """One reverse transition of all particles; see ``Process.advance``."""
        return self.mover.advance(self, state, gradient)

    def value_gradient(self, state: State, value: Callable[[Tensor, Tensor], Tensor]) -> tuple[State, Values]:
        """Predict, decode, score and differentiate, chunk by chunk; every stage is checkpointed.

        ``value(images [m, H, W, 3], group [m]) -> reward [m]`` must be differentiable. The gradient of particle i's
        reward with respect to its own state is exact although chunks are summed: particles do not interact.
        """
        parts = self.chunker.map(lambda rows: self._value_gradient(state, rows, value), len(state))
        x0, reward, grad = (torch.cat(column) for column in zip(*parts, strict=True))
        return replace(state, x0=x0), Values(as_float64_cpu(reward), grad)

    def finish(self, state: State) -> Tensor:
        """``x`` after the last step; before it the expected clean latents (the best that is known)."""
        if state.step == self.steps or state.x0 is None:
            return state.x
        return state.x0

    @staticmethod
    def to_pixels(images: Tensor) -> Tensor:
        """Decoded images as verifiers take them: float32 in 0..1."""
        return straight_through_clamp(images).float() if images.requires_grad else images.clamp(0.0, 1.0).float()

    def estimate(self, state: State, rows: slice) -> Tensor:
        """``x0`` of some rows, with the known area of an inpainting put in before and after the model."""
        x, group, slot = state.x[rows], state.group[rows], state.slot[rows]
        sigma, prompts = self.level(state.step), self.prompts_of(state)
        with self.ledger.model(len(group) * self.nfe_per_call) as call:
            x0, call.nfe = self._denoise(x, sigma, group, slot, None if prompts is None else prompts[rows])
        return x0

    def _denoise(
        self, x: Tensor, sigma: float, group: Tensor, slot: Tensor, prompts: list[str | None] | None = None
    ) -> Denoised:
        if self.inpainting is None:
            return self.denoise(x, sigma, group, prompts)
        known, (mask, latent) = self.inpainting, self.inpainting.at(sigma, group, like=x)
        noise = self.initial_noise(group, slot).to(x)
        if known.known_at is not None:
            noised = known.known_at(sigma, noise, latent, x, mask)
        else:
            a, b = self.interpolant.coefficients(sigma)
            noised = a * latent + b * noise
        x0, nfe = self.denoise(x * mask + noised * (1 - mask), sigma, group, prompts)
        return Denoised(x0 * mask + latent * (1 - mask), nfe)

    def with_known(self, x0: Tensor, sigma: float, group: Tensor) -> Tensor:
        """Clean estimates ``[n, ...]`` of the model at ``sigma``, with the known area of an inpainting put in."""
        return x0 if self.inpainting is None else self.inpainting.put_into(x0, sigma, group)

    def _decode(self, x0: Tensor) -> Tensor:
        quick = self.cheap_looks is not None and not self.decode.final  # type: ignore[attr-defined]
        with self.ledger.decode(len(x0), quick=quick):
            return self.to_pixels(self.decode(x0))

    def _value_gradient(self, state: State, rows: slice, value) -> tuple[Tensor, Tensor, Tensor]:
        group, slot, sigma = state.group[rows], state.slot[rows], self.level(state.step)
        n = len(group)
        prompts = self.prompts_of(state)
        prompts = None if prompts is None else prompts[rows]
        through_denoiser = self.gradient_through == "denoiser"
        predicted = state.x[rows] if through_denoiser else self.estimate(state, rows)
        with self.grad_context():
            if through_denoiser:
                leaf = predicted.detach().clone().requires_grad_()
                with self.ledger.model(n * self.nfe_per_call, backward=True) as call:
                    # In a closure: hosts make group and slot in inference mode, and checkpoint saves its arguments.
                    denoise = lambda x: self._denoise(x, sigma, group, slot, prompts)  # noqa: E731
                    x0, call.nfe = checkpoint(denoise, leaf, use_reentrant=False)
                scale = 1.0
            else:
                leaf = x0 = predicted.detach().clone().requires_grad_()
                scale = clean_jacobian(self.interpolant, sigma)
            with self.ledger.decode(n):
                images = self.to_pixels(checkpoint(self.decode, x0, use_reentrant=False))
            reward = value(images, group)
            with self.ledger.differentiate():
                (grad,) = torch.autograd.grad(reward.sum(), leaf)
        return x0.detach(), reward.detach(), scale * grad.detach()
