"""A library verifier whose network lives under ComfyUI's model management."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...samplers.protocols import Verifier

# Working memory of a score, generous. Resizing holds a few float32 copies of an image; the tower behind it sees a small
# square whatever the image's size is: one layer of a ViT-H holds about 30 MB per image in float32.
IMAGE_COPIES = 6
TOWER_BYTES = 64 * 2**20


class Wrapper(nn.Module):
    """Holds the network. ModelPatcher sets ``device`` on what it wraps, which some library classes do not allow."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.device = None


class ManagedVerifier:
    """Loads the verifier's network on demand, as ComfyUI does with every model, and lets it go under pressure.

    Args:
        verifier: keeps its network in ``module``; other attributes are read through.
        bytes_per_image: working memory to ask for per image, None to estimate it. Asking for too much would push the
            denoiser off the device at every verification.
    """

    def __init__(self, verifier: Verifier, bytes_per_image: float | None = None):
        self.verifier = verifier
        self.name, self.differentiable = verifier.name, bool(verifier.differentiable)
        self._bytes = bytes_per_image
        self.patcher = comfy.model_patcher.ModelPatcher(
            Wrapper(verifier.module),
            load_device=management.get_torch_device(),
            offload_device=management.text_encoder_offload_device(),
        )

    def __getattr__(self, name: str) -> Any:
        if name == "verifier":  # not set yet while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.verifier, name)

    def score(self, images: Tensor, prompts: Sequence[str] | str) -> Tensor:
        """Scores ``[n]``, see ``samplers.protocols.Verifier``. With a graph, the caller has loaded the network."""
        if not (torch.is_grad_enabled() and images.requires_grad):
            needed = self._bytes or TOWER_BYTES + IMAGE_COPIES * 4 * images[:1].numel()
            # Plain layers cannot run half on the device: all or nothing.
            management.load_models_gpu([self.patcher], memory_required=len(images) * needed, force_full_load=True)
        return self.verifier.score(images, prompts)


def managed(verifier: Verifier) -> Verifier:
    """``verifier`` under management if it has a network, else itself (JPEG, ensembles of managed members)."""
    return ManagedVerifier(verifier) if isinstance(getattr(verifier, "module", None), nn.Module) else verifier
