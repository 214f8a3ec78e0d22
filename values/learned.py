"""Trained value networks as the ``value_function`` of a search (SVDD-MC, SMC and TTS-VAR with a learned value)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..samplers.protocols import Process, SearchError
from .network import ValueNetwork, format_of, load_network, load_value
from .ranks import caveat_of
from .scale_network import FORMAT as SCALEWISE
from .scale_network import ScaleValueConfig, ScaleValueNetwork


@dataclass(frozen=True)
class LearnedValue:
    """A value network, for any process whose latents have its shape.

    Attributes:
        network: trained.
        verifier: name of the verifier that it stands for, "" if unknown.
    """

    network: ValueNetwork = field(compare=False)
    verifier: str = ""

    @classmethod
    def load(cls, path: Path | str) -> LearnedValue:
        """From a file of `testtime train-value`. SearchError names what is wrong with another file."""
        network = load_value(Path(path))
        return cls(network, str(network.about.get("verifier", "")))

    @property
    def caveat(self) -> str:
        """See ``samplers.values.ValueFunction``."""
        return caveat_of(self.network.about)

    def check(self, process) -> None:
        """Raise SearchError if the network was made for other latents or other prompts than the process has."""
        if process.capabilities.has_code_maps:
            raise SearchError(
                "the value network reads noisy latents, which a next-scale model does not have: train one with "
                "`testtime train-value --model next-scale`"
            )
        config, shape = self.network.config, tuple(process.shape)
        wanted = (config.channels, "h", "w") if config.spatial else (config.channels,)
        if len(shape) != len(wanted) or shape[0] != config.channels:
            trained = f" (trained on {self.network.about['model']})" if self.network.about.get("model") else ""
            raise SearchError(
                f"the value network takes latents [{', '.join(map(str, wanted))}]{trained}, this model's are "
                f"{list(shape)}: train one for this model with `testtime train-value`"
            )
        embedding = process.prompt_embedding(torch.zeros(1, dtype=torch.int64)) if config.condition else None
        if config.condition and (embedding is None or embedding.shape[1] != config.condition):
            has = "none" if embedding is None else f"one of width {embedding.shape[1]}"
            raise SearchError(
                f"the value network takes a prompt embedding of width {config.condition}, this model gives {has}: "
                f"train one for this model with `testtime train-value`"
            )

    def bind(self, process) -> Callable[[Tensor, float, Tensor], Tensor]:
        """``(x [n, ...], sigma, group [n]) -> value [n]`` for a process."""
        self.check(process)
        network = self.network.to(process.device)

        @torch.no_grad()
        def value(x: Tensor, sigma: float, group: Tensor) -> Tensor:
            a, b = process.interpolant.coefficients(sigma)
            time = torch.full((len(x),), b / (a + b), device=x.device)
            condition = None
            if network.config.condition:
                condition = process.prompt_embedding(group).to(x.device, torch.float32)
            return network.value(x.float() / (a + b), time, condition)

        return value


@dataclass(frozen=True)
class LearnedScaleValue:
    """A network as the ``value_function`` of TTS-VAR, SVDD or SMC on a next-scale model; see ``samplers.values``.

    Attributes:
        network: trained. verifier: name of the verifier that it stands for, "" if unknown.
    """

    network: ScaleValueNetwork = field(compare=False)
    verifier: str = ""

    @classmethod
    def load(cls, path: Path | str) -> LearnedScaleValue:
        """From a file of `testtime train-value`. SearchError names what is wrong with another file."""
        network = load_network(
            Path(path), SCALEWISE, lambda config, about: ScaleValueNetwork(ScaleValueConfig(**config), about)
        )
        return cls(network, str(network.about.get("verifier", "")))

    @property
    def caveat(self) -> str:
        """See ``samplers.values.ValueFunction``."""
        return caveat_of(self.network.about)

    def check(self, process: Process) -> None:
        """Raise SearchError if the network was made for other codes, scales or text than the process has."""
        config = self.network.config
        text = process.text_states(torch.zeros(1, dtype=torch.int64)) if process.capabilities.has_code_maps else None
        if text is None:
            raise SearchError(
                f"the value network reads the codes of a next-scale model{self._trained}: this "
                f"{process.capabilities.kind} model has none; train one for it with `testtime train-value`"
            )
        found = (process.shape[0], process.steps, text.features.shape[2])
        wanted = (config.channels, config.scales, config.text)
        if found != wanted:
            names = ("code channels", "scales", "text channels")
            ours, theirs = (", ".join(f"{n} {name}" for n, name in zip(x, names, strict=True)) for x in (wanted, found))
            raise SearchError(
                f"the value network takes {ours}{self._trained}, this model has {theirs}: train one for it with "
                f"`testtime train-value`"
            )

    @property
    def _trained(self) -> str:
        model = self.network.about.get("model")
        return f" (trained on {model})" if model else ""

    def bind(self, process: Process) -> Callable[[Tensor, float, Tensor], Tensor]:
        """``(code maps [n, ...], level, group [n]) -> value [n]`` for a process; ``level`` is one of its ``sigmas``."""
        self.check(process)
        levels = list(process.sigmas)

        @torch.no_grad()
        def value(x: Tensor, level: float, group: Tensor) -> Tensor:
            network = self.network.to(x.device)
            scale = torch.full((len(x),), levels.index(level) - 1, device=x.device)
            text = process.text_states(group)
            if text is None:
                raise SearchError("the model says nothing of its prompts: text states are missing")
            return network.value(x.float(), scale, text.features.to(x.device).float(), text.mask.to(x.device))

        return value


def load_learned(path: Path | str) -> LearnedValue | LearnedScaleValue:
    """A file of `testtime train-value`, of either kind. SearchError names what is wrong with another file."""
    kind = LearnedScaleValue if format_of(Path(path)) == SCALEWISE else LearnedValue
    return kind.load(path)
