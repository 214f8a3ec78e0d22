"""A small network for the expected reward of a noisy latent, and its file."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..samplers.protocols import SearchError

LEVELS = 16  # harmonics of the noise level
FORMAT = "testtime-value-1"
Network = TypeVar("Network", bound=nn.Module)


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


class Block(nn.Module):
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
        """``x`` ``[n, channels, ...]`` under an embedding ``[n, E]``."""
        scale, shift = self.film(embedding).view(*embedding.shape[:1], -1, *[1] * (x.dim() - 2)).chunk(2, 1)
        h = nn.functional.silu(self.norm(x) * (1 + scale) + shift)
        return x + self.second(nn.functional.silu(self.first(h)))


class ScaledToRewards(nn.Module):
    """A network whose answers are in units of the reward's standard deviation around its mean."""

    reward_mean: Tensor
    reward_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("reward_mean", 0.0), ("reward_std", 1.0)):
            self.register_buffer(name, torch.tensor(value))

    def rewarded_as(self, reward: Tensor) -> None:
        """Take mean and spread of ``reward`` ``[n]`` as the scale of the values."""
        self.reward_mean.fill_(float(reward.mean()))
        self.reward_std.fill_(max(float(reward.std()), 1e-6))


class ValueNetwork(ScaledToRewards):
    """``(latents, time, condition) -> value``: residual blocks, pooled over the image, modulated by time and prompt.

    States are expected in the linear path's coordinates ``(1 - t) x0 + t eps``, whatever the model's own are, so that a
    network fits every interpolant of its latent space. Buffers carry the scale of latents and rewards.

    Args:
        config: sizes.
        about: what it was trained on, kept in its file: ``model``, ``verifier``, ``explained`` and the like.
    """

    latent_std: Tensor

    def __init__(self, config: ValueConfig, about: dict[str, Any] | None = None):
        super().__init__()
        self.config, self.about = config, dict(about or {})
        w, e = config.width, 2 * config.width
        self.register_buffer("latent_std", torch.tensor(1.0))
        self.level = nn.Sequential(nn.Linear(2 * LEVELS + 2, e), nn.SiLU(), nn.Linear(e, e))
        self.prompt = None
        if config.condition:
            layers = (nn.LayerNorm(config.condition), nn.Linear(config.condition, e), nn.SiLU(), nn.Linear(e, e))
            self.prompt = nn.Sequential(*layers)
        widths = [w, 2 * w, 2 * w] if config.spatial else [2 * w]
        self.entry = layer(config.channels, widths[0], config.spatial)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(c, e, config.spatial) for _ in range(config.blocks * (1 if config.spatial else 3)))
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
        embedding = self.level(harmonics(time))
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
        save_network(self, path, FORMAT, asdict(self.config), self.about)


def save_network(network: nn.Module, path: Path, kind: str, config: dict[str, Any], about: dict[str, Any]) -> None:
    """Weights with their format, configuration and origin in the metadata of a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": kind, "config": json.dumps(config), "about": json.dumps(about)}
    partial = path.with_name(path.name + ".partial")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, partial, metadata)
    partial.replace(path)


def format_of(path: Path) -> str:
    """What kind of network a file says it holds, "" if nothing. SearchError names a file that cannot be read."""
    with _opened(path) as file:
        return (file.metadata() or {}).get("format", "")


def load_network(path: Path, kind: str, build: Callable[[dict[str, Any], dict[str, Any]], Network]) -> Network:
    """The network of a file, frozen; ``build`` makes one of (config, about). SearchError names a file that is none."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("format") != kind:
        raise SearchError(f"{path} is no value network of this pack: make one with `testtime train-value`")
    network = build(json.loads(metadata["config"]), json.loads(metadata.get("about", "{}")))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise SearchError(f"{path} is damaged, or of another version: {error}") from error
    return network.eval().requires_grad_(False)


def load_value(path: Path) -> ValueNetwork:
    """Read a file of ``ValueNetwork.save``, frozen. SearchError names a file that is none."""
    return load_network(path, FORMAT, lambda config, about: ValueNetwork(ValueConfig(**config), about))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, SearchError):
            raise
        raise SearchError(f"{path} cannot be read as a value network: {error}") from error


def layer(inputs: int, outputs: int, spatial: bool) -> nn.Module:
    """A 3 x 3 convolution, or a linear layer where latents are vectors."""
    return nn.Conv2d(inputs, outputs, 3, padding=1) if spatial else nn.Linear(inputs, outputs)


def harmonics(time: Tensor) -> Tensor:
    """Features ``[n, 2 LEVELS + 2]`` of times in 0..1; the log-ratio resolves what lies near 0 and 1."""
    k = torch.arange(1, LEVELS + 1, device=time.device, dtype=time.dtype) * (math.pi / 2)
    angle = time[:, None] * k
    odds = (time.clamp(1e-3, 1 - 1e-3).logit() / 4)[:, None]
    return torch.cat([angle.sin(), angle.cos(), time[:, None], odds], 1)
