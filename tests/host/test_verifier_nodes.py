"""Verifier nodes inside ComfyUI: loading from the model folders, scoring and sorting, messages about missing files."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.protocols import Verifier

pytestmark = pytest.mark.host


class Brightness(Verifier):
    """A verifier that likes bright images; black ones have no score."""

    name, differentiable, needs_prompt = "brightness", True, False

    def score(self, images, prompts, context=None):
        values = images.mean((1, 2, 3))
        return torch.where(values == 0, math.nan, values)


def grey(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 64, 64, 3).contiguous()


def test_images_are_sorted_best_first_and_unscored_ones_last():
    from testtime.nodes.score_images_node import ScoreImagesNode

    out = ScoreImagesNode.execute(grey(0.5, 0.0, 0.9, 0.1), Brightness(), "")
    images, scores, best, text, best_index, places = out.args
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0.9, 0.5, 0.1, 0.0])
    assert scores.values[:3] == pytest.approx([0.9, 0.5, 0.1]) and scores.values[3] is None
    assert best == pytest.approx(0.9) and best_index == 2 and places == "2, 0, 3, 1"  # black has no score: last
    assert "brightness" in text and "n/a" in text


def test_the_best_are_kept_in_either_order():
    from testtime.nodes.score_images_node import ScoreImagesNode

    images, _, _, _, best, places = ScoreImagesNode.execute(grey(0.5, 0.2, 0.9, 0.7), Brightness(), "", keep=3).args
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0.9, 0.7, 0.5]) and places == "2, 3, 0"
    given = ScoreImagesNode.execute(grey(0.5, 0.2, 0.9, 0.7), Brightness(), "", keep=3, order="as given").args
    assert given[0][:, 0, 0, 0].tolist() == pytest.approx([0.5, 0.9, 0.7]) and given[5] == "0, 2, 3"
    assert given[1].values == pytest.approx([0.5, 0.9, 0.7]) and given[1].group == [0] * 3 and given[4] == best == 2


def test_a_line_per_image_gives_each_its_own_prompt():
    from testtime.nodes.score_images_node import prompts_for

    class Reader(Brightness):
        needs_prompt = True

    assert prompts_for("one\ntwo\n", 2, Reader()) == ["one", "two"]
    assert prompts_for("one\ntwo", 3, Reader()) == ["one two"] * 3
    with pytest.raises(ValueError, match=r"prompts.0. is empty.*brightness"):
        prompts_for("  ", 2, Reader())
    assert prompts_for("", 2, Brightness()) == ["", ""]


def test_shapes_verifiers_run_managed_and_prefer_the_right_prompt():
    import comfy.model_management as management

    from testtime.nodes.score_images_node import ScoreImagesNode
    from testtime.nodes.verifier_nodes import ShapesVerifierNode
    from testtime.shapes_world.captions import sample_prompt
    from testtime.shapes_world.drawing import draw
    from testtime.shapes_world.sampling import sample_scene

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

    import testtime.nodes.model_folders  # noqa: F401 - registers the folder

    for name in ("verifiers", "clip_vision", "text_encoders"):
        (tmp_path / name).mkdir()
        suffixes = set(folder_paths.supported_pt_extensions)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], suffixes))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


def test_clip_is_found_in_the_model_folder_and_scores(model_folders):
    from testtime.nodes.clip_score_node import CLIPScoreNode, clip_choices
    from testtime.nodes.score_images_node import ScoreImagesNode

    tiny_clip(model_folders / "verifiers" / "tiny--clip")
    assert clip_choices() == ["verifiers/tiny--clip"]
    with torch.inference_mode():
        verifier = CLIPScoreNode.execute("verifiers/tiny--clip").args[0]
        scores = ScoreImagesNode.execute(torch.rand(3, 40, 30, 3), verifier, "a photo").args[1]
    assert verifier.name == "clip_score(tiny--clip)"
    assert all(-1.0 <= value <= 1.0 for value in scores.values)


def test_towers_from_comfyuis_own_folders_score_like_the_whole_model(model_folders):
    """An image tower of models/clip_vision with a text tower of models/text_encoders, and one file with both."""
    from safetensors.torch import load_file, save_file

    from testtime.nodes.clip_score_node import CLIPScoreNode, clip_choices, text_tower_choices

    tiny_clip(model_folders / "whole")
    state = load_file(model_folders / "whole" / "model.safetensors")
    image = {key: value for key, value in state.items() if key.startswith("vis")}
    text = {key: value for key, value in state.items() if key.startswith("text")}
    save_file(image, model_folders / "clip_vision" / "tower.safetensors")
    save_file(text, model_folders / "text_encoders" / "clip_x.safetensors")
    save_file(state, model_folders / "verifiers" / "both.safetensors")
    assert clip_choices() == ["verifiers/both.safetensors", "clip_vision/tower.safetensors"]
    assert text_tower_choices()[1:] == ["clip_x.safetensors"]
    pictures = torch.rand(2, 30, 50, 3)
    with torch.inference_mode():
        towers = CLIPScoreNode.execute("clip_vision/tower.safetensors", "clip_x.safetensors").args[0]
        both = CLIPScoreNode.execute("verifiers/both.safetensors").args[0]
        assert torch.allclose(towers.score(pictures, "a cat"), both.score(pictures, "a cat"), atol=1e-6)
        with pytest.raises(ValueError, match="text tower"):
            CLIPScoreNode.execute("clip_vision/tower.safetensors")


def test_missing_clip_says_which_file_where_and_from_where(model_folders):
    from testtime.nodes.clip_score_node import CLIPScoreNode, clip_choices
    from testtime.nodes.model_folders import NO_MODEL
    from testtime.verifiers.base import VerifierError

    assert clip_choices() == [NO_MODEL]
    message = CLIPScoreNode.validate_inputs(clip=NO_MODEL)
    for part in ("model.safetensors", str(model_folders / "verifiers"), "openai/clip-vit-large-patch14", "MIT"):
        assert part in message
    for gone in ("verifiers/gone--model", "clip_vision/gone.safetensors"):
        assert repr(gone) in CLIPScoreNode.validate_inputs(clip=gone)
        with pytest.raises(VerifierError, match="hf download"):
            CLIPScoreNode.execute(gone)


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
    from testtime.nodes import clip_score_node, score_images_node, verifier_nodes

    for node in (*clip_score_node.NODES, *score_images_node.NODES, *verifier_nodes.NODES):
        for item in node.define_schema().inputs:
            assert item.tooltip and len(item.tooltip) > 10, (node, item.id)


def test_scoring_goes_on_in_smaller_pieces_when_memory_runs_out():
    from testtime.nodes.score_images_node import score_batch

    class Hungry(Brightness):
        def score(self, images, prompts, context=None):
            if len(images) > 2:
                raise torch.OutOfMemoryError("no room")
            return super().score(images, prompts)

    shades = torch.rand(11).tolist()
    assert score_batch(Hungry(), grey(*shades), [""] * 11).tolist() == pytest.approx(shades)


def test_relative_ensemble_of_managed_verifiers_compares_all_images_at_once():
    """More images than one call takes: ranks must still be those of the whole batch."""
    from testtime.nodes.score_images_node import IMAGES_PER_CALL, ScoreImagesNode
    from testtime.nodes.verifier_nodes import EnsembleNode, ShapesVerifierNode

    count = IMAGES_PER_CALL + 3
    pictures = torch.rand(count, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    pictures[4] = math.nan
    with torch.inference_mode():
        judges = [ShapesVerifierNode.execute(name).args[0] for name in ("shapes_preference", "shapes_clip")]
        ensemble = EnsembleNode.execute("rank", judges[0], 1.0, verifier_2=judges[1], weight_2=0.0).args[0]
        scores = ScoreImagesNode.execute(pictures, ensemble, "a red star").args[1].values
        own = judges[0].score(pictures, "a red star")
    assert scores[-1] is None
    # the spoilt image ranks last in every member and gets no score itself
    assert scores[:-1] == pytest.approx([place / (count - 1) for place in range(count - 1, 0, -1)])
    assert int(own.nan_to_num(-math.inf).argmax()) != 4


def test_a_score_does_not_ask_for_memory_that_would_drive_the_denoiser_out(monkeypatch):
    """Eight images of 1024x1024 need little: a tower sees 224 pixels a side."""
    import comfy.model_management as management

    from testtime.nodes.host.managed_verifier import ManagedVerifier
    from testtime.verifiers.registry import create

    asked = []
    load = management.load_models_gpu

    def spy(models, memory_required=0, **options):
        asked.append(memory_required)
        load(models, memory_required=memory_required, **options)

    monkeypatch.setattr(management, "load_models_gpu", spy)
    judge = ManagedVerifier(create("shapes_preference"))
    with torch.inference_mode():
        judge.score(torch.zeros(1, 1, 1, 3).expand(8, 1024, 1024, 3), "a red star")
        judge.score(torch.zeros(1, 128, 128, 3), "a red star")
    images = 8 * 1024 * 1024 * 3 * 4
    assert images < asked[0] < 2 * 2**30
    assert asked[1] < 100 * 2**20
