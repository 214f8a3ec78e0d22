"""ShapesCLIP: the contrastive image-text model of the embedded family."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .loading import WEIGHTS, load_into
from .verifier_blocks import AttentionPool, ImageStem, Mix, TextEmbedding, TransformerBlock, padding_mask


class ShapesCLIP(nn.Module):
    """Two towers into one space, after Radford et al., "Learning Transferable Visual Models" (2021).

    The image tower is convolutional below 8x8 and a transformer above; several pooling queries let one vector hold
    more than one object. Trained on sharp, blurred, noisy and re-decoded drawings (`train/clip.py`).
    """

    def __init__(self, width: int = 160, dim: int = 192, image_layers: int = 2, text_layers: int = 3):
        super().__init__()
        self.dim = dim
        self.image_stem = ImageStem(width)
        self.image_layers = nn.ModuleList(TransformerBlock(width, 5) for _ in range(image_layers))
        self.image_pool = AttentionPool(width, 4, dim, 5)
        self.text_embedding = TextEmbedding(width)
        self.text_layers = nn.ModuleList(TransformerBlock(width, 5) for _ in range(text_layers))
        self.text_pool = AttentionPool(width, 2, dim, 5)
        self.image_mix, self.text_mix = Mix(dim), Mix(dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def image_tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Images as in `encode_image` -> contextual tokens [B, 64, width], row by row of an 8x8 grid."""
        tokens = self.image_stem(images)
        for layer in self.image_layers:
            tokens = layer(tokens)
        return tokens

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images.

        Args:
            images: float [B, 3, H, W] in 0..1; sizes other than 128x128 are resized with antialiasing.

        Returns:
            [B, dim], rows of unit length, differentiable in the images.

        Raises:
            ValueError: images of another shape or an integer type.
        """
        return self.embed_tokens(self.image_tokens(images))

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """`image_tokens` [B, 64, width] -> [B, dim], rows of unit length."""
        return F.normalize(self.image_mix(self.image_pool(tokens)).float(), dim=-1)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed captions: integers [B, 16] from `vocabulary.encode_batch` -> [B, dim], rows of unit length.

        Raises:
            ValueError: tokens of another shape or a floating type.
        """
        return self.embed_words(self.read(tokens), tokens)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Captions as in `encode_text` -> contextual words [B, 16, width]."""
        x = self.text_embedding(tokens)
        mask = padding_mask(tokens)
        for layer in self.text_layers:
            x = layer(x, mask)
        return x

    def embed_words(self, words: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`read` [B, 16, width] of captions [B, 16] -> [B, dim], rows of unit length."""
        return F.normalize(self.text_mix(self.text_pool(words, padding_mask(tokens))).float(), dim=-1)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Cosine between each image and its caption: [B] in -1..1. Arguments as in the two encoders."""
        return (self.encode_image(images) * self.encode_text(tokens)).sum(dim=-1)


def load_clip(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", folder: Path = WEIGHTS
) -> ShapesCLIP:
    """The trained model, in eval mode and frozen.

    Raises:
        WeightsError: the weights are missing, damaged or of another version; names file, folder and remedy.
    """
    model = ShapesCLIP()
    load_into(model, "clip", folder)
    return model.to(device=device, dtype=dtype)
