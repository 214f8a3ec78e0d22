"""Which models must be on the device when, and how many particles fit beside them.

Decoding or verifying in the middle of sampling may push the denoiser off the device: ComfyUI does not protect a model
because it is being sampled. The cure is to remember what was loaded when sampling began and to ask for it again before
the next model call, once per round of decodes and verifications.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import comfy.model_management as management
import torch

from ...samplers.protocols import SearchError
from . import gradients
from .compat import free_for, free_memory, loads_on_demand, total_memory
from .conditioning import Conds

if TYPE_CHECKING:
    from .looks import Look

log = logging.getLogger("testtime")

# ComfyUI runs conditional and unconditional rows together only where 1.5 times the estimate is free.
SAFETY = 1.5
# Activations of a differentiated forward pass stay until its backward pass: roughly this many times those of inference.
GRADIENT_FACTOR = 8
# All previews of a step are alive together (a verifier may compare them), and once more while they are clamped.
PREVIEW_COPIES = 2


class GradientUnavailable(Exception):
    """Some part of the chain from a state to its score has no gradient."""


class Residency:
    """Keeps the models of a sampling run where they are needed.

    Args:
        memory_required: bytes to keep free for one model call.

    Must be created while the host has everything for sampling loaded.
    """

    def __init__(self, memory_required: float = 0.0):
        self.memory_required = memory_required
        # The host's list may still hold entries of models that were collected meanwhile; they come back as None.
        used = management.loaded_models(only_currently_used=True)
        self._home = [patcher for patcher in used if patcher is not None]
        self._away = False
        self._differentiable = False

    def leave(self) -> None:
        """Note that other models are about to be loaded."""
        self._away = True
        self._differentiable = False

    def reserve(self) -> None:
        """Make room for ``memory_required`` now."""
        management.load_models_gpu(self._home, memory_required=self.memory_required)

    def hand_over(self, patcher: Any, among: Sequence[Any]) -> None:
        """From now on the sampling run's model is ``patcher``, instead of the others of ``among``."""
        if patcher in self._home and not any(other in self._home for other in among if other is not patcher):
            return
        self._home = [one for one in self._home if one not in among] + [patcher]
        self._away = True

    def ensure(self) -> None:
        """Bring the models of the sampling run back, if anything was loaded meanwhile."""
        if self._away:
            management.load_models_gpu(self._home, memory_required=self.memory_required)
            self._away = False

    def all_for_backward(self, patchers: Iterable[Any]) -> None:
        """Load the sampling run's models and ``patchers`` in full, together: a backward pass goes through all.

        Raises:
            GradientUnavailable: one of them lets go of its weights within a pass, which a backward pass needs again.
        """
        everything = [*self._home, *patchers]
        if any(map(loads_on_demand, everything)):
            raise GradientUnavailable(
                "dynamic VRAM lets go of weights that it needs again: start ComfyUI with --disable-dynamic-vram"
            )
        if not self._differentiable:
            management.load_models_gpu(everything, force_full_load=True)
            self._differentiable, self._away = True, False

    def thaw(self) -> None:
        """Make the weights of the sampling run's models fit for autograd, see ``gradients.thaw_module``."""
        for patcher in self._home:
            gradients.thaw_module(patcher.model)


def memory_per_particle(model, shape: Iterable[int], conds: Conds, rows: int) -> float:
    """Bytes that ComfyUI estimates for one particle of ``shape`` (without batch) with its ``rows`` forward passes."""
    cond_shapes = defaultdict(list)
    for entries in conds.values():
        for entry in entries:
            for key, value in entry.get("model_conds", {}).items():
                size = list(value.size())
                cond_shapes[key].append([1, *size[1:]])
    return float(model.memory_required([rows, *shape], cond_shapes=cond_shapes))


def chunk_size(available: float, per_particle: float) -> int:
    """Particles that fit a call: ``floor(available / (1.5 * one particle))``, at least 1."""
    if per_particle <= 0:
        return 1_000_000
    return max(1, math.floor(min(available / (SAFETY * per_particle), 1e6)))


def chunk_now(device: torch.device, per_particle: float, patcher: Any = None) -> int:
    """``chunk_size`` with what is free on the device now, for calls of ``patcher`` (a ModelPatcher, or None)."""
    return chunk_size(free_for(patcher, device), per_particle)


def chunk_to_reserve(patcher, per_particle: float, population: int) -> int:
    """The chunk worth reserving memory for: the population, or what fits beside the fully loaded weights.

    Asking for more than that would make ComfyUI push weights off the device to make room for rows.
    """
    device = patcher.load_device
    beside = total_memory(device) - 1.1 * patcher.model_size() - management.extra_reserved_memory()
    return min(population, chunk_size(max(beside, 0.0), per_particle))


def check_previews_fit(vae: Any, look: Look, population: int) -> None:
    """Raise SearchError if the previews of ``population`` latents cannot be held in memory.

    Models run in chunks, but the images that are compared with each other exist all at once, where ComfyUI keeps
    images. Running out of main memory there would end the server, not only the search. Of clips one is decoded at a
    time, whole, and a few frames of each are kept.
    """
    cell, layout = vae.spacial_compression_decode(), look.layout
    height, width = (int(cell * side) for side in layout.size)
    available = free_memory(management.intermediate_device())
    picture, whole = height * width * 3 * 4, 0
    if look.shown is not None:
        whole = PREVIEW_COPIES * look.shown.count * picture
        picture = int(len(look.shown.numbers) * picture * min(1.0, look.longest / max(height, width)) ** 2)
    if whole > available:
        raise SearchError(
            f"one clip of {look.shown.count} frames of {width} x {height} pixels needs {_gigabytes(whole)} to be "
            f"decoded and {_gigabytes(available)} are free: use fewer frames or fewer pixels"
        )
    needed = PREVIEW_COPIES * population * picture
    if needed + whole > available:
        raise SearchError(
            f"{population} particles of {width} x {height} pixels (all images of the batch together) need "
            f"{_gigabytes(needed)} for their previews and {_gigabytes(available - whole)} are free: use at most "
            f"{int(population * (available - whole) / needed)}, by fewer particles or a smaller batch"
        )


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def reserve_for(population: int):
    """A PREPARE_SAMPLING wrapper: memory is reserved for the chunk that will really run, not for the latent batch.

    The guider sees a batch of G images and would reserve for those alone, while a search runs N particles of each.
    """

    def wrapper(executor, model, noise_shape, *args, **kwargs):
        # The guider reserves for twice the rows it is told of, as if every row were guided.
        one = float(model.model.memory_required([2, *noise_shape[1:]]))
        rows = max(noise_shape[0], chunk_to_reserve(model, one, population))
        return executor(model, [rows, *noise_shape[1:]], *args, **kwargs)

    return wrapper
