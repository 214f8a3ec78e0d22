"""The embedded next-scale model: Infinity's classes in a small configuration, on 128-pixel drawings."""

from __future__ import annotations

import torch
from torch import Tensor

from ..infinity.config import InfinityConfig
from ..infinity.schedules import ScaleSchedule
from ..infinity.text import TextFeatures
from ..infinity.transformer import Infinity
from ..infinity.vae import BSQVae, VaeConfig
from .text_encoder import TextEncoder
from .vocabulary import CONTEXT_LENGTH, encode_batch

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4, 5, 6, 8, 8)
"""219 tokens; a code is 16 pixels wide. The whole grid comes twice, so that a pass can mend the one before."""

VAE = VaeConfig(16, base=16, multipliers=(1, 2, 3, 4, 4), blocks=1, groups=8)
TRANSFORMER = InfinityConfig(6, 192, 4, bits=16, text_width=192, text_length=CONTEXT_LENGTH, pool_heads=4, hidden=768)


def new_vae() -> BSQVae:
    """Untrained autoencoder, 128 pixels -> 8 x 8 codes of 16 bits."""
    return BSQVae(VAE)


def new_transformer() -> Infinity:
    """Untrained transformer, started so that every block takes part from the first step on."""
    model = Infinity(TRANSFORMER)
    with torch.no_grad():
        for block in model.blocks:
            block.modulation.mul_(1e-2)
            block.modulation[:2] += 0.1  # gates near zero cost hundreds of steps before anything is learned
            for layer in (block.self_attention.out, block.cross_attention.out, block.feed_forward.fc2):
                layer.weight.mul_((2 * len(model.blocks)) ** -0.5)
        model.head.weight.mul_(0.02)
        model.head.bias.zero_()
    return model


def text_features(texts: list[str], encoder: TextEncoder) -> TextFeatures:
    """Context of the embedded text encoder ``[P, 16, 192]``; it reads all its places, so none is masked."""
    context, _ = encoder(encode_batch(texts).to(encoder.position.device))
    return TextFeatures(context.float(), torch.ones(context.shape[:2], dtype=torch.bool, device=context.device))


def bit_loss(logits: Tensor, bits: Tensor, schedule: ScaleSchedule = SCHEDULE) -> Tensor:
    """Mean two-way cross-entropy of logits ``[B, S, bits, 2]`` against bits ``[B, S, bits]``.

    Tokens of scale k weigh ``sqrt(L_last / L_k)``, or the last scale alone would take half of the loss.
    """
    lengths = torch.tensor(schedule.lengths, dtype=torch.float32, device=logits.device)
    weight = (lengths[-1] / lengths).sqrt().repeat_interleave(lengths.long())
    # log(1 + exp(-margin)), the margin counted towards the right bit
    margin = (logits[..., 1] - logits[..., 0]) * (2 * bits.float() - 1)
    token = torch.nn.functional.softplus(-margin).mean(-1)
    return (token * (weight / weight.sum())).sum(1).mean()
