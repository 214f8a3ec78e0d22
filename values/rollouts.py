"""Finished samples with their rewards, which a value network learns from; kept in files, so that a run can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..samplers.methods import BestOfN
from ..samplers.processes.diffusion import DiffusionProcess
from ..samplers.protocols import SearchError, Verifier
from ..samplers.run.search import run_search
from .network import ValueConfig, ValueNetwork

# (prompts of a batch, number of its first image) -> a process with one group per prompt
MakeProcess = Callable[[Sequence[str], int], DiffusionProcess]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Rollouts:
    """Finished samples.

    Attributes:
        x0: ``[n, ...]`` clean latents in the model's scale.
        reward: float32 ``[n]``.
        condition: ``[n, W]`` prompt embeddings, W = 0 for none.
        prompt: int64 ``[n]``, the number of each sample's prompt; left out, all have one prompt.
    """

    x0: Tensor
    reward: Tensor
    condition: Tensor
    prompt: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if len(self.prompt) != len(self.reward):
            object.__setattr__(self, "prompt", torch.zeros(len(self.reward), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.reward)

    def of(self, rows: Tensor) -> Rollouts:
        """The samples of ``rows``."""
        return Rollouts(self.x0[rows], self.reward[rows], self.condition[rows], self.prompt[rows])

    def new_network(self, width: int, blocks: int, about: dict[str, Any]) -> ValueNetwork:
        """An untrained network for these samples, with their scales; SearchError for shapes it cannot read."""
        if self.x0.dim() not in (2, 4):
            raise SearchError(f"latents have shape {list(self.x0.shape[1:])}: [channels, h, w] or [channels] is needed")
        config = ValueConfig(self.x0.shape[1], self.x0.dim() == 4, self.condition.shape[1], width, blocks)
        network = ValueNetwork(config, about)
        network.latent_std.fill_(float(self.x0.std()))
        network.rewarded_as(self.reward)
        return network

    def states(self, rows: Tensor, times: Tensor, generator: torch.Generator) -> tuple[Tensor | None, ...]:
        """What the network is asked: samples of ``rows`` noised to ``times`` ``[n]`` in 0..1, times, embeddings."""
        x0 = self.x0[rows]
        t = times.view(-1, *[1] * (x0.dim() - 1))
        x = (1 - t) * x0 + t * torch.randn(x0.shape, generator=generator)
        return x, times, self.condition[rows] if self.condition.shape[1] else None


def collect(
    make_process: MakeProcess,
    verifier: Verifier,
    prompts: Sequence[str],
    count: int,
    folder: Path,
    *,
    batch: int = 64,
    per_prompt: int = 1,
    about: dict | None = None,
    progress: Progress = lambda _done, _count: None,
) -> Rollouts:
    """``count`` plain samples of the prompts in turn, ``per_prompt`` of each in a row, judged by ``verifier``.

    Every batch is a file in ``folder``; those that are there already are read, so a run that was stopped goes on.

    Args:
        about: what the samples depend on (model, steps, seed, ...), kept in the files.

    Raises:
        SearchError: files that were collected with another ``about`` or batch.
    """

    def sample(chosen: Sequence[str], first: int) -> dict[str, Tensor]:
        return _sample(make_process(chosen, first), verifier, chosen)

    whole, numbers = batches(sample, verifier, prompts, count, folder, batch, per_prompt, about, progress)
    return Rollouts(whole["x0"].float(), whole["reward"], whole["condition"].float(), numbers)


def batches(
    sample: Callable[[Sequence[str], int], dict[str, Tensor]],
    verifier: Verifier,
    prompts: Sequence[str],
    count: int,
    folder: Path,
    batch: int,
    per_prompt: int,
    about: dict | None,
    progress: Progress,
) -> tuple[dict[str, Tensor], Tensor]:
    """(tensors of ``count`` samples, number of each one's prompt), batch by batch from files or from ``sample``."""
    if count < 2 or batch < 1:
        raise SearchError(f"images is {count} and batch is {batch}: at least 2 and 1")
    if per_prompt < 1:
        raise SearchError(f"per_prompt is {per_prompt}: at least 1 is needed")
    if not prompts:
        raise SearchError("prompts is empty: at least one is needed")
    folder.mkdir(parents=True, exist_ok=True)
    many = {"per_prompt": per_prompt} if per_prompt > 1 else {}
    stamp = json.dumps({**(about or {}), **many, "batch": batch, "verifier": verifier.name}, sort_keys=True)
    numbers = torch.arange(-(-count // batch) * batch) // per_prompt % len(prompts)
    parts = []
    for first in range(0, count, batch):
        path = folder / f"rollouts-{first:07d}.safetensors"
        if not path.exists():
            chosen = [prompts[i] for i in numbers[first : first + batch].tolist()]
            save_file(sample(chosen, first), path.with_suffix(".partial"), {"of": stamp})
            path.with_suffix(".partial").replace(path)
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("of") != stamp:
                raise SearchError(f"{path} was collected with other settings: choose another folder, or delete it")
        parts.append(load_file(path))
        progress(min(first + batch, count), count)
    whole = {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}
    return whole, numbers[:count]


def _sample(process: DiffusionProcess, verifier: Verifier, prompts: Sequence[str]) -> dict[str, Tensor]:
    """One plain sample per prompt, as tensors for a file."""
    with torch.no_grad():
        result = run_search(BestOfN(1), process, verifier, prompts)
        condition = process.prompt_embedding(torch.arange(len(prompts)))
        condition = torch.empty(len(prompts), 0) if condition is None else condition
    bad = int((~torch.isfinite(result.scores)).sum())
    if bad:
        raise SearchError(f"verifier {verifier.name!r} gave {bad} scores that are not finite: nothing to learn from")
    return {
        "x0": result.latents.detach().cpu().float().contiguous(),
        "reward": result.scores.float(),
        "condition": torch.empty(len(prompts), 0)
        if condition is None
        else condition.detach().cpu().float().contiguous(),
    }
