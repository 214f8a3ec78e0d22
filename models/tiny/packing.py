"""Weights files at a byte per number: 8-bit rows with a scale each, for what need not be more exact than that."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE = "#scale"  # no parameter has this in its name
SMALLEST = 4096  # numbers; smaller tensors are not worth the loss


def pack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large matrices as int8 with a float32 scale per row (first dimension), everything else as float16.

    A number moves by at most half a step, 1/254 of its row's largest one.
    """
    packed = {}
    for name, value in state.items():
        if value.dim() < 2 or value.numel() < SMALLEST or not value.is_floating_point():
            packed[name] = value.half().contiguous()
            continue
        rows = value.detach().float().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        packed[name] = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8).view(value.shape)
        packed[name + SCALE] = scale
    return packed


def unpack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ``pack`` packed, in float32; files in float16 pass through unchanged."""
    out = {}
    for name, value in state.items():
        if name.endswith(SCALE):
            continue
        scale = state.get(name + SCALE)
        if scale is not None:
            value = (value.flatten(1).float() * scale[:, None]).view(value.shape)
        out[name] = value
    return out
