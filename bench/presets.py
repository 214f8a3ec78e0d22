"""The methods of the benchmark at a given budget, with the settings that the README recommends."""

from __future__ import annotations

from collections.abc import Callable

from ..samplers.method import SearchMethod
from ..samplers.methods import DAS, SMC, SVDD, BestOfN, FKSteering, ImportanceSampling

Preset = Callable[[int, int], SearchMethod]

METHODS: dict[str, Preset] = {
    "plain": lambda budget, steps: BestOfN(particles=1),
    "best_of_n": lambda budget, steps: BestOfN(particles=budget),
    "importance_sampling": lambda budget, steps: ImportanceSampling(particles=budget),
    "svdd": lambda budget, steps: SVDD(candidates=budget),
    "smc": lambda budget, steps: SMC(particles=budget),
    "das": lambda budget, steps: DAS(particles=budget),
    "fk": lambda budget, steps: FKSteering(particles=budget),
}


def search_for(method: str, budget: int, steps: int) -> SearchMethod:
    """The search that spends ``budget`` times the forward passes of plain sampling with ``steps`` steps.

    N particles of a lockstep method cost N plain samples. SVDD with M candidates costs ``1 + (T - 1) M`` denoiser
    calls, a little under M plain samples.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: choose one of {', '.join(METHODS)}")
    if budget < 1:
        raise ValueError(f"budget is {budget}: at least 1 (plain sampling)")
    return METHODS[method](budget, steps)
