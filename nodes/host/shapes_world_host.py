"""The embedded Shapes World family as ComfyUI's own objects: MODEL, CLIP and VAE under its model management.

The networks are small enough to be kept in float32 on any device, so no partial loading is ever needed.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from comfy import latent_formats
from torch import Tensor, nn

from ...models.tiny import vocabulary
from ...models.tiny.autoencoder import DOWNSCALE, LATENT_CHANNELS, Autoencoder
from ...models.tiny.denoiser import Denoiser
from ...models.tiny.loading import load_autoencoder, load_into, load_text_encoder
from ...shapes_world.captions import sample_prompt
from ...shapes_world.drawing import draw
from ...shapes_world.sampling import sample_scene
from ...shapes_world.scene import TASKS
from .own_vae import as_vae

log = logging.getLogger("testtime")

MODEL_TYPES = {"diffusion": comfy.model_base.ModelType.EPS, "flow": comfy.model_base.ModelType.FLOW}
_TOKENS = "shapes"


class ShapesLatent(latent_formats.LatentFormat):
    """Latents ``[B, 4, H/8, W/8]`` scaled to unit variance; previews are a linear read-out fitted to drawings."""

    latent_channels = LATENT_CHANNELS

    def __init__(self, scale: float = 1.0, factors: Tensor | None = None):
        self.scale_factor = scale
        if factors is not None:
            self.latent_rgb_factors = factors[:-1].tolist()
            self.latent_rgb_factors_bias = factors[-1].tolist()


class ShapesConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks a model's configuration; schedules are its defaults (SD's for eps, shift 1 for the flow)."""

    unet_extra_config: ClassVar[dict[str, Any]] = {}
    sampling_settings: ClassVar[dict[str, float]] = {"shift": 1.0, "multiplier": 1000}
    latent_format = ShapesLatent
    memory_usage_factor = 0.2
    supported_inference_dtypes: ClassVar[list[torch.dtype]] = [torch.float32]

    def inpaint_model(self) -> bool:
        """The denoiser takes the latent alone."""
        return False


def load_model(kind: str) -> comfy.model_patcher.ModelPatcher:
    """MODEL of ``kind`` "diffusion" or "flow". Raises WeightsError naming the file, the folder and the remedy."""
    autoencoder, scale = load_autoencoder()
    config = ShapesConfig({"parameterisation": "eps" if kind == "diffusion" else "flow", "dtype": torch.float32})
    config.latent_format = ShapesLatent(scale, preview_factors(autoencoder, scale))
    offload = management.unet_offload_device()
    model = comfy.model_base.BaseModel(config, MODEL_TYPES[kind], device=offload, unet_model=Denoiser)
    load_into(model.diffusion_model, kind)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=management.get_torch_device(), offload_device=offload)
    patcher.cached_patcher_init = (load_model, (kind,))  # where the host has it: copies for further GPUs
    return patcher


@torch.no_grad()
def preview_factors(autoencoder: nn.Module, scale: float, count: int = 12) -> Tensor:
    """Least-squares map ``[4 + 1, 3]`` from a scaled latent to the colour (-1..1) under it.

    The last row is the offset; fitted to ``count`` drawings.
    """
    prompts = [sample_prompt(index, TASKS[index % len(TASKS)]) for index in range(count)]
    drawings = [torch.from_numpy(draw(sample_scene(index, prompt))) for index, prompt in enumerate(prompts)]
    images = torch.stack(drawings).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    latents = (autoencoder.encode(images) * scale).movedim(1, -1).reshape(-1, LATENT_CHANNELS)
    colours = nn.functional.avg_pool2d(images, DOWNSCALE).movedim(1, -1).reshape(-1, 3)
    known = torch.cat([latents, torch.ones(len(latents), 1)], 1)
    return torch.linalg.lstsq(known, colours).solution


def load_vae() -> comfy.sd.VAE:
    """VAE of the family. Raises WeightsError."""
    # The host's layers can run while their weights stay in main memory, as --novram asks for.
    autoencoder = Autoencoder(operations=comfy.ops.disable_weight_init)
    load_into(autoencoder, "autoencoder")
    # Nothing in it runs above a quarter of the image's resolution, at no more than 384 channels there.
    return as_vae(
        autoencoder,
        LATENT_CHANNELS,
        DOWNSCALE,
        lambda shape, dtype: 3_000 * shape[-2] * shape[-1] * management.dtype_size(dtype),
        lambda shape, dtype: 40 * shape[-2] * shape[-1] * management.dtype_size(dtype),
    )


class ShapesTokenizer:
    """Word tokens with weights, in ComfyUI's form: ``{"shapes": [[(id, weight), ...]]}``, always sixteen."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_) -> dict[str, list]:
        """Tokens of a prompt; ``(word:1.2)`` sets a weight. Words the family does not know are named in a warning."""
        unknown = sorted({w for w in _plain_words(text) if not vocabulary.known(w)})
        if unknown:
            log.warning("Shapes World does not know %s: it draws shapes, colours and positions", ", ".join(unknown))
        pairs: list[tuple] = []
        for segment, weight in comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0):
            found = vocabulary.words(comfy.sd1_clip.unescape_important(segment))
            pairs += [(vocabulary.encode(word)[0], weight) for word in found]
        pairs = pairs[: vocabulary.CONTEXT_LENGTH]
        pairs += [(vocabulary.PAD, 1.0)] * (vocabulary.CONTEXT_LENGTH - len(pairs))
        if return_word_ids:
            pairs = [(token, weight, place + 1) for place, (token, weight) in enumerate(pairs)]
        return {_TOKENS: [pairs]}

    def untokenize(self, pairs: list[tuple]) -> list[tuple]:
        """Pairs of (token, word)."""
        return [(pair, vocabulary.WORDS[pair[0]]) for pair in pairs]

    def state_dict(self) -> dict:
        """Nothing to save: the vocabulary is code."""
        return {}


def _plain_words(text: str) -> list[str]:
    parts = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    return [w for segment, _ in parts for w in vocabulary.words(comfy.sd1_clip.unescape_important(segment))]


class ShapesTextModel(nn.Module):
    """The text encoder behind the interface of ComfyUI's ``cond_stage_model``."""

    disable_offload = True  # plain layers: newer hosts must not stream them weight by weight

    def __init__(self, device=None, dtype=None, model_options=None):
        super().__init__()
        self.encoder = load_text_encoder().to(device=device)
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: dict) -> None:
        """The encoder has no options (one layer to read, one projection)."""

    def reset_clip_options(self) -> None:
        """See ``set_clip_options``."""

    def encode_token_weights(self, tokens: dict[str, list]) -> tuple[Tensor, Tensor]:
        """(context ``[1, 16, W]``, pooled ``[1, W]``). A weight moves a word's state away from the empty prompt's."""
        device = next(self.encoder.parameters()).device
        pairs = tokens[_TOKENS][0]
        ids = torch.tensor([[pair[0] for pair in pairs], [vocabulary.PAD] * len(pairs)], device=device)
        weights = torch.tensor([pair[1] for pair in pairs], device=device).view(1, -1, 1)
        context, _ = self.encoder(ids)
        empty, context = context[1:], context[:1]
        context = empty + weights * (context - empty)
        context = context.to(management.intermediate_device()).float()
        return context, context.mean(1)

    def load_sd(self, sd: dict) -> tuple[list, list]:
        """Weights are loaded on construction."""
        return [], []


def load_clip() -> comfy.sd.CLIP:
    """CLIP of the family. Raises WeightsError."""
    target = comfy.supported_models_base.ClipTarget(ShapesTokenizer, ShapesTextModel)
    parameters = sum(p.numel() for p in load_text_encoder().parameters())
    return comfy.sd.CLIP(target, parameters=parameters, model_options={"dtype": torch.float32})
