"""Next-scale models: what methods say they cost is what the ledger counts, forward pass by forward pass."""

from __future__ import annotations

import pytest

from testtime.samplers.methods import SMC, SVDD, BeamSearch, BestOfN, FKSteering, RandomSearch
from testtime.samplers.run.search import run_search

from . import scale_world
from .test_seeds import small_tts_var

SEARCHES = [
    BestOfN(3),
    RandomSearch(4),
    RandomSearch(5, (0.3, 0.6)),
    SMC(3),
    FKSteering(3, every=1),
    SVDD(3),
    SVDD(2, block=3),
    SVDD(3, start=0.5),
    BeamSearch(2, 2),
    BeamSearch(2, 3, auto=True),
    small_tts_var(),
]


@pytest.mark.parametrize("search", SEARCHES)
def test_cost_is_what_the_ledger_counts(search):
    process = scale_world.process(scale_world.networks(), groups=2, seed=5)
    result = run_search(search, process, scale_world.Brightness(), ["p", "q"])
    assert result.ledger.nfe == 2 * process.nfe_per_call * search.denoiser_calls(process)
