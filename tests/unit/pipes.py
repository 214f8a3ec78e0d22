"""Tiny random pipelines of diffusers, built from configurations: real classes, nothing downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]


def clip_tokenizer(folder: Path):
    """A CLIPTokenizer that spells."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, pad_token="<|endoftext|>"
    )


def t5_tokenizer():
    """A T5 tokenizer of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{c: i + 3 for i, c in enumerate(LETTERS + " ")}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def clip_config(width: int = 16):
    return transformers.CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        hidden_act="gelu",
    )  # fmt: skip


def vae(channels: int = 4, **more):
    return diffusers.AutoencoderKL(
        block_out_channels=[8, 16], in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, sample_size=32, **more,
    )  # fmt: skip


def unet(prediction: str = "epsilon", cross: int = 16, **more):
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross, attention_head_dim=4, norm_num_groups=4, **more,
    )  # fmt: skip


def ddim(prediction: str = "epsilon", **more):
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
                "set_alpha_to_one": True, "steps_offset": 1, "prediction_type": prediction, **more}  # fmt: skip
    return diffusers.DDIMScheduler(**settings)


def sd(folder: Path, prediction: str = "epsilon"):
    return diffusers.StableDiffusionPipeline(
        vae=vae(), unet=unet(), scheduler=ddim(prediction), text_encoder=transformers.CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(folder), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(folder: Path):
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        unet=unet(cross=32, addition_embed_type="text_time", addition_time_embed_dim=4,
                  projection_class_embeddings_input_dim=6 * 4 + 16),
        scheduler=diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                                   timestep_spacing="leading", steps_offset=1),
        text_encoder=transformers.CLIPTextModel(clip_config()), tokenizer=clip_tokenizer(folder),
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config()), tokenizer_2=clip_tokenizer(folder),
    )  # fmt: skip


def sd3(folder: Path):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=transformers.CLIPTextModelWithProjection(clip_config()), tokenizer=clip_tokenizer(folder),
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config()), tokenizer_2=clip_tokenizer(folder),
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def flux(folder: Path):
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=transformers.CLIPTextModel(clip_config()), tokenizer=clip_tokenizer(folder), text_encoder_2=t5,
        tokenizer_2=t5_tokenizer(), transformer=transformer,
    )  # fmt: skip


BUILD = {"sd": sd, "sd_v": lambda folder: sd(folder, "v_prediction"), "sdxl": sdxl, "sd3": sd3, "flux": flux}
CALL = {
    "sd": {"guidance_scale": 3.0, "negative_prompt": "blur"},
    "sd_v": {"guidance_scale": 1.0},
    "sdxl": {"guidance_scale": 3.0},
    "sd3": {"guidance_scale": 3.0},
    "flux": {"guidance_scale": 3.5, "max_sequence_length": 16},
}


def build(kind: str, folder: Path):
    """A pipeline of random weights, the same every time, silent."""
    torch.manual_seed(0)
    pipe = BUILD[kind](folder / kind)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe
