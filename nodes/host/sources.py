"""What a sampling call edits: an image that was connected, reference latents of the prompt, or the latent itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from ...samplers.protocols import Verifier
from ...samplers.sources import Sources, parts, sources_of
from .looks import as_vae_takes, one_frame

if TYPE_CHECKING:
    from .sampling_call import SamplingCall

REFERENCES = "reference_latents"
"""Key of a conditioning: Flux Kontext, Flux.2, Qwen-Image-Edit, OmniGen2, Z-Image Omni and others share it."""


def compared(verifiers: Sequence[Verifier | None]) -> bool:
    """Whether one of them is shown the image that is edited."""
    return any(part.compares for verifier in verifiers for part in parts(verifier))


def given(options: Any, groups: int) -> tuple[Sources, ...]:
    """Sources that were connected to the search node; empty without. SearchError for what cannot belong."""
    image, mask = options.source, options.source_mask
    return () if image is None else sources_of(image.detach().float().cpu(), groups, _cpu(mask))


def found_in(call: SamplingCall, vae: Any) -> tuple[Sources, ...]:
    """Sources that the sampling call itself holds, decoded once each; empty where it holds none.

    Reference latents of the positive conditioning come first, all of them in their order; else the clean latent of an
    inpainting, or of image to image. Whoever calls brings the denoiser back afterwards.
    """
    if vae is None:
        return ()
    references = reference_latents(call)
    if references:
        # Scaled by the VAE's own factors only: a conditioning holds what VAE Encode gave.
        pictures = [_decoded(vae, latents) for latents in references]
        return tuple(
            Sources(tuple(batch[g % len(batch)] for batch in pictures), _mask_of(call, g)) for g in range(call.groups)
        )
    if call.latent_image.dim() not in (4, 5) or not bool(call.latent_image.any()):
        return ()
    partly = float(call.sigmas[0]) < 0.999 * float(call.steady.model_sampling.sigma_max)
    if not partly and call.denoise_mask is None:
        return ()
    clean = _decoded(vae, call.steady.process_latent_out(call.latent_image.float()))
    return tuple(Sources((clean[g],), _mask_of(call, g)) for g in range(call.groups))


def reference_latents(call: SamplingCall) -> list[Tensor]:
    """Latents ``[b, ...]`` that the positive conditioning brings along, of its first entry that has some."""
    conds = getattr(call.guider, "conds", None) or {}
    for entry in conds.get("positive", ()):
        found = entry.get(REFERENCES)
        if found:
            return [latents for latents in found if isinstance(latents, Tensor)]
    return []


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    """Images ``[b, H, W, 3]`` on the CPU, one frame each."""
    images = vae.decode(as_vae_takes(vae, latents))
    return one_frame(images).detach().float().clamp(0.0, 1.0).cpu()[..., :3]


def _mask_of(call: SamplingCall, group: int) -> Tensor | None:
    """``[h, w]``, 1 where image ``group`` may change; None where all of it may."""
    mask = call.denoise_mask
    if mask is None or mask.dim() not in (4, 5):
        return None
    row = mask[group % len(mask)].float().cpu()
    flat = row.reshape(-1, *row.shape[-2:]).amax(0)
    if bool((flat == flat.reshape(-1)[0]).all()):
        return None
    # A mask of the host covers whole cells of the latent: the picture's mask has their sizes times the VAE's factor.
    return F.interpolate(flat[None, None], scale_factor=8, mode="nearest")[0, 0]


def _cpu(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.detach().float().cpu()
