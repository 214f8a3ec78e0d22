"""The parity table's figures stay within what is promised, and the docs show them; the throughput bench counts."""

from __future__ import annotations

import json

import pytest
import torch

from testtime.bench import parity, parity_link, parity_rows, throughput
from testtime.bench.official.pictures import PROMPTS
from testtime.samplers.protocols import Verifier

BODY = json.loads(parity.OUT.read_text(encoding="utf-8"))
OFFICIAL = pytest.mark.skipif(parity_link.interpreter() is None, reason=parity_link.MISSING)


def close(row):
    """Whether a row is as near as the table promises."""
    exact = parity.most(row["scores"]) <= 1e-6 * max(row["spread"], 1.0)
    bytewise = row["scores_quantized"] and parity.most(row["scores_quantized"]) < 0.02 * row["spread"]
    return exact or bool(bytewise)


@pytest.mark.parametrize("name", BODY["cases"])
def test_recorded_figures_keep_the_promise(name):
    """The same score where the published pipeline computes in floating point, or with ``quantize`` where in 8 bit."""
    row = BODY["cases"][name]
    assert set(row["scores"]) == set(PROMPTS) and row["spread"] > 0
    if name == "dinov2 (features)":  # no score but 12,288 numbers, the largest difference of all
        assert parity.most(row["scores_quantized"]) < 0.1 * row["spread"]
    else:
        assert close(row)
    assert not any(row["tokens"].values())
    for picture, gap in row["pixels_quantized"].items():
        assert gap["share"] < 0.06 and gap["mean"] < 0.06, picture
    for picture, gap in row["pixels"].items():
        assert picture == "rgba" or gap["max"] < 1.15, picture


def test_the_measure_notices_another_picture():
    """What the table said of HPSv2 before: a promise that its figures of then would not have kept."""
    assert not close(BODY["before"]["cases"]["hps_v2_1"]) and close(BODY["cases"]["hps_v2_1"])


def test_every_family_is_in_the_table():
    named = " ".join(BODY["cases"])
    for family in ("clip_score", "pickscore", "hps_v2_1", "image_reward", "laion_aesthetic", "aesthetic_v25",
                   "similarity", "dinov2", "vqa_score", "objects", "jpeg"):  # fmt: skip
        assert family in named


def test_the_docs_show_what_was_measured():
    assert parity.main(["--check"]) == 0
    with pytest.raises(ValueError, match="no block <!-- bench:verifier-parity -->"):
        parity.filled("# Nothing here", BODY)


@OFFICIAL
@pytest.mark.parametrize("key", ["hps_v2_1", "image_reward"])
def test_rows_can_be_measured_anew(key, tmp_path):
    """The published package itself, called now."""
    row = parity_rows.measure(key, tmp_path)
    assert parity.most(row.scores_quantized) < 0.02 * row.spread and not any(row.tokens.values())


def test_without_the_official_packages_it_says_how_to_get_them(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv(parity_link.VARIABLE, str(tmp_path / "python"))
    assert parity.main(["--out", str(tmp_path / "parity.json")]) == 2
    assert "tools/official_environment.py" in caplog.text


def test_an_official_side_that_fails_is_quoted(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no module named hpsv2 >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv(parity_link.VARIABLE, str(python))
    with pytest.raises(parity_link.OfficialError, match="'hps_v2_1' failed: no module named hpsv2"):
        parity_link.call("hps_v2_1", tmp_path)


def test_throughput_counts_every_image(monkeypatch, tmp_path):
    class Judge(Verifier):
        name, calls = "judge", []

        def score(self, images, prompts, context=None):
            assert len(images) == len(prompts)
            self.calls.append(images.clone())
            return images.mean((1, 2, 3))

    monkeypatch.setattr(throughput, "make_verifiers", lambda names: {"judge": Judge()})
    arguments = ["--images", "5", "--batch", "2", "--size", "8", "--repeats", "1", "--out", str(tmp_path / "t.json")]
    assert throughput.main(arguments) == 0
    (row,) = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert row["batch"] == 2 and row["images_per_second"] > 0
    assert row["speedup"] == pytest.approx(row["images_per_second"] / row["images_per_second_alone"], rel=0.05)
    assert [len(part) for part in Judge.calls] == [1] * 10 + [2, 2, 1] * 2
    seen = torch.cat(Judge.calls[:10]).flatten(1)
    assert len(seen.unique(dim=0)) == 10  # nothing that a cache could find again
