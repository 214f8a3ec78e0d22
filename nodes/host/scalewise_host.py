"""A next-scale model as a ``ScalewiseProcess`` under ComfyUI's model management."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as management
import torch
from torch import Tensor, nn

from ...models.infinity.process import ScalewiseProcess
from ...models.infinity.sampling import ScaleSampling
from ...models.infinity.scale_state import Decoder
from ...models.infinity.schedules import ScaleSchedule
from ...models.infinity.vae import VaeConfig
from ...samplers.processes.chunking import Chunker
from ...samplers.processes.streams import Streams
from ...samplers.protocols import SearchError
from . import compat
from .infinity_host import InfinityModel, text_features
from .residency import Residency, chunk_size

# Activations of one token in one block, in numbers of the block's width: residual stream, its normalised copy, queries,
# keys and values, attention, the hidden layer.
WIDTHS_PER_TOKEN = 14


@dataclass(frozen=True)
class ScaleCall:
    """What is to be drawn.

    Attributes:
        model: the INFINITY input.
        vae: decodes code maps; None where nothing is decoded.
        positive: CONDITIONING, one prompt for all images or one row per image.
        negative: CONDITIONING, or None for the learned empty prompt.
        schedule: grids.
        groups: images.
        seed: of all noise.
        sampling: cfg, temperature, nucleus.
    """

    model: InfinityModel
    vae: Any
    positive: Sequence
    negative: Sequence | None
    schedule: ScaleSchedule
    groups: int
    seed: int
    sampling: ScaleSampling


class HostTransformer:
    """The transformer as a process calls it: on its device again, whatever was loaded in between.

    Its own parameters are what ``ScalewiseProcess`` and ``Prompt`` read; everything else passes through.
    """

    def __init__(self, model: InfinityModel, residency: Residency):
        self._network, self._residency = model.network, residency
        self.device = model.patcher.load_device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def layout(self, branches: int):
        """See ``Infinity.layout``."""
        self._residency.ensure()
        return self._network.layout(branches)

    def step(self, *arguments) -> Tensor:
        """See ``Infinity.step``."""
        self._residency.ensure()
        gather_own_parameters(self._network, self.device)
        return self._network.step(*arguments)


def gather_own_parameters(network: nn.Module, device: torch.device) -> None:
    """Move parameters that modules with children hold themselves to ``device``.

    Where memory is short, ComfyUI streams the weights of its own layers and moves whole leaves, but leaves these alone.
    """
    for module in network.modules():
        if next(module.children(), None) is not None:
            for parameter in module._parameters.values():
                if parameter is not None and parameter.device != device:
                    parameter.data = parameter.data.to(device)


class HostDecode:
    """Code maps -> images through the host's VAE."""

    def __init__(self, vae: Any, residency: Residency):
        self.vae, self.residency = vae, residency

    def __call__(self, total: Tensor) -> Tensor:
        """Images ``[n, H, W, 3]`` of ``[n, d, h, w]``."""
        compat.throw_if_interrupted()
        if self.vae is None:
            raise SearchError("vae is missing: connect one, a verifier judges decoded images")
        self.residency.leave()
        return self.vae.decode(total)


def check_vae(vae: Any, model: InfinityModel) -> None:
    """Raise SearchError for a VAE that does not decode this model's codes."""
    wanted = model.network.config.code_dim
    channels = getattr(vae, "latent_channels", wanted)
    if channels != wanted:
        raise SearchError(
            f"vae decodes latents of {channels} channels and {model.name} draws codes of {wanted}: connect the VAE of "
            f"Load Infinity (infinity_vae_d32reg.pth for the 2B model)"
        )


def peak_bytes(process: ScalewiseProcess, populations: Sequence[int]) -> tuple[float, float]:
    """(bytes of cache at the scale that needs most, bytes of one particle's activations at the last scale)."""
    groups, branches = process.groups, process.prompt.branches
    caches = [process.memory(groups * size, scale) for scale, size in enumerate(populations)]
    element = process.model.layout(branches).dtype.itemsize
    tokens = process.schedule.lengths[-1]
    return max(caches), branches * tokens * process.model.config.width * WIDTHS_PER_TOKEN * element


def scalewise_process(call: ScaleCall) -> tuple[ScalewiseProcess, Residency]:
    """Load the transformer and prepare the prompts; ``make_room`` comes before the first scale.

    Raises:
        SearchError: inputs that do not fit each other.
    """
    model, network = call.model, call.model.network
    if call.vae is not None:
        check_vae(call.vae, model)
    positive = text_features(call.positive, "positive", network)
    negative = None if call.negative is None else text_features(call.negative, "negative", network)
    management.load_models_gpu([model.patcher])
    gather_own_parameters(network, model.patcher.load_device)
    with torch.no_grad():
        prompt = network.prompt(positive, call.sampling.guided, negative)
    residency = Residency()
    config = getattr(getattr(call.vae, "first_stage_model", None), "network", None)
    decoder = Decoder(
        HostDecode(call.vae, residency),
        config.config if isinstance(getattr(config, "config", None), VaeConfig) else None,
        model.preview_side,
    )
    process = ScalewiseProcess(
        HostTransformer(model, residency),
        prompt,
        call.schedule,
        decoder,
        call.groups,
        Streams(call.seed % 2**64),
        sampling=call.sampling,
        text=positive,
        between=compat.throw_if_interrupted,
    )
    return process, residency


def make_room(process: ScalewiseProcess, residency: Residency, populations: Sequence[int]) -> None:
    """Reserve memory and size the chunks for so many particles per image at each scale.

    Raises:
        SearchError: more particles than fit the memory.
    """
    cache, activations = peak_bytes(process, populations)
    residency.memory_required = cache + activations
    residency.reserve()
    available = compat.free_memory(process.model.device)
    if cache > available:
        gigabyte = 2**30
        raise SearchError(
            f"{max(populations)} particles for each of {process.groups} images need {cache / gigabyte:.1f} GiB for "
            f"their keys and values and {available / gigabyte:.1f} GiB are free: use fewer particles, a smaller batch "
            f"or fewer pixels"
        )
    fits = chunk_size(available - cache, activations)
    process.chunker = Chunker(fits, is_oom=compat.is_oom, after_oom=management.soft_empty_cache)
