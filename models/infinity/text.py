"""The text side of Infinity: what a prompt becomes before the first scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TextFeatures:
    """Encoded prompts.

    Attributes:
        features: ``[P, T, Ct]`` last hidden states of the text encoder, float32, zero where there is no token.
        mask: bool ``[P, T]``, True where there is a token; the tokens of a prompt come first.
    """

    features: Tensor
    mask: Tensor

    def __post_init__(self):
        if self.features.dim() != 3 or self.mask.shape != self.features.shape[:2]:
            raise ValueError(
                f"text features {tuple(self.features.shape)} with mask {tuple(self.mask.shape)}: "
                "[prompts, tokens, channels] and [prompts, tokens] are needed"
            )
        if not bool(self.mask.any(1).all()):
            raise ValueError("a prompt has no tokens: even the empty one has its end token")

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def stack(cls, prompts: Sequence[Tensor]) -> TextFeatures:
        """Pad prompts ``[T_i, Ct]`` to one length."""
        length = max(len(prompt) for prompt in prompts)
        features = torch.stack([F.pad(prompt.float(), (0, 0, 0, length - len(prompt))) for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=features.device)
        return cls(features, torch.arange(length, device=features.device) < lengths[:, None])

    @classmethod
    def cat(cls, parts: Sequence[TextFeatures]) -> TextFeatures:
        """Prompts of all parts, padded to one length."""
        return cls.stack([row[kept] for part in parts for row, kept in zip(part.features, part.mask, strict=True)])

    def to(self, device: torch.device | str) -> TextFeatures:
        """The same on ``device``."""
        return TextFeatures(self.features.to(device), self.mask.to(device))


def without_text(text: TextFeatures, empty: Tensor) -> TextFeatures:
    """The unconditional counterpart: the first ``T_i`` learned rows ``empty`` ``[text_length, Ct]`` for prompt i.

    It has the length of its prompt, as in training, where the rows replace those of a dropped caption. ValueError if
    a prompt is longer than the table.
    """
    length = text.features.shape[1]
    if length > len(empty):
        raise ValueError(f"a prompt has {length} tokens: this model takes {len(empty)} at most")
    features = empty[:length].float() * text.mask[..., None]
    return TextFeatures(features, text.mask)


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` in float32."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> float32 of the same shape."""
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class AttentivePool(nn.Module):
    """Softmax pooling of tokens with one learned query per head.

    Args:
        text_width: channels of the tokens.
        width: channels of the result.
        heads: number of queries.
        linear: class of the linear layers (hosts bring their own).
    """

    def __init__(self, text_width: int, width: int, heads: int, linear: type[nn.Linear] = nn.Linear):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(heads, width // heads) / math.sqrt(3 * width))
        self.key_value = linear(text_width, 2 * width)
        self.out = linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens ``[R, T, Ct]`` with bool mask ``[R, T]`` -> ``[R, C]``."""
        key, value = self.key_value(x).view(*x.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        query = self.query[:, None].expand(len(x), -1, -1, -1).to(key)
        pooled = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return self.out(pooled.flatten(1))
