"""Sizes of the Infinity transformers: the released ones by name, any other one from the shapes in its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class InfinityConfig:
    """Sizes of one transformer.

    Attributes:
        depth: blocks.
        width: channels C of the residual stream.
        heads: attention heads; ``width / heads`` must be divisible by 4 (rotary embedding in two dimensions).
        bits: bits of one token, the VAE's code dimension d, or 4 d where a token is a patch of 2 x 2 codes.
        patchify: whether a token is a patch of 2 x 2 codes.
        text_width: channels of the text features.
        text_length: rows of the learned features of the empty prompt, i.e. the longest prompt in tokens.
        pool_heads: heads of the attentive pooling of the text.
        hidden: hidden width of the feed-forward layers.
        levels: rows of the table of scale embeddings, i.e. the largest number of scales.
    """

    depth: int
    width: int
    heads: int
    bits: int = 32
    patchify: bool = False
    text_width: int = 2048
    text_length: int = 512
    pool_heads: int = 16
    hidden: int = 0
    levels: int = 15

    def __post_init__(self):
        if self.hidden == 0:
            # The released code rounds to a multiple of 256, halves to even: 8192 for a width of 2080, not 8320.
            object.__setattr__(self, "hidden", round(4 * self.width / 256) * 256)
        if self.width % self.heads or self.head_dim % 4:
            raise ValueError(f"width {self.width} with {self.heads} heads: width / heads must be a multiple of 4")
        if self.width % self.pool_heads:
            raise ValueError(f"width {self.width} with {self.pool_heads} pool heads: it must be divisible by them")
        if self.patchify and self.bits % 4:
            raise ValueError(f"bits is {self.bits}: a token of 2 x 2 codes needs a multiple of 4")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def code_dim(self) -> int:
        """Channels d of the VAE's codes."""
        return self.bits // 4 if self.patchify else self.bits

    @property
    def fold(self) -> int:
        """Codes along one side of a token: 2 with ``patchify``, else 1."""
        return 2 if self.patchify else 1


RELEASED = {
    "infinity_2b": InfinityConfig(32, 2048, 16),
    "infinity_8b": InfinityConfig(40, 3584, 28, bits=56, patchify=True),
    "layer12": InfinityConfig(12, 768, 8),
    "layer16": InfinityConfig(16, 1152, 12),
    "layer24": InfinityConfig(24, 1536, 16),
    "layer32": InfinityConfig(32, 2080, 20),
    "layer40": InfinityConfig(40, 2688, 24),
    "layer48": InfinityConfig(48, 3360, 28),
}
"""Configurations of the published code. Weights exist for the first two (0.125 to 8.8 billion parameters)."""


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], patchify: bool | None = None) -> InfinityConfig:
    """Configuration of a checkpoint from the shapes of its tensors (published key names).

    Args:
        shapes: name -> shape.
        patchify: whether tokens are patches of 2 x 2 codes, None to take what the released models do (56 bits: yes).

    Raises:
        KeyError: a tensor that decides a size is missing; the message names it.
    """
    layers = [name for name in shapes if name.endswith(".ada_gss")]
    if not layers:
        raise KeyError("no '...ada_gss' among the tensors: this is not an Infinity transformer")
    first = layers[0].removesuffix("ada_gss")
    width = _shape(shapes, "pos_start")[-1]
    bits = _shape(shapes, "word_embed.weight")[1]
    heads = 1
    for size in _shape(shapes, f"{first}sa.scale_mul_1H11"):
        heads *= size
    return InfinityConfig(
        depth=len(layers),
        width=width,
        heads=heads,
        bits=bits,
        patchify=bits == 56 if patchify is None else patchify,
        text_width=_shape(shapes, "text_norm.weight")[0],
        text_length=_shape(shapes, "cfg_uncond")[0],
        pool_heads=_shape(shapes, "text_proj_for_sos.ca.mat_q")[1],
        hidden=_shape(shapes, f"{first}ffn.fc1.weight")[0],
        levels=_shape(shapes, "lvl_embed.weight")[0],
    )


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise KeyError(f"{name!r} is missing: the file is not a complete Infinity transformer")
    return tuple(shapes[name])
