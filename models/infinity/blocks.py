"""One block of Infinity's transformer: self-attention, attention to the text, feed-forward, modulated by the prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import CrossAttention, KVLayer, SelfAttention
from .config import InfinityConfig

EPS = 1e-6


def plain_norm(x: Tensor) -> Tensor:
    """Layer norm without learned parameters, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS)


class FeedForward(nn.Module):
    """Two linear layers around a GELU (tanh approximation).

    Attributes:
        activated: whether ``fc1`` computes the GELU, too.
    """

    activated = False

    def __init__(self, width: int, hidden: int, linear: type[nn.Linear] = nn.Linear):
        super().__init__()
        self.fc1 = linear(width, hidden)
        self.fc2 = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> ``[..., width]``."""
        h = self.fc1(x)
        if self.activated:
            return self.fc2(h)
        # The widest activation of the network: where nothing is differentiated, it is not held twice.
        h = F.gelu(h, approximate="tanh") if h.requires_grad else torch.ops.aten.gelu_(h, approximate="tanh")
        return self.fc2(h)


class Block(nn.Module):
    """Pre-norm block. The residual stream and the modulation are float32; the layers run in their weights' dtype.

    Attributes:
        modulation: ``[6, C]``, this block's offset to the prompt's shared modulation: two gates, two scales, two
            shifts (self-attention and feed-forward).
    """

    def __init__(self, config: InfinityConfig, linear: type[nn.Linear] = nn.Linear):
        super().__init__()
        width = config.width
        self.modulation = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.self_attention = SelfAttention(width, config.heads, linear)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.cross_attention = CrossAttention(width, config.heads, linear)
        self.feed_forward = FeedForward(width, config.hidden, linear)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the layers compute in."""
        return self.feed_forward.fc1.weight.dtype

    def forward(
        self,
        x: Tensor,
        shared: Tensor,
        text: tuple[Tensor, Tensor | None],
        rotary: tuple[Tensor, Tensor],
        cache: KVLayer | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """One block.

        Args:
            x: residual stream ``[R, L, C]``, float32.
            shared: the prompts' modulation ``[R, 1, 6, C]``, float32.
            text: keys and values ``[R, 2, heads, T, head_dim]`` of this layer, and mask ``[R, 1, 1, T]`` or None.
            rotary, cache, mask: see ``SelfAttention``.
        """
        dtype = self.dtype
        gate1, gate2, scale1, scale2, shift1, shift2 = (self.modulation.float() + shared).unbind(2)
        modulated = torch.addcmul(shift1, plain_norm(x), scale1 + 1).to(dtype)
        x = torch.addcmul(x, self.self_attention(modulated, rotary, cache, mask).float(), gate1)
        normed = F.layer_norm(x, x.shape[-1:], self.norm.weight.float(), self.norm.bias.float(), EPS)
        x = x + self.cross_attention(normed.to(dtype), *text).float()
        modulated = torch.addcmul(shift2, plain_norm(x), scale2 + 1).to(dtype)
        return torch.addcmul(x, self.feed_forward(modulated).float(), gate2)
