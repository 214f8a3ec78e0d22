"""Infinity as ComfyUI's own objects: a patched transformer, a VAE for its code maps, Flan-T5 as CLIP."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.t5
import torch
from torch import Tensor, nn
from transformers import T5TokenizerFast

from ...models.infinity.loading import CheckpointError, load_transformer, load_vae, read_state
from ...models.infinity.schedules import ScaleSchedule, schedule_for, schedule_of_grid
from ...models.infinity.text import TextFeatures
from ...models.infinity.transformer import Infinity
from ...models.infinity.vae import BSQVae, quantize_scale
from ...samplers.protocols import SearchError
from .managed_verifier import Wrapper
from .own_vae import as_vae

log = logging.getLogger("testtime")

_CLIP_NAME = "flan_t5"
TOKENS = 512  # the longest prompt the released models were trained on
RATIOS = {
    f"{name} ({'square' if name == '1:1' else 'portrait' if height > width else 'landscape'})": height / width
    for name, height, width in (
        ("1:1", 1, 1), ("5:4", 4, 5), ("4:3", 3, 4), ("3:2", 2, 3), ("7:4", 4, 7), ("2:1", 1, 2), ("5:2", 2, 5),
        ("3:1", 1, 3), ("4:5", 5, 4), ("3:4", 4, 3), ("2:3", 3, 2), ("4:7", 7, 4), ("1:2", 2, 1), ("2:5", 5, 2),
        ("1:3", 3, 1),
    )
}  # fmt: skip
"""Label (width : height) -> height / width, as ``schedule_for`` takes it."""


@dataclass(frozen=True)
class InfinityModel:
    """What travels through the INFINITY socket.

    Attributes:
        patcher: the transformer under ComfyUI's model management.
        name: for messages.
        fixed: the only schedule of a model that knows one size, None for the released tables.
        preview_side: codes along the longer side that unfinished images are judged at.
    """

    patcher: comfy.model_patcher.ModelPatcher
    name: str
    fixed: ScaleSchedule | None = None
    preview_side: int = 16

    @property
    def network(self) -> Infinity:
        """The transformer."""
        return self.patcher.model.network

    def schedule(self, ratio: str, pixels: str) -> ScaleSchedule:
        """Scales for a ratio label and a pixel budget; a model of one size ignores both and says so."""
        if self.fixed is None:
            return schedule_for(RATIOS[ratio], pixels)
        if RATIOS[ratio] != 1.0:
            h, w = self.fixed.grids[-1]
            log.warning("%s draws images of %d x %d tokens only: aspect_ratio is ignored", self.name, h, w)
        return self.fixed


def as_infinity(network: Infinity, name: str, fixed: ScaleSchedule | None = None, preview_side=16) -> InfinityModel:
    """A transformer under management."""
    patcher = comfy.model_patcher.ModelPatcher(
        Wrapper(network), load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
    return InfinityModel(patcher, name, fixed, preview_side)


def load_infinity(path: Path, dtype: torch.dtype | None = None) -> InfinityModel:
    """A released or trained transformer.

    Args:
        path: one file, or a folder of shards with an index.
        dtype: of its blocks' layers, None for what the device prefers.

    Raises:
        CheckpointError: the file cannot be used.
    """
    dtype = dtype or compute_dtype()
    network = load_transformer(
        path, dtype, management.unet_offload_device(), linear=comfy.ops.disable_weight_init.Linear
    )
    return as_infinity(network, path.name)


def compute_dtype() -> torch.dtype:
    """bfloat16 where the device computes in it, else half precision on other accelerators, float32 on the CPU."""
    device = management.get_torch_device()
    if management.is_device_cpu(device):
        return torch.float32
    return torch.bfloat16 if management.should_use_bf16(device) else torch.float16


class _CodeMaps(nn.Module):
    """The multi-scale autoencoder with the calls of a ComfyUI VAE; latents are summed codes ``F``."""

    def __init__(self, network: BSQVae, fixed: ScaleSchedule | None):
        super().__init__()
        self.network, self.fixed = network, fixed

    def decode(self, total: Tensor, **_) -> Tensor:
        """``[n, d, h, w]`` -> images ``[n, 3, H, W]`` in about -1..1."""
        return self.network.decoder(total)

    def encode(self, images: Tensor, **_) -> Tensor:
        """Images ``[n, 3, H, W]`` in -1..1 -> summed codes of all scales of the size's own schedule."""
        z = self.network.encoder(images).float()
        factor = 2 if self.network.config.stride == 8 else 1
        grid = (z.shape[-2] // factor, z.shape[-1] // factor)
        schedule = self.fixed or schedule_of_grid(grid)
        if schedule.grids[-1] != grid:
            wanted = tuple(side * factor * self.network.config.stride for side in schedule.grids[-1])
            raise ValueError(f"the image has {tuple(images.shape[-2:])} pixels: this VAE codes images of {wanted}")
        total = torch.zeros_like(z)
        for size in schedule.grids:
            _, total = quantize_scale(z, total, size, factor)
        return total.to(images.dtype)


def infinity_vae(network: BSQVae, fixed: ScaleSchedule | None = None, dtype=None) -> comfy.sd.VAE:
    """VAE of summed codes: stock VAE Decode and VAE Encode work with it."""
    config = network.config
    # The last level holds a handful of buffers of its width at full size.
    per_pixel = 6 * config.base

    def decode_bytes(shape: Sequence[int], dtype: torch.dtype) -> float:
        return per_pixel * shape[-2] * shape[-1] * config.stride**2 * management.dtype_size(dtype)

    def encode_bytes(shape: Sequence[int], dtype: torch.dtype) -> float:
        return per_pixel * shape[-2] * shape[-1] * management.dtype_size(dtype)

    vae = as_vae(_CodeMaps(network, fixed), config.code_dim, config.stride, decode_bytes, encode_bytes, dtype)
    vae.disable_offload = True  # plain layers: all on the device or none
    return vae


def load_infinity_vae(path: Path) -> comfy.sd.VAE:
    """VAE of a released autoencoder. CheckpointError if the file cannot be used."""
    return infinity_vae(load_vae(path))


class FlanTokenizer(comfy.sd1_clip.SDTokenizer):
    """T5's tokens, neither padded nor split; prompts longer than the model was trained on are cut, aloud."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        folder = Path(comfy.text_encoders.t5.__file__).parent / "t5_tokenizer"
        super().__init__(
            str(folder),
            pad_with_end=False,
            embedding_size=2048,
            embedding_key=_CLIP_NAME,
            tokenizer_class=T5TokenizerFast,
            has_start_token=False,
            pad_to_max_length=False,
            max_length=99_999_999,
            min_length=1,
            tokenizer_data=tokenizer_data or {},
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options) -> list:
        """See ``SDTokenizer``."""
        batches = super().tokenize_with_weights(text, return_word_ids, **options)
        tokens = batches[0]
        if len(tokens) > TOKENS:
            log.warning("the prompt has %d tokens: Infinity reads the first %d", len(tokens), TOKENS)
            batches[0] = [*tokens[: TOKENS - 1], tokens[-1]]
        return batches


class _FlanClipTokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, name=_CLIP_NAME, tokenizer=FlanTokenizer)


def t5_config(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """ComfyUI's configuration of a T5 encoder from the shapes of its file.

    Raises:
        CheckpointError: these are not the tensors of a Flan-T5 (a T5 with gated feed-forward layers).
    """
    first = "encoder.block.0.layer"
    needed = ["shared.weight", f"{first}.1.DenseReluDense.wi_0.weight"]
    needed.append(f"{first}.0.SelfAttention.relative_attention_bias.weight")
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise CheckpointError(f"{missing[0]} is missing: this is not a Flan-T5 text encoder")
    vocabulary, width = shapes["shared.weight"]
    buckets, heads = shapes[needed[2]]
    inner = shapes[f"{first}.0.SelfAttention.q.weight"][0]
    layers = 1 + max(int(match[1]) for name in shapes if (match := re.match(r"encoder\.block\.(\d+)\.", name)))
    return {
        "d_ff": shapes[needed[1]][0],
        "d_kv": inner // heads,
        "d_model": width,
        "dense_act_fn": "gelu_pytorch_tanh",
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "num_heads": heads,
        "num_layers": layers,
        "relative_attention_num_buckets": buckets,
        "vocab_size": vocabulary,
    }


def load_flan_t5(path: Path, dtype: torch.dtype | None = None) -> comfy.sd.CLIP:
    """CLIP that gives Infinity's text features: the encoder of a Flan-T5, whose decoder is left out if it is there.

    Args:
        path: one file, or a folder of shards with an index.
        dtype: of the weights, None to keep the file's (the computation is in float32).

    Raises:
        CheckpointError: the file cannot be used.
    """
    kept = ("shared.", "encoder.block.", "encoder.final_layer_norm.")
    state = {name: value for name, value in read_state(path).items() if name.startswith(kept)}
    config = t5_config({name: tuple(value.shape) for name, value in state.items()})
    dtype = dtype or state["shared.weight"].dtype

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None, **_):
            super().__init__(
                device=device,
                textmodel_json_config=config,
                dtype=dtype,
                special_tokens={"end": 1, "pad": 0},
                model_class=comfy.text_encoders.t5.T5,
                model_options=model_options or {},
            )

    class Model(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(device, dtype, model_options or {}, name=_CLIP_NAME, clip_model=Encoder)

    target = comfy.supported_models_base.ClipTarget(_FlanClipTokenizer, Model)
    count = sum(value.numel() for value in state.values())
    clip = comfy.sd.CLIP(target, parameters=count, model_options={"dtype": dtype})
    missing = clip.cond_stage_model.load_sd(state)[0]
    missing = [name for name in missing if name != "logit_scale"]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing[:3])}: the file is not complete")
    return clip


def text_features(conditioning: Sequence, name: str, network: Infinity) -> TextFeatures:
    """Encoded prompts of a CONDITIONING.

    Args:
        conditioning: one entry, whose rows are prompts.
        name: of the node's input, for messages.
        network: what will read them.

    Raises:
        SearchError: several entries, or features of another text encoder.
    """
    if len(conditioning) != 1:
        raise SearchError(f"{name} has {len(conditioning)} entries: Infinity takes one prompt, without combinations")
    features, extra = conditioning[0]
    width = network.config.text_width
    if features.shape[-1] != width:
        raise SearchError(
            f"{name} has {features.shape[-1]} channels: this model reads {width}. Encode the prompt with the CLIP that "
            f"comes with it (Flan-T5-XL gives 2048)"
        )
    mask = extra.get("attention_mask")
    mask = torch.ones(features.shape[:2], dtype=torch.bool) if mask is None else mask.bool().to(features.device)
    return TextFeatures(features.float() * mask[..., None].to(features.device), mask.to(features.device))
