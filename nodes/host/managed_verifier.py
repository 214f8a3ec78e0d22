"""A library verifier whose network lives under ComfyUI's model management."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...samplers.protocols import ScoreContext, Values, Verifier
from ...verifiers.base import WrappedVerifier
from ...verifiers.precision import PRECISIONS, precision_of, set_precision, towers

log = logging.getLogger("testtime")

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


class Managed:
    """Something with its network in ``module``: loaded on demand, as ComfyUI does with every model, and let go under
    pressure.

    Args:
        verifier: keeps its network in ``module``.
        precision: "auto", or a name of ``PRECISIONS``, for the parts that may be cast.
    """

    def __init__(self, verifier: Any, precision: str = "auto"):
        self.verifier = verifier
        self.patcher = comfy.model_patcher.ModelPatcher(
            Wrapper(verifier.module),
            load_device=management.get_torch_device(),
            offload_device=management.text_encoder_offload_device(),
        )
        wanted = (
            PRECISIONS[precision] if precision in PRECISIONS else best_precision(verifier, self.patcher.load_device)
        )
        self._cast(wanted)

    def load(self, memory: float) -> None:
        """Bring the network to the device, with ``memory`` bytes to work in. Plain layers cannot run half on it: all
        or nothing."""
        management.load_models_gpu([self.patcher], memory_required=memory, force_full_load=True)

    def for_gradients(self) -> None:
        """Leave fp16, in which gradients vanish, for bf16 or fp32."""
        if precision_of(self.verifier) == torch.float16:
            device = self.patcher.load_device
            self._cast(torch.bfloat16 if management.should_use_bf16(device) else torch.float32)

    def _cast(self, dtype: torch.dtype) -> None:
        if towers(self.verifier) and precision_of(self.verifier) != dtype:
            set_precision(self.verifier, dtype)
            self.patcher.size = 0  # the host remembers a model's size


class ManagedVerifier(Managed, WrappedVerifier):
    """A verifier under management.

    Args:
        verifier, precision: of ``Managed``.
        bytes_per_image: working memory to ask for per image, None to estimate it. Asking for too much would push the
            denoiser off the device at every verification.
    """

    def __init__(self, verifier: Verifier, bytes_per_image: float | None = None, precision: str = "auto"):
        WrappedVerifier.__init__(self, verifier)
        Managed.__init__(self, verifier, precision)
        self._bytes = bytes_per_image or verifier.bytes_per_image

    def judge(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Values:
        """See ``samplers.protocols.Verifier``. With a graph, the caller has loaded the network."""
        if torch.is_grad_enabled() and images.requires_grad:
            return self.inner.judge(images, prompts, context)
        needed = self._bytes or TOWER_BYTES + IMAGE_COPIES * 4 * images[:1].numel()
        self.load(len(images) * needed)
        values = self.inner.judge(images, prompts, context)
        if precision_of(self.inner) == torch.float16 and overflowed(images, values.score):
            log.warning("verifier %s overflows in fp16: it goes on in fp32", self.name)
            self._cast(torch.float32)
            self.load(len(images) * needed)
            values = self.inner.judge(images, prompts, context)
        return values

    def prefer(
        self, first: Tensor, second: Tensor, prompts: Sequence[str], context: ScoreContext | None = None
    ) -> Tensor:
        """See ``samplers.protocols.Verifier``."""
        self.load(2 * (self._bytes or TOWER_BYTES + IMAGE_COPIES * 4 * first[:1].numel()))
        return self.inner.prefer(first, second, prompts, context)


def overflowed(images: Tensor, scores: Tensor) -> bool:
    """Whether an image without a broken pixel got a score that is no number."""
    bad = ~torch.isfinite(scores.detach().cpu())
    return bool(bad.any()) and bool((bad & torch.isfinite(images).flatten(1).all(1).cpu()).any())


def best_precision(verifier: Any, device: torch.device) -> torch.dtype:
    """Half precision where the device has it and the network is stored in fp32, else as stored."""
    stored = precision_of(verifier)
    if stored != torch.float32 or management.is_device_cpu(device) or management.is_device_mps(device):
        return stored
    if management.should_use_fp16(device):
        return torch.float16
    return torch.bfloat16 if management.should_use_bf16(device) else stored


def managed(verifier: Verifier, precision: str = "auto") -> Verifier:
    """``verifier`` under management if it has a network, else itself (JPEG, ensembles of managed members)."""
    if not isinstance(getattr(verifier, "module", None), nn.Module):
        return verifier
    return ManagedVerifier(verifier, precision=precision)
