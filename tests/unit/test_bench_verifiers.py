"""The parity table's figures stay within what is promised, and the docs show them; the throughput bench counts."""

from __future__ import annotations

import json

import pytest
import torch

from testtime.bench import parity, parity_rows, throughput
from testtime.verifiers.preprocessing import Preprocessing

BODY = json.loads(parity.OUT.read_text(encoding="utf-8"))
HPS = "hps_v2_1"


@pytest.mark.parametrize("row", BODY["rows"], ids=lambda row: row["verifier"])
def test_recorded_figures_keep_the_promise(row):
    """Preprocessing to 1e-6 where the algorithm is the same, within 1.1/255 of Pillow's, scores to 1e-4."""
    assert row["score"] <= 1e-4 and row["spread"] > 10 * row["score"]
    if row["same"] is not None:
        assert row["same"] <= 1e-6
    if row["pillow_max"] is not None and row["verifier"] != HPS:  # HPSv2 resizes on tensors, unclamped
        assert row["pillow_max"] <= 1.15 and row["pillow_mean"] <= 0.5


def test_every_family_is_in_the_table():
    named = " ".join(row["verifier"] for row in BODY["rows"])
    for family in ("clip_score", "pickscore", HPS, "image_reward", "laion_aesthetic", "aesthetic_v25", "similarity",
                   "dinov2", "vqa_score", "objects", "jpeg"):  # fmt: skip
        assert family in named


def test_the_docs_show_what_was_measured(capsys):
    assert parity.main(["--check"]) == 0
    with pytest.raises(ValueError, match="no block <!-- bench:verifier-parity -->"):
        parity.filled("# Nothing here", BODY)


@pytest.mark.parametrize("row", ["image_reward_row", "hps_row"])
def test_rows_can_be_measured_anew(row, tmp_path):
    pytest.importorskip("torchvision")
    pytest.importorskip("open_clip")
    folder = parity_rows.models.clip_tokenizer(tmp_path / "clip")
    measured = getattr(parity_rows, row)(folder)
    assert measured.score <= 1e-4 and measured.same <= 1e-6 and measured.spread > 1e-3


def test_the_measure_notices_another_resize(monkeypatch):
    """Without antialiasing the figures are not within the promise: the measurement can fail."""
    pytest.importorskip("torchvision")
    monkeypatch.setattr(parity_rows, "SHAPES", ((300, 517),))
    same, mean, most = parity_rows.preprocessing(Preprocessing())
    assert same <= 1e-6 and most <= 1.15

    def coarse(x, shape, clamp=True):
        return torch.nn.functional.interpolate(x, shape, mode="bicubic", align_corners=False).clamp(0, 1)

    from testtime.verifiers import preprocessing

    monkeypatch.setattr(preprocessing, "resize", coarse)
    same, mean, most = parity_rows.preprocessing(Preprocessing())
    assert same > 0.1 and most > 20


def test_throughput_counts_every_image(monkeypatch, tmp_path):
    class Judge:
        name, calls = "judge", []

        def score(self, images, prompts):
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
