"""The flow benchmark on a handful of prompts: the schema, equal budgets, resuming, the picture."""

from __future__ import annotations

import json

import pytest
import torch

from testtime.bench.flow import METHODS, FlowSuite, diversities, main
from testtime.bench.results_files import load_results
from testtime.models.tiny.loading import WEIGHTS
from testtime.samplers.plan import as_plan
from testtime.samplers.prepare import prepare_on

pytestmark = pytest.mark.skipif(not (WEIGHTS / "flow.safetensors").exists(), reason="the flow model is not there")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "plain"])
def test_every_method_spends_the_budget(method):
    suite = FlowSuite(budgets=(10,))
    (row,) = (row for row in suite.rows() if row.method == method)
    process = suite.process(row, ["two red stars"], 0, 64)
    prepared = prepare_on(as_plan(row.search), process, None, ["two red stars"])
    process = process.variant(sigmas=prepared.sigmas, eta=prepared.eta)
    calls = prepared.plan.method.denoiser_calls(process)
    assert process.sigmas[-1] == 0.0 and process.steps in (25, 24)
    assert 250 * 0.9 < calls <= 250  # 500 forward passes under guidance


def test_what_a_budget_does_not_pay_for_is_left_out_with_a_reason():
    suite = FlowSuite(budgets=(1, 4))
    reasons = {row.key[1:]: suite.cannot(row) for row in suite.rows() if row.method in ("rbf_linear", "best_of_n")}
    assert "needs at least" in reasons["rbf_linear", 1]
    assert not reasons["best_of_n", 1] and not reasons["rbf_linear", 4]


@pytest.mark.slow
def test_rows_have_the_schema_and_are_not_measured_twice(tmp_path, capsys):
    out = tmp_path / "shapes-flow.json"
    arguments = ["--prompts-per-task", "1", "--steps", "3", "--budgets", "3", "--out", str(out)]
    arguments += ["--verifier", "jpeg_compressibility", "--methods", "plain", "best_of_n", "svdd_linear"]
    assert main(arguments) == 0
    results = load_results(out)  # refuses rows without the shared columns
    assert {(row["method"], row["budget"]) for row in results.rows} >= {
        ("plain", 1),
        ("best_of_n", 3),
        ("svdd_linear", 3),
    }
    assert results.settings["verifier"] == "jpeg_compressibility" and results.settings["held_out"] == "shapes_clip"
    for row in results.rows:
        assert set(row["tasks"]) == {"counting", "position"} and len(row["verdicts"]) == 4
        assert row["reward_ci"][0] <= row["reward"] <= row["reward_ci"][1] and 0 <= row["diversity"] <= 2
        assert row["nfe_per_image"] <= row["budget"] * 6 and row["images_per_prompt"] == 2
    before = out.read_text()
    assert main(arguments) == 0
    assert json.loads(out.read_text()) == json.loads(before)
    assert results.about_reward and results.cost == "nfe_per_image"


def test_diversity():
    same, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert diversities(torch.stack([same, same, same, other]), 2) == pytest.approx([0.0, 1.0])
    assert diversities(torch.stack([same, other, -same]), 3) == pytest.approx([(1 + 1 + 2) / 3])
