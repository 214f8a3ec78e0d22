"""The TTGen benchmark: what it measures, its curves, its Frechet distance."""

from __future__ import annotations

import pytest
import torch

from testtime.bench.embeddings import frechet
from testtime.bench.results_files import load_results
from testtime.bench.runner import groups_of, measure
from testtime.bench.suite import ROWS
from testtime.bench.ttgen import TTGenSettings, TTGenSuite, main
from testtime.models.tiny.loading import missing_weights

needs_weights = pytest.mark.skipif(
    bool(missing_weights(["diffusion", "autoencoder", "text_encoder"])), reason="no weights here"
)


def test_injection_steps_are_the_papers_and_keys_are_unique():
    suite = TTGenSuite()
    rows = suite.rows()
    assert [r.search.injection_step for r in rows if r.part == "injection"] == [5, 10, 20, 30, 50]
    assert [r.search.interval for r in rows if r.part == "interval"] == [1, 2, 5]
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        row.search.check_settings()
    assert set(suite.three_samplings()) == {"ttgen", "direct", "worst"}
    assert suite.three_samplings()["ttgen"].search.particles == 1


@pytest.mark.slow
def test_the_main_setting_is_measured_once_for_all_tables():
    suite = TTGenSuite()
    together = [[row.method for row in rows] for rows in groups_of(suite.rows(), suite) if len(rows) > 1]
    assert together == [["ttgen", "until step 20", "every step"]]


def test_frechet_distance_of_known_sets():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    assert frechet(first, first) == pytest.approx(0.0, abs=1e-6)
    other = 2 * torch.randn(20_000, 3, generator=generator, dtype=torch.float64) + torch.tensor([3.0, 0.0, 0.0])
    # |difference of means|^2 + sum (s1 - s2)^2 of independent coordinates
    assert frechet(first, other) == pytest.approx(9 + 3, rel=0.03)


@pytest.mark.slow
@needs_weights
def test_curves_have_a_value_per_step_and_the_order_of_the_choices():
    suite = TTGenSuite(TTGenSettings(steps=3, rewrites=2, prompts_per_task=1, injection=0.7))
    three = suite.three_samplings()
    prompts = suite.prompts(three["ttgen"])[:2]
    shown = {name: suite.curve(row, prompts, 16) for name, row in three.items()}
    assert {len(values["shapes_preference"]) for values in shown.values()} == {4}
    first = {name: values["shapes_preference"][0] for name, values in shown.items()}
    assert first["worst"] <= first["direct"] <= first["ttgen"]


@pytest.mark.slow
@needs_weights
def test_rows_know_what_the_rewriter_cost(tmp_path):
    suite = TTGenSuite(TTGenSettings(steps=2, rewrites=1, prompts_per_task=1, injection=1.0))
    row = suite.three_samplings()["worst"]
    prompts = suite.prompts(row)
    found = measure(suite, row, prompts[:2], 0, 16)
    figures = suite.more_figures(row, found)
    assert len(found) == 2 == len(found.features) and figures["rewriter_calls_per_image"] > 0 < figures["frechet"]
    path = tmp_path / "ttgen.json"
    arguments = ["--steps", "2", "--rewrites", "1", "--prompts-per-task", "1", "--injection", "1"]
    arguments += ["--parts", ROWS, "interval", "--methods", "plain", "ttgen", "--out", str(path)]
    assert main(arguments) == 0
    results = load_results(path)
    main_row = results.row("ttgen", 2)
    (copied,) = (r for r in results.parts["interval"] if r["method"] == "every step")
    assert copied == {**main_row, "method": "every step"}  # measured once
    assert results.row("plain", 1)["rewriter_calls_per_image"] == 0 < main_row["rewriter_calls_per_image"]


def test_equal_cost_is_read_off_the_lines_between_budgets():
    def row(method, budget, seconds, overall):
        figures = {"overall": overall, "reward": 2 * overall, "held_out": 0.5}
        costs = {"nfe_per_image": 100.0 * budget, "seconds_per_image": seconds}
        return {"method": method, "budget": budget, **costs, **figures}

    rows = [row("plain", 1, 1.0, 0.2), row("best_of_n", 4, 4.0, 0.6), row("svdd", 2, 3.0, 0.5)]
    rows += [row("ttgen", 2, 4.0, 0.7)]
    found = {(entry["equal"], entry["method"]): entry for entry in TTGenSuite().derived(rows)["equal"]}
    assert found["NFE", "TTGen"]["overall"] == 0.7 and found["NFE", "TTGen"]["cost"] == 200.0
    # 200 passes lie half-way between 100 and 400 on a logarithmic axis.
    assert found["NFE", "Best-of-N"]["overall"] == pytest.approx(0.4)
    assert found["NFE", "Best-of-N"]["reward"] == pytest.approx(0.8)
    assert found["NFE", "SVDD"]["overall"] == 0.5 and found["seconds", "Best-of-N"]["overall"] == 0.6
    assert ("seconds", "SVDD") not in found  # 4 s are more than SVDD was measured with
