"""A small network for the expected reward of a noisy latent, and its file."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..samplers.protocols import SearchError

LEVELS = 16  # harmonics of the noise level
FORMAT = "testtime-value-1"


@dataclass(frozen=True)
class ValueConfig:
    """Size of a value network and what it was made for.

    Attributes:
        channels: of the latents; their number of features where ``spatial`` is false.
        spatial: latents are ``[channels, h, w]``, of any size; else vectors ``[channels]``.
        condition: width of the prompt embedding, 0 for none.
        width, blocks: channels of the trunk and residual blocks per stage.
    """

    channels: int
    spatial: bool = True
    condition: int = 0
    width: int = 64
    blocks: int = 1

    def __post_init__(self):
        for name in ("channels", "width", "blocks"):
            if getattr(self, name) < 1:
                raise SearchError(f"{name} is {getattr(self, name)}: at least 1 is needed")
        if self.width % 8:
            raise SearchError(f"width is {self.width}: it must be a multiple of 8")


class _Block(nn.Module):
    """A residual block whose channels are scaled and shifted by an embedding ``[n, E]``."""

    def __init__(self, channels: int, embedding: int, spatial: bool):
        super().__init__()
        layer = (
            (lambda: nn.Conv2d(channels, channels, 3, padding=1)) if spatial else lambda: nn.Linear(channels, channels)
        )
        self.norm = nn.GroupNorm(8, channels)
        self.first, self.second = layer(), layer()
        self.film = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding).view(*embedding.shape[:1], -1, *[1] * (x.dim() - 2)).chunk(2, 1)
        h = nn.functional.silu(self.norm(x) * (1 + scale) + shift)
        return x + self.second(nn.functional.silu(self.first(h)))


class ValueNetwork(nn.Module):
    """``(latents, time, condition) -> value``: residual blocks, pooled over the image, modulated by time and prompt.

    States are expected in the linear path's coordinates ``(1 - t) x0 + t eps``, whatever the model's own are, so that a
    network fits every interpolant of its latent space. Buffers carry the scale of latents and rewards.

    Args:
        config: sizes.
        about: what it was trained on, kept in its file: ``model``, ``verifier``, ``explained`` and the like.
    """

    latent_std: Tensor
    reward_mean: Tensor
    reward_std: Tensor

    def __init__(self, config: ValueConfig, about: dict[str, Any] | None = None):
        super().__init__()
        self.config, self.about = config, dict(about or {})
        w, e = config.width, 2 * config.width
        for name, value in (("latent_std", 1.0), ("reward_mean", 0.0), ("reward_std", 1.0)):
            self.register_buffer(name, torch.tensor(value))
        self.level = nn.Sequential(nn.Linear(2 * LEVELS + 2, e), nn.SiLU(), nn.Linear(e, e))
        self.prompt = None
        if config.condition:
            layers = (nn.LayerNorm(config.condition), nn.Linear(config.condition, e), nn.SiLU(), nn.Linear(e, e))
            self.prompt = nn.Sequential(*layers)
        widths = [w, 2 * w, 2 * w] if config.spatial else [2 * w]
        self.entry = _layer(config.channels, widths[0], config.spatial)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.stages = nn.ModuleList(
            nn.ModuleList(_Block(c, e, config.spatial) for _ in range(config.blocks * (1 if config.spatial else 3)))
            for c in widths
        )
        pooled = widths[-1] * (2 if config.spatial else 1)
        self.exit = nn.Sequential(nn.LayerNorm(pooled), nn.Linear(pooled, e), nn.SiLU(), nn.Linear(e, 1))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """Values float32 ``[n]`` in units of the reward's standard deviation around its mean.

        Args:
            x: ``[n, channels, h, w]`` or ``[n, channels]``, ``(1 - t) x0 + t eps``.
            time: ``[n]`` in 0..1.
            condition: ``[n, condition]``, needed if the network has one.
        """
        t = time.view(-1, *[1] * (x.dim() - 1))
        x = x / (((1 - t) * self.latent_std) ** 2 + t * t).sqrt()
        embedding = self.level(_harmonics(time))
        if self.prompt is not None:
            embedding = embedding + self.prompt(condition)
        embedding = nn.functional.silu(embedding)
        h = self.entry(x)
        for i, blocks in enumerate(self.stages):
            h = h if i == 0 else self.downs[i - 1](h)
            for block in blocks.children():
                h = block(h, embedding)
        if h.dim() == 4:
            h = torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1)
        return self.exit(h).squeeze(1)

    def value(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """``forward`` in the units of the reward."""
        return self.reward_mean + self.reward_std * self(x, time, condition)

    def save(self, path: Path) -> None:
        """Write a safetensors file with the configuration in its metadata; an older file is replaced at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": FORMAT, "config": json.dumps(asdict(self.config)), "about": json.dumps(self.about)}
        partial = path.with_name(path.name + ".partial")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, partial, metadata)
        partial.replace(path)


def load_value(path: Path) -> ValueNetwork:
    """Read a file of ``ValueNetwork.save``, frozen. SearchError names a file that is none."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise SearchError(f"{path} cannot be read as a value network: {error}") from error
    if metadata.get("format") != FORMAT:
        raise SearchError(f"{path} is no value network of this pack: make one with `testtime train-value`")
    network = ValueNetwork(ValueConfig(**json.loads(metadata["config"])), json.loads(metadata.get("about", "{}")))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise SearchError(f"{path} is damaged, or of another version: {error}") from error
    return network.eval().requires_grad_(False)


def _layer(inputs: int, outputs: int, spatial: bool) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1) if spatial else nn.Linear(inputs, outputs)


def _harmonics(time: Tensor) -> Tensor:
    """Features ``[n, 2 LEVELS + 2]`` of times in 0..1; the log-ratio resolves what lies near 0 and 1."""
    k = torch.arange(1, LEVELS + 1, device=time.device, dtype=time.dtype) * (math.pi / 2)
    angle = time[:, None] * k
    odds = (time.clamp(1e-3, 1 - 1e-3).logit() / 4)[:, None]
    return torch.cat([angle.sin(), angle.cos(), time[:, None], odds], 1)
