"""Every method on every kind of model, through Search KSampler: what comes out is what was judged, at the cost told."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import DAS, SMC, SVDD, BestOfN, FKSteering, ImportanceSampling
from testtime.samplers.smc.tempering import Alpha

from .conftest import channels_of, judged, watched

pytestmark = pytest.mark.host

KINDS = ["eps", "v", "sd3", "flux"]
SHARP = Alpha(0.5, "relative")


def make(name: str, n: int = 3):
    """A method by its test id, with selections at every step of a short schedule."""
    always = {"alpha": SHARP, "start": 0.0, "end": 1.0, "every": 1}
    family, _, rest = name.partition("-")
    return {
        "best_of_n": lambda: BestOfN(n),
        "importance": lambda: ImportanceSampling(n, **always),
        "svdd": lambda: SVDD(n, alpha=SHARP if rest == "soft" else None),
        "smc": lambda: SMC(n, tempering=rest, ess_threshold=1.5, **always),
        "das": lambda: DAS(n, gradient_through=rest, ess_threshold=1.5, guidance=0.1, **always),
        "fk": lambda: FKSteering(n, potential=rest, **always),
    }[family]()


UNGUIDED = ["importance", "svdd-greedy", "svdd-soft", "smc-adaptive", "smc-exponential"]
UNGUIDED += ["fk-diff", "fk-max", "fk-rt", "fk-sum"]
GUIDED = ["das-denoiser", "das-decoder"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["best_of_n", *UNGUIDED, *GUIDED])
def test_results_are_what_was_judged_at_the_cost_told(setup, search_ksampler, name, kind):
    given = setup(kind, batch=2)
    given.model, rows = watched(given.model)
    # Both settings of guidance for every method and every model, half of the pairs.
    cfg = 1.0 if (len(name) + KINDS.index(kind)) % 2 else 2.0
    out = search_ksampler(given, make(name), cfg=cfg, steps=3)
    assert out.best["samples"].shape == (2, channels_of(kind), 8, 8)
    assert torch.isfinite(out.finalists["samples"]).all()
    assert out.scores.group == [0, 0, 0, 1, 1, 1]
    assert out.scores.values == pytest.approx(judged(given, out.finalists).tolist(), abs=2e-5)
    for image in range(2):
        first = out.scores.group.index(image)
        mine = [value for value, group in zip(out.scores.values, out.scores.group, strict=True) if group == image]
        ranked = mine[1:] if name == "svdd-soft" else mine  # which draws its winner
        assert ranked == sorted(ranked, reverse=True)
        assert torch.equal(out.best["samples"][image], out.finalists["samples"][first])
    ledger = out.trace.meta["ledger"]
    # Checkpointing runs the forward pass again inside the backward pass.
    assert sum(rows) == ledger["nfe"] + ledger["backward"]
    if not name.startswith("svdd"):
        assert ledger["nfe"] == 2 * 3 * 3 * (1 if cfg == 1.0 else 2)
    # Three steps leave one early choice, which is warned of; nothing else may be.
    assert [said for said in out.trace.meta["warnings"] if " decides " not in said] == []
    guided = any(entry["gradient_scale"] > 0 for record in out.trace.records for entry in record.particles)
    assert guided == (name in GUIDED)
    assert (ledger["backward"] > 0) == (name == "das-denoiser")
