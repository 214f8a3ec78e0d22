"""A network of the pack as ComfyUI's VAE object, so that its stock nodes and memory management serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import comfy.ldm.models.autoencoder
import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import torch
from torch import nn

# Bytes of working memory for a shape and a dtype, as ComfyUI asks for them.
Memory = Callable[[Sequence[int], torch.dtype], float]


def as_vae(
    network: nn.Module,
    channels: int,
    stride: int,
    memory_decode: Memory,
    memory_encode: Memory,
    dtype: torch.dtype | None = torch.float32,
) -> comfy.sd.VAE:
    """``network`` behind a ``comfy.sd.VAE``.

    Args:
        network: with ``encode`` (images ``[n, 3, H, W]`` in -1..1 to latents) and ``decode`` (back).
        channels: of a latent.
        stride: pixels along one side of a latent's place.
        memory_decode, memory_encode: bytes that a call needs, by the shape of its input.
        dtype: of the weights, None for what the host prefers.
    """
    # A stock constructor sets some two dozen attributes that differ between versions of ComfyUI; a small stock network
    # serves to run it, and is then exchanged for ours.
    stock = {"double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32}
    stock |= {"ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    parameters = {"ddconfig": stock, "embed_dim": 4}
    weights = comfy.ldm.models.autoencoder.AutoencoderKL(**parameters).state_dict()
    vae = comfy.sd.VAE(sd=weights, config={"params": parameters}, dtype=dtype)
    vae.first_stage_model = network.to(dtype=vae.vae_dtype, memory_format=torch.channels_last)
    vae.size = None  # newer hosts keep the size of the network that they made
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = channels, stride, stride
    vae.patcher = comfy.model_patcher.ModelPatcher(
        network, load_device=vae.device, offload_device=management.vae_offload_device()
    )
    vae.memory_used_decode, vae.memory_used_encode = memory_decode, memory_encode
    return vae
