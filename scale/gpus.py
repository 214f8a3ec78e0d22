"""GPUs for workers of this machine."""

from __future__ import annotations

import os
from dataclasses import replace

from ..installation.comfyui import HeadlessOptions


def gpu_names() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [name.strip() for name in allowed.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def gpu_environment(number: int) -> dict[str, str]:
    """Variables that give worker ``number`` a GPU of its own; none where there is at most one."""
    names = gpu_names()
    return {"CUDA_VISIBLE_DEVICES": names[number % len(names)]} if len(names) > 1 else {}


def on_gpu(options: HeadlessOptions, number: int) -> HeadlessOptions:
    """The options with a GPU of its own for worker ``number``; unchanged where there is at most one."""
    return replace(options, environment=(*options.environment, *gpu_environment(number).items()))
