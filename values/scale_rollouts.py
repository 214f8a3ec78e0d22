"""Finished next-scale images, kept as bits: they give back the state after every scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.infinity import bits as codes
from ..models.infinity.process import ScalewiseProcess
from ..models.infinity.schedules import ScaleSchedule
from ..models.infinity.text import TextFeatures
from ..samplers.protocols import SearchError, Verifier
from .rollouts import Progress, batches
from .scale_network import ScaleValueConfig, ScaleValueNetwork

# (prompts of a batch, number of its first image) -> a process with one group per prompt
MakeScalewise = Callable[[Sequence[str], int], ScalewiseProcess]


@dataclass(frozen=True)
class ScaleRollouts:
    """Finished next-scale images.

    Attributes:
        schedule: grids of all of them. fold: code cells along a token's side.
        bits: uint8 ``[n, tokens, bits]`` of all scales.
        reward: float32 ``[n]``. prompt: int64 ``[n]``, number of each image's prompt.
        text: states of the prompts, one row per number.
    """

    schedule: ScaleSchedule
    fold: int
    bits: Tensor
    reward: Tensor
    prompt: Tensor
    text: TextFeatures

    def __len__(self) -> int:
        return len(self.reward)

    def of(self, rows: Tensor) -> ScaleRollouts:
        """The images of ``rows``."""
        return ScaleRollouts(self.schedule, self.fold, self.bits[rows], self.reward[rows], self.prompt[rows], self.text)

    def code_maps(self, rows: Tensor, scale: int) -> Tensor:
        """Code maps float32 ``[n, d, H, W]`` after ``scale``."""
        h, w = (self.fold * side for side in self.schedule.grids[-1])
        total = torch.zeros(len(rows), self.bits.shape[2] // self.fold**2, h, w)
        offsets = self.schedule.offsets
        for k in range(scale + 1):
            total = codes.add_scale(
                total, self.bits[rows, offsets[k] : offsets[k + 1]], self.schedule.grids[k], self.fold
            )
        return total

    def new_network(self, width: int, blocks: int, about: dict[str, Any]) -> ScaleValueNetwork:
        """An untrained network for these images."""
        channels = self.bits.shape[2] // self.fold**2
        config = ScaleValueConfig(channels, len(self.schedule), self.text.features.shape[2], width, blocks)
        network = ScaleValueNetwork(config, about)
        network.rewarded_as(self.reward)
        return network

    def states(self, rows: Tensor, times: Tensor, generator: torch.Generator) -> tuple[Tensor | None, ...]:
        """Arguments of the network: code maps, scales, text states and their mask.

        ``times`` in 0..1 run backwards over the scales before the last, whose images are judged, not valued.
        """
        last = len(self.schedule) - 2
        scale = (last - (times * (last + 1)).long()).clamp(0, last)
        maps = torch.empty(0)
        for k in scale.unique().tolist():
            chosen = (scale == k).nonzero().flatten()
            some = self.code_maps(rows[chosen], k)
            maps = maps if len(maps) else some.new_empty(len(rows), *some.shape[1:])
            maps[chosen] = some
        number = self.prompt[rows]
        return maps, scale, self.text.features[number].float(), self.text.mask[number]


def collect_scalewise(
    make_process: MakeScalewise,
    verifier: Verifier,
    prompts: Sequence[str],
    count: int,
    folder: Path,
    *,
    batch: int = 64,
    per_prompt: int = 4,
    about: dict | None = None,
    progress: Progress = lambda _done, _total: None,
) -> ScaleRollouts:
    """As ``rollouts.collect``, on a next-scale model; files hold bits, a few hundred bytes an image."""

    def sample(chosen: Sequence[str], first: int) -> dict[str, Tensor]:
        process = make_process(chosen, first)
        state, parts = process.start(1), []
        for scale in range(process.steps):
            before = state.x
            state, _ = process.advance(state)
            parts.append(codes.bits_between(before, state.x, process.schedule.grids[scale], process.model.config.fold))
        images = process.preview(process.predict(state), 0)
        score = torch.as_tensor(verifier.score(images, list(chosen)))
        if not bool(torch.isfinite(score).all()):
            raise SearchError(f"verifier {verifier.name!r} gave scores that are not finite: nothing to learn from")
        return {"bits": torch.cat(parts, 1).cpu(), "reward": score.detach().cpu().float()}

    whole, numbers = batches(sample, verifier, prompts, count, folder, batch, per_prompt, about, progress)
    process = make_process(list(prompts), 0)
    text = process.text_states(torch.arange(len(prompts)))
    if text is None:
        raise SearchError("the process has no text states: make it with text=, the prompts' TextFeatures")
    return ScaleRollouts(
        process.schedule, process.model.config.fold, whole["bits"], whole["reward"], numbers, text.to("cpu")
    )
