"""Every class of image models that ComfyUI has, small: sizes of networks, latents and conditions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .conftest import SD3_CONFIG, SD15_CONFIG, flux_config

WIDTH, POOLED = 16, 8
"""Of the text states and of the pooled one, unless a model says otherwise."""

Extra = Callable[[torch.Generator, int], dict[str, Any]]


@dataclass(frozen=True)
class ImageModel:
    """How a tiny model of a class is made.

    Attributes:
        title: the name that people know. family: class in ``comfy.supported_models``.
        config: of its network, or a function that makes it on the host that is there.
        channels, size: of its latents. cells: pixels along one side of a latent cell.
        vae: "image" (Stable Diffusion's and Flux's), "flux2", "hunyuan", "wan" (latents with a time axis) or "pixels"
            (there is none: latents are pixels).
        width: of the text states; None where there are none.
        extra: ``(generator, channels)`` -> what else is in a CONDITIONING.
        weights: of the checkpoint, where the class looks into them.
        after: called with the BaseModel before its weights are drawn.
        known: whether the host knows such a model, where its class alone does not say so.
        refusal: the sentence that refuses the model, "" where it is searched.
        no_gradient: a part of the warning of a search that needs a gradient, "" where it has one.
        remark: for the table.
    """

    title: str
    family: str
    config: dict[str, Any] | Callable[[], dict[str, Any]]
    channels: int = 4
    size: tuple[int, int] = (8, 8)
    cells: int = 8
    vae: str = "image"
    width: int | None = WIDTH
    extra: Extra = lambda generator, channels: {}
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    after: Callable[[Any], None] = lambda model: None
    known: Callable[[], bool] = lambda: True
    refusal: str = ""
    no_gradient: str = ""
    remark: str = ""

    @property
    def timed(self) -> bool:
        """Whether latents have a time axis, of one entry."""
        return self.vae == "wan"


def pooled(generator: torch.Generator, channels: int) -> dict[str, Any]:
    """A pooled text state."""
    return {"pooled_output": torch.randn(1, POOLED, generator=generator)}


def given_image(generator: torch.Generator, channels: int) -> dict[str, Any]:
    """The image of edit and inpainting models, as latents, and the area that is to be made."""
    return {
        "concat_latent_image": torch.randn(1, channels, 8, 8, generator=generator),
        "concat_mask": (torch.rand(1, 1, 8, 8, generator=generator) > 0.5).float(),
    }


def both(*parts: Extra) -> Extra:
    """Conditions of several kinds."""
    return lambda generator, channels: {k: v for part in parts for k, v in part(generator, channels).items()}


def whole_mask(generator: torch.Generator, channels: int) -> dict[str, Any]:
    """An attention mask that hides no token."""
    return {"attention_mask": torch.ones(1, 6, dtype=torch.int64)}


def unet(**changes: Any) -> dict[str, Any]:
    """Configuration of a UNet."""
    return {**SD15_CONFIG, "num_heads": 4, "num_head_channels": -1, **changes}


XL = 6 * 256 + POOLED
"""Width of SDXL's vector: six numbers of its sizes, and the pooled text state."""


def _sdxl(**changes: Any) -> dict[str, Any]:
    sizes = {"use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": XL}
    return unet(**{**sizes, **changes})


CHROMA = {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "context_in_dim": WIDTH, "hidden_size": 32,
    "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 10000,
    "patch_size": 2, "qkv_bias": True, "in_dim": 64, "out_dim": 32, "hidden_dim": 32, "n_layers": 1,
    "txt_ids_dims": [], "vec_in_dim": None,
}  # fmt: skip
RADIANCE = {
    **CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 8,
    "nerf_hidden_size": 8, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 0,
    "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False,
    "use_sequential_txt_ids": False,
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "cap_feat_dim": WIDTH, "n_layers": 1,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 2, "n_kv_heads": 1, "axes_dims": [8, 8, 8],
    "axes_lens": [64, 64, 64], "rope_theta": 10000.0, "ffn_dim_multiplier": 1.0, "multiple_of": 8,
}  # fmt: skip
Z_IMAGE = {
    **LUMINA, "dim": 256, "axes_dims": [32, 48, 48], "n_kv_heads": 2, "rope_theta": 256.0, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 8,
}  # fmt: skip
Z_PIXEL = {
    **Z_IMAGE, "image_model": "zimage_pixel", "in_channels": 3, "patch_size": 4, "decoder_hidden_size": 16,
    "decoder_num_res_blocks": 1, "decoder_max_freqs": 2, "decoder_in_channels": 48,
}  # fmt: skip
HIDREAM = {
    "image_model": "hidream", "attention_head_dim": 16, "axes_dims_rope": [4, 6, 6], "caption_channels": [WIDTH, WIDTH],
    "max_resolution": [16, 16], "in_channels": 16, "llama_layers": [0, 1], "num_attention_heads": 2,
    "num_routed_experts": 2, "num_activated_experts": 1, "num_layers": 1, "num_single_layers": 1, "out_channels": 16,
    "patch_size": 2, "text_emb_dim": POOLED,
}  # fmt: skip
OMNIGEN = {
    "image_model": "omnigen2", "patch_size": 2, "in_channels": 16, "hidden_size": 48, "num_layers": 1,
    "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": [8, 8, 8],
    "axes_lens": [64, 64, 64], "timestep_scale": 1000.0,
}  # fmt: skip
QWEN = {
    "image_model": "qwen_image", "axes_dims_rope": (4, 6, 6), "num_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH,
}  # fmt: skip
HUNYUAN_IMAGE = {
    "image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "vec_in_dim": None,
    "context_in_dim": WIDTH, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [8, 8], "theta": 256, "patch_size": [1, 1], "qkv_bias": True, "guidance_embed": True, "byt5": False,
    "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
COSMOS2 = {
    "image_model": "cosmos_predict2", "max_img_h": 32, "max_img_w": 32, "max_frames": 8, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 48, "concat_padding_mask": True,
    "crossattn_emb_channels": WIDTH, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "num_blocks": 1,
    "num_heads": 2, "mlp_ratio": 2.0, "use_adaln_lora": True, "adaln_lora_dim": 8,
    "extra_per_block_abs_pos_emb": False, "rope_enable_fps_modulation": False,
}  # fmt: skip
KANDINSKY = {
    "image_model": "kandinsky5", "in_text_dim": WIDTH, "in_text_dim2": POOLED, "time_dim": 16, "model_dim": 32,
    "ff_dim": 32, "visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": (4, 6, 6),
    "rope_scale_factor": (1.0, 1.0, 1.0),
}  # fmt: skip
ERNIE = {
    "image_model": "ernie", "hidden_size": 32, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 32,
    "text_in_dim": WIDTH, "rope_axes_dim": (4, 6, 6),
}  # fmt: skip
LENS = {
    "image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "enc_hidden_dim": WIDTH, "axes_dims_rope": (4, 6, 6), "selected_layer_index": (0, 1),
}  # fmt: skip
FLUX2 = {
    "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": WIDTH,
    "hidden_size": 32, "mlp_ratio": 3.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [4, 4, 4, 4], "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": True,
    "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
    "default_ref_method": "index", "ref_index_scale": 10.0,
}  # fmt: skip
PIXEL_DIT = {
    "image_model": "pixeldit_t2i", "num_groups": 2, "hidden_size": 32, "pixel_hidden_size": 4,
    "pixel_attn_hidden_size": 32, "pixel_num_groups": 2, "patch_depth": 1, "pixel_depth": 1, "txt_embed_dim": WIDTH,
}  # fmt: skip
PID = {**PIXEL_DIT, "image_model": "pid", "lq_hidden_dim": 8, "lq_num_res_blocks": 1, "lq_interval": 1}
IDEOGRAM = {
    "image_model": "ideogram4", "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32,
    "intermediate_size": 32, "adaln_dim": 16, "llm_features_dim": WIDTH, "mrope_section": (6, 5, 5),
}  # fmt: skip
KREA = {
    "image_model": "krea2", "features": 48, "tdim": 16, "txtdim": WIDTH, "heads": 1, "kvheads": 1, "multiplier": 2,
    "layers": 1, "txtlayers": 2, "txtheads": 1, "txtkvheads": 1, "default_ref_method": "index",
}  # fmt: skip
JOY = {
    "image_model": "joyimage", "hidden_size": 32, "num_attention_heads": 2, "text_dim": WIDTH, "num_layers": 1,
    "rope_dim_list": [4, 6, 6], "mlp_width_ratio": 2.0,
}  # fmt: skip
MAGE = {
    "image_model": "mage_flow", "num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
HIDREAM_O1 = {
    "image_model": "hidream_o1",
    "text_config_overrides": {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "rope_dims": [4, 2, 2],
    },
    "vision_config_overrides": {
        "hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 1, "deepstack_visual_indexes": [],
    },
}  # fmt: skip
AURA = {
    "cond_seq_dim": WIDTH, "in_channels": 4, "dim": 32, "n_layers": 2, "n_double_layers": 1, "n_heads": 2,
    "global_conddim": 32, "max_seq": 64,
}  # fmt: skip
PIXART = {
    "image_model": "pixart_sigma", "input_size": 8, "hidden_size": 48, "depth": 1, "num_heads": 2,
    "caption_channels": WIDTH, "micro_condition": False, "model_max_length": 6, "pe_interpolation": 1,
}  # fmt: skip
HYDIT = {
    "image_model": "hydit", "input_size": [8, 8], "hidden_size": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0,
    "text_states_dim": WIDTH, "text_states_dim_t5": WIDTH, "text_len": 6, "text_len_t5": 6,
}  # fmt: skip
CASCADE_C = {"stable_cascade_stage": "c", "c_cond": 16, "c_hidden": [16, 16], "nhead": [2, 2],
             "blocks": [[1, 1], [1, 1]], "c_clip_text": WIDTH, "c_clip_text_pooled": POOLED}  # fmt: skip
CASCADE_B = {"stable_cascade_stage": "b", "c_cond": 16, "c_hidden": [16] * 4, "nhead": [-1, -1, 2, 2],
             "blocks": [[1] * 4, [1] * 4], "block_repeat": [[1] * 4] * 2, "c_clip": POOLED}  # fmt: skip


def _two_texts(generator: torch.Generator, channels: int) -> dict[str, Any]:
    return {
        "attention_mask": torch.ones(1, 6),
        "conditioning_mt5xl": torch.randn(1, 6, WIDTH, generator=generator),
        "attention_mask_mt5xl": torch.ones(1, 6),
    }


def _llama(generator: torch.Generator, channels: int) -> dict[str, Any]:
    states = torch.randn(1, 2, 6, WIDTH, generator=generator)
    return {**pooled(generator, channels), "conditioning_llama3": states}


def _low_quality(generator: torch.Generator, channels: int) -> dict[str, Any]:
    return {"lq_latent": torch.randn(1, 16, 2, 2, generator=generator), "degrade_sigma": torch.tensor([0.3])}


def _tokens(generator: torch.Generator, channels: int) -> dict[str, Any]:
    from comfy.text_encoders.hidream_o1 import BOI_TOKEN_ID, IM_START_ID, NEWLINE_ID, TMS_TOKEN_ID, USER_ID

    words = torch.randint(1000, 90000, (4,), generator=generator).tolist()
    return {"text_input_ids": torch.tensor([[IM_START_ID, USER_ID, NEWLINE_ID, *words, BOI_TOKEN_ID, TMS_TOKEN_ID]])}


def _low_resolution(generator: torch.Generator, channels: int) -> dict[str, Any]:
    return {"concat_image": torch.randn(1, 3, 8, 8, generator=generator), "noise_augmentation": 0.1}


def _small_adapter(model: Any) -> None:
    """Anima's adapter of text states has one size only."""
    import comfy.ops
    from comfy.ldm.anima.model import LLMAdapter

    model.diffusion_model.llm_adapter = LLMAdapter(
        WIDTH, WIDTH, WIDTH, 1, 2, operations=comfy.ops.disable_weight_init, dtype=torch.float32
    )


def _adapted(generator: torch.Generator, channels: int) -> dict[str, Any]:
    return {"t5xxl_ids": torch.randint(1, 32000, (6,), generator=generator), "t5xxl_weights": torch.ones(6)}


def _knows_newbie() -> bool:
    from comfy.ldm.lumina.model import NextDiT

    return "clip_text_dim" in inspect.signature(NextDiT.__init__).parameters


def _refusal(family: str) -> str:
    return f"the model samples as {family}, which searches cannot steer: use another model"


_EDM = {"edm_mean": torch.zeros(1), "edm_std": torch.ones(1)}

ZOO: dict[str, ImageModel] = {
    "sd15": ImageModel("Stable Diffusion 1.5", "SD15", unet()),
    "sd15_inpaint": ImageModel("Stable Diffusion 1.5 inpainting", "SD15", unet(in_channels=9), extra=given_image),
    "sd15_ip2p": ImageModel("InstructPix2Pix", "SD15_instructpix2pix", unet(in_channels=8), extra=given_image),
    "zero123": ImageModel(
        "Stable Zero123", "Stable_Zero123", unet(in_channels=8), extra=given_image,
        weights={"cc_projection.weight": torch.eye(WIDTH), "cc_projection.bias": torch.zeros(WIDTH)},
    ),
    "sd20": ImageModel("Stable Diffusion 2.x", "SD20", unet(use_linear_in_transformer=True)),
    "unclip_l": ImageModel(
        "Stable unCLIP (L)", "SD21UnclipL",
        unet(use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=1536),
    ),
    "unclip_h": ImageModel(
        "Stable unCLIP (H)", "SD21UnclipH",
        unet(use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=2048),
    ),
    "x4": ImageModel(
        "Stable Diffusion x4 upscaler", "SD_X4Upscaler",
        unet(
            in_channels=7, use_linear_in_transformer=True, num_classes=1000, disable_self_attentions=[True, False]
        ), cells=4, extra=_low_resolution,
    ),
    "sdxl": ImageModel("Stable Diffusion XL", "SDXL", _sdxl(), extra=pooled),
    "sdxl_refiner": ImageModel(
        "SDXL refiner", "SDXLRefiner", _sdxl(adm_in_channels=5 * 256 + POOLED), extra=pooled
    ),
    "sdxl_inpaint": ImageModel("SDXL inpainting", "SDXL", _sdxl(in_channels=9), extra=both(pooled, given_image)),
    "sdxl_ip2p": ImageModel(
        "SDXL InstructPix2Pix", "SDXL_instructpix2pix", _sdxl(in_channels=8), extra=both(pooled, given_image)
    ),
    "sdxl_v": ImageModel("SDXL, v-prediction (NoobAI, ...)", "SDXL", _sdxl(), extra=pooled,
                         weights={"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)},
                         remark="a schedule from sigma 4,500, whose rounding this is"),
    "cosxl": ImageModel("CosXL (v-prediction of EDM)", "SDXL", _sdxl(), extra=pooled,
                        weights={"edm_vpred.sigma_max": torch.tensor(120.0)}),
    "playground": ImageModel("Playground 2.5 (EDM)", "SDXL", _sdxl(), extra=pooled, weights=_EDM),
    "ssd1b": ImageModel("SSD-1B", "SSD1B", _sdxl(), extra=pooled),
    "vega": ImageModel("Segmind Vega", "Segmind_Vega", _sdxl(), extra=pooled),
    "koala700": ImageModel("KOALA 700M", "KOALA_700M", _sdxl(), extra=pooled),
    "koala1b": ImageModel("KOALA 1B", "KOALA_1B", _sdxl(), extra=pooled),
    "lotus": ImageModel(
        "Lotus-D", "LotusD", unet(use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=4),
        refusal=_refusal("IMG_TO_IMG (image-to-image bridge)"),
    ),
    "cascade_c": ImageModel("Stable Cascade, stage C", "Stable_Cascade_C", CASCADE_C, 16, extra=pooled,
                            refusal=_refusal("StableCascadeSampling (Stable Cascade)")),
    "cascade_b": ImageModel("Stable Cascade, stage B", "Stable_Cascade_B", CASCADE_B, 4, extra=pooled,
                            refusal=_refusal("StableCascadeSampling (Stable Cascade)")),
    "sd3": ImageModel("Stable Diffusion 3.x", "SD3", SD3_CONFIG, 16, extra=pooled),
    "aura": ImageModel("AuraFlow", "AuraFlow", AURA),
    "pixart_alpha": ImageModel(
        "PixArt alpha", "PixArtAlpha", {**PIXART, "image_model": "pixart_alpha", "micro_condition": True},
        size=(4, 64),
        extra=lambda generator, channels: {"width": 64, "height": 64},
    ),
    "pixart_sigma": ImageModel("PixArt sigma", "PixArtSigma", PIXART, size=(4, 64)),
    "hydit": ImageModel("Hunyuan-DiT 1.2", "HunyuanDiT", HYDIT, extra=_two_texts),
    "hydit1": ImageModel(
        "Hunyuan-DiT 1.1", "HunyuanDiT1", {**HYDIT, "image_model": "hydit1", "size_cond": True, "use_style_cond": True},
        extra=_two_texts,
    ),
    "flux": ImageModel("Flux.1 dev, Krea", "Flux", flux_config, 16, extra=pooled),
    "flux_schnell": ImageModel(
        "Flux.1 schnell", "FluxSchnell", lambda: {**flux_config(), "guidance_embed": False}, 16, extra=pooled
    ),
    "flux_fill": ImageModel(
        "Flux.1 Fill", "FluxInpaint", lambda: {**flux_config(), "in_channels": 96}, 16, extra=both(pooled, given_image)
    ),
    "flux_control": ImageModel(
        "Flux.1 Canny, Depth", "Flux", lambda: {**flux_config(), "in_channels": 32}, 16,
        extra=both(pooled, given_image),
    ),
    "chroma": ImageModel("Chroma", "Chroma", CHROMA, 16, extra=pooled),
    "radiance": ImageModel("Chroma Radiance", "ChromaRadiance", RADIANCE, 3, (16, 16), 1, "pixels", extra=pooled),
    "lumina2": ImageModel("Lumina 2", "Lumina2", LUMINA, 16, extra=whole_mask),
    "hidream": ImageModel("HiDream-I1", "HiDream", HIDREAM, 16, extra=_llama),
    "omnigen2": ImageModel("OmniGen 2", "Omnigen2", {**OMNIGEN, "text_feat_dim": WIDTH}, 16, extra=whole_mask),
    "qwen": ImageModel("Qwen-Image, Edit, Layered", "QwenImage", QWEN, 16, vae="wan",
                       remark="layers are judged as one picture"),
    "hunyuan_image": ImageModel("HunyuanImage 2.1", "HunyuanImage21", HUNYUAN_IMAGE, 64, (4, 4), 32, "hunyuan"),
    "hunyuan_refiner": ImageModel(
        "HunyuanImage 2.1 refiner", "HunyuanImage21Refiner",
        {**HUNYUAN_IMAGE, "in_channels": 128, "patch_size": [1, 1, 1], "axes_dim": [4, 6, 6]}, 64, (4, 4), vae="wan",
    ),
    "cosmos2": ImageModel("Cosmos Predict 2", "CosmosT2IPredict2", COSMOS2, 16, vae="wan"),
    "anima": ImageModel("Anima", "Anima", {**COSMOS2, "image_model": "anima"}, 16, vae="wan", extra=_adapted,
                        after=_small_adapter),
    "flux2": ImageModel("Flux.2, Klein", "Flux2", FLUX2, 128, (4, 4), 16, "flux2"),
    "longcat": ImageModel(
        "LongCat-Image", "LongCatImage",
        lambda: {**flux_config(), "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}, 16,
    ),
    "z_image": ImageModel("Z-Image, Turbo", "ZImage", Z_IMAGE, 16),
    "newbie": ImageModel(
        "NewBie", "Lumina2", {**LUMINA, "clip_text_dim": POOLED}, 16, extra=pooled, known=_knows_newbie
    ),
    "z_pixel": ImageModel("Z-Image in pixels", "ZImagePixelSpace", Z_PIXEL, 3, (16, 16), 1, "pixels"),
    "pixeldit": ImageModel("PixelDiT", "PixelDiTT2I", PIXEL_DIT, 3, (32, 32), 1, "pixels"),
    "pid": ImageModel("PiD", "PiD", PID, 3, (64, 64), 1, "pixels", extra=_low_quality),
    "hidream_o1": ImageModel(
        "HiDream-O1", "HiDreamO1", HIDREAM_O1, 3, (64, 64), 1, "pixels", extra=_tokens,
        remark="noise eight times as strong",
    ),
    "boogu": ImageModel(
        "Boogu-Image", "Boogu",
        {**OMNIGEN, "image_model": "boogu", "instruction_feat_dim": WIDTH, "num_double_stream_layers": 1}, 16,
        extra=whole_mask,
    ),
    "mage": ImageModel("Mage-Flow", "MageFlow", MAGE, 128, (4, 4), 16),
    "joy": ImageModel("JoyImage", "JoyImage", JOY, 16, vae="wan"),
    "ideogram4": ImageModel("Ideogram 4", "Ideogram4", IDEOGRAM, 128, (4, 4), 16, "flux2"),
    "krea2": ImageModel("Krea 2", "Krea2", KREA, 16, vae="wan", width=2 * WIDTH),
    "lens": ImageModel("Lens", "Lens", LENS, 128, (4, 4), 16, "flux2", width=2 * WIDTH),
    "kandinsky5": ImageModel("Kandinsky 5 Image", "Kandinsky5Image", KANDINSKY, 16, extra=pooled),
    "ernie": ImageModel("ERNIE-Image", "ErnieImage", ERNIE, 128, (4, 4), 16, "flux2"),
}  # fmt: skip
"""Image models by a short name."""
