"""The demo's library backend on networks with random weights: every method, honest accounts, the same page twice."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from testtime.demo import backends as demo_backends
from testtime.demo import main as demo
from testtime.demo.backends import LibraryBackend, Networks, Settings, judge
from testtime.demo.sections import SECTIONS, TTS_VAR_PARTICLES, VAR
from testtime.installation.errors import CommandError
from testtime.models.tiny import vocabulary
from testtime.models.tiny.autoencoder import Autoencoder
from testtime.models.tiny.clip import ShapesCLIP
from testtime.models.tiny.denoiser import Denoiser
from testtime.models.tiny.loading import Family, WeightsError
from testtime.models.tiny.preference import PreferenceModel
from testtime.models.tiny.text_encoder import TextEncoder
from testtime.models.tiny.var import SCHEDULE, new_transformer, new_vae
from testtime.models.tiny.var_pipeline import VarFamily
from testtime.samplers.clustering import PixelFeatures
from testtime.samplers.methods.population_plan import PLANS
from testtime.samplers.run.trace import Trace
from testtime.shapes_world import scene
from testtime.shapes_world.captions import sample_prompt
from testtime.shapes_world.drawing import draw
from testtime.shapes_world.sampling import sample_scene
from testtime.shapes_world.scene import TASKS
from testtime.verifiers.embedded import ShapesCLIPVerifier, ShapesPreferenceVerifier

pytestmark = pytest.mark.slow

STEPS, BUDGET = 3, 2
ALL = [(section.model, method) for section in SECTIONS for method in section.methods]


@pytest.fixture(scope="module")
def backend():
    torch.manual_seed(0)
    networks = [Autoencoder(), TextEncoder(), Denoiser("eps"), Denoiser("flow")]
    family = Family(vocabulary, *(module.eval().requires_grad_(False) for module in networks), 1.0)
    scales = VarFamily(*(part.eval().requires_grad_(False) for part in (new_transformer(), new_vae(), networks[1])))
    judges = (ShapesPreferenceVerifier(PreferenceModel()), ShapesCLIPVerifier(ShapesCLIP()))
    return LibraryBackend(Settings(budget=BUDGET, steps=STEPS), Networks(family, scales, judges, PixelFeatures()))


@pytest.mark.parametrize(("model", "method"), ALL)
def test_entry_agrees_with_its_trace(backend, model, method):
    entry = backend.run(method, sample_prompt(0, "counting"), model)
    assert (entry.model, entry.method) == (model, method)
    assert entry.image.shape == (128, 128, 3) and entry.image.dtype == np.uint8
    assert entry.trace.records[-1].phase == "final"
    best = entry.trace.finalists()[0]
    assert (best["id"], best["score"]) == (entry.winner, entry.score)
    assert best["held_out"] == entry.held_out
    assert [key for key, _ in entry.finalists] == [e["id"] for e in entry.trace.finalists()]
    np.testing.assert_array_equal(entry.finalists[0][1], entry.image)
    steps = len(SCHEDULE) if model == VAR else STEPS
    plain = 2 * steps  # guidance: two forward passes per step
    particles = TTS_VAR_PARTICLES * sum(PLANS[len(SCHEDULE)].populations(len(SCHEDULE)))
    special = {"plain": plain, "svdd": 2 * (1 + (STEPS - 1) * BUDGET), "tts_var": 2 * particles}
    assert entry.nfe == special.get(method, BUDGET * plain) == entry.trace.records[-1].nfe
    assert (entry.flops > 0) is (model == VAR)
    assert (entry.backward > 0) is False, "the gradient stops at the decoder, so no forward pass is differentiated"


@pytest.mark.parametrize("model", [section.model for section in SECTIONS])
def test_plain_sampling_is_one_of_the_images_that_best_of_n_chooses_from(backend, model):
    prompt = sample_prompt(0, "colors")
    plain, best = (backend.run(method, prompt, model) for method in ("plain", "best_of_n"))
    assert any(np.abs(image.astype(int) - plain.image).max() <= 1 for _, image in best.finalists)
    assert best.score >= plain.score - 1e-4


@pytest.mark.parametrize(("model", "method"), [("diffusion", "fk"), ("var", "tts_var")])
def test_same_settings_give_the_same_image(backend, model, method):
    first, second = (backend.run(method, sample_prompt(0, "position"), model) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)


def test_every_task_and_seed_has_noise_of_its_own():
    settings = [Settings(seed=seed) for seed in (0, 1, 2)]
    seeds = {entry.noise_seed(sample_prompt(entry.seed, task)) for entry in settings for task in TASKS}
    assert len(seeds) == len(settings) * len(TASKS)


def test_judge_is_the_exact_evaluator():
    prompt = sample_prompt(5, "position")
    assert judge(draw(sample_scene(5, prompt)), prompt)
    assert not judge(np.full((128, 128, 3), 200, np.uint8), prompt)


def options(tmp_path, **changes) -> argparse.Namespace:
    values = {"out": tmp_path, "library": True, "server": None, "budget": BUDGET, "steps": STEPS, "seed": 0}
    values["models"] = ["diffusion", "var"]
    return argparse.Namespace(**{**values, **changes})


def test_command_writes_the_page(backend, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_backends, "LibraryBackend", lambda settings: backend)
    monkeypatch.setattr(scene, "TASKS", TASKS[:1])  # one task of the six is enough to see the page come together
    assert demo.main(options(tmp_path)) == 0
    page = tmp_path / "index.html"
    assert capsys.readouterr().out.strip() == str(page.resolve())
    text = page.read_text(encoding="utf-8")
    assert text.count("<figure") == len(ALL)
    assert "no ComfyUI" in text
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [(row["model"], row["method"]) for row in results["entries"]] == ALL
    for name in ("image", "trace"):
        assert len({row[name] for row in results["entries"]}) == len(ALL), "every result has files of its own"
    for row in results["entries"]:
        assert (row["flops"] is None) is (row["model"] == "diffusion")
        assert Image.open(tmp_path / row["image"]).size == (128, 128)
        trace = Trace.from_json((tmp_path / row["trace"]).read_text(encoding="utf-8"))
        assert trace.finalists()[0]["score"] == row["score"]


def test_a_model_that_is_not_asked_for_has_no_part(backend, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_backends, "LibraryBackend", lambda settings: backend)
    monkeypatch.setattr(scene, "TASKS", TASKS[:1])
    assert demo.main(options(tmp_path, models=["diffusion"])) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {row["model"] for row in results["entries"]} == {"diffusion"}
    assert "A next-scale model" not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_missing_weights_are_one_sentence(tmp_path, monkeypatch):
    def fail(settings):
        raise WeightsError("diffusion.safetensors is missing")

    monkeypatch.setattr(demo_backends, "LibraryBackend", fail)
    with pytest.raises(CommandError, match=r"diffusion.safetensors is missing"):
        demo.main(options(tmp_path))


@pytest.mark.parametrize("changes", [{"budget": 1}, {"steps": 1}])
def test_impossible_settings_are_refused(tmp_path, changes):
    with pytest.raises(CommandError, match="at least 2"):
        demo.main(options(tmp_path, **changes))


def test_without_comfyui_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert str(tmp_path) in demo.why_no_comfyui()
