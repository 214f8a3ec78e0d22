"""Finished samples with their rewards, which a value network learns from; kept in files, so that a run can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..samplers.methods import BestOfN
from ..samplers.processes.diffusion import DiffusionProcess
from ..samplers.protocols import SearchError, Verifier
from ..samplers.run.search import run_search

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
    """

    x0: Tensor
    reward: Tensor
    condition: Tensor

    def __len__(self) -> int:
        return len(self.reward)


def collect(
    make_process: MakeProcess,
    verifier: Verifier,
    prompts: Sequence[str],
    count: int,
    folder: Path,
    *,
    batch: int = 64,
    about: dict | None = None,
    progress: Progress = lambda _done, _count: None,
) -> Rollouts:
    """``count`` plain samples of the prompts in turn, judged by ``verifier``.

    Every batch is a file in ``folder``; those that are there already are read, so a run that was stopped goes on.

    Args:
        about: what the samples depend on (model, steps, seed, ...), kept in the files.

    Raises:
        SearchError: files that were collected with another ``about`` or batch.
    """
    if count < 2 or batch < 1:
        raise SearchError(f"images is {count} and batch is {batch}: at least 2 and 1")
    if not prompts:
        raise SearchError("prompts is empty: at least one is needed")
    folder.mkdir(parents=True, exist_ok=True)
    stamp = json.dumps({**(about or {}), "batch": batch, "verifier": verifier.name}, sort_keys=True)
    parts = []
    for first in range(0, count, batch):
        path = folder / f"rollouts-{first:07d}.safetensors"
        if not path.exists():
            chosen = [prompts[i % len(prompts)] for i in range(first, first + batch)]
            save_file(
                _sample(make_process(chosen, first), verifier, chosen), path.with_suffix(".partial"), {"of": stamp}
            )
            path.with_suffix(".partial").replace(path)
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("of") != stamp:
                raise SearchError(f"{path} was collected with other settings: choose another folder, or delete it")
        parts.append(load_file(path))
        progress(min(first + batch, count), count)
    whole = {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}
    return Rollouts(whole["x0"].float(), whole["reward"], whole["condition"].float())


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
