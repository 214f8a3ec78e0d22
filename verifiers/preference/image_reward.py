"""ImageReward (Xu et al. 2023, arXiv 2304.05977) on the BLIP classes of transformers, without its own package.

A ViT reads the image, a BERT with cross-attention reads the prompt and looks at it, and a small head turns the state of
[CLS] into a number. The released file is brought to the transformers layout by renaming alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...samplers.protocols import ScoreContext, Verifier
from ..aesthetic.predictors import AffineHead
from ..base import PromptCache, VerifierError, check_prompts, freeze, image_side, module_device
from ..caching import ImageCache
from ..clip_weights import read_weights
from ..preprocessing import Preprocessing
from ..text import Tokens

if TYPE_CHECKING:
    from transformers import BertTokenizer

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw reward over the authors' data; the published score is normalised by them (DAS leaves that out)."""

TOKENS = 35  # longer prompts are cut, as in the original
REPOSITORY, FILE, FILE_SIZE = "THUDM/ImageReward", "ImageReward.pt", 1_786_880_927
VISION: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
}  # fmt: skip
TEXT: dict[str, Any] = {
    "vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip

_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
_RENAMED = (
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(.+)", r"vision.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.(.+)", r"vision.encoder.layers.\1.layer_norm\2.\3"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(.+)", r"vision.encoder.layers.\1.self_attn.qkv.\2"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.(.+)", r"vision.encoder.layers.\1.self_attn.projection.\2"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.(fc[12])\.(.+)", r"vision.encoder.layers.\1.mlp.\2.\3"),
    (r"blip\.visual_encoder\.norm\.(.+)", r"vision.post_layernorm.\1"),
    (r"blip\.text_encoder\.(.+)", r"text.\1"),
    (r"mlp\.layers\.(.+)", r"head.layers.\1"),
)


class ImageRewardModel(nn.Module):
    """The network. Sizes are those of the release unless given.

    Args:
        vision, text: of ``transformers.BlipVisionConfig`` and ``BlipTextConfig``, over ``VISION`` and ``TEXT``.
    """

    half_safe = ("vision", "text")

    def __init__(self, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None):
        super().__init__()
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        self.vision = BlipVisionModel(BlipVisionConfig(**VISION | (vision or {})))
        # As a "decoder" it has cross-attention; its forward pass stays bidirectional as long as it is not told again.
        config = BlipTextConfig(**TEXT | (text or {}), is_decoder=True)
        self.text = BlipTextModel(config, add_pooling_layer=False)
        self.head = AffineHead((config.hidden_size, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7))

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Raw rewards ``[n]`` of normalised ``pixels [n, 3, s, s]`` for token ``ids`` and ``mask [n, tokens]``."""
        seen = self.vision(pixel_values=pixels.to(next(self.vision.parameters()).dtype)).last_hidden_state
        read = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        )
        state = read.last_hidden_state[:, 0]
        return self.head(state if state.dtype == torch.float64 else state.float())


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released tensors under the names of ``ImageRewardModel``; unknown ones keep theirs, for the strict load."""
    converted = {}
    for key, value in state.items():
        if key.startswith(_UNUSED):
            continue
        for pattern, new in _RENAMED:
            if re.fullmatch(pattern, key):
                key = re.sub(pattern, new, key)
                break
        converted[key] = value
    return converted


class ImageRewardVerifier(Verifier):
    """ImageReward: about -2.3 to 2, mean 0 over the authors' data.

    Args:
        model: an ``ImageRewardModel`` with weights.
        tokenizer: of ``bert-base-uncased``.
        normalise: subtract the mean and divide by the spread as published; False gives DAS's raw value.
        quantize: round to 8 bit where the published pipeline does, for parity with published numbers.
    """

    differentiable = True
    needs_prompt = True

    def __init__(
        self,
        model: ImageRewardModel,
        tokenizer: BertTokenizer,
        normalise: bool = True,
        quantize: bool = False,
        name: str = "image_reward",
    ):
        self.module, self.tokenizer, self.normalise, self.name = freeze(model), tokenizer, normalise, name
        size = image_side(model.vision.config)
        self.prepare = Preprocessing(size=size, quantize=quantize, weigh_alpha=True)
        # the prompt meets the image inside the network: only its tokens can be kept
        self._tokens, self._images = PromptCache(Tokens(tokenizer, TOKENS, name)), ImageCache()
        self.default_scale = (0.0, 1.0) if normalise else (MEAN, STD)

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Scores ``[n]`` of ``images [n, H, W, 3]`` in 0..1; see ``samplers.protocols.Verifier``."""
        device = module_device(self.module)
        pixels = self.prepare(images, device)
        prompts = check_prompts(prompts, len(pixels), self.name)
        ids, mask = self._tokens(prompts, device).unbind(1)

        def rate(rows: Tensor) -> Tensor:
            rows = rows.to(device)
            return self.module(pixels[rows], ids[rows], mask[rows])

        reward = self._images(pixels, rate, prompts)
        return (reward - MEAN) / STD if self.normalise else reward


def load_image_reward(file: str | Path, tokenizer: str | Path, **options) -> ImageRewardVerifier:
    """ImageReward from its published file. Nothing is downloaded.

    Args:
        file: ``ImageReward.pt``.
        tokenizer: folder with ``vocab.txt`` of ``bert-base-uncased``.
        options: of ``ImageRewardVerifier``.

    Raises:
        VerifierError: a file is missing, incomplete or another one.
    """
    path, vocabulary = Path(file), Path(tokenizer) / "vocab.txt"
    if not path.is_file():
        raise VerifierError(
            f"there is no file {path}: ImageReward needs {FILE} (1.8 GB, Apache-2.0) of {REPOSITORY} there, e.g. "
            f'`hf download {REPOSITORY} {FILE} --local-dir "{path.parent}"`'
        )
    if not vocabulary.is_file():
        raise VerifierError(
            f"there is no file {vocabulary}: ImageReward reads prompts with the vocabulary of bert-base-uncased, e.g. "
            f'`hf download bert-base-uncased vocab.txt --local-dir "{vocabulary.parent}"`'
        )
    from transformers import BertTokenizer

    with torch.device("meta"):
        model = ImageRewardModel()
    fill(model, to_transformers(read_weights([path])), path)
    return ImageRewardVerifier(model.float(), BertTokenizer(str(vocabulary)), **options)


def fill(model: ImageRewardModel, state: dict[str, Tensor], path: Path) -> None:
    """Put converted tensors into a model made on the meta device, strictly.

    Raises:
        VerifierError: tensors are missing, left over or of another shape.
    """
    # Positions 0, 1, 2 .. are no weights; transformers makes them itself, but not on the meta device.
    positions = model.text.embeddings.position_ids
    state = {**state, "text.embeddings.position_ids": torch.arange(positions.shape[-1])[None]}
    known = model.state_dict().keys()
    computed = {name: value for name, value in model.named_buffers() if name not in known}
    try:
        model.load_state_dict({key: value for key, value in state.items() if key not in computed}, assign=True)
    except RuntimeError as error:
        size = path.stat().st_size if path.is_file() else 0
        raise VerifierError(
            f"{path} ({size:,} bytes) is not the released {FILE} ({FILE_SIZE:,} bytes): {error}"
        ) from error
    for name in computed:
        parent, _, leaf = name.rpartition(".")
        if name in state:
            model.get_submodule(parent).register_buffer(leaf, state[name], persistent=False)
