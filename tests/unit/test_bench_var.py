"""The benchmark of next-scale models, on untrained networks."""

from __future__ import annotations

import json

import pytest
import torch

from testtime.bench import var
from testtime.bench.agreement import Agreement, agreements, copies
from testtime.bench.results_files import load_results
from testtime.bench.runner import measure
from testtime.models.tiny.text_encoder import TextEncoder
from testtime.models.tiny.var import SCHEDULE, new_transformer, new_vae
from testtime.models.tiny.var_pipeline import VarFamily, VarSettings, var_process
from testtime.samplers.protocols import SearchError


@pytest.fixture(scope="module")
def family():
    torch.manual_seed(0)
    parts = [part.eval().requires_grad_(False) for part in (new_transformer(), new_vae(), TextEncoder())]
    return VarFamily(*parts)


@pytest.mark.slow
def test_rows_add_up_and_are_not_measured_twice(family, tmp_path, monkeypatch):
    monkeypatch.setattr(var, "load_var_family", lambda: family)
    out = tmp_path / "shapes-var.json"
    arguments = ["--prompts-per-task", "1", "--budgets", "1", "2", "--methods", "plain", "best_of_n", "tts_var"]
    arguments += ["--parts", "rows", "--out", str(out)]
    assert var.main(arguments) == 0
    results = load_results(out)
    assert results.cost == "gflop_per_image" and not results.about_reward
    assert {(r["method"], r["budget"]) for r in results.rows} == {
        ("plain", 1), ("tts_var", 1), ("best_of_n", 2), ("tts_var", 2),
    }  # fmt: skip
    plain, both = results.row("plain", 1), results.row("best_of_n", 2)
    assert plain["nfe_per_image"] == 2 * len(SCHEDULE) and both["nfe_per_image"] == 4 * len(SCHEDULE)
    # Images that are judged are decoded: one for plain sampling as well.
    assert both["gflop_per_image"] == pytest.approx(2 * plain["gflop_per_image"], abs=0.02)  # two digits each
    populations = [8, 8, 6, 4, 2, 2, 1, 1]
    assert results.row("tts_var", 1)["nfe_per_image"] == 2 * sum(populations)
    first, second = results.parts["equal"]  # N = 2, and all decodes counted, cost more than two images
    assert first["against"] == "TTS-VAR, N = 1" and first["equal"] == "GFLOP without decoding"
    assert first["cost"] == results.row("tts_var", 1)["drawing_gflop_per_image"]
    assert (first["method"], second["method"]) == ("TTS-VAR", "Best-of-N")
    before = out.read_text()
    assert var.main(arguments) == 0
    assert out.read_text() == before


@pytest.mark.slow
def test_agreements_end_at_one_and_name_their_sizes(family):
    from testtime.shapes_world.suite import suite
    from testtime.verifiers.registry import create

    judge = create("shapes_preference")
    settings = var.VarBenchSettings()

    def process_of(prompt, number):
        return var_process([prompt.text], settings.sampling(number), family)

    consistency, previews = agreements(suite(1, 5)[:3], process_of, SCHEDULE, judge, var.SIDES, particles=3)
    assert [entry["side"] for entry in consistency] == [1, 2, 3, 4, 5, 6, 8, 8]
    assert consistency[-1]["best_is_the_same"] == 1.0
    assert consistency[-1]["rank_correlation"] == pytest.approx(1.0)
    spread = [entry["spread_of_copies"] for entry in consistency]
    assert spread[-1] == 0.0 and all(value > 0 for value in spread[:-1])
    assert all(-1 <= entry["rank_correlation"] <= 1 for entry in [*consistency, *previews])
    assert {(p["preview_side"], p["scale"]) for p in previews} == {(side, k) for side in (4, 6) for k in range(7)}
    assert {p["decode_cost"] for p in previews} == {0.25, 0.5625}


def test_copies_share_what_was_drawn_before(family):
    """The scales up to the copy are those of the particle; the last one alone makes the difference after it."""
    process = var_process(["a red star"], VarSettings(), family)
    late, early = (copies(process, scale, 3).x for scale in (6, 0))
    alone = process.start(1)
    for _ in range(process.steps):
        alone, _ = process.advance(alone)
    assert torch.allclose(late[0], alone.x[0], atol=1e-4)  # the first keeps its stream
    assert 0 < float((late[1] - late[0]).std()) < float((early[1] - early[0]).std())


def test_agreement_of_the_same_order_is_one():
    found = Agreement()
    found.add(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.1, 0.3, 0.9]))
    found.add(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.0, 1.0, 2.0]))
    found.add(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 1.0, 0.0]))  # no order: not counted
    assert found.figures() == {"best_is_the_same": 0.6667, "rank_correlation": 0.0}


def test_ablations_are_valid_searches(family):
    from testtime.verifiers.registry import create

    judge = create("shapes_preference")
    for name, search in var.ablations(var.VarBenchSettings()).items():
        search.check(var_process(["a red star"], VarSettings(), family), judge)
        assert search.particles in (2, 16), name
    assert json.dumps(sorted(var.ablations(var.VarBenchSettings())))


def test_prompts_are_needed(family):
    with pytest.raises(SearchError, match="prompts is empty"):
        var_process([], VarSettings(), family)


@pytest.mark.slow
def test_ablations_see_fewer_prompts_and_reduced_networks_agree(family, monkeypatch):
    monkeypatch.setattr(var, "load_var_family", lambda: family)
    settings = var.VarBenchSettings(
        prompts_per_task=2, ablation_prompts_per_task=1, precision="bfloat16", preview_side=4
    )
    assert settings.sampling(3, 8) == VarSettings(3.0, 1.0, 0.97, 0, 8, 4, 3)
    suite = var.Var(settings)
    (row,) = (row for row in suite.rows() if row.method == "as it is")
    prompts = suite.prompts(row)
    assert len(prompts) == 6 and len(suite.prompts(suite.rows()[0])) == 12
    made = measure(suite, row, prompts[:2], 0, 64).row(prompts[:2])
    assert len(made["verdicts"]) == 2 and made["gflop_per_image"] > made["drawing_gflop_per_image"] > 0
    codes = torch.randn(2, 16, 8, 8).sign()
    reduced, full = var.ReducedVae(family.vae).decode(codes), family.vae.decode(codes)
    assert reduced.dtype == torch.float32 and float((reduced - full).abs().mean()) < 0.02
