"""Mid-sampling decode and verification through the host's model management."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...samplers.protocols import ScoreContext, SearchError, Values, Verifier
from ...verifiers.base import WrappedVerifier
from .compat import throw_if_interrupted
from .looks import Look, as_vae_takes, one_frame
from .residency import Residency

log = logging.getLogger("testtime")


class HostDecode:
    """``Decode`` of a ``DiffusionProcess``: the denoiser's clean latents -> images around 0..1.

    Args:
        vae: a ComfyUI VAE.
        model: ``SteadyModel``, for ``process_latent_out`` (a VAE wants latents without the denoiser's scaling).
        residency: told before the VAE is loaded.
        look: what latents are and which frames of them are looked at; None: they are images.
        preview_vae: a quicker VAE for looks on the way, or None.

    Attributes:
        final: whether finished candidates are shown: they are always decoded by ``vae``.
    """

    def __init__(self, vae: Any, model: Any, residency: Residency, look: Look | None = None, preview_vae: Any = None):
        self.vae, self.preview_vae = vae, preview_vae
        self.model = model
        self.residency = residency
        self.look = look
        self.final = True

    def __call__(self, x0: Tensor) -> Tensor:
        """Images ``[n, H, W, 3]`` of latents ``[n, C, h, w]`` (or ``[n, C, 1, h, w]``); clips ``[n, F, H, W, 3]``."""
        throw_if_interrupted()
        if self.vae is None:
            raise SearchError("vae is missing: connect one, a verifier judges decoded images")
        if torch.is_grad_enabled() and x0.requires_grad:
            return self._differentiable(x0)
        latents = self.model.process_latent_out(x0.float())
        self.residency.leave()
        vae = self.vae if self.final or self.preview_vae is None else self.preview_vae
        if self.look is None:
            return one_frame(vae.decode(as_vae_takes(vae, latents)))
        return self.look.decoded(vae, latents)

    def _differentiable(self, x0: Tensor) -> Tensor:
        """Decode with a graph: ``VAE.decode`` clamps and writes into a buffer, so its parts are used instead.

        The VAE is loaded by the gradient context. Pixels may leave 0..1; the process clamps straight-through.
        """
        vae = self.vae
        slope, offset = output_map(vae)

        def decode(latents: Tensor) -> Tensor:
            raw = vae.first_stage_model.decode(latents.to(device=vae.device, dtype=vae.vae_dtype)).float()
            return (raw * slope + offset).movedim(1, -1)

        latents = self.model.process_latent_out(x0)
        if self.look is None:
            return one_frame(decode(as_vae_takes(vae, latents)))
        return self.look.decoded(vae, latents, decode)


def output_map(vae: Any) -> tuple[float, float]:
    """(slope, offset) of a VAE's pixel map inside its range, e.g. (0.5, 0.5) for -1..1 -> 0..1.

    Measured at two points, because the map is an arbitrary callable that clamps, and in newer hosts works in place.
    """
    low, high = vae.process_output(torch.tensor([0.25])).item(), vae.process_output(torch.tensor([0.5])).item()
    slope = (high - low) / 0.25
    return slope, low - 0.25 * slope


class HostVerifier(WrappedVerifier):
    """A verifier inside the host: interruptible, and announced to ``Residency`` before it loads its own model."""

    def __init__(self, verifier: Verifier, residency: Residency):
        super().__init__(verifier)
        self._residency = residency

    def judge(self, images: Tensor, prompts: Sequence[str], context: ScoreContext | None = None) -> Values:
        """See ``samplers.protocols.Verifier``."""
        throw_if_interrupted()
        if not (torch.is_grad_enabled() and images.requires_grad):
            self._residency.leave()
        return self.inner.judge(images, prompts, context)

    def prefer(
        self, first: Tensor, second: Tensor, prompts: Sequence[str], context: ScoreContext | None = None
    ) -> Tensor:
        """See ``samplers.protocols.Verifier``."""
        throw_if_interrupted()
        self._residency.leave()
        return self.inner.prefer(first, second, prompts, context)
