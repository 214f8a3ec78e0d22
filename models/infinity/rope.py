"""Rotary position embedding in two dimensions, in coordinates that all scales share."""

from __future__ import annotations

import torch
from torch import Tensor

from .schedules import ScaleSchedule

BASE = 10000.0


def rotary_table(schedule: ScaleSchedule, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for all tokens of a schedule, each float32 ``[S, head_dim / 2]``.

    A token at row i of h and column j of w sits at ``round(i H / h), round(j W / w)`` of the reference grid (H, W),
    halves to even. The first half of the angles turns with the row, the second with the column. The scale itself is
    not encoded: that is what the level embedding is for.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim is {head_dim}: rotary embedding in two dimensions needs a multiple of 4")
    half = head_dim // 2
    frequency = BASE ** -(torch.arange(0, half, 2, dtype=torch.float32) / half)
    angles = []
    for h, w in schedule.grids:
        rows = (torch.arange(h) * (schedule.reference[0] / h)).round()
        columns = (torch.arange(w) * (schedule.reference[1] / w)).round()
        by_row = torch.outer(rows, frequency)[:, None].expand(h, w, -1)
        by_column = torch.outer(columns, frequency)[None].expand(h, w, -1)
        angles.append(torch.cat([by_row, by_column], -1).reshape(h * w, half))
    angle = torch.cat(angles)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels of ``x`` ``[..., L, head_dim]`` by angles ``[..., L, head_dim / 2]``.

    All are float32. A factor on ``cos`` and ``sin`` also scales ``x``. As a product of complex numbers this reads and
    writes once.
    """
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
