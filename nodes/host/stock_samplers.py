"""A SAMPLER of ComfyUI as a plan sees it: its name, whether the kernel has its moves, whether clones of it separate."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import comfy.samplers

from ...samplers.movers import FRESH, JOINT, NEVER
from ...samplers.processes.stock import STOCK, NativeSampler
from ...samplers.protocols import SearchError

# By name, as ComfyUI has them: samplers that draw no noise, and those whose noise can be handed in (``noise_sampler``).
# Samplers of neither kind (of other packs, of newer hosts) are run whole or stopped, and never cloned.
_ODE = frozenset(
    "euler ddim heun heunpp2 dpm_2 lms dpmpp_2m ipndm ipndm_v deis res_multistep gradient_estimation uni_pc uni_pc_bh2 "
    "euler_cfg_pp dpmpp_2m_cfg_pp res_multistep_cfg_pp gradient_estimation_cfg_pp exp_heun_2_x0".split()
)
_SDE = frozenset(
    "euler_ancestral dpm_2_ancestral dpmpp_2s_ancestral dpmpp_sde dpmpp_sde_gpu dpmpp_2m_sde dpmpp_2m_sde_gpu "
    "dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm res_multistep_ancestral er_sde "
    "seeds_2 seeds_3 sa_solver sa_solver_pece exp_heun_2_x0_sde".split()
)
BROWNIAN = frozenset(name for name in _SDE if name.startswith("dpmpp_") and "sde" in name)
"""Samplers whose noise is the increment of one Brownian path, which they may ask for twice over."""
_OWN_STEPS = frozenset(("dpm_fast", "dpm_adaptive"))
# Model calls for a step; all of them take the last step, to 0, with one.
_CALLS = {
    **dict.fromkeys("heun dpm_2 dpm_2_ancestral dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde".split(), 2),
    **dict.fromkeys("dpmpp_sde_gpu seeds_2 sa_solver_pece exp_heun_2_x0 exp_heun_2_x0_sde".split(), 2),
    **dict.fromkeys(("heunpp2", "seeds_3"), 3),
}


@dataclass(frozen=True)
class HostSampler:
    """See ``samplers.movers.StockSampler``.

    Attributes:
        sampler: the SAMPLER.
    """

    name: str
    sampler: Any
    native: NativeSampler | None = None
    clones: str = NEVER
    pauses: bool = True

    @property
    def calls_per_step(self) -> int:
        """See ``samplers.movers.StockSampler``."""
        return _CALLS.get(self.name, 1)

    def calls(self, steps: int) -> int:
        """See ``samplers.movers.StockSampler``."""
        last_two = 1 if self.name == "heunpp2" and steps > 1 else 0  # the step before the last has two
        return self.calls_per_step * (steps - 1) + 1 - last_two


def sampler_named(name: str) -> HostSampler:
    """A sampler from KSampler's list. SearchError for a name that is not in it."""
    if name not in comfy.samplers.KSampler.SAMPLERS:
        raise SearchError(f"sampler_name is {name!r}: this ComfyUI has {', '.join(comfy.samplers.KSampler.SAMPLERS)}")
    return host_sampler(comfy.samplers.sampler_object(name))


def host_sampler(sampler: Any) -> HostSampler:
    """Any SAMPLER."""
    name = _name_of(sampler)
    options = dict(getattr(sampler, "extra_options", {}))
    if name is None:
        function = getattr(sampler, "sampler_function", None)
        told = getattr(inspect.unwrap(function), "__name__", "") if callable(function) else ""
        return HostSampler(told.removeprefix("sample_") or type(sampler).__name__, sampler)
    native = _native(name, options)
    parted = JOINT if name in _ODE and not options else NEVER
    clones = FRESH if name in _SDE else parted
    return HostSampler(name, sampler, native, clones, name not in _OWN_STEPS)


def _name_of(sampler: Any) -> str | None:
    """The name of a stock sampler in KSampler's list, with whatever options; None for others."""
    if type(sampler) is not comfy.samplers.KSAMPLER:
        return None
    function = sampler.sampler_function
    if getattr(function, "__name__", "") in ("dpm_fast_function", "dpm_adaptive_function"):  # made anew every time
        return function.__name__.removesuffix("_function")
    for name in comfy.samplers.KSampler.SAMPLERS:
        stock = comfy.samplers.sampler_object(name)
        if stock.sampler_function is function and stock.inpaint_options == sampler.inpaint_options:
            return name
    return None


def _native(name: str, options: dict[str, Any]) -> NativeSampler | None:
    """The kernel's version, where the options of the object are none that it does not know."""
    if name not in STOCK:
        return None
    plain = {"s_noise": 1.0, "solver_type": "midpoint", "s_churn": 0.0}
    known = all(key == "eta" or plain.get(key) == value for key, value in options.items())
    if not known or ("eta" in options and STOCK[name].eta is None):
        return None
    return NativeSampler(name, STOCK[name].noise_of(options.get("eta")))
