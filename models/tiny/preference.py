"""The preference model of the embedded family: a learned reward for how well an image follows a caption."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .loading import WEIGHTS, load_into
from .verifier_blocks import AttentionPool, ImageStem, TextEmbedding, TransformerBlock, padding_mask

REWARD_SCALE = 1.25
"""Reward of a perfect image; the worst ones lie near the negative of it."""


class PreferenceModel(nn.Module):
    """Image and caption tokens in one transformer, read out as one number, like ImageReward (Xu et al., 2023).

    Trained by regression on graded targets and by ranking on pairs of correct and corrupted drawings
    (`train/preference.py`). It shares no weight with `ShapesCLIP`, so that one can check a search that follows the
    other.
    """

    def __init__(self, width: int = 160, layers: int = 3, text_layers: int = 1):
        super().__init__()
        self.image_stem = ImageStem(width)
        self.text_embedding = TextEmbedding(width)
        self.text_layers = nn.ModuleList(TransformerBlock(width, 5) for _ in range(text_layers))
        self.layers = nn.ModuleList(TransformerBlock(width, 5) for _ in range(layers))
        self.pool = AttentionPool(width, 2, width, 5)
        self.head = nn.Sequential(nn.GELU(approximate="tanh"), nn.Linear(width, 1))

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Captions [B, 16] -> their contextual words [B, 16, width]."""
        text = self.text_embedding(tokens)
        mask = padding_mask(tokens)
        for layer in self.text_layers:
            text = layer(text, mask)
        return text

    def fuse(self, image_tokens: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image tokens [B, 64, width] and captions [B, 16] -> (reward [B], contextual image tokens [B, 64, width])."""
        text = self.read(tokens)
        count = image_tokens.shape[1]
        x, mask = torch.cat([image_tokens, text.to(image_tokens.dtype)], dim=1), padding_mask(tokens, before=count)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(self.pool(x, mask)).float().squeeze(-1), x[:, :count]

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Reward of each image for its caption.

        Args:
            images: float [B, 3, H, W] in 0..1; sizes other than 128x128 are resized with antialiasing.
            tokens: integers [B, 16] from `vocabulary.encode_batch`.

        Returns:
            [B] float32, differentiable in the images: about +1.25 for a correct image, -1.25 for a wrong one, and
            between them where the image does not tell (blur) or is partly right.

        Raises:
            ValueError: images or tokens of another shape or type.
        """
        return self.fuse(self.image_stem(images), tokens)[0]


def load_preference(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", folder: Path = WEIGHTS
) -> PreferenceModel:
    """The trained model, in eval mode and frozen.

    Raises:
        WeightsError: the weights are missing, damaged or of another version; names file, folder and remedy.
    """
    model = PreferenceModel()
    load_into(model, "preference", folder)
    return model.to(device=device, dtype=dtype)
