"""Noise schedules: decreasing float32 tensors ``[steps + 1]`` that end with 0."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_linear_sigmas(entries: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """Stable Diffusion's table ``sigma[t] = sqrt((1 - abar_t) / abar_t)``, ascending, float64 ``[entries]``."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, entries, dtype=torch.float64) ** 2
    abar = torch.cumprod(1.0 - betas, 0)
    return ((1.0 - abar) / abar).sqrt()


def sigma_at(timestep: Tensor, table: Tensor) -> Tensor:
    """Sigma at fractional timesteps: log-linear between the table's entries (k-diffusion's discrete schedule)."""
    t = timestep.clamp(0, len(table) - 1)
    low = t.floor().long()
    high = t.ceil().long()
    weight = t - low
    return ((1 - weight) * table[low].log() + weight * table[high].log()).exp()


def timestep_at(sigma: Tensor | float, table: Tensor) -> Tensor:
    """Index of the nearest table entry in log-sigma, as eps-models are conditioned in k-diffusion and ComfyUI."""
    log_sigma = torch.as_tensor(sigma, dtype=torch.float64).log().reshape(-1)
    return (log_sigma[:, None] - table.log()[None]).abs().argmin(1)


def normal_schedule(steps: int, table: Tensor | None = None) -> Tensor:
    """Evenly spaced timesteps from the last table entry to the first, then 0 (ComfyUI's "normal" scheduler)."""
    _check_steps(steps)
    table = scaled_linear_sigmas() if table is None else table
    timesteps = torch.linspace(len(table) - 1, 0, steps, dtype=torch.float64)
    return torch.cat([sigma_at(timesteps, table), torch.zeros(1, dtype=torch.float64)]).float()


def karras(steps: int, sigma_min: float = 0.0292, sigma_max: float = 14.6146, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022, eq. 5."""
    _check_steps(steps)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)]).float()


def flow_schedule(steps: int, shift: float = 1.0) -> Tensor:
    """Evenly spaced s from 1 to 0, shifted by ``shift s / (1 + (shift - 1) s)`` (SD3, eq. 23)."""
    _check_steps(steps)
    s = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * s / (1 + (shift - 1) * s)).float()


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}: it must be at least 1")
