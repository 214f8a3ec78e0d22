"""``testtime doctor``: what it says of the weights of verifiers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import testtime
from testtime.cli.doctor import weights_lines
from testtime.verifiers.registry import names
from testtime.verifiers.weights import RELEASED, folders_of

ROOT = Path(testtime.__file__).resolve().parent


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache"))
    (tmp_path / "models" / "verifiers").mkdir(parents=True)
    return tmp_path


def test_nothing_is_there(comfyui):
    lines = list(weights_lines(comfyui))
    assert str(comfyui / "models" / "verifiers") in lines[0]
    assert not [line for line in lines if "found " in line]
    (hps,) = [line for line in lines if "HPSv2.1" in line]
    assert "not here" in hps and "2.0 GB, Apache-2.0" in hps
    assert f'hf download xswu/HPSv2 HPS_v2.1_compressed.pt --local-dir "{comfyui / "models" / "verifiers"}"' in hps


def test_what_is_there_is_found_with_its_place(comfyui):
    verifiers = comfyui / "models" / "verifiers"
    (verifiers / "HPS_v2.1_compressed.pt").touch()
    (verifiers / "yuvalkirstain--PickScore_v1").mkdir()
    (verifiers / "yuvalkirstain--PickScore_v1" / "config.json").touch()
    (verifiers / "openai--clip-vit-large-patch14").mkdir()  # an empty folder is not the model
    (verifiers / "my-clip").mkdir()
    (verifiers / "my-clip" / "config.json").touch()
    text = "\n".join(weights_lines(comfyui))
    assert re.search(r"found +HPSv2.1: .*HPS_v2.1_compressed.pt", text)
    assert re.search(r"found +PickScore: .*yuvalkirstain--PickScore_v1", text)
    assert re.search(r"not here CLIPScore and LAION aesthetic v2 and The objects verifier", text)
    assert "also there, under names of your own: my-clip" in text


def test_folders_of_the_users_own_are_looked_at(comfyui, tmp_path):
    pytest.importorskip("yaml")
    (comfyui / "extra_model_paths.yaml").write_text("mine:\n  base_path: far\n  verifiers: |\n    a\n    b\n")
    assert folders_of(comfyui)[-2:] == [comfyui / "far" / "a", comfyui / "far" / "b"]


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "a: 5", "a: {base_path: 3, verifiers: [x]}", "\x00"])
def test_a_damaged_list_of_folders_is_no_error(comfyui, text):
    (comfyui / "extra_model_paths.yaml").write_text(text)
    assert folders_of(comfyui)[0] == comfyui / "models" / "verifiers"


def test_every_download_of_the_nodes_is_in_the_table():
    """Weights that a node asks for are those that doctor tells of: nodes take them from the table, by key."""
    used = set()
    for path in (ROOT / "nodes").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bWeights\(\s*[\"']", text), f"{path.name} describes weights of its own"
        used |= set(re.findall(r"Weights\.of\(\"(\w+)\"\)", text))
    assert used == set(RELEASED)
    assert {key for key in RELEASED if key in names()} >= {"clip_score", "pickscore", "image_reward"}
