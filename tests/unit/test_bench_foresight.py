"""One tree of images per prompt that judges all judges and plans: exact statistics, planted trees, a small real one."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from testtime.bench.foresight import (
    COPIES,
    PARTICLES,
    Tree,
    best_of,
    by_plan,
    by_scale,
    decided,
    equal_best_of,
    grow,
    outcome,
)
from testtime.models.tiny.var import SCHEDULE
from testtime.models.tiny.var_pipeline import VarSettings, var_process
from testtime.samplers.methods.population_plan import PopulationPlan, scores_plan
from testtime.samplers.processes.streams import Streams
from testtime.samplers.protocols import Verifier
from testtime.shapes_world.suite import suite

pytestmark = pytest.mark.slow

SCALES = (3, 5)


def planted(share: float, seed: int, noise: float = 0.0, task: str = "colors") -> Tree:
    """Final scores of which ``share`` of the variance is decided at both scales; the verifier sees that with noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    core = share**0.5 * normal(PARTICLES)
    rest = (1 - share) ** 0.5
    final = core + rest * normal(PARTICLES)
    looks = torch.stack([core + noise * normal(PARTICLES) for _ in range(7)] + [final])
    copies = {scale: core[:, None] + rest * normal(PARTICLES, COPIES) for scale in SCALES}
    return Tree(task, looks, final, (final > 1).double(), copies)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_best_of_is_the_mean_over_all_choices(n):
    generator = torch.Generator().manual_seed(n)
    final = torch.randn(16, generator=generator, dtype=torch.float64)
    other = torch.randn(16, generator=generator, dtype=torch.float64)
    chosen = [max(rows, key=lambda row: final[row]) for rows in combinations(range(16), n)]
    assert best_of(final, final, n) == pytest.approx(float(final[chosen].mean()))
    assert best_of(other, final, n) == pytest.approx(float(other[chosen].mean()))
    if n < 16:
        middle = 0.5 * (best_of(final, final, n) + best_of(final, final, n + 1))
        assert best_of(final, final, n + 0.5) == pytest.approx(middle)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_decided_share_is_what_was_planted(share):
    trees = [planted(share, seed) for seed in range(200)]
    assert decided(trees, 3) == pytest.approx(share, abs=0.03)
    row = by_scale(trees, [1, 2, 3, 4, 5, 6, 8, 8])[0]
    assert row["side"] == 4 and row["highest_correlation"] == pytest.approx(share**0.5, abs=0.03)
    # The verifier sees what is decided, so its correlation is the highest possible (ranks: a little lower).
    assert row["verifier"] == pytest.approx(share**0.5, abs=0.05) and row["one_copy"] < row["three_copies"] + 0.02


def test_plans_with_a_perfect_and_a_blind_judge():
    """All is decided: scores over all 16 are Best-of-16. By chance alone two are left."""
    streams = Streams(0)
    known = planted(1.0, 0)
    assert outcome(known, scores_plan(8), 2, "verifier", streams)[0] == pytest.approx(float(known.final.max()))
    only_thinning = PopulationPlan(8, {1: 6, 2: 4, 3: 2, 5: 1}, {})
    found = outcome(known, only_thinning, 2, "oracle 3", streams)[0]
    spread = float(known.final.std())
    assert found == pytest.approx(best_of(known.final, known.final, 2), abs=4 * spread / 300**0.5)


def test_rows_of_plans_compare_with_best_of():
    trees = [planted(0.8, seed, task=("colors", "position")[seed % 2]) for seed in range(40)]
    rows = by_plan(trees, {"scores": scores_plan(8)}, lambda plan, n: (2.16 * n, 1.31 * n))
    assert [row["judge"] for row in rows[:3]] == ["verifier", "oracle 1", "oracle 3"]
    first = rows[0]
    assert first["plan"] == "scores, N = 1" and first["images_drawn"] == 2.16
    assert 2 < first["equals_best_of"] < 8 and first["equal_drawing"].startswith("+")
    means = [sum(float(best_of(t.final, t.final, n)) for t in trees) / 40 for n in (3, 4)]
    assert equal_best_of(trees, sum(means) / 2) == pytest.approx(3.5, abs=0.11)


@pytest.mark.slow
def test_a_real_tree():
    class Red(Verifier):
        name = "red"

        def score(self, images, prompts, context=None):
            return images[..., 0].mean((1, 2)).double()

    prompt = suite(1, 0)[0]
    process = var_process([prompt.text], VarSettings(seed=3))
    tree = grow(process, prompt, Red(), (5,))
    assert tree.looks.shape == (len(SCHEDULE), PARTICLES) and tree.copies[5].shape == (PARTICLES, COPIES)
    assert torch.equal(tree.looks[-1], tree.final)
    assert len(tree.copies[5].unique()) == PARTICLES * COPIES  # every copy draws the later scales by itself
    near = (tree.copies[5] - tree.final[:, None]).abs().mean()
    assert near < (tree.final[:, None] - tree.final[None]).abs().mean()  # and stays near its particle
