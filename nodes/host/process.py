"""A call of ComfyUI's ``Sampler.sample`` as a ``DiffusionProcess``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management as management
import torch
from torch import Tensor

from ...samplers.processes.chunking import Chunker
from ...samplers.processes.diffusion import DiffusionProcess, Inpainting, Start
from ...samplers.processes.kernel import Noise
from ...samplers.processes.streams import Streams
from ...samplers.protocols import SearchError, Values
from ...samplers.state import State
from .. import compat
from . import gradients
from .conditioning import GroupConditioning
from .denoiser import HostDenoise
from .devices import devices_of
from .interpolants import interpolant_for, widens_start
from .pixels import HostDecode
from .prompts import PromptConditions
from .residency import (
    GRADIENT_FACTOR,
    Residency,
    check_previews_fit,
    chunk_now,
    chunk_to_reserve,
    memory_per_particle,
)

log = logging.getLogger("testtime")


class GradientUnavailable(Exception):
    """The first backward pass of a run failed: some part of the chain has no gradient."""


@dataclass(frozen=True)
class SamplingCall:
    """The arguments of ``Sampler.sample``.

    Attributes:
        guider: ``model_wrap``, the guider with its model loaded.
        sigmas: ``[T + 1]``.
        model_options, seed: of ``extra_args``.
        noise: ``[G, ...]`` of the NOISE object.
        latent_image: ``[G, ...]`` in the model's scale.
        denoise_mask: ``[G, C, h, w]``, 1 = generate, or None.
    """

    guider: Any
    sigmas: Tensor
    model_options: dict[str, Any]
    seed: int | None
    noise: Tensor
    latent_image: Tensor
    denoise_mask: Tensor | None = None

    @property
    def model(self) -> Any:
        """The BaseModel."""
        return self.guider.inner_model

    @property
    def groups(self) -> int:
        """Images G."""
        return self.noise.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent, without the batch."""
        return tuple(self.noise.shape[1:])


@dataclass(frozen=True)
class HostSettings:
    """What a process in the host needs besides the call itself.

    Attributes:
        vae: a ComfyUI VAE.
        eta: 0 (ODE) .. 1 (ancestral), or a rule of ``samplers.processes.sde``.
        population: particles of all images together, to size chunks and reserve memory.
        gradient: whether gradients of the score will be asked for.
        judges: verifiers that a gradient passes through.
        encoder: a ``ClipEncoder`` for prompts of particles, or None.
        stream_ids: for every image the number that names its noise streams (its place in the batch it came from);
            None: its place in this batch.
    """

    vae: Any
    eta: float | Noise
    population: int
    gradient: bool = False
    judges: Sequence[Any] = ()
    stream_ids: Sequence[int] | None = None
    encoder: Any = None


class ImageStreams(Streams):
    """Streams whose groups are named by the image's place in the batch it was taken from.

    So image 3 of a batch and the same image alone (``batch_index = [3]``) draw the same noise.
    """

    def __init__(self, seed: int, ids: Sequence[int]):
        super().__init__(seed)
        self.ids = [int(i) for i in ids]

    def normal(self, shape, *, group: int, slot: int, step: int, purpose: str) -> Tensor:
        return super().normal(shape, group=self.ids[group], slot=slot, step=step, purpose=purpose)

    def uniform(self, n: int, *, group: int, step: int, purpose: str) -> Tensor:
        return super().uniform(n, group=self.ids[group], step=step, purpose=purpose)


class HostProcess(DiffusionProcess):
    """``DiffusionProcess`` that notices when its first gradient cannot be had.

    Quantised and hand-written kernels often have no backward pass; there is no way to know but to try.

    Attributes:
        residency: keeps the run's models loaded; verifiers share it.
    """

    residency: Residency
    _differentiated = False

    @property
    def devices(self) -> dict[str, Any] | None:
        """Rows that every device ran and rows per call, where they were shared out to several; else None."""
        shards = getattr(self.denoise, "shards", None)
        return {"rows_per_call": shards.rows_per_call, "rows": dict(shards.rows)} if shards and shards.rows else None

    def value_gradient(self, state: State, value: Callable[[Tensor, Tensor], Tensor]) -> tuple[State, Values]:
        try:
            result = super().value_gradient(state, value)
        except (RuntimeError, NotImplementedError) as error:
            if self._differentiated or compat.is_oom(error):
                raise
            raise GradientUnavailable(f"{type(error).__name__}: {error}") from error
        self._differentiated = True
        return result


def check_latent(shape: Sequence[int]) -> None:
    """Raise SearchError for latents that are not images."""
    if len(shape) == 5 and shape[2] > 1:
        raise SearchError(
            f"latent_image is a video of {shape[2]} frames (shape {list(shape)}): searches work on images, give "
            f"latents [batch, channels, height, width]"
        )
    if len(shape) not in (4, 5):
        raise SearchError(
            f"latent_image has shape {list(shape)}: searches work on images, give latents "
            f"[batch, channels, height, width]"
        )


def check_family(call: SamplingCall, vae: Any) -> None:
    """Raise SearchError for a latent or a VAE of another model family than the model's."""
    channels = getattr(getattr(call.model, "latent_format", None), "latent_channels", None)
    if channels is None:
        return
    if call.shape[0] != channels:
        raise SearchError(
            f"latent_image has {call.shape[0]} channels, this model's latents have {channels}: it is of another model "
            f"family, make it with this model's VAE"
        )
    entry = getattr(getattr(getattr(vae, "first_stage_model", None), "decoder", None), "conv_in", None)
    decoded = getattr(entry, "in_channels", channels)
    if decoded != channels and isinstance(entry, torch.nn.Conv2d):
        raise SearchError(
            f"vae decodes latents of {decoded} channels, this model's have {channels}: connect the model's own VAE"
        )


def distinct_sigmas(sigmas: Tensor) -> Tensor:
    """A schedule without repeated entries: some schedulers repeat a sigma when there are many steps."""
    values = sigmas.detach().float().cpu()
    keep = torch.ones(len(values), dtype=torch.bool)
    keep[1:] = values[1:] != values[:-1]
    if not keep.all():
        log.info("the schedule repeats %d sigmas: these steps are left out", int((~keep).sum()))
    return values[keep]


def host_process(call: SamplingCall, settings: HostSettings) -> HostProcess:
    """Build the process of a sampling call.

    Raises:
        SearchError: naming the input that cannot work (latent shape, model family, conditioning, schedule, vae), or
            more particles than fit the memory.
    """
    check_latent(call.noise.shape)
    check_family(call, settings.vae)
    if settings.vae is not None:
        check_previews_fit(settings.vae, call.shape, settings.population)
    model, device = call.model, call.noise.device
    interpolant = interpolant_for(model.model_sampling)
    conds = getattr(call.guider, "conds", None)
    conditioning = None if conds is None else GroupConditioning(conds, call.groups)

    rows = max(1, sum(len(entries) for entries in (conds or {}).values()))
    per_particle = memory_per_particle(model, call.shape, conds or {}, rows)
    residency = _reserved(call, per_particle, settings)
    prompts = None if settings.encoder is None else PromptConditions(settings.encoder, call, residency.leave)
    denoise = HostDenoise(call.guider, conditioning, call.model_options, call.seed, residency, prompts, per_particle)
    devices = [] if settings.gradient else devices_of(call.model_options)
    fits = sum(chunk_now(one, per_particle) for one in devices or [device])
    fits //= GRADIENT_FACTOR if settings.gradient else 1
    seed = int(call.seed or 0) % 2**64
    streams = Streams(seed) if settings.stream_ids is None else ImageStreams(seed, settings.stream_ids)
    process = HostProcess(
        denoise,
        interpolant,
        distinct_sigmas(call.sigmas),
        HostDecode(settings.vae, model, residency),
        call.shape,
        call.groups,
        streams,
        eta=settings.eta,
        start=_start(call),
        inpainting=_inpainting(call, residency),
        chunker=Chunker(max(1, fits), is_oom=compat.is_oom, after_oom=management.soft_empty_cache),
        device=device,
        grad_context=lambda: _gradients(model, settings, residency),
    )
    process.residency = residency
    return process


def _reserved(call: SamplingCall, per_particle: float, settings: HostSettings) -> Residency:
    """Make room for the chunk that will run; the guider made room for its batch only."""
    patcher = call.guider.model_patcher
    wanted = chunk_to_reserve(patcher, per_particle, settings.population)
    residency = Residency(memory_required=wanted * per_particle)
    if wanted > call.groups:
        residency.reserve()
    return residency


def _start(call: SamplingCall) -> Start:
    sampling = call.model.model_sampling
    largest = float(sampling.sigma_max)
    first = float(call.sigmas[0])
    full = first > largest or abs(first - largest) <= 1e-5 * largest
    return Start(
        noise=call.noise,
        latent=call.latent_image,
        full_denoise=full and widens_start(sampling),
        shared_noise=not bool(torch.count_nonzero(call.noise)),
    )


def _inpainting(call: SamplingCall, residency: Residency) -> Inpainting | None:
    """The known area, treated as ``KSamplerX0Inpaint`` treats it.

    Both functions read the model's sampling parameters, whose patches are undone while the model is away.
    """
    if call.denoise_mask is None:
        return None
    own_mask = call.model_options.get("denoise_mask_function")
    extra = {"model": call.guider, "sigmas": call.sigmas}

    def mask_at(sigma: float, mask: Tensor) -> Tensor:
        residency.ensure()
        return own_mask(_column(sigma, mask), mask, extra_options=extra)

    def known_at(sigma: float, noise: Tensor, latent: Tensor) -> Tensor:
        residency.ensure()
        return call.model.scale_latent_inpaint(sigma=_column(sigma, noise), noise=noise, latent_image=latent)

    return Inpainting(
        latent=call.latent_image,
        mask=call.denoise_mask,
        mask_at=None if own_mask is None else mask_at,
        known_at=known_at,
    )


def _column(sigma: float, like: Tensor) -> Tensor:
    return torch.full((like.shape[0],), sigma, dtype=torch.float32, device=like.device)


@contextmanager
def _gradients(model: Any, settings: HostSettings, residency: Residency):
    """Everything on the device and fit for autograd: denoiser, VAE and verifiers."""
    with torch.inference_mode(False), torch.enable_grad(), compat.differentiable_kernels():
        for judge in _members(settings.judges):
            getattr(judge, "for_gradients", lambda: None)()
        residency.all_for_backward([settings.vae.patcher, *_patchers(settings.judges)])
        residency.thaw()
        for module in (settings.vae.first_stage_model, *gradients.modules_of(list(settings.judges))):
            gradients.thaw_module(module)
        gradients.thaw_attributes(model.latent_format)
        yield


def _members(judges: Iterable[Any]) -> list[Any]:
    """The judges, and those inside ensembles (``members``)."""
    return [one for judge in judges for one in (judge, *_members(getattr(judge, "members", ())))]


def _patchers(judges: Iterable[Any]) -> list[Any]:
    """ModelPatchers that verifiers keep as ``patcher``, also inside ensembles."""
    return [judge.patcher for judge in _members(judges) if getattr(judge, "patcher", None) is not None]
