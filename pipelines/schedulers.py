"""What a diffusers scheduler says about its model: the noise path, the schedule, and the clock of the network.

Only parameterisations are taken from a scheduler; the moves themselves are the kernel's. Schedulers of one model differ
in how they integrate, never in what the network's output means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..samplers.processes.kernel import VE, Flow, Interpolant
from ..samplers.protocols import SearchError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SMALLEST_ABAR = 2.0**-24  # schedules rescaled to zero terminal SNR end at abar = 0, i.e. at an infinite sigma


@dataclass(frozen=True)
class Parameterisation:
    """How a network's output is read.

    Attributes:
        interpolant: ``Flow()``, or ``VE()`` for models of a beta schedule (states ``x0 + sigma eps``).
        prediction: "flow", or one of ``PREDICTIONS``.
        table: sigma of every training timestep, ascending float64; empty for flows.
        timesteps: number of training timesteps.
    """

    interpolant: Interpolant
    prediction: str
    table: Tensor
    timesteps: int

    @classmethod
    def of(cls, scheduler: Any) -> Parameterisation:
        """Read a scheduler. SearchError for parameterisations that the kernel does not describe."""
        config, name = scheduler.config, type(scheduler).__name__
        prediction = config.get("prediction_type", "epsilon")
        timesteps = int(config.get("num_train_timesteps", 1000))
        if "FlowMatch" in name or prediction == "flow_prediction":
            return cls(Flow(), "flow", torch.empty(0, dtype=torch.float64), timesteps)
        abar = getattr(scheduler, "alphas_cumprod", None)
        if abar is None or "EDM" in name:
            raise SearchError(
                f"scheduler is {name}: searches need a flow-matching scheduler or one with a beta schedule "
                f"(DDIM, Euler, DPM-Solver, ...)"
            )
        if prediction not in PREDICTIONS:
            raise SearchError(f"the scheduler's prediction_type is {prediction!r}: one of {', '.join(PREDICTIONS)}")
        abar = abar.detach().cpu().double().clamp(min=SMALLEST_ABAR)
        return cls(VE(), prediction, ((1.0 - abar) / abar).sqrt(), timesteps)

    def schedule(self, scheduler: Any) -> Tensor:
        """Sigmas ``[T + 1]`` of a scheduler whose timesteps are set, distinct, decreasing, ending with 0."""
        if self.prediction == "flow":
            values = scheduler.sigmas.detach().cpu().double().tolist()
        else:
            values = [self.sigma(float(t)) for t in scheduler.timesteps]
        kept: list[float] = []
        for value in values:  # second-order schedulers visit every level twice
            if value > 0.0 and (not kept or value < kept[-1]):
                kept.append(value)
        if not kept:
            raise SearchError(f"the scheduler gave no noise levels (timesteps {list(scheduler.timesteps)[:4]} ...)")
        return torch.tensor([*kept, 0.0], dtype=torch.float64)

    def sigma(self, timestep: float) -> float:
        """Noise level at a (fractional) timestep; log-linear between those of the training."""
        if self.prediction == "flow":
            return timestep / self.timesteps
        low = min(max(int(timestep), 0), len(self.table) - 1)
        high = min(low + 1, len(self.table) - 1)
        share = min(max(timestep - low, 0.0), 1.0)
        return math.exp((1 - share) * math.log(float(self.table[low])) + share * math.log(float(self.table[high])))

    def timestep(self, sigma: float) -> float:
        """What the network is told at ``sigma``: the inverse of ``sigma(timestep)``, an exact integer at a level."""
        if self.prediction == "flow":
            return sigma * self.timesteps
        above = int(torch.searchsorted(self.table, torch.tensor(sigma, dtype=torch.float64)))
        if above <= 0 or above >= len(self.table):
            return float(min(max(above, 0), len(self.table) - 1))
        low, high = math.log(float(self.table[above - 1])), math.log(float(self.table[above]))
        timestep = above - 1 + (math.log(sigma) - low) / (high - low)
        nearest = round(timestep)
        return float(nearest) if abs(timestep - nearest) < 1e-6 else timestep

    def network_scale(self, sigma: float) -> float:
        """Factor between a state and what the network sees."""
        return 1.0 if self.prediction == "flow" else 1.0 / math.sqrt(1.0 + sigma * sigma)

    def clean(self, x: Tensor, output: Tensor, sigma: float) -> Tensor:
        """``x0`` from a state ``x`` and the network's output at it."""
        if self.prediction == "sample":
            return output
        if self.prediction == "v_prediction":
            return x / (1.0 + sigma * sigma) - output * (sigma / math.sqrt(1.0 + sigma * sigma))
        return x - sigma * output  # epsilon and flow velocity alike


class OneStep:
    """A scheduler with a single step, which gives the clean estimate: with it a pipeline's call *is* a denoiser.

    Everything a pipeline asks its scheduler for is here; what it gets from ``step`` is ``x0``.

    Args:
        config: the configuration of the pipeline's own scheduler, which pipelines read.
        parameterisation: see above.
        x: float32 states ``[n, ...]`` that the call is made with, kept at full precision whatever the pipeline's own.
        sigma: their noise level.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Any, parameterisation: Parameterisation, x: Tensor, sigma: float):
        self.config, self._reading, self._x, self._sigma = config, parameterisation, x, sigma
        self.timesteps = torch.tensor([parameterisation.timestep(sigma)], dtype=torch.float32, device=x.device)
        self.sigmas = torch.tensor([sigma, 0.0], device=x.device)
        self.result: Tensor | None = None

    def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None, sigmas=None, mu=None, **more):
        """Nothing to do: the one step is set."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Nothing to do."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network sees of (copies of) the states."""
        return sample * self._reading.network_scale(self._sigma)

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **more):
        """The clean estimate, also kept as ``result``."""
        self.result = self._reading.clean(self._x, model_output.to(self._x.dtype), self._sigma)
        return (self.result.to(sample.dtype),)

    def __len__(self) -> int:
        return self._reading.timesteps
