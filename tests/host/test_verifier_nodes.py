"""Verifier nodes inside ComfyUI: loading from the model folders, scoring and sorting, messages about missing files."""

from __future__ import annotations

import math

import pytest
import torch

pytestmark = pytest.mark.host


class Brightness:
    """A verifier that likes bright images; black ones have no score."""

    name, differentiable, needs_prompt = "brightness", True, False

    def score(self, images, prompts):
        values = images.mean((1, 2, 3))
        return torch.where(values == 0, math.nan, values)


def grey(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 64, 64, 3).contiguous()


def test_images_are_sorted_best_first_and_unscored_ones_last():
    from testtime.nodes.verifier_nodes import ScoreImagesNode

    out = ScoreImagesNode.execute(grey(0.5, 0.0, 0.9, 0.1), Brightness(), "")
    images, scores, best, text = out.args
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0.9, 0.5, 0.1, 0.0])
    assert scores.values[:3] == pytest.approx([0.9, 0.5, 0.1]) and scores.values[3] is None
    assert best == pytest.approx(0.9)
    assert "brightness" in text and "n/a" in text


def test_a_line_per_image_gives_each_its_own_prompt():
    from testtime.nodes.verifier_nodes import prompts_for

    class Reader(Brightness):
        needs_prompt = True

    assert prompts_for("one\ntwo\n", 2, Reader()) == ["one", "two"]
    assert prompts_for("one\ntwo", 3, Reader()) == ["one two"] * 3
    with pytest.raises(ValueError, match="prompts.0. is empty.*brightness"):
        prompts_for("  ", 2, Reader())
    assert prompts_for("", 2, Brightness()) == ["", ""]


def test_shapes_verifiers_run_managed_and_prefer_the_right_prompt():
    import comfy.model_management as management

    from testtime.nodes.verifier_nodes import ScoreImagesNode, ShapesVerifierNode
    from testtime.shapes_world.captions import sample_prompt
    from testtime.shapes_world.drawing import draw
    from testtime.shapes_world.scene import sample_scene

    prompt = sample_prompt(11, "colors")
    picture = torch.from_numpy(draw(sample_scene(11, prompt))).float()[None] / 255
    for name in ("shapes_preference", "shapes_clip"):
        with torch.inference_mode():
            verifier = ShapesVerifierNode.execute(name).args[0]
            right = ScoreImagesNode.execute(picture, verifier, prompt.text).args[2]
            wrong = ScoreImagesNode.execute(picture, verifier, "four green crosses").args[2]
        assert right > wrong
        assert any(loaded.model is verifier.patcher for loaded in management.current_loaded_models)


def test_a_score_can_be_differentiated_though_it_was_loaded_in_inference_mode():
    from testtime.nodes.verifier_nodes import ShapesVerifierNode

    with torch.inference_mode():
        verifier = ShapesVerifierNode.execute("shapes_preference").args[0]
        with torch.inference_mode(False), torch.enable_grad():
            images = torch.rand(2, 128, 128, 3, requires_grad=True)
            (gradient,) = torch.autograd.grad(verifier.score(images, ["a red star"] * 2).sum(), images)
    assert torch.isfinite(gradient).all() and float(gradient.abs().max()) > 0


def tiny_clip(folder) -> None:
    """A small random CLIP in Hugging Face layout with ComfyUI's tokenizer vocabulary."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(
        projection_dim=32,
        vision_config={**tower, "image_size": 28, "patch_size": 14, "projection_dim": 32},
        text_config={**tower, "vocab_size": 49408, "projection_dim": 32, "bos_token_id": 49406, "eos_token_id": 49407},
    )
    CLIPModel(config).save_pretrained(str(folder))


@pytest.fixture
def model_folders(tmp_path, monkeypatch):
    """ComfyUI's verifier folders, pointing into an empty directory."""
    import folder_paths

    import testtime.nodes.verifier_nodes  # noqa: F401 - registers the folder

    for name in ("verifiers", "clip_vision", "text_encoders"):
        (tmp_path / name).mkdir()
        suffixes = set(folder_paths.supported_pt_extensions)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], suffixes))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


def test_clip_is_found_in_the_model_folder_and_scores(model_folders):
    from testtime.nodes.verifier_nodes import CLIPScoreNode, ScoreImagesNode, clip_choices

    tiny_clip(model_folders / "verifiers" / "tiny--clip")
    assert clip_choices() == ["verifiers/tiny--clip"]
    with torch.inference_mode():
        verifier = CLIPScoreNode.execute("verifiers/tiny--clip").args[0]
        scores = ScoreImagesNode.execute(torch.rand(3, 40, 30, 3), verifier, "a photo").args[1]
    assert verifier.name == "clip_score(tiny--clip)"
    assert all(-1.0 <= value <= 1.0 for value in scores.values)


def test_missing_clip_says_which_file_where_and_from_where(model_folders):
    from testtime.nodes.verifier_nodes import NO_MODEL, CLIPScoreNode, clip_choices
    from testtime.verifiers.base import VerifierError

    assert clip_choices() == [NO_MODEL]
    message = CLIPScoreNode.validate_inputs(clip=NO_MODEL)
    for part in ("model.safetensors", str(model_folders / "verifiers"), "openai/clip-vit-large-patch14", "MIT"):
        assert part in message
    with pytest.raises(VerifierError, match="hf download"):
        CLIPScoreNode.execute("verifiers/gone--model")


def test_ensemble_and_jpeg_nodes():
    from testtime.nodes.verifier_nodes import EnsembleNode, JPEGNode

    plain, busy = torch.full((1, 64, 64, 3), 0.5), torch.rand(1, 64, 64, 3)
    both = torch.cat([plain, busy])
    smooth = JPEGNode.execute("compressibility").args[0]
    rough = JPEGNode.execute("incompressibility").args[0]
    assert smooth.score(both, "")[0] > smooth.score(both, "")[1]
    mixed = EnsembleNode.execute("rank", smooth, 1.0, verifier_2=rough, weight_2=1.0).args[0]
    assert mixed.score(both, "").tolist() == pytest.approx([0.5, 0.5])
    negative = EnsembleNode.execute("sum", smooth, -1.0).args[0]
    assert torch.allclose(negative.score(both, ""), rough.score(both, ""))


def test_every_input_has_a_tooltip():
    from testtime.nodes import verifier_nodes

    for node in verifier_nodes.NODES:
        for item in node.define_schema().inputs:
            assert item.tooltip and len(item.tooltip) > 10, (node, item.id)
