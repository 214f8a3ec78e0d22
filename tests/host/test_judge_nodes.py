"""Loader nodes of verifiers that ask or look: what is offered, what runs, what a user without the weights reads."""

from __future__ import annotations

import pytest
import torch

from testtime.bench.small_detectors import owl
from testtime.bench.small_vlm import llava

from ..unit.test_verifiers_clip_score import tokenizer_folder  # noqa: F401 - fixture
from ..unit.test_verifiers_flan_t5 import Parts
from ..unit.test_verifiers_flan_t5 import tokenizer as t5_words  # noqa: F401 - fixture
from ..unit.test_verifiers_judge import GOOD, NAMES, no_pauses, says, serve  # noqa: F401 - fixtures
from ..unit.test_verifiers_objects import SHORT
from .test_verifier_nodes import model_folders, tiny_clip  # noqa: F401 - fixture

pytestmark = pytest.mark.host
PROMPTS = ["a red cat", "the sea"]


def folder_of(root):
    return root / "verifiers"


def scored(node, *choices, prompts=PROMPTS):
    """Load and score in inference mode, as ComfyUI does."""
    with torch.inference_mode():
        verifier = node.execute(*choices).args[0]
        scores = verifier.score(torch.rand(2, 40, 30, 3, generator=torch.Generator().manual_seed(0)), prompts)
    assert scores.shape == (2,) and torch.isfinite(scores).all()
    return verifier, scores


def test_a_chat_model_is_found_asked_and_managed(model_folders):  # noqa: F811
    import comfy.model_management as management

    from testtime.nodes.judge_nodes import VLMNode

    llava(folder_of(model_folders) / "Qwen--Qwen3-VL-4B-Instruct")
    assert VLMNode.define_schema().inputs[0].default == "Qwen--Qwen3-VL-4B-Instruct"
    verifier, normalised = scored(VLMNode, "Qwen--Qwen3-VL-4B-Instruct", "yes_no", "default", "skip", 768, True)
    assert verifier.name == "vqa_score(Qwen--Qwen3-VL-4B-Instruct)" and not verifier.differentiable
    assert any(loaded.model is verifier.patcher for loaded in management.current_loaded_models)
    _, plain = scored(VLMNode, "Qwen--Qwen3-VL-4B-Instruct", "yes_no")
    assert (normalised > plain).all() and (plain > 0).all()
    graded = VLMNode.execute("Qwen--Qwen3-VL-4B-Instruct", "axes").args[0]
    assert graded.name == "vlm_judge(Qwen--Qwen3-VL-4B-Instruct)"
    assert "not differentiable" in VLMNode.differentiable({"model": "Qwen--Qwen3-VL-4B-Instruct"}, None)


def test_clip_flan_t5(model_folders, t5_words):  # noqa: F811
    from testtime.nodes.judge_nodes import VLMNode

    Parts().save(folder_of(model_folders) / "zhiqiulin--clip-flant5-xl", t5_words)
    verifier, scores = scored(VLMNode, "zhiqiulin--clip-flant5-xl", "yes_no")
    assert verifier.differentiable and VLMNode.differentiable({"model": "zhiqiulin--clip-flant5-xl"}, None) is None
    with pytest.raises(ValueError, match="rubric is 'axes': CLIP-FlanT5 only answers yes or no"):
        VLMNode.execute("zhiqiulin--clip-flant5-xl", "axes")
    assert ((scores > 0) & (scores < 1)).all()


def test_comfyui_brings_t5s_tokenizer():
    from transformers import AutoTokenizer

    from testtime.nodes.judge_nodes import t5_tokenizer

    words = AutoTokenizer.from_pretrained(str(t5_tokenizer()), local_files_only=True, trust_remote_code=False)
    ids = words("Yes")["input_ids"]
    assert ids[-1] == words.eos_token_id == 1 and ids[:-1] == [2163]  # Flan-T5's token for Yes


def test_an_endpoint_judges_and_its_axes_stay_visible(serve):  # noqa: F811
    from testtime.nodes.judge_nodes import VLMEndpointNode

    server = serve(says(GOOD))
    verifier, scores = scored(VLMEndpointNode, server.url, "m", "axes", "quality")
    assert scores.tolist() == [5.0, 5.0]
    assert len(verifier.judge(torch.full((1, 8, 8, 3), 0.5), ["p"]).members) == len(NAMES)


def test_objects_with_and_without_colours(model_folders, tokenizer_folder):  # noqa: F811
    from testtime.nodes.object_nodes import NO_COLOURS, GenEvalNode

    owl(folder_of(model_folders) / "google--owlv2-base-patch16-ensemble", tokenizer_folder)
    tiny_clip(folder_of(model_folders) / "openai--clip-vit-large-patch14")
    defaults = {item.id: item.default for item in GenEvalNode.define_schema().inputs}
    assert defaults["detector"] == "google--owlv2-base-patch16-ensemble"
    assert defaults["colours"] == "openai--clip-vit-large-patch14"
    choices = (defaults["detector"], defaults["colours"])
    verifier, scores = scored(GenEvalNode, *choices, "graded", prompts=[f"a red {SHORT[0]}", f"two {SHORT[1]}s"])
    assert ((scores >= 0) & (scores <= 1)).all() and not verifier.differentiable
    plain, _ = scored(GenEvalNode, defaults["detector"], NO_COLOURS, "strict", "a dog and a cat", prompts="")
    assert plain.needs_prompt is False
    plain_colours = GenEvalNode.execute(defaults["detector"], NO_COLOURS, "strict").args[0]
    with pytest.raises(ValueError, match="needs a CLIP model"):
        plain_colours.score(torch.rand(1, 20, 20, 3), "a red dog")
    assert "write what to look for" in GenEvalNode.validate_inputs(objects="a dog with a hat")


def test_without_weights_every_loader_says_what_where_and_under_which_licence(model_folders):  # noqa: F811
    from testtime.nodes import judge_nodes, object_nodes
    from testtime.nodes.model_folders import NO_MODEL
    from testtime.verifiers.base import VerifierError

    expected = {
        "VLMNode": ("model", "Qwen/Qwen3-VL-4B-Instruct", "8.9 GB", "Apache-2.0"),
        "GenEvalNode": ("detector", "google/owlv2-base-patch16-ensemble", "0.6 GB", "Apache-2.0"),
    }
    loaders = [node for node in (*judge_nodes.NODES, *object_nodes.NODES) if node.__name__ in expected]
    others = {"VLMEndpointNode", "VLMClipNode"}  # a server, and the model that the graph has loaded already
    assert {node.__name__ for node in (*judge_nodes.NODES, *object_nodes.NODES)} == {*expected, *others}
    for node in loaders:
        first = node.define_schema().inputs[0]
        assert first.options == [NO_MODEL]
        message = node.validate_inputs(**{first.id: NO_MODEL})
        parts = (*expected[node.__name__], "hf download", str(folder_of(model_folders)), "the Hugging Face cache")
        for part in parts:
            assert part in message, (node, part)
        assert node.validate_inputs() is True  # a choice that another node makes is not known yet
        rest = {"GenEvalNode": ("none", "graded"), "VLMNode": ("yes_no",)}.get(node.__name__, ())
        with pytest.raises(VerifierError, match="Looked in"):
            node.execute(NO_MODEL, *rest)
    clip = object_nodes.GenEvalNode.validate_inputs(colours="gone")
    assert "colours is 'gone'" in clip and "openai/clip-vit-large-patch14 (1.7 GB, MIT)" in clip


def test_wrong_choices_are_named_when_queued():
    from testtime.nodes.judge_nodes import VLMEndpointNode, VLMNode

    assert "the rubric 'yes_no' has default, mean, yes" in VLMNode.validate_inputs(rubric="yes_no", axis="quality")
    assert VLMEndpointNode.validate_inputs(rubric="axes", axis="quality", model="m") is True
    assert "model is empty" in VLMEndpointNode.validate_inputs(model=" ")


def test_the_hugging_face_cache_is_looked_through(model_folders, monkeypatch, tmp_path):  # noqa: F811
    """A repository that ``hf download`` left in the cache is offered after the folders, and loaded from there."""
    import huggingface_hub.constants

    from testtime.nodes import model_folders as folders
    from testtime.nodes.reward_nodes import PICKSCORE, PickScoreNode

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    assert PickScoreNode.define_schema().inputs[0].options == [folders.NO_MODEL]
    repository = cache / "models--yuvalkirstain--PickScore_v1"
    tiny_clip(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    choice = folders.HUB + "yuvalkirstain/PickScore_v1"
    schema = PickScoreNode.define_schema()
    assert schema.inputs[0].options == [choice] and schema.inputs[0].default == choice
    assert PickScoreNode.validate_inputs(model=choice) is True
    assert folders.located("model", choice, PICKSCORE) == repository / "snapshots" / "abc"
    _, _scores = scored(PickScoreNode, choice)
    tiny_clip(folder_of(model_folders) / "yuvalkirstain--PickScore_v1")
    schema = PickScoreNode.define_schema()
    assert schema.inputs[0].default == "yuvalkirstain--PickScore_v1" and len(schema.inputs[0].options) == 2
    assert folders.HUB + "some/other" not in schema.inputs[0].options


class TestPrecision:
    @pytest.fixture
    def verifier(self, model_folders):  # noqa: F811
        from testtime.nodes.clip_score_node import clip_tokenizer
        from testtime.verifiers.preference.clip_rewards import load_pickscore

        tiny_clip(folder_of(model_folders) / "pick")
        return load_pickscore(folder_of(model_folders) / "pick", clip_tokenizer())

    def test_auto_leaves_a_cpu_at_what_is_stored(self, verifier):
        from testtime.nodes.host.managed_verifier import managed
        from testtime.verifiers.precision import precision_of

        assert precision_of(managed(verifier)) == torch.float32

    def test_auto_takes_half_precision_where_the_device_is_faster_with_it(self, verifier, monkeypatch):
        import comfy.model_management as management

        from testtime.nodes.host.managed_verifier import best_precision

        device = torch.device("cuda")
        table = ((True, True, torch.float16), (False, True, torch.bfloat16), (False, False, torch.float32))
        for fp16, bf16, expected in table:
            monkeypatch.setattr(management, "should_use_fp16", lambda device, fp16=fp16: fp16)
            monkeypatch.setattr(management, "should_use_bf16", lambda device, bf16=bf16: bf16)
            assert best_precision(verifier, device) == expected
        assert best_precision(verifier, torch.device("cpu")) == torch.float32

    def test_gradients_leave_fp16(self, verifier):
        from testtime.nodes.host.managed_verifier import managed
        from testtime.verifiers.precision import precision_of

        judge = managed(verifier, "fp16")
        small = judge.patcher.model_size()
        assert precision_of(judge) == torch.float16
        judge.for_gradients()
        assert precision_of(judge) in (torch.bfloat16, torch.float32)
        assert precision_of(judge) == torch.bfloat16 or judge.patcher.model_size() > small
        images = torch.rand(1, 32, 32, 3, requires_grad=True)
        judge.score(images, "a cat").sum().backward()
        assert float(images.grad.abs().max()) > 0

    def test_an_overflow_in_fp16_is_computed_again_in_fp32(self, verifier, caplog):
        from testtime.nodes.host.managed_verifier import managed
        from testtime.verifiers.precision import precision_of

        images = torch.rand(2, 32, 32, 3)
        layer = verifier.module.clip.vision_model.encoder.layers[0].mlp.fc1
        layer.weight.data *= 6e4 / float(layer.weight.abs().max())  # sums of these do not exist in fp16
        expected = verifier.score(images, "a cat")
        judge = managed(verifier, "fp16")
        scores = judge.score(images, "a cat")
        assert torch.isfinite(scores).all() and precision_of(judge) == torch.float32
        assert "overflows in fp16" in caplog.text
        assert torch.isfinite(expected).all()
