"""Loader nodes of the published rewards: what is offered, what runs, and what a user without the weights reads."""

from __future__ import annotations

import pytest
import torch

from .test_verifier_nodes import model_folders, tiny_clip  # noqa: F401 - fixture

pytestmark = pytest.mark.host


def folder_of(root):
    return root / "verifiers"


def run(node, *choices):
    """Load in inference mode, as ComfyUI does, score two images, and differentiate one."""
    with torch.inference_mode():
        verifier = node.execute(*choices).args[0]
        scores = verifier.score(torch.rand(2, 40, 30, 3), "a red cat")
        with torch.inference_mode(False), torch.enable_grad():
            images = torch.rand(1, 32, 32, 3, requires_grad=True)
            (gradient,) = torch.autograd.grad(verifier.score(images, ["a red cat"]).sum(), images)
    assert scores.shape == (2,) and torch.isfinite(scores).all()
    assert verifier.differentiable and float(gradient.abs().max()) > 0
    return verifier


def test_pickscore_from_a_folder(model_folders):  # noqa: F811
    from testtime.nodes.reward_nodes import PickScoreNode

    tiny_clip(folder_of(model_folders) / "yuvalkirstain--PickScore_v1")
    schema = PickScoreNode.define_schema()
    assert schema.inputs[0].default == "yuvalkirstain--PickScore_v1"
    assert run(PickScoreNode, "yuvalkirstain--PickScore_v1").name == "pickscore"


def test_hps_from_open_clips_file(model_folders):  # noqa: F811
    from testtime.nodes.reward_nodes import HPSNode

    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(image_size=28, layers=1, width=64, patch_size=14)
    text = open_clip.CLIPTextCfg(vocab_size=49408, width=64, heads=1, layers=1)
    state = open_clip.model.CLIP(32, vision, text).state_dict()
    torch.save({"state_dict": state}, folder_of(model_folders) / "HPS_v2.1_compressed.pt")
    assert HPSNode.define_schema().inputs[0].default == "HPS_v2.1_compressed.pt"
    assert run(HPSNode, "HPS_v2.1_compressed.pt").name == "hps_v2_1"


def test_image_reward(model_folders, monkeypatch):  # noqa: F811
    from testtime.nodes.reward_nodes import ImageRewardNode
    from testtime.verifiers.preference import image_reward

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat"]
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {"vocab_size": len(words), "hidden_size": 24, "encoder_hidden_size": 32, "intermediate_size": 40}
    vision |= {"image_size": 32, "patch_size": 8}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 3}
    monkeypatch.setattr(image_reward, "VISION", image_reward.VISION | vision)
    monkeypatch.setattr(image_reward, "TEXT", image_reward.TEXT | text)
    model = image_reward.ImageRewardModel()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    back = {
        "vision.embeddings.class_embedding": "blip.visual_encoder.cls_token",
        "vision.embeddings.position_embedding": "blip.visual_encoder.pos_embed",
        "vision.embeddings.patch_embedding": "blip.visual_encoder.patch_embed.proj",
        "vision.post_layernorm": "blip.visual_encoder.norm",
        "vision.encoder.layers": "blip.visual_encoder.blocks",
        "layer_norm": "norm", "self_attn.projection": "attn.proj", "self_attn": "attn",
        "text.": "blip.text_encoder.", "head.": "mlp.",
    }  # fmt: skip
    state = {}
    for key, value in model.state_dict().items():
        for ours, released in back.items():
            if not key.startswith("blip.text_encoder") or ours == "head.":
                key = key.replace(ours, released)
        state[key] = value
    torch.save(state, folder_of(model_folders) / "ImageReward.pt")
    (folder_of(model_folders) / "bert-base-uncased").mkdir()
    (folder_of(model_folders) / "bert-base-uncased" / "vocab.txt").write_text("\n".join(words) + "\n")
    assert run(ImageRewardNode, "ImageReward.pt", "bert-base-uncased").name == "image_reward"


def test_aesthetics(model_folders):  # noqa: F811
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from testtime.nodes.reward_nodes import AestheticNode
    from testtime.verifiers.aesthetic.predictors import laion_head, v25_head

    tiny_clip(folder_of(model_folders) / "openai--clip-vit-large-patch14")
    torch.save(laion_head(32).state_dict(), folder_of(model_folders) / "sac+logos+ava1-l14-linearMSE.pth")
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 3}
    siglip = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=32, patch_size=8))
    siglip.save_pretrained(str(folder_of(model_folders) / "google--siglip-so400m-patch14-384"))
    head = {key.replace("layers", "scoring_head"): value for key, value in v25_head(48).state_dict().items()}
    torch.save(head, folder_of(model_folders) / "aesthetic_predictor_v2_5.pth")
    laion = run(AestheticNode, "openai--clip-vit-large-patch14", "sac+logos+ava1-l14-linearMSE.pth")
    v25 = run(AestheticNode, "google--siglip-so400m-patch14-384", "aesthetic_predictor_v2_5.pth")
    assert (laion.name, v25.name) == ("laion_aesthetic", "aesthetic_v25") and not laion.needs_prompt
    with pytest.raises(ValueError, match="is not the head that was expected"):
        AestheticNode.execute("google--siglip-so400m-patch14-384", "sac+logos+ava1-l14-linearMSE.pth")


def test_without_weights_every_loader_says_what_where_and_under_which_licence(model_folders):  # noqa: F811
    from testtime.nodes import reward_nodes
    from testtime.nodes.model_folders import NO_MODEL
    from testtime.verifiers.base import VerifierError

    expected = {
        "PickScoreNode": ("PickScore_v1", "MIT"),
        "HPSNode": ("HPS_v2.1_compressed.pt", "Apache-2.0"),
        "ImageRewardNode": ("ImageReward.pt", "Apache-2.0"),
        "AestheticNode": ("clip-vit-large-patch14", "MIT"),
        "SimilarityNode": ("dinov2-base", "Apache-2.0"),
    }
    for node in reward_nodes.NODES:
        inputs = [
            item
            for item in node.define_schema().inputs
            if item.id not in ("scale", "references", "combine", "precision")
        ]
        assert all(item.options == [NO_MODEL] and len(item.tooltip) > 10 for item in inputs)
        message = node.validate_inputs(**{item.id: NO_MODEL for item in inputs})
        for part in (*expected[node.__name__], inputs[0].id, str(folder_of(model_folders))):
            assert part in message, (node, part)
        assert node.validate_inputs() is True  # a choice that another node makes is not known yet
        with pytest.raises(VerifierError, match="Looked in"):
            node.execute(*[NO_MODEL for _ in inputs], *[None] * (node.__name__ == "SimilarityNode"))


def test_a_wrong_file_is_refused_by_name(model_folders):  # noqa: F811
    from testtime.nodes.reward_nodes import HPSNode

    (folder_of(model_folders) / "HPS_v2.1_compressed.pt").write_bytes(b"not a file of weights")
    with pytest.raises(ValueError, match=r"HPS_v2.1_compressed.pt is no readable weights file"):
        HPSNode.execute("HPS_v2.1_compressed.pt")


def test_similarity(model_folders):  # noqa: F811
    from testtime.nodes.reward_nodes import SimilarityNode

    tiny_clip(folder_of(model_folders) / "some--clip")
    assert run(SimilarityNode, "some--clip", torch.rand(2, 30, 30, 3)).name == "similarity(some--clip)"


def test_video_reward_from_its_folders(model_folders):  # noqa: F811
    """Offered by its own marker, loaded in inference mode, a clip judged; without weights it says what to get."""
    from testtime.nodes.model_folders import NO_MODEL
    from testtime.nodes.video_reward_node import VideoRewardNode

    from ..unit.test_verifiers_video_reward import INSTRUCTION, MARKS, config, old_name, tokenizer

    transformers = pytest.importorskip("transformers")
    assert VideoRewardNode.define_schema().inputs[0].default == NO_MODEL
    assert "KwaiVGI/VideoReward" in VideoRewardNode.validate_inputs(model=NO_MODEL)
    words = tokenizer()
    base = folder_of(model_folders) / "Qwen--Qwen2-VL-2B-Instruct"
    config(len(words) + 3).save_pretrained(base)
    words.save_pretrained(base)
    folder = folder_of(model_folders) / "KwaiVGI--VideoReward"
    (folder / "checkpoint-1").mkdir(parents=True)
    (folder / "model_config.json").write_text('{"data_config": {"prompt_template_type": "detailed_special"}}')
    (folder / "prompt_template.py").write_text(f"DETAILED_PROMPT_WITH_SPECIAL_TOKEN = {INSTRUCTION!r}")
    model = transformers.Qwen2VLForConditionalGeneration(config(len(words) + len(MARKS)))
    state = {f"base_model.model.{old_name(key)}": value for key, value in model.state_dict().items()}
    state["base_model.model.rm_head.weight"] = torch.randn(1, 32)
    torch.save(state, folder / "checkpoint-1" / "model.pth")
    schema = VideoRewardNode.define_schema()
    assert (schema.inputs[0].default, schema.inputs[1].default) == (folder.name, base.name)
    assert VideoRewardNode.validate_inputs(model=folder.name, base=base.name) is True
    with torch.inference_mode():
        verifier = VideoRewardNode.execute(folder.name, base.name, "motion").args[0]
        scores = verifier.score(torch.rand(2, 4, 64, 48, 3), ["a red cat", "two birds"])
    assert scores.shape == (2,) and torch.isfinite(scores).all() and verifier.least_frames == 2
