"""What a next-scale image costs, by formula: floating point operations (a multiplication and an addition are two) and
bytes. The formulas count the same operations as torch's FLOP counter and are tested against it.
"""

from __future__ import annotations

from .config import InfinityConfig
from .schedules import ScaleSchedule
from .vae import VaeConfig


def prompt_flops(config: InfinityConfig, tokens: int, branches: int = 2) -> int:
    """Of preparing one prompt of ``tokens`` tokens: pooling, projection, keys and values of all blocks, modulation."""
    c, ct = config.width, config.text_width
    pooling = 4 * tokens * ct * c + 4 * tokens * c + 2 * c * c
    projection = 2 * tokens * (ct * c + c * c)
    blocks = config.depth * 4 * tokens * c * c
    return branches * (pooling + projection + blocks + 12 * c * c)


def scale_flops(
    config: InfinityConfig, schedule: ScaleSchedule, scale: int, text_tokens: int, branches: int = 2
) -> int:
    """Of one scale of one particle.

    Per branch and block, with L new tokens, S tokens so far, T text tokens and width C: 12 L C^2 for the projections,
    4 L C hidden for the feed-forward, 4 L S C for self-attention, 4 L T C for attention to the text.
    """
    c, length, seen = config.width, schedule.lengths[scale], schedule.offsets[scale + 1]
    block = length * (12 * c * c + 4 * c * config.hidden + 4 * seen * c + 4 * text_tokens * c)
    head = 2 * length * c * 2 * config.bits + 4 * c * c
    word = 2 * length * config.bits * c if scale else 0
    return branches * (config.depth * block + head) + word


def image_flops(config: InfinityConfig, schedule: ScaleSchedule, text_tokens: int, branches: int = 2) -> int:
    """Of all scales of one particle and its prompt."""
    scales = sum(scale_flops(config, schedule, k, text_tokens, branches) for k in range(len(schedule)))
    return scales + prompt_flops(config, text_tokens, branches)


def cache_bytes(config: InfinityConfig, tokens: int, branches: int = 2, element: int = 2) -> int:
    """Keys and values of ``tokens`` tokens of one particle; ``element`` is the size of a number in bytes."""
    return branches * 2 * config.depth * tokens * config.width * element


def decode_flops(config: VaeConfig, h: int, w: int) -> int:
    """Of decoding one code map of ``h x w`` codes."""
    widths = [config.base * m for m in config.multipliers]
    area, total = h * w, 0

    def convolution(fan_in: int, fan_out: int, kernel: int = 3) -> int:
        return 2 * area * fan_in * fan_out * kernel * kernel

    def residual(fan_in: int, fan_out: int) -> int:
        shortcut = convolution(fan_in, fan_out, 1) if fan_in != fan_out else 0
        return convolution(fan_in, fan_out) + convolution(fan_out, fan_out) + shortcut

    fan_in = widths[-1]
    total += convolution(config.code_dim, fan_in) + 2 * residual(fan_in, fan_in)
    for level in reversed(range(len(widths))):
        for _ in range(config.blocks + 1):
            total += residual(fan_in, widths[level])
            fan_in = widths[level]
        if level:
            area *= 4
            total += convolution(fan_in, fan_in)
    return total + convolution(fan_in, 3)
