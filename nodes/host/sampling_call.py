"""What a search is given by the host: the arguments of a sampling call, and the settings of the node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...samplers.processes.kernel import Noise
from .steady import SteadyModel

AUTO, DEPTH, BREADTH = "auto", "depth", "breadth"
"""Orders of candidates, see ``HostSettings.order``."""


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
        steady: the model's own functions, as they are when sampling begins.
    """

    guider: Any
    sigmas: Tensor
    model_options: dict[str, Any]
    seed: int | None
    noise: Tensor
    latent_image: Tensor
    denoise_mask: Tensor | None = None
    steady: SteadyModel = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self):
        if self.steady is None:
            object.__setattr__(self, "steady", SteadyModel(self.model))

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
        at_once: particles in one model call at most, where fewer than ``population``.
        gradient: whether gradients of the score will be asked for.
        judges: verifiers that a gradient passes through.
        encoder: a ``ClipEncoder`` for prompts of particles, or None.
        stream_ids: for every image the number that names its noise streams (its place in the batch it came from);
            None: its place in this batch.
        watchers: verifiers that look, whether they steer or not: they say which frames of clips they want.
        preview_vae: a quicker VAE for looks on the way, or None.
        skip_latents: latent frames at the beginning of a clip that are no part of it.
        order: ``DEPTH`` finishes a candidate before the next is begun, where the method allows it; ``BREADTH`` moves
            all side by side; ``AUTO`` is depth for clips.
    """

    vae: Any
    eta: float | Noise
    population: int
    gradient: bool = False
    judges: Sequence[Any] = ()
    stream_ids: Sequence[int] | None = None
    encoder: Any = None
    watchers: Sequence[Any] = ()
    preview_vae: Any = None
    skip_latents: int = 0
    order: str = AUTO
    at_once: int | None = None
