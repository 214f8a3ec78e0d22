"""The Infinity transformer: text and coarser scales in, two logits per bit of the next scale out.

One network serves the released checkpoints and the embedded tiny model. Two ways through it: ``forward`` takes all
scales at once under a block-causal mask (training, tests), ``step`` one scale with a cache (sampling).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import CacheLayout, KVSlice
from .blocks import Block, plain_norm
from .config import InfinityConfig
from .rope import rotary_table
from .schedules import ScaleSchedule
from .text import AttentivePool, RMSNorm, TextFeatures, without_text


@dataclass(frozen=True)
class Prompt:
    """Everything that a step needs of the prompts, computed once. Rows are prompts, then branches.

    Attributes:
        pooled: ``[P, branches, C]`` pooled text, float32; branch 0 has the text, branch 1 has none.
        shared: ``[P, branches, 1, 6, C]`` modulation that all blocks share, float32.
        text: per layer ``[P, branches, 2, heads, T, head_dim]`` keys and values of the text.
        mask: bool ``[P, branches, T]``, or None where all rows have the same length.
    """

    pooled: Tensor
    shared: Tensor
    text: list[Tensor]
    mask: Tensor | None

    @property
    def branches(self) -> int:
        """2 with an unconditional branch, else 1."""
        return self.pooled.shape[1]

    def conditional(self) -> Prompt:
        """The same without the unconditional branch."""
        mask = None if self.mask is None else self.mask[:, :1]
        return Prompt(self.pooled[:, :1], self.shared[:, :1], [layer[:, :1] for layer in self.text], mask)

    def rows(self, index: Tensor) -> PromptRows:
        """Prompt ``index[k]`` for particle k of a chunk, int64 ``[n]``."""
        return PromptRows(self, index)


@dataclass(frozen=True)
class PromptRows:
    """The prompts of a chunk of particles, ``R = n * branches`` rows, branches of a particle side by side."""

    prompt: Prompt
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def take(self, x: Tensor) -> Tensor:
        """``[P, branches, ...]`` -> ``[R, ...]``."""
        if len(x) == 1:  # one prompt for all: nothing is looked up, and with one branch nothing is copied
            return x.expand(len(self), *x.shape[1:]).flatten(0, 1)
        return x[self.index.to(x.device)].flatten(0, 1)

    def mask(self) -> Tensor | None:
        """Attention mask ``[R, 1, 1, T]``, or None where all prompts have one length."""
        return None if self.prompt.mask is None else self.take(self.prompt.mask)[:, None, None]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of one scale.

    Attributes:
        scale: 1 = none; mixes ``scale * conditional + (1 - scale) * unconditional``.
        layers: where: 0 = at the logits, -n = at the output of the n-th block from the end. Several may be given.
    """

    scale: float = 1.0
    layers: tuple[int, ...] = (0,)


UNGUIDED = Guidance()


class Infinity(nn.Module):
    """Next-scale transformer (Han et al. 2024, section 3).

    Args:
        config: sizes.
        linear: class of the blocks' linear layers (a host's own, so that it can stream their weights).
    """

    def __init__(self, config: InfinityConfig, linear: type[nn.Linear] = nn.Linear):
        super().__init__()
        self.config = config
        width = config.width
        self.empty_text = nn.Parameter(torch.randn(config.text_length, config.text_width) / config.text_width**0.5)
        self.start = nn.Parameter(torch.randn(width) / (3 * width) ** 0.5)
        self.text_norm = RMSNorm(config.text_width)
        self.pool = AttentivePool(config.text_width, width, config.pool_heads)
        self.text_in = nn.Linear(config.text_width, width)
        self.text_out = nn.Linear(width, width)
        self.levels = nn.Embedding(config.levels, width)
        self.word = nn.Linear(config.bits, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config, linear) for _ in range(config.depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 2 * config.bits)
        self._rotary: dict[tuple[ScaleSchedule, str], tuple[Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.start.device

    def cast(self, dtype: torch.dtype) -> Infinity:
        """Compute the blocks' layers in ``dtype`` (what lies outside stays float32, as the published code has it)."""
        for block in self.blocks:
            for layer in (block.self_attention, block.cross_attention, block.feed_forward):
                for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
                    linear.to(dtype)
        return self

    def compile_blocks(self, **options) -> Infinity:
        """Compile the blocks with ``torch.compile``, once for all of them and for every scale (sizes are dynamic).

        Args:
            options: of ``torch.compile``, such as ``backend``.
        """
        for block in self.blocks:
            block.compile(dynamic=True, **options)
        return self

    def layout(self, branches: int) -> CacheLayout:
        """Layout of a cache for ``branches`` rows per particle."""
        c = self.config
        return CacheLayout(c.depth, branches, c.heads, c.head_dim, self.blocks[0].dtype, self.device)

    def prompt(self, text: TextFeatures, guided: bool = True, negative: TextFeatures | None = None) -> Prompt:
        """Prepare prompts.

        Args:
            text: P prompts.
            guided: add the unconditional branch.
            negative: what stands in the unconditional branch instead of no text; P prompts, or one for all.

        Raises:
            ValueError: a prompt longer than the model takes, or negative prompts that do not match in number.
        """
        count = len(text)
        rows = text
        if guided:
            other = without_text(text, self.empty_text) if negative is None else negative
            if len(other) not in (1, count):
                raise ValueError(f"{len(other)} negative prompts for {count} prompts: give one, or one for each")
            if len(other) == 1 and count > 1:
                other = TextFeatures(other.features.expand(count, -1, -1), other.mask.expand(count, -1))
            rows = TextFeatures.cat([text, other])
        features, mask = rows.features.to(self.device, torch.float32), rows.mask.to(self.device)
        if features.shape[1] > self.config.text_length:
            raise ValueError(
                f"a prompt has {features.shape[1]} tokens: this model takes {self.config.text_length} at most"
            )
        features = self.text_norm(features)
        pooled = self.pool(features, mask)
        context = self.text_out(F.gelu(self.text_in(features), approximate="tanh"))
        shared = self.modulation(F.silu(pooled)).view(len(pooled), 1, 6, -1)
        projected = [block.cross_attention.project(context.to(block.dtype)) for block in self.blocks]

        def by_prompt(x: Tensor) -> Tensor:  # [branches * P, ...] -> [P, branches, ...]
            return x.view(-1, count, *x.shape[1:]).transpose(0, 1)

        mask = None if bool(mask.all()) else by_prompt(mask)
        return Prompt(by_prompt(pooled), by_prompt(shared), [by_prompt(layer) for layer in projected], mask)

    def rotary(self, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[S, head_dim / 2]`` of a schedule, kept."""
        key = (schedule, str(self.device))
        if key not in self._rotary:
            table = rotary_table(schedule, self.config.head_dim)
            self._rotary[key] = tuple(part.to(self.device) for part in table)
        return self._rotary[key]

    def step(
        self,
        codes: Tensor | None,
        rows: PromptRows,
        schedule: ScaleSchedule,
        scale: int,
        cache: KVSlice | None,
        guidance: Guidance = UNGUIDED,
    ) -> Tensor:
        """Logits of one scale for a chunk of n particles.

        Args:
            codes: ``[n, L, bits]`` input of the scale (the codes so far, resized to its grid), None at scale 0.
            rows: ``Prompt.rows`` of the chunk.
            schedule, scale: which grid, 0-based.
            cache: the chunk's slice of the cache; None for a first scale that nothing will attend to.
            guidance: with a scale other than 1 the prompt needs both branches.

        Returns:
            ``[n, L, bits, 2]`` float32, the two logits of every bit, guided.
        """
        prompt, branches = rows.prompt, rows.prompt.branches
        if guidance.scale != 1 and branches != 2:
            raise ValueError(f"cfg is {guidance.scale} but the prompt was prepared without its unconditional branch")
        pooled, shared, mask = rows.take(prompt.pooled), rows.take(prompt.shared), rows.mask()
        words = None if codes is None else self.word(codes.float()).repeat_interleave(branches, 0)
        x = (pooled + self.start)[:, None] if words is None else words
        x = x + self.levels.weight[scale].float()
        first = schedule.offsets[scale]
        rotary = tuple(part[first : first + x.shape[1]] for part in self.rotary(schedule))
        mixed = {len(self.blocks) + layer for layer in guidance.layers if layer < 0 and guidance.scale != 1}
        for i, block in enumerate(self.blocks):
            kept = None if cache is None else cache.layer(i)
            x = block(x, shared, (rows.take(prompt.text[i]), mask), rotary, kept)
            if i in mixed:
                x = self._mix(x, guidance.scale).repeat_interleave(2, 0)
        if guidance.scale != 1 and 0 in guidance.layers:
            logits = self._mix(self._logits(x, pooled), guidance.scale)
        else:
            logits = self._logits(x[::branches], pooled[::branches])
        return logits.unflatten(-1, (-1, 2))

    def forward(self, codes: Tensor, text: TextFeatures, schedule: ScaleSchedule) -> Tensor:
        """All scales at once: every token sees the tokens of its own scale and of coarser ones.

        Args:
            codes: ``[B, S - 1, bits]`` inputs of scales 1 .. K - 1, one after another.
            text: B prompts (rows without text are the caller's business, see ``without_text``).
            schedule: the scales.

        Returns:
            ``[B, S, bits, 2]`` logits.
        """
        rows = self.prompt(text, guided=False).rows(torch.arange(len(codes)))
        prompt = rows.prompt
        pooled, shared, mask = rows.take(prompt.pooled), rows.take(prompt.shared), rows.mask()
        level = torch.arange(len(schedule), device=codes.device)
        level = level.repeat_interleave(torch.tensor(schedule.lengths, device=codes.device))
        x = torch.cat([(pooled + self.start)[:, None], self.word(codes.float())], 1) + self.levels(level)
        visible = level[:, None] >= level[None]
        for i, block in enumerate(self.blocks):
            x = block(x, shared, (rows.take(prompt.text[i]), mask), self.rotary(schedule), mask=visible)
        return self._logits(x, pooled).unflatten(-1, (-1, 2))

    def _logits(self, x: Tensor, pooled: Tensor) -> Tensor:
        """Head: ``[R, L, C]`` and pooled text ``[R, C]`` -> ``[R, L, 2 bits]`` float32."""
        scale, shift = self.head_modulation(F.silu(pooled)).view(len(pooled), 1, 2, -1).unbind(2)
        return self.head(torch.addcmul(shift, plain_norm(x), scale + 1))

    @staticmethod
    def _mix(x: Tensor, scale: float) -> Tensor:
        """Guided mixture ``[n, ...]`` of rows ``[2 n, ...]``."""
        return scale * x[0::2] + (1 - scale) * x[1::2]
