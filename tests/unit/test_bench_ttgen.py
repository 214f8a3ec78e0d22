"""The TTGen benchmark: what it measures, the form of its rows, its Frechet distance."""

from __future__ import annotations

import json

import pytest
import torch

from testtime.bench import ttgen as bench
from testtime.bench.results_files import load_results
from testtime.models.tiny.loading import load_family, missing_weights
from testtime.shapes_world.suite import suite
from testtime.verifiers.registry import create


def test_injection_steps_are_the_papers_and_keys_are_unique():
    found = bench.cases(bench.TTGenBench())
    assert [case.search.injection_step for case in found["injection"]] == [5, 10, 20, 30, 50]
    assert [case.search.interval for case in found["interval"]] == [1, 2, 5]
    for part in found.values():
        keys = [(case.method, case.budget) for case in part]
        assert len(set(keys)) == len(keys)
        for case in part:
            case.search.check_settings()
    assert set(bench.three_samplings(bench.TTGenBench())) == {"ttgen", "direct", "worst"}
    assert bench.three_samplings(bench.TTGenBench())["ttgen"].search.particles == 1


def test_frechet_distance_of_known_sets():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    assert bench.frechet(first, first) == pytest.approx(0.0, abs=1e-6)
    other = 2 * torch.randn(20_000, 3, generator=generator, dtype=torch.float64) + torch.tensor([3.0, 0.0, 0.0])
    # |difference of means|^2 + sum (s1 - s2)^2 of independent coordinates
    assert bench.frechet(first, other) == pytest.approx(9 + 3, rel=0.03)


@pytest.mark.skipif(bool(missing_weights(["diffusion", "autoencoder", "text_encoder"])), reason="no weights here")
def test_rows_are_what_the_tables_read(tmp_path):
    settings = bench.TTGenBench(steps=3, rewrites=2, prompts_per_task=1, injection=0.7)
    prompts, judges = suite(1, 0)[:2], (create("shapes_clip"), create("shapes_preference"))
    found = {case.method: case for case in bench.cases(settings)["main"]}
    rows = []
    for name in ("plain", "svdd_reprompted", "ttgen_worst"):
        measured = bench.measure(found[name], prompts, settings, 16, judges, load_family())
        assert len(measured.images) == len(measured.verdicts) == 2
        rows.append(bench.row(found[name], measured, prompts))
    assert rows[0]["rewriter_calls_per_image"] == 0 < rows[2]["rewriter_calls_per_image"]
    path = tmp_path / "ttgen.json"
    path.write_text(json.dumps({"settings": {}, "rows": rows}))
    assert load_results(path).methods == ["plain", "ttgen_worst", "svdd_reprompted"]
    shown = bench.curves(prompts, settings, 16, judges, load_family())["by_step"]
    assert {len(values["shapes_clip"]) for values in shown.values()} == {settings.steps + 1}
    assert shown["worst"]["shapes_clip"][0] <= shown["direct"]["shapes_clip"][0] <= shown["ttgen"]["shapes_clip"][0]


@pytest.mark.skipif(bool(missing_weights(["diffusion", "autoencoder", "text_encoder"])), reason="no weights here")
def test_runs_are_resumed_and_equal_settings_are_measured_once(tmp_path, monkeypatch):
    path, ran = tmp_path / "ttgen.json", []
    small = bench.TTGenBench(steps=2, rewrites=1, prompts_per_task=1, injection=1.0)
    measure = bench.measure
    monkeypatch.setattr(bench, "measure", lambda case, *rest: (ran.append(case.method), measure(case, *rest))[1])
    monkeypatch.setattr(bench, "DRAWINGS", 1)
    arguments = [
        "--steps",
        "2",
        "--rewrites",
        "1",
        "--prompts-per-task",
        "1",
        "--injection",
        "1",
        "--curve-prompts",
        "2",
    ]
    assert bench.main([*arguments, "--parts", "main", "--out", str(path)]) == 0
    body = json.loads(path.read_text())
    assert [(r["method"], r["budget"]) for r in body["rows"]] == [
        (case.method, case.budget) for case in bench.cases(small)["main"]
    ]
    assert all(r["frechet"] > 0 for r in body["rows"])
    assert [r["method"] for r in body["interval"]] == ["every step"]  # the main setting, copied
    assert body["interval"][0]["verdicts"] == body["rows"][1]["verdicts"]
    first = len(ran)
    assert bench.main([*arguments, "--out", str(path)]) == 0
    body = json.loads(path.read_text())
    assert [r["method"] for r in body["interval"]] == [case.method for case in bench.cases(small)["interval"]]
    assert set(body["curves"]["by_step"]) == {"ttgen", "direct", "worst"}
    assert not [name for name in ran[first:] if name in ("best_of_n", "svdd", "every step")]


def test_equal_cost_is_read_off_the_lines_between_budgets():
    def row(method, budget, seconds, overall):
        figures = {"overall": overall, "reward": 2 * overall, "held_out": 0.5}
        return {
            "method": method,
            "budget": budget,
            "nfe_per_image": 100.0 * budget,
            "seconds_per_image": seconds,
            **figures,
        }

    rows = [row("plain", 1, 1.0, 0.2), row("best_of_n", 4, 4.0, 0.6), row("svdd", 2, 3.0, 0.5)]
    rows += [row("ttgen", 2, 4.0, 0.7)]
    found = {(entry["equal"], entry["method"]): entry for entry in bench.equal_costs(rows)}
    assert found["NFE", "TTGen"]["overall"] == 0.7 and found["NFE", "TTGen"]["cost"] == 200.0
    # 200 passes lie half-way between 100 and 400 on a logarithmic axis.
    assert found["NFE", "Best-of-N"]["overall"] == pytest.approx(0.4)
    assert found["NFE", "Best-of-N"]["reward"] == pytest.approx(0.8)
    assert found["NFE", "SVDD"]["overall"] == 0.5 and found["seconds", "Best-of-N"]["overall"] == 0.6
    assert ("seconds", "SVDD") not in found  # 4 s are more than SVDD was measured with
