"""A small network for the expected reward of an unfinished next-scale image.

It is told the scale and reads the prompt's text *states*, not their mean: a mean cannot say which colour goes with
which shape.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, cat, nn

from ..samplers.protocols import SearchError
from .network import LEVELS, Block, ScaledToRewards, harmonics, layer, save_network

FORMAT = "testtime-scale-value-1"
HEADS = 4


@dataclass(frozen=True)
class ScaleValueConfig:
    """Size of a network and what it was made for.

    Attributes:
        channels: of the code maps, of any size. scales: of the schedule. text: width of the text states.
        width, blocks: channels of the trunk and residual blocks per stage.
    """

    channels: int
    scales: int
    text: int
    width: int = 64
    blocks: int = 1

    def __post_init__(self) -> None:
        for name in ("channels", "scales", "text", "width", "blocks"):
            if getattr(self, name) < 1:
                raise SearchError(f"{name} is {getattr(self, name)}: at least 1 is needed")
        if self.width % 8:
            raise SearchError(f"width is {self.width}: it must be a multiple of 8")


class ScaleValueNetwork(ScaledToRewards):
    """``(code maps, scale, text states, mask) -> value``: residual blocks, cells that read the prompt, pooling."""

    def __init__(self, config: ScaleValueConfig, about: dict[str, Any] | None = None):
        super().__init__()
        self.config, self.about = config, dict(about or {})
        w = 2 * config.width
        self.level = nn.Sequential(nn.Linear(2 * LEVELS + 2, w), nn.SiLU(), nn.Linear(w, w))
        self.entry = layer(config.channels, w, True)
        self.stages = nn.ModuleList(nn.ModuleList(Block(w, w, True) for _ in range(config.blocks)) for _ in range(2))
        self.cells, self.words = nn.LayerNorm(w), nn.Sequential(nn.LayerNorm(config.text), nn.Linear(config.text, w))
        self.reading = nn.MultiheadAttention(w, HEADS, batch_first=True)
        self.exit = nn.Sequential(nn.LayerNorm(3 * w), nn.Linear(3 * w, w), nn.SiLU(), nn.Linear(w, 1))

    def forward(self, maps: Tensor, scale: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Values float32 ``[n]`` in units of the reward's standard deviation around its mean.

        Args:
            maps: ``[n, channels, H, W]`` after ``scale`` ``[n]``, from 0.
            text: ``[n, T, text]``. mask: bool ``[n, T]``, True where there is a token.
        """
        drawn = (scale.float() + 1) / self.config.scales
        embedding = nn.functional.silu(self.level(harmonics(drawn)))
        # Code maps are sums of vectors of length 1, one a scale.
        h = self.entry(maps * (self.config.channels**0.5 / (scale.float() + 1).sqrt().view(-1, 1, 1, 1)))
        h = self._blocks(0, h, embedding)
        words = self.words(text)
        cells = h.flatten(2).transpose(1, 2)
        read, _ = self.reading(self.cells(cells), words, words, key_padding_mask=~mask, need_weights=False)
        h = self._blocks(1, h + read.transpose(1, 2).unflatten(2, h.shape[2:]), embedding)
        said = (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.exit(cat([h.mean((2, 3)), h.amax((2, 3)), said], 1)).squeeze(1)

    def _blocks(self, stage: int, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self.stages[stage].children():
            h = block(h, embedding)
        return h

    def value(self, *arguments: Tensor) -> Tensor:
        """``forward`` in the units of the reward."""
        return self.reward_mean + self.reward_std * self(*arguments)

    def save(self, path: Path) -> None:
        """Write a safetensors file with the configuration in its metadata; an older file is replaced at once."""
        save_network(self, path, FORMAT, asdict(self.config), self.about)
