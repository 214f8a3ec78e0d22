"""Latents of a diffusers pipeline as images, decoded as the pipeline itself does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..samplers.protocols import SearchError


class PipelineDecode:
    """Latents of a pipeline -> images ``[n, H, W, 3]`` around 0..1, as the pipeline itself decodes them.

    Args:
        pipe: a loaded pipeline with a ``vae``.
        size: (height, width) in pixels, needed for latents that are packed into patches (Flux).
    """

    def __init__(self, pipe: Any, size: tuple[int, int] | None = None):
        if getattr(pipe, "vae", None) is None:
            raise SearchError(f"{type(pipe).__name__} has no vae: give decode, a function from latents to images")
        self.pipe, self.size = pipe, size

    def __call__(self, x0: Tensor) -> Tensor:
        """Decode ``[n, C, h, w]``, or ``[n, tokens, C]`` where the pipeline packs its latents."""
        vae = self.pipe.vae
        with torch.set_grad_enabled(torch.is_grad_enabled() and x0.requires_grad):
            latents = self._unpacked(x0)
            mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
            if mean is not None and std is not None:
                column = (1, -1, 1, 1)
                latents = latents * torch.tensor(std).view(column).to(latents)
                latents = latents / vae.config.scaling_factor + torch.tensor(mean).view(column).to(latents)
            else:
                latents = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
            upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
            if upcast:
                vae.to(torch.float32)
            try:
                decoded = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
            finally:
                if upcast:
                    vae.to(torch.float16)
        return (decoded.float() * 0.5 + 0.5).movedim(1, -1)

    def _unpacked(self, x0: Tensor) -> Tensor:
        if x0.dim() == 4:
            return x0
        unpack = getattr(self.pipe, "_unpack_latents", None)
        if x0.dim() != 3 or unpack is None or self.size is None:
            raise SearchError(
                f"latents of {type(self.pipe).__name__} have shape {list(x0.shape)}: images need [n, C, h, w], or "
                f"packed latents with height and width; give decode, a function from latents to images"
            )
        return unpack(x0, *self.size, self.pipe.vae_scale_factor)
