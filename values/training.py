"""Regression of rewards on noised samples: what minimises the squared error is ``E[r(x0) | x_t]``, the value.

SVDD-MC (Li et al. 2024, arXiv 2408.08252, section 5): the rewards of finished samples are the targets, the samples
noised to random levels the inputs. Noise is drawn anew for every batch, so one sample teaches all levels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..samplers.protocols import SearchError
from .network import ValueConfig, ValueNetwork
from .rollouts import Rollouts

CHECKED_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)

# (step, steps, mean squared error of the latest batches in units of the reward's variance)
Progress = Callable[[int, int, float], None]


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
    data: Rollouts,
    settings: TrainingSettings,
    folder: Path,
    *,
    about: dict | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda _step, _steps, _error: None,
) -> ValueNetwork:
    """Train on ``data`` and write ``folder/value.safetensors``; goes on from ``folder/checkpoint.pt`` if there is one.

    A run that was stopped and goes on gives the same network as one that was not: batches and noise are functions of
    the seed and the step.

    Raises:
        SearchError: settings or data that cannot work, or a checkpoint of other settings.
    """
    settings.check()
    held = max(1, round(len(data) * settings.held_out))
    if len(data) - held < 1:
        raise SearchError(f"{len(data)} samples are too few: at least 2 are needed")
    network, optimiser = _fresh(data, settings, about or {}, device)
    checkpoint = folder / "checkpoint.pt"
    first = _resume(checkpoint, network, optimiser, settings) if checkpoint.exists() else 0
    taught = Rollouts(data.x0[held:], data.reward[held:], data.condition[held:])
    smooth = math.nan
    network.train()
    for step in range(first, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings.steps)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        rows = torch.randint(len(taught), (settings.batch,), generator=generator)
        times = torch.rand(settings.batch, generator=generator)
        loss = _error(network, taught, rows, times, generator, device).mean()
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
    kept = Rollouts(data.x0[:held], data.reward[:held], data.condition[:held])
    network.about["explained"] = explained(network, kept, device)
    network.save(folder / "value.safetensors")
    return network


@torch.no_grad()
def explained(network: ValueNetwork, data: Rollouts, device: torch.device | str = "cpu") -> dict[str, float]:
    """Share of the reward's variance that the value explains at some noise levels: {time: 1 - error / variance}.

    Near 1 at little noise means that the network can read the reward off an image, near 0 at much noise that the noise
    has not decided anything yet.
    """
    network.eval()
    variance = float(data.reward.var(unbiased=False)) / float(network.reward_std) ** 2
    found = {}
    for time in CHECKED_TIMES:
        generator, total = torch.Generator().manual_seed(1), 0.0
        for rows in torch.arange(len(data)).split(256):
            times = torch.full((len(rows),), time)
            total += float(_error(network, data, rows, times, generator, device).sum())
        found[str(time)] = round(1.0 - total / len(data) / variance, 4) if variance > 0 else 0.0
    return found


def _error(network: ValueNetwork, data: Rollouts, rows: Tensor, times: Tensor, generator, device) -> Tensor:
    """Squared errors ``[n]`` on noised samples, in units of the reward's variance."""
    x0 = data.x0[rows]
    t = times.view(-1, *[1] * (x0.dim() - 1))
    x = (1 - t) * x0 + t * torch.randn(x0.shape, generator=generator)
    condition = data.condition[rows].to(device) if network.config.condition else None
    target = (data.reward[rows].to(device) - network.reward_mean) / network.reward_std
    return (network(x.to(device), times.to(device), condition) - target).square()


def _fresh(data: Rollouts, settings: TrainingSettings, about: dict, device):
    """A new network with the data's scales, and its optimiser."""
    spatial = data.x0.dim() == 4
    if data.x0.dim() not in (2, 4):
        raise SearchError(f"latents have shape {list(data.x0.shape[1:])}: [channels, h, w] or [channels] is needed")
    config = ValueConfig(data.x0.shape[1], spatial, data.condition.shape[1], settings.width, settings.blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = ValueNetwork(config, {**about, "samples": len(data), "training": asdict(settings)})
    network.latent_std.fill_(float(data.x0.std()))
    network.reward_mean.fill_(float(data.reward.mean()))
    network.reward_std.fill_(max(float(data.reward.std()), 1e-6))
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


def _save(path: Path, network: ValueNetwork, optimiser, settings: TrainingSettings, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    body = {"step": step, "settings": json.dumps(asdict(settings)), "network": network.state_dict()}
    torch.save({**body, "optimiser": optimiser.state_dict()}, partial)
    partial.replace(path)


def _resume(path: Path, network: ValueNetwork, optimiser, settings: TrainingSettings) -> int:
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
