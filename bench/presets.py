"""The methods of the benchmark at a given budget, with the settings that the README recommends."""

from __future__ import annotations

from ..samplers.method import SearchMethod
from ..samplers.methods.registry import METHODS as EVERY

COMPARED = ("best_of_n", "importance_sampling", "svdd", "smc", "das", "fk")
METHODS: dict[str, type[SearchMethod]] = {
    "plain": EVERY["best_of_n"].method,
    **{key: EVERY[key].method for key in COMPARED},
}
"""Classes of the compared methods, by key; plain sampling is Best-of-N with one particle."""


def search_for(method: str, budget: int) -> SearchMethod:
    """The search that spends ``budget`` times the forward passes of plain sampling.

    N particles of a lockstep method cost N plain samples. SVDD with M candidates costs ``1 + (T - 1) M`` denoiser
    calls, a little under M plain samples.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: choose one of {', '.join(METHODS)}")
    if budget < 1:
        raise ValueError(f"budget is {budget}: at least 1 (plain sampling)")
    kind = METHODS[method]
    return kind(**{kind.width: 1 if method == "plain" else budget})
