"""A trained value network as the ``value_function`` of a search (SVDD-MC, SMC with a learned value)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..samplers.protocols import SearchError
from .network import ValueNetwork, load_value


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

    def check(self, process) -> None:
        """Raise SearchError if the network was made for other latents or other prompts than the process has."""
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
