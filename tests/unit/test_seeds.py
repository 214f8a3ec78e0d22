"""The same seed and settings give the same search as in earlier versions: digests of small runs, method by process.

A digest holds what was decided (who descends from whom by which noise slot, who was selected, who won), which no
rounding of another machine changes; scores are compared with a tolerance beside it. Changes are explained in
CHANGELOG.md, and recorded by ``python -m tests.unit.test_seeds`` from the repository root.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from . import oracles, scale_world
from .searches import SHARP, TARGET, run, searches

RECORDED = Path(__file__).parents[1] / "data" / "seeds.json"
ON_SCALES = ("best_of_n", "importance_sampling", "smc", "fk", "fk_max", "random_search", "tts_var")
METHODS = [name for name in searches(SHARP) if name != "smc_adaptive"]
RUNS = [
    *[(process, name) for process in ("diffusion", "flow") for name in METHODS],
    *[("next-scale", name) for name in ON_SCALES],
]


def digest(trace) -> str:
    """What a search decided, as a short hash."""
    decisions = [
        [
            [record.step, record.phase, entry["id"], entry["parent"], entry["group"], entry["slot"], entry["selected"]]
            for entry in record.particles
        ]
        for record in trace.records
    ]
    return hashlib.sha256(json.dumps(decisions).encode()).hexdigest()[:16]


def measured(process: str, name: str) -> dict:
    """Digest, winners and their scores of one small run."""
    torch.manual_seed(0)  # of nothing that a search may use
    search = searches(SHARP)[name]
    if process == "next-scale":
        search = {**searches(SHARP), "tts_var": small_tts_var()}[name]
        result = run(search, scale_world.Brightness(), scale_world.process(scale_world.networks(), groups=2, seed=5))
    else:
        result = run(search, TARGET, oracles.keyed(flow=process == "flow"))
    return {
        "digest": digest(result.trace),
        "nfe": result.ledger.nfe,
        "winners": [result.particles[result.group.tolist().index(g)] for g in range(2)],
        "scores": [round(float(result.scores[result.group == g][0]), 6) for g in range(2)],
    }


def small_tts_var():
    """A plan for the six scales of the small next-scale model."""
    from testtime.samplers.methods import TTSVAR
    from testtime.samplers.methods.population_plan import PopulationPlan

    return TTSVAR(1, plan=PopulationPlan(4, {}, {2: 3, 4: 2}), strength=10.0)


@pytest.mark.parametrize("process,name", RUNS)
def test_same_seed_same_search(process, name):
    expected = json.loads(RECORDED.read_text(encoding="utf-8"))[f"{name} on {process}"]
    found = measured(process, name)
    scores = expected.pop("scores")
    assert found.pop("scores") == pytest.approx(scores, abs=2e-4)
    assert found == expected


def test_another_seed_is_another_search():
    """The digests can tell: otherwise the test above could not fail."""
    digests = {digest(run(searches(SHARP)["svdd"], TARGET, oracles.keyed(seed=seed)).trace) for seed in (3, 4, 5)}
    assert len(digests) == 3


if __name__ == "__main__":
    rows = {f"{name} on {process}": measured(process, name) for process, name in RUNS}
    RECORDED.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
