"""A call of ComfyUI's ``Sampler.sample`` as a ``DiffusionProcess``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.model_management as management
import torch
from torch import Tensor

from ...samplers.processes.chunking import Chunker
from ...samplers.processes.diffusion import DiffusionProcess, Inpainting, Start
from ...samplers.processes.previews import CheapLooks
from ...samplers.processes.streams import Streams
from ...samplers.protocols import Capabilities, SearchError, Values
from ...samplers.state import State
from . import backward, compat, gradients
from .conditioning import GroupConditioning
from .denoiser import HostDenoise
from .devices import devices_of
from .interpolants import interpolant_for, widens_start
from .layout import LatentLayout, layout_of
from .looks import Look, check_vae, look_at
from .pixels import HostDecode
from .prompts import PromptConditions
from .residency import (
    GRADIENT_FACTOR,
    GradientUnavailable,
    Residency,
    check_previews_fit,
    chunk_now,
    chunk_to_reserve,
    memory_per_particle,
)
from .sampling_call import AUTO, DEPTH, HostSettings, SamplingCall
from .steady import SteadyModel

log = logging.getLogger("testtime")


class ImageStreams(Streams):
    """Streams whose groups are named by the image's place in the batch it was taken from.

    So image 3 of a batch and the same image alone (``batch_index = [3]``) draw the same noise.
    """

    def __init__(self, seed: int, ids: Sequence[int]):
        super().__init__(seed)
        self.ids = [int(i) for i in ids]

    def normal(self, shape, *, group: int, slot: int, step: int, purpose: str) -> Tensor:
        """See ``Streams``."""
        return super().normal(shape, group=self.ids[group], slot=slot, step=step, purpose=purpose)

    def uniform(self, n: int, *, group: int, step: int, purpose: str) -> Tensor:
        """See ``Streams``."""
        return super().uniform(n, group=self.ids[group], step=step, purpose=purpose)


class HostProcess(DiffusionProcess):
    """``DiffusionProcess`` that notices when its first gradient cannot be had.

    Quantised and hand-written kernels often have no backward pass; there is no way to know but to try.

    Attributes:
        residency: keeps the run's models loaded; verifiers share it.
        look: what judges are shown of the latents.
    """

    residency: Residency
    look: Look
    _differentiated = False

    @property
    def devices(self) -> dict[str, Any] | None:
        """Rows that every device ran and rows per call, where they were shared out to several; else None."""
        shards = getattr(self.denoise, "shards", None)
        return {"rows_per_call": shards.rows_per_call, "rows": dict(shards.rows)} if shards and shards.rows else None

    @property
    def capabilities(self) -> Capabilities:
        """See ``Capabilities``: a gradient goes through as much of a decoder as is affordable."""
        found = super().capabilities
        vae = self.decode.vae
        return replace(found, can_differentiate=found.can_differentiate and self.look.differentiable(vae))

    def value_gradient(self, state: State, value: Callable[[Tensor, Tensor], Tensor]) -> tuple[State, Values]:
        """See ``Process``. GradientUnavailable where the first one cannot be had."""
        try:
            result = super().value_gradient(state, value)
        except (RuntimeError, NotImplementedError) as error:
            if self._differentiated or compat.is_oom(error):
                raise
            raise GradientUnavailable(f"{type(error).__name__}: {error}") from error
        self._differentiated = True
        return result


def check_family(call: SamplingCall, layout: LatentLayout, settings: HostSettings) -> None:
    """Raise SearchError for a latent or a VAE of another model family than the model's."""
    vae, channels = settings.vae, channels_of(call.model, layout)
    if channels is None:
        return
    if layout.shape[0] != channels:
        raise SearchError(
            f"latent_image has {layout.shape[0]} channels, this model's latents have {channels}: it is of another "
            f"model family, make it with this model's VAE"
        )
    check_vae(layout, vae, channels)
    check_vae(layout, settings.preview_vae, channels, "preview_vae")
    entry = getattr(getattr(getattr(vae, "first_stage_model", None), "decoder", None), "conv_in", None)
    decoded = getattr(entry, "in_channels", channels)
    # Flux.2's VAE takes four cells apart before its first layer: what it decodes, the VAE itself says.
    if channels not in (decoded, getattr(vae, "latent_channels", channels)) and isinstance(entry, torch.nn.Conv2d):
        raise SearchError(
            f"vae decodes latents of {decoded} channels, this model's have {channels}: connect the model's own VAE"
        )


def channels_of(model: Any, layout: LatentLayout) -> int | None:
    """Channels of a model's latents, of the part that is seen; None where it does not say.

    Of a pack the format may count the channels of all streams, and its preview factors those of the seen one.
    """
    found = getattr(model, "latent_format", None)
    factors = getattr(found, "latent_rgb_factors", None)
    if layout.packed and factors:
        return len(factors)
    return getattr(found, "latent_channels", None)


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
    model, device = call.model, call.noise.device
    conds = getattr(call.guider, "conds", None)
    layout = layout_of(model, call.noise.shape, conds=conds, mask=call.denoise_mask, skip=settings.skip_latents)
    check_family(call, layout, settings)
    look = look_at(layout, settings.vae, settings.watchers)
    if settings.vae is not None:
        check_previews_fit(settings.vae, look, settings.population)
    interpolant = interpolant_for(call.steady.model_sampling)
    conditioning = None if conds is None else GroupConditioning(conds, call.groups)

    rows = max(1, sum(len(entries) for entries in (conds or {}).values()))
    per_particle = memory_per_particle(model, call.shape, conds or {}, rows)
    # The host's context windows take their part of a list of sigmas that is as long as the batch: one row only.
    most = 1 if call.model_options.get("context_handler") is not None else layout.rows_per_call
    at_once = most or settings.at_once or settings.population
    residency = _reserved(call, per_particle, at_once)
    prompts = None if settings.encoder is None else PromptConditions(settings.encoder, call, residency.leave)
    denoise = HostDenoise(call.guider, conditioning, call.model_options, call.seed, residency, prompts, per_particle)
    devices = [] if settings.gradient else devices_of(call.model_options)
    fits = sum(chunk_now(one, per_particle, call.guider.model_patcher) for one in devices or [device])
    fits //= GRADIENT_FACTOR if settings.gradient else 1
    fits = min(fits, most or fits)
    seed = int(call.seed or 0) % 2**64
    streams = Streams(seed) if settings.stream_ids is None else ImageStreams(seed, settings.stream_ids)
    process = HostProcess(
        denoise,
        interpolant,
        distinct_sigmas(call.sigmas),
        HostDecode(settings.vae, call.steady, residency, look, settings.preview_vae),
        call.shape,
        call.groups,
        streams,
        eta=settings.eta,
        start=_start(call),
        inpainting=_inpainting(call, residency),
        chunker=Chunker(max(1, fits), is_oom=compat.is_oom, after_oom=management.soft_empty_cache),
        device=device,
        grad_context=lambda: _gradients(call.steady, settings, residency),
        almost_noise=float(call.steady.model_sampling.percent_to_sigma(1e-4)),
    )
    process.residency = residency
    process.look, process.shown = look, look.shown
    process.cheap_looks = None if settings.preview_vae is None else CheapLooks()
    process.whole_first = settings.order == DEPTH or (settings.order == AUTO and layout.moving and alone(call.guider))
    return process


def alone(guider: Any) -> bool:
    """Whether one model makes all steps: where several take turns, finishing each candidate would load them in turn."""
    return not getattr(guider, "takes_turns", False)


def _reserved(call: SamplingCall, per_particle: float, population: int) -> Residency:
    """Make room for the chunk that will run; the guider made room for its batch only."""
    patcher = call.guider.model_patcher
    wanted = chunk_to_reserve(patcher, per_particle, population)
    residency = Residency(memory_required=wanted * per_particle)
    if wanted > call.groups:
        residency.reserve()
    return residency


def _start(call: SamplingCall) -> Start:
    sampling = call.steady.model_sampling
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

    def known_at(sigma: float, noise: Tensor, latent: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        residency.ensure()
        return call.steady.scale_latent_inpaint(
            x=x, sigma=_column(sigma, noise), noise=noise, latent_image=latent, denoise_mask=mask
        )

    return Inpainting(
        latent=call.latent_image,
        mask=call.denoise_mask,
        mask_at=None if own_mask is None else mask_at,
        known_at=known_at,
    )


def _column(sigma: float, like: Tensor) -> Tensor:
    return torch.full((like.shape[0],), sigma, dtype=torch.float32, device=like.device)


@contextmanager
def _gradients(model: SteadyModel, settings: HostSettings, residency: Residency):
    """Everything on the device and fit for autograd: denoiser, VAE and verifiers."""
    backward.register()
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
