"""Rewriters inside the host: interruptible, announced to ``Residency``, their networks under model management."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
from torch import nn

from ...samplers.protocols import Rewrite, Rewriter, RewriteRequest
from .compat import throw_if_interrupted
from .managed_verifier import Wrapper
from .residency import Residency

# Working memory of a generation: the picture's activations and the cache of keys and values.
GENERATION_BYTES = 1.5 * 2**30


class ManagedRewriter:
    """A rewriter whose network is loaded on demand, as ComfyUI does with every model, and leaves under pressure.

    Args:
        rewriter: keeps its network in ``module``.
    """

    def __init__(self, rewriter: Any):
        self._rewriter = rewriter
        self.name = rewriter.name
        self.patcher = comfy.model_patcher.ModelPatcher(
            Wrapper(rewriter.module),
            load_device=management.get_torch_device(),
            offload_device=management.text_encoder_offload_device(),
        )

    def rewrite(self, requests: Sequence[RewriteRequest], poll=None) -> list[Rewrite]:
        """See ``samplers.protocols.Rewriter``."""
        # Plain layers cannot run half on the device: all or nothing.
        management.load_models_gpu([self.patcher], memory_required=GENERATION_BYTES, force_full_load=True)
        return self._rewriter.rewrite(requests, poll)


def managed_rewriter(rewriter: Any) -> Rewriter:
    """``rewriter`` under management if it has a network that can be moved, else itself."""
    movable = isinstance(getattr(rewriter, "module", None), nn.Module) and getattr(rewriter, "movable", True)
    return ManagedRewriter(rewriter) if movable else rewriter


class HostRewriter:
    """A rewriter in a search: Cancel ends its waiting, and the denoiser is brought back afterwards."""

    def __init__(self, rewriter: Rewriter, residency: Residency):
        self._rewriter, self._residency = rewriter, residency
        self.name = rewriter.name

    def rewrite(self, requests: Sequence[RewriteRequest]) -> list[Rewrite]:
        """See ``samplers.protocols.Rewriter``."""
        throw_if_interrupted()
        self._residency.leave()
        return ask(self._rewriter, requests)


def ask(rewriter: Rewriter, requests: Sequence[RewriteRequest]) -> list[Rewrite]:
    """Ask, interruptibly where the rewriter can be interrupted."""
    if "poll" in inspect.signature(rewriter.rewrite).parameters:
        return rewriter.rewrite(requests, poll=throw_if_interrupted)
    return rewriter.rewrite(requests)
