"""The runner of the benchmarks: runs that go on where they were, equal rows measured once, files written whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch

from testtime.bench import shapes
from testtime.bench.measured import Measured
from testtime.bench.recording import Manifest, Recording, SettingsDiffer
from testtime.bench.results_files import load_results
from testtime.bench.runner import finished, groups_of, measure, run
from testtime.bench.suite import Row, Settings, Suite
from testtime.models.tiny.loading import load_family, missing_weights
from testtime.models.tiny.pipeline import SamplingSettings, shapes_process
from testtime.samplers.methods import TTSVAR, BestOfN

needs_weights = pytest.mark.skipif(
    bool(missing_weights(["diffusion", "autoencoder", "text_encoder"])), reason="no weights here"
)


@dataclass(frozen=True)
class Small(Suite):
    """Two names for the same search and another one, on two steps of the embedded model."""

    settings: Settings = field(default_factory=lambda: Settings(prompts_per_task=1))
    name: ClassVar[str] = "small"
    file = "small.json"

    def rows(self):
        return [Row("plain", 1, BestOfN(1)), Row("best_of_n", 1, BestOfN(1)), Row("best_of_n", 2, BestOfN(2))]

    def process(self, row, prompts, first, batch):
        sampling = SamplingSettings(steps=2, seed=self.settings.seed, max_batch=batch, group_offset=first)
        return shapes_process(prompts, sampling, load_family())


def of(images: int, start: int = 0) -> Measured:
    """Made-up figures of images."""
    numbers = [start + k for k in range(images)]
    scores = {"reward": [n / 3 for n in numbers], "held_out": [0.1 * n for n in numbers]}
    sums = {"nfe": 10.0 * images, "seconds": 1.0}
    return Measured([n % 2 == 0 for n in numbers], scores, sums, torch.tensor(numbers).float()[:, None] / 7)


def test_what_is_written_is_read_without_loss():
    whole = of(5)
    read = Measured.from_dict(json.loads(json.dumps(whole.to_dict())))
    assert (read.verdicts, read.scores, read.sums) == (whole.verdicts, whole.scores, whole.sums)
    assert torch.equal(read.features, whole.features)
    joined = Measured.joined([of(2), of(3, 2)])
    assert joined.scores == whole.scores and joined.sums == {"nfe": 50.0, "seconds": 2.0}
    assert torch.equal(joined.features, whole.features)


def test_the_manifest_knows_what_is_missing_and_survives_a_broken_line(tmp_path):
    path, key = tmp_path / "x.manifest.jsonl", ("rows", "svdd", 4)
    manifest = Manifest(path, {"seed": 0})
    assert manifest.missing(key, 10, 4) == [(0, 4), (4, 4), (8, 2)] and not path.exists()
    manifest.add(key, 4, of(4, 4))
    assert manifest.missing(key, 10, 4) == [(0, 4), (8, 2)] and manifest.found(key, 10) is None
    manifest.add(key, 0, of(4))
    manifest.add(key, 8, of(2, 8))
    whole = manifest.found(key, 10)
    assert whole.scores == of(10).scores and len(whole.commits) == 1
    text = path.read_text()
    path.write_text(text[: len(text) - 20])  # the run was ended while it wrote
    again = Manifest(path, {"seed": 0})
    assert again.missing(key, 10, 100) == [(8, 2)]
    again.add(key, 8, of(2, 8))
    assert Manifest(path, {"seed": 0}).found(key, 10).scores == of(10).scores


def test_a_manifest_of_other_settings_is_set_aside(tmp_path):
    path, key = tmp_path / "x.manifest.jsonl", ("rows", "svdd", 4)
    Manifest(path, {"seed": 0}).add(key, 0, of(2))
    other = Manifest(path, {"seed": 1})
    assert other.missing(key, 2, 2) == [(0, 2)] and not path.exists()
    assert path.with_suffix(".old").exists()


def test_rows_with_the_same_search_belong_together_and_hidden_fields_count():
    suite = Small()
    assert [[row.method for row in rows] for rows in groups_of(suite.rows(), suite)] == [
        ["plain", "best_of_n"], ["best_of_n"],
    ]  # fmt: skip
    # TTS-VAR compares as equal with other features; it is another search all the same.
    two = [Row(str(k), 2, TTSVAR(2, extractor=extractor)) for k, extractor in enumerate((object(), object()))]
    assert two[0].search == two[1].search and len(groups_of(two, suite)) == 2


@pytest.mark.slow
@needs_weights
def test_a_run_goes_on_where_it_was_and_equals_one_that_was_not_stopped(tmp_path):
    suite = Small()
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    run(suite, Recording(whole, suite), suite.parts, [], 4, 1)
    body = json.loads(whole.read_text())
    assert [(row["method"], row["budget"]) for row in body["rows"]] == [
        ("plain", 1),
        ("best_of_n", 1),
        ("best_of_n", 2),
    ]
    assert {**body["rows"][0], "method": "best_of_n"} == body["rows"][1]
    assert body["format"] == 2 and all(row["commit"] == body["commit"] for row in body["rows"])
    assert not list(tmp_path.glob("*.jsonl"))

    recording, prompts = Recording(stopped, suite), suite.prompts(suite.rows()[2])
    recording.manifest.add(("rows", "best_of_n", 2), 2, measure(suite, suite.rows()[2], prompts[2:5], 2, 4))
    recording = Recording(stopped, suite)  # a new process
    assert recording.manifest.missing(("rows", "best_of_n", 2), 6, 2) == [(0, 2), (5, 1)]
    run(suite, recording, suite.parts, ["best_of_n"], 4, 1)
    again = {(row["method"], row["budget"]): row for row in json.loads(stopped.read_text())["rows"]}
    assert set(again) == {("best_of_n", 1), ("best_of_n", 2)}
    for key, row in again.items():
        (other,) = (r for r in body["rows"] if (r["method"], r["budget"]) == key)
        # Other groups of images together change nothing beyond rounding.
        assert row["verdicts"] == other["verdicts"] and row["reward"] == pytest.approx(other["reward"], abs=1e-4)
        assert row["reward_ci"] == pytest.approx(other["reward_ci"], abs=1e-4)
    before = stopped.read_bytes()
    run(suite, Recording(stopped, suite), suite.parts, ["best_of_n"], 4, 1)
    assert stopped.read_bytes() == before  # nothing was left to do


@pytest.mark.slow
@needs_weights
def test_other_processes_measure_the_same():
    suite = shapes.Shapes(replace(shapes.ShapesSettings(), steps=2, prompts_per_task=1), (1,))
    from testtime.bench.runner import Task

    tasks = [Task(suite, 4, 0, first, 2) for first in (0, 2)]
    alone = {task.first: found for task, found in finished(tasks, 1)}
    beside = {task.first: found for task, found in finished(tasks, 2)}
    assert {first: found.verdicts for first, found in alone.items()} == {f: m.verdicts for f, m in beside.items()}
    for first, found in alone.items():
        assert found.scores["reward"] == pytest.approx(beside[first].scores["reward"], abs=1e-5)


def test_results_of_other_settings_are_not_overwritten(tmp_path, caplog):
    out = tmp_path / "x.json"
    old = {"suite": "shapes", "commit": "abc1234", "machine": "a machine", "rows": [], "settings": {"steps": 50}}
    out.write_text(json.dumps(old))
    suite = shapes.Shapes()
    with pytest.raises(
        SettingsDiffer, match=r"x.json was measured with other settings \(steps 50 there, 20 asked for\)"
    ):
        Recording(out, suite)
    assert shapes.main(["--out", str(out)]) == 2
    assert json.loads(out.read_text()) == old


def test_files_of_the_first_format_are_gone_on_with(tmp_path):
    """Their rows keep the commit that the file names, and count as measured."""
    out = tmp_path / "x.json"
    row = {"method": "plain", "budget": 1, "nfe_per_image": 40.0, "overall": 0.5, "overall_ci": [0.4, 0.6],
           "optimism": 0.0, "verdicts": "10"}  # fmt: skip
    body = {"suite": "shapes", "commit": "abc1234", "machine": "a machine", "rows": [row], "settings": {"steps": 20}}
    out.write_text(json.dumps(body))
    suite = shapes.Shapes()
    recording = Recording(out, suite)
    assert recording.has(("rows", "plain", 1)) and not recording.has(("rows", "smc", 4))
    (smc,) = (r for r in suite.rows() if r.key == ("rows", "smc", 4))
    recording.add([(smc, {**row, "commit": "def5678"})])
    results = load_results(out)
    assert [(r["method"], r["commit"]) for r in results.rows] == [("plain", "abc1234"), ("smc", "def5678")]
    assert results.commit == "abc1234, def5678" and results.machine.startswith("a machine; ")
    assert not results.about_reward and results.cost == "nfe_per_image"
