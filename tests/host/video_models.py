"""Tiny random networks of ComfyUI's video models, and VAEs that decode their latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .conftest import _patcher, feature, randomise

HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "context_in_dim": 16,
    "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6],
    "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": False, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
WAN = {"image_model": "wan2.1", "model_type": "t2v", "dim": 32, "ffn_dim": 48, "num_heads": 2, "num_layers": 1,
       "text_dim": 16, "in_dim": 16, "out_dim": 16}  # fmt: skip
MOCHI = {
    "image_model": "mochi_preview", "depth": 1, "num_heads": 2, "hidden_size_x": 32, "hidden_size_y": 16,
    "mlp_ratio_x": 384.0, "mlp_ratio_y": 2.0, "in_channels": 12, "learn_sigma": False, "patch_size": 2, "qk_norm": True,
    "qkv_bias": False, "out_bias": True, "patch_embed_bias": True, "posenc_preserve_area": True, "rope_theta": 10000.0,
    "t5_feat_dim": 16, "t5_token_length": 6, "timestep_mlp_bias": True, "attn_drop": 0, "use_t5": True,
}  # fmt: skip
COSMOS = {
    "image_model": "cosmos", "in_channels": 16, "out_channels": 16, "max_img_h": 32, "max_img_w": 32, "max_frames": 8,
    "patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True, "block_config": "FA-CA-MLP",
    "model_channels": 48, "num_blocks": 1, "num_heads": 2, "mlp_ratio": 2.0, "block_x_format": "THWBD",
    "crossattn_emb_channels": 16, "pos_emb_cls": "rope3d", "pos_emb_learnable": False, "pos_emb_interpolation": "crop",
    "affline_emb_norm": True, "use_adaln_lora": True, "adaln_lora_dim": 8, "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
LTXAV = {
    "image_model": "ltxav", "in_channels": 128, "audio_in_channels": 128, "cross_attention_dim": 48,
    "audio_cross_attention_dim": 32, "attention_head_dim": 24, "audio_attention_head_dim": 16,
    "num_attention_heads": 2, "audio_num_attention_heads": 2, "caption_channels": 16, "num_layers": 1,
}  # fmt: skip
H3 = {
    "image_model": "minimax_h3", "hidden_size": 64, "num_layers": 1, "token_refiner_num_layers": 1,
    "num_attention_heads": 2, "attention_head_dim": 32, "ffn_hidden_size": 64, "latents_dim": 24,
    "audio_latents_dim": 32, "text_dim": 16, "timestep_input_dim": 32, "time_embed_hidden_size": 32,
    "time_embed_dim": 16, "rope_inv_freq_len": 4,
}  # fmt: skip


@dataclass(frozen=True)
class VideoModel:
    """How a tiny model of a family is made.

    Attributes:
        family: class in ``comfy.supported_models``. config: of its network.
        shapes: of the latent's streams, without the batch: one, or video and audio of a pack.
        pooled: whether its conditioning has a pooled vector.
    """

    family: str
    config: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    pooled: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


ZOO = {
    "wan": VideoModel("WAN21_T2V", WAN, ((16, 3, 4, 4),)),
    "wan_i2v": VideoModel("WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36}, ((16, 3, 4, 4),)),
    "wan5b": VideoModel("WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}, ((48, 3, 4, 4),)),
    "hunyuan": VideoModel("HunyuanVideo", HUNYUAN, ((16, 3, 4, 4),), pooled=True),
    "mochi": VideoModel("GenmoMochi", MOCHI, ((12, 2, 4, 4),)),
    "cosmos": VideoModel("CosmosT2V", COSMOS, ((16, 2, 4, 4),)),
    "ltxav": VideoModel("LTXAV", LTXAV, ((128, 2, 3, 3), (8, 5, 16))),
    "h3": VideoModel("MiniMaxH3", H3, ((24, 2, 4, 4), (32, 2, 6))),
}


def build_video_model(kind: str, seed: int = 0):
    """A MODEL of ``ZOO``; skips the test on hosts whose models have no such family."""
    import comfy.supported_models as supported

    made = ZOO[kind]
    feature(hasattr(supported, made.family), f"there is no {made.family}")
    known = dict(made.config)
    if kind == "hunyuan":
        from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

        fields = HunyuanVideoParams.__annotations__
        known = {key: value for key, value in known.items() if key in fields or key == "image_model"}
    config = getattr(supported, made.family)(known)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    randomise(model.diffusion_model, seed)
    return _patcher(config, model)


def video_latent(kind: str, batch: int = 1, seed: int | None = None):
    """Samples of a LATENT: zeros, or normal numbers of ``seed``; a NestedTensor for packs."""
    generator = torch.Generator().manual_seed(seed or 0)
    streams = [
        torch.zeros(batch, *shape) if seed is None else torch.randn(batch, *shape, generator=generator)
        for shape in ZOO[kind].shapes
    ]
    if len(streams) == 1:
        return streams[0]
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor(streams)


def video_conditioning(kind: str, seed: int = 1, **extra):
    """CONDITIONING of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    width = 32 if kind == "ltxav" else 16
    more: dict[str, Any] = {"pooled_output": torch.randn(1, 8, generator=generator)} if ZOO[kind].pooled else {}
    if kind == "wan_i2v":
        from types import SimpleNamespace

        more["concat_latent_image"] = torch.randn(1, *ZOO[kind].shapes[0], generator=generator)
        more["concat_mask"] = torch.ones(1, 1, *ZOO[kind].shapes[0][1:])
        more["concat_mask"][:, :, 1:] = 0.0
        seen = torch.randn(1, 257, 1280, generator=generator)
        more["clip_vision_output"] = SimpleNamespace(penultimate_hidden_states=seen)
    if kind in ("mochi",):
        more["attention_mask"] = torch.ones(1, 6, dtype=torch.int64)
    return [[torch.randn(1, 6, width, generator=generator), {**more, **extra}]]


def build_wan_vae(dim: int = 8, channels: int = 16, seed: int = 7):
    """A VAE around a tiny WanVAE: causal, 4 frames and 8 pixels per latent cell."""
    from comfy.ldm.wan.vae import WanVAE

    sizes = {"dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_scales": [], "dropout": 0.0}
    network = WanVAE(dim=dim, z_dim=channels, temperal_downsample=[False, True, True], **sizes)
    return _as_vae(randomise(network, seed), channels, 4, 8)


def build_tae(channels: int = 16, cell: int = 8, seed: int = 9):
    """A VAE around a tiny video decoder, the host's TAEHV; skips on hosts without."""
    try:
        from comfy.taesd.taehv import TAEHV
    except ImportError:
        feature(False, "there are no tiny autoencoders of videos")
    network = TAEHV(latent_channels=channels)
    vae = _as_vae(randomise(network, seed), channels, 4, cell)
    vae.process_output = lambda image: image
    return vae


def _as_vae(network: torch.nn.Module, channels: int, frames: int, cell: int):
    """A VAE as ComfyUI's loader leaves it, around another network: made from an image's, which is exchanged."""
    import comfy.model_management as management
    import comfy.model_patcher

    from .conftest import build_vae

    vae = build_vae(4)
    vae.first_stage_model = network.eval()
    vae.latent_dim, vae.latent_channels, vae.output_channels = 3, channels, 3
    vae.upscale_ratio = (lambda count: max(0, count * frames - (frames - 1)), cell, cell)
    vae.downscale_ratio = (lambda count: max(0, (count + frames - 1) // frames), cell, cell)
    vae.memory_used_decode = lambda shape, dtype: 1000 * shape[2] * shape[3] * shape[4]
    vae.patcher = comfy.model_patcher.ModelPatcher(
        network, load_device=vae.device, offload_device=management.vae_offload_device()
    )
    return vae


def zoo_kinds(keep: Callable[[VideoModel], bool] = lambda model: True) -> list[str]:
    """Names of the models of ``ZOO`` that ``keep`` lets through."""
    return [kind for kind, model in ZOO.items() if keep(model)]
