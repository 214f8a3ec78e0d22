"""What a ``DiffusionProcess`` begins from, and what it has to leave as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Inpainting:
    """What is to be kept of an existing latent.

    Attributes:
        latent: ``[G, ...]`` clean latents of the known area.
        mask: ``[G, 1, h, w]`` or broadcastable, 1 = generate, 0 = keep.
        mask_at: optional ``(sigma, mask) -> mask`` (differential diffusion).
        known_at: optional ``(sigma, noise, latent, x, mask) -> x`` noising of the known area, where ``x`` are the
            states and ``mask`` what they keep now; default ``a latent + b noise``.
    """

    latent: Tensor
    mask: Tensor
    mask_at: Callable[[float, Tensor], Tensor] | None = None
    known_at: Callable[[float, Tensor, Tensor, Tensor, Tensor], Tensor] | None = None

    def at(self, sigma: float, group: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mask and latents of the known area at ``sigma``, ``[n, ...]`` for particles ``like`` of groups ``[n]``."""
        mask = self.mask.to(like)[group]
        mask = mask if self.mask_at is None else self.mask_at(sigma, mask)
        return mask, self.latent.to(like)[group]

    def put_into(self, x0: Tensor, sigma: float, group: Tensor) -> Tensor:
        """Clean estimates ``x0`` ``[n, ...]`` with the known area in its place."""
        mask, latent = self.at(sigma, group, like=x0)
        return x0 * mask + latent * (1 - mask)


@dataclass(frozen=True)
class Start:
    """Initial conditions.

    Attributes:
        noise: ``[G, ...]`` noise of every group's slot 0 (a host's own noise), or None: all slots draw from Streams.
        latent: ``[G, ...]`` clean latents to start from (image to image), or None for pure noise.
        full_denoise: the first sigma is the model's maximum (widens a VE start to N(0, sigma^2 + 1)).
        shared_noise: every slot starts from ``noise``, not only slot 0: a run that continues from a latent which is
            noisy already brings no noise of its own (``noise`` is zero), and slots may not add any.
    """

    noise: Tensor | None = None
    latent: Tensor | None = None
    full_denoise: bool = True
    shared_noise: bool = False
