"""Regression of rewards on unfinished samples: what minimises the squared error is ``E[r(x0) | x_t]``, the value.

SVDD-MC (Li et al. 2024, arXiv 2408.08252, section 5): the rewards of finished samples are the targets, the samples
noised to random levels the inputs. Noise is drawn anew for every batch, so one sample teaches all levels.

A search compares candidates of one prompt, so what matters is the difference from the prompt's mean; about half of the
variance of scores lies between prompts and is worth nothing to it. Where prompts have several samples, the error is
therefore split: differences from the prompt's mean count in full, the mean's own error by ``BETWEEN``. Both have the
same minimiser. What the network is good for is told by ``ranks``, its rank correlation within a prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from ..samplers.protocols import SearchError
from .network import ScaledToRewards

CHECKED_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
GROUP = 8  # samples of one prompt in a batch, at most
BETWEEN = 0.1  # weight of the error of a prompt's mean

# (step, steps, mean squared error of the latest batches in units of the reward's variance)
Progress = Callable[[int, int, float], None]


class Samples(Protocol):
    """Finished samples, and how they are shown unfinished: ``rollouts.Rollouts``, ``scalewise.ScaleRollouts``.

    Attributes:
        reward: float32 ``[n]``. prompt: int64 ``[n]``, the number of each sample's prompt.
    """

    @property
    def reward(self) -> Tensor:
        """See the class."""
        ...

    @property
    def prompt(self) -> Tensor:
        """See the class."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def of(self, rows: Tensor) -> Any:
        """The samples of ``rows``."""

    def new_network(self, width: int, blocks: int, about: dict[str, Any]) -> Any:
        """An untrained network for them."""

    def states(self, rows: Tensor, times: Tensor, generator: torch.Generator) -> tuple[Tensor | None, ...]:
        """Arguments of the network: samples unfinished to ``times`` ``[n]``, 1 = nothing is decided, 0 = finished."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a value network is trained.

    Attributes:
        steps, batch, learning_rate: of AdamW, with a short rise and a cosine fall of the rate.
        weight_decay: of AdamW.
        width, blocks: see ``ValueConfig``.
        held_out: share of the samples that is only looked at, in (0, 1).
        save_every: steps between checkpoints.
        seed: of start values, batches and noise.
    """

    steps: int = 4000
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    width: int = 64
    blocks: int = 1
    held_out: float = 0.1
    save_every: int = 250
    seed: int = 0

    def check(self) -> None:
        """Raise SearchError for settings that cannot work."""
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise SearchError(f"{name} is {getattr(self, name)}: at least 1 is needed")
        if not self.learning_rate > 0:
            raise SearchError(f"learning_rate is {self.learning_rate}: it must be > 0")
        if not 0.0 < self.held_out < 1.0:
            raise SearchError(f"held_out is {self.held_out}: a share between 0 and 1")


def train(
    data: Samples,
    settings: TrainingSettings,
    folder: Path,
    *,
    about: dict | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda _step, _steps, _error: None,
) -> Any:
    """Train on ``data`` and write ``folder/value.safetensors``; goes on from ``folder/checkpoint.pt`` if there is one.

    A run that was stopped and goes on gives the same network as one that was not: batches and noise are functions of
    the seed and the step.

    Raises:
        SearchError: settings or data that cannot work, or a checkpoint of other settings.
    """
    settings.check()
    if len(data) < 2:
        raise SearchError(f"{len(data)} samples are too few: at least 2 are needed")
    kept, taught = split(data, settings.held_out)
    network, optimiser = _fresh(data, settings, about or {}, device)
    checkpoint = folder / "checkpoint.pt"
    first = _resume(checkpoint, network, optimiser, settings) if checkpoint.exists() else 0
    groups = groups_of(taught)
    smooth = math.nan
    network.train()
    for step in range(first, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings.steps)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        rows, group = batch_of(groups, len(taught), settings.batch, generator)
        times = torch.rand(len(rows), generator=generator)
        loss = centred(_errors(network, taught, rows, times, generator, device), group.to(device))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        latest = loss.item()
        smooth = latest if math.isnan(smooth) else 0.98 * smooth + 0.02 * latest
        progress(step + 1, settings.steps, smooth)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            _save(checkpoint, network, optimiser, settings, step + 1)
    network.eval().requires_grad_(False)
    network.about["explained"] = explained(network, kept, device)
    network.about["ranks"] = ranks(network, kept, device)
    network.save(folder / "value.safetensors")
    return network


def held_out_prompts(data: Samples, share: float) -> list[int]:
    """Numbers of the prompts that are only looked at, none where there is one only."""
    numbers = data.prompt.unique().tolist()
    return numbers[: max(1, round(len(numbers) * share))] if len(numbers) > 1 else []


def split(data: Samples, share: float) -> tuple[Any, Any]:
    """(held out, taught): whole prompts where there are several, or the network would have seen their mean."""
    numbers = held_out_prompts(data, share)
    if numbers:
        held = torch.isin(data.prompt, torch.tensor(numbers))
    else:
        held = torch.arange(len(data)) < max(1, round(len(data) * share))
    return data.of(held.nonzero().flatten()), data.of((~held).nonzero().flatten())


def groups_of(data: Samples) -> list[Tensor]:
    """Rows of every prompt; none where all samples have one prompt or every one its own."""
    numbers = data.prompt.unique()
    if len(numbers) in (1, len(data)):
        return []
    return [(data.prompt == number).nonzero().flatten() for number in numbers]


def batch_of(groups: list[Tensor], count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rows, number of each row's group in the batch): prompts by chance, up to ``GROUP`` samples of each.

    Without ``groups`` any of ``count`` rows, each a group of its own.
    """
    if not groups:
        return torch.randint(count, (size,), generator=generator), torch.arange(size)
    rows: list[Tensor] = []
    taken = 0
    while taken < size:
        members = groups[int(torch.randint(len(groups), (1,), generator=generator))]
        chosen = members[torch.randint(len(members), (min(GROUP, len(members)),), generator=generator)]
        rows.append(chosen[: size - taken])
        taken += len(rows[-1])
    return torch.cat(rows), torch.arange(len(rows)).repeat_interleave(torch.tensor([len(part) for part in rows]))


def centred(error: Tensor, group: Tensor) -> Tensor:
    """Squared ``error`` ``[n]``: differences from the mean of a group in full, means of several by ``BETWEEN``."""
    number = int(group.max()) + 1
    size = torch.zeros(number, device=error.device).index_add(0, group, torch.ones_like(error))
    mean = torch.zeros(number, device=error.device).index_add(0, group, error) / size
    weight = torch.where(size > 1, BETWEEN, 1.0)
    return (error - mean[group]).square().mean() + (weight[group] * mean[group].square()).mean()


@torch.no_grad()
def explained(network: ScaledToRewards, data: Samples, device: torch.device | str = "cpu") -> dict[str, float]:
    """Share of the reward's variance that the value explains at some noise levels: {time: 1 - error / variance}.

    Near 1 at little noise means that the network can read the reward off an image, near 0 at much noise that the noise
    has not decided anything yet. It counts what a prompt alone tells: see ``ranks`` for what a search has of it.
    """
    network.eval()
    variance = float(data.reward.var(unbiased=False)) / float(network.reward_std) ** 2
    found = {}
    for time in CHECKED_TIMES:
        error = _checked(network, data, time, device).square().mean()
        found[str(time)] = round(1.0 - float(error) / variance, 4) if variance > 0 else 0.0
    return found


@torch.no_grad()
def ranks(network: ScaledToRewards, data: Samples, device: torch.device | str = "cpu") -> dict[str, float]:
    """Rank correlation (Spearman) of value and reward within a prompt: {time: mean over prompts of 3 and more samples}.

    A network that knows only the prompt has 0. Empty where no prompt has enough samples.
    """
    network.eval()
    groups = [(data.prompt == number).nonzero().flatten() for number in data.prompt.unique()]
    groups = [rows for rows in groups if len(rows) >= 3 and data.reward[rows].std() > 0]
    found = {}
    for time in CHECKED_TIMES if groups else ():
        value = _checked(network, data, time, device) + _target(network, data.reward)
        each = [
            float(spearmanr(value[rows], data.reward[rows]).statistic)
            for rows in groups
            if len(value[rows].unique()) > 1
        ]
        found[str(time)] = round(sum(each) / len(groups), 4)
    return found


def _checked(network: ScaledToRewards, data: Samples, time: float, device: torch.device | str) -> Tensor:
    """Errors ``[n]`` of all samples at one time, with noise that is the same every time."""
    generator = torch.Generator().manual_seed(1)
    parts = torch.arange(len(data)).split(256)
    return torch.cat([_errors(network, data, p, torch.full((len(p),), time), generator, device).cpu() for p in parts])


def _target(network: ScaledToRewards, reward: Tensor) -> Tensor:
    return (reward - network.reward_mean.to(reward.device)) / network.reward_std.to(reward.device)


def _errors(network: ScaledToRewards, data: Samples, rows: Tensor, times: Tensor, generator, device) -> Tensor:
    """Value minus reward ``[n]`` of unfinished samples, in units of the reward's standard deviation."""
    arguments = [None if part is None else part.to(device) for part in data.states(rows, times, generator)]
    return network(*arguments) - _target(network, data.reward[rows].to(device))


def _fresh(data: Samples, settings: TrainingSettings, about: dict, device):
    """A new network with the data's scales, and its optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = data.new_network(
            settings.width, settings.blocks, {**about, "samples": len(data), "training": asdict(settings)}
        )
    network.to(device)
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in network.parameters():
        (decay if parameter.dim() > 1 else rest).append(parameter)
    groups = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return network, torch.optim.AdamW(groups, lr=settings.learning_rate)


def _rate(step: int, steps: int) -> float:
    """Rises over the first 2 % of the steps, then falls along a cosine."""
    rise = max(1, steps // 50)
    return min(1.0, (step + 1) / rise) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _save(path: Path, network: nn.Module, optimiser, settings: TrainingSettings, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    body = {"step": step, "settings": json.dumps(asdict(settings)), "network": network.state_dict()}
    torch.save({**body, "optimiser": optimiser.state_dict()}, partial)
    partial.replace(path)


def _resume(path: Path, network: nn.Module, optimiser, settings: TrainingSettings) -> int:
    """Load a checkpoint; returns the number of steps that are done."""
    body = torch.load(path, map_location="cpu", weights_only=True)
    if body["settings"] != json.dumps(asdict(settings)):
        raise SearchError(f"{path} was trained with other settings ({body['settings']}): choose another folder")
    try:
        network.load_state_dict(body["network"])
    except RuntimeError as error:
        raise SearchError(f"{path} is of a network of another shape: choose another folder") from error
    optimiser.load_state_dict(body["optimiser"])
    return int(body["step"])
