"""Key mappings on synthetic files with exactly the released names and shapes, full size on the meta device.

The lists are written down from the published layouts, not derived from the code under test.
"""

from __future__ import annotations

import pickle
from typing import ClassVar

import pytest
import torch

from testtime.verifiers import clip_weights, openclip_layout
from testtime.verifiers.aesthetic import predictors as aesthetic
from testtime.verifiers.base import VerifierError
from testtime.verifiers.clip_weights import infer_config, read_weights
from testtime.verifiers.preference import image_reward
from testtime.verifiers.preference.image_reward import ImageRewardModel

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")


def meta(*shape):
    return torch.empty(shape, device="meta")


def norm(name, width):
    return {f"{name}.weight": meta(width), f"{name}.bias": meta(width)}


def linear(name, inputs, outputs):
    return {f"{name}.weight": meta(outputs, inputs), f"{name}.bias": meta(outputs)}


def hps() -> dict[str, torch.Tensor]:
    """``HPS_v2.1_compressed.pt``: an open_clip ViT-H-14."""

    def transformer(prefix, width, layers):
        state = {}
        for layer in range(layers):
            block = f"{prefix}transformer.resblocks.{layer}."
            state |= norm(f"{block}ln_1", width) | norm(f"{block}ln_2", width)
            state |= {
                f"{block}attn.in_proj_weight": meta(3 * width, width),
                f"{block}attn.in_proj_bias": meta(3 * width),
            }
            state |= linear(f"{block}attn.out_proj", width, width)
            state |= linear(f"{block}mlp.c_fc", width, 4 * width) | linear(f"{block}mlp.c_proj", 4 * width, width)
        return state

    return {
        "positional_embedding": meta(77, 1024),
        "text_projection": meta(1024, 1024),
        "logit_scale": meta(),
        "attn_mask": meta(77, 77),
        "visual.class_embedding": meta(1280),
        "visual.positional_embedding": meta(257, 1280),
        "visual.proj": meta(1280, 1024),
        "visual.conv1.weight": meta(1280, 3, 14, 14),
        **norm("visual.ln_pre", 1280),
        **transformer("visual.", 1280, 32),
        **norm("visual.ln_post", 1280),
        **transformer("", 1024, 24),
        "token_embedding.weight": meta(49408, 1024),
        **norm("ln_final", 1024),
    }


def clip(text_width, text_layers, width, layers, patch, projection) -> dict[str, torch.Tensor]:
    """A CLIP in Hugging Face layout, as PickScore and the OpenAI repositories have it."""

    def tower(name, size, depth):
        state = {}
        for layer in range(depth):
            block = f"{name}.encoder.layers.{layer}."
            for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                state |= linear(f"{block}self_attn.{part}", size, size)
            state |= norm(f"{block}layer_norm1", size) | norm(f"{block}layer_norm2", size)
            state |= linear(f"{block}mlp.fc1", size, 4 * size) | linear(f"{block}mlp.fc2", 4 * size, size)
        return state

    return {
        "logit_scale": meta(),
        "text_model.embeddings.position_ids": meta(1, 77),
        "text_model.embeddings.token_embedding.weight": meta(49408, text_width),
        "text_model.embeddings.position_embedding.weight": meta(77, text_width),
        **tower("text_model", text_width, text_layers),
        **norm("text_model.final_layer_norm", text_width),
        "vision_model.embeddings.class_embedding": meta(width),
        "vision_model.embeddings.position_ids": meta(1, (224 // patch) ** 2 + 1),
        "vision_model.embeddings.patch_embedding.weight": meta(width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": meta((224 // patch) ** 2 + 1, width),
        **norm("vision_model.pre_layrnorm", width),
        **tower("vision_model", width, layers),
        **norm("vision_model.post_layernorm", width),
        "visual_projection.weight": meta(projection, width),
        "text_projection.weight": meta(projection, text_width),
    }


def image_reward_file() -> dict[str, torch.Tensor]:
    """``ImageReward.pt``: 24 blocks of a ViT, 12 layers of a BERT that looks, an MLP, two projections."""
    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    state = {f"{vision}cls_token": meta(1, 1, 1024), f"{vision}pos_embed": meta(1, 197, 1024),
             f"{vision}patch_embed.proj.weight": meta(1024, 3, 16, 16),
             f"{vision}patch_embed.proj.bias": meta(1024)}  # fmt: skip
    for layer in range(24):
        block = f"{vision}blocks.{layer}."
        state |= norm(f"{block}norm1", 1024) | norm(f"{block}norm2", 1024)
        state |= linear(f"{block}attn.qkv", 1024, 3072) | linear(f"{block}attn.proj", 1024, 1024)
        state |= linear(f"{block}mlp.fc1", 1024, 4096) | linear(f"{block}mlp.fc2", 4096, 1024)
    state |= norm(f"{vision}norm", 1024)
    state |= {
        f"{text}embeddings.position_ids": meta(1, 512),
        f"{text}embeddings.word_embeddings.weight": meta(30524, 768),
        f"{text}embeddings.position_embeddings.weight": meta(512, 768),
    }
    state |= norm(f"{text}embeddings.LayerNorm", 768)
    for layer in range(12):
        block = f"{text}encoder.layer.{layer}."
        for kind, seen in (("attention", 768), ("crossattention", 1024)):
            state |= linear(f"{block}{kind}.self.query", 768, 768)
            state |= linear(f"{block}{kind}.self.key", seen, 768) | linear(f"{block}{kind}.self.value", seen, 768)
            state |= linear(f"{block}{kind}.output.dense", 768, 768) | norm(f"{block}{kind}.output.LayerNorm", 768)
        state |= linear(f"{block}intermediate.dense", 768, 3072) | linear(f"{block}output.dense", 3072, 768)
        state |= norm(f"{block}output.LayerNorm", 768)
    state |= linear("blip.vision_proj", 1024, 256) | linear("blip.text_proj", 768, 256)
    widths = (768, 1024, 128, 64, 16, 1)
    for index, inputs, outputs in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        state |= linear(f"mlp.layers.{index}", inputs, outputs)
    return state


def shapes(state) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("position_ids")}


def wanted(build) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(build().state_dict())


class TestFullSize:
    def test_hps(self):
        state = hps()
        assert sum(value.numel() for key, value in state.items() if key != "attn_mask") == 986_109_441
        converted = openclip_layout.to_transformers(state)
        config = infer_config(converted, "HPS_v2.1_compressed.pt", "gelu")
        assert shapes(converted) == wanted(lambda: transformers.CLIPModel(config))
        assert config.vision_config.num_attention_heads == 16 and config.text_config.num_attention_heads == 16

    @pytest.mark.slow
    def test_hps_names_are_open_clips_own(self):
        open_clip = pytest.importorskip("open_clip")
        with torch.device("meta"):
            official = open_clip.create_model("ViT-H-14", pretrained=None, device="meta").state_dict()
        ours = {key: shape for key, shape in shapes(hps()).items() if key != "attn_mask"}
        assert {key: shape for key, shape in shapes(official).items() if key != "attn_mask"} == ours

    @pytest.mark.parametrize(
        ("sizes", "activation"),
        [
            ((1024, 24, 1280, 32, 14, 1024), "gelu"),  # PickScore_v1
            ((768, 12, 1024, 24, 14, 768), "quick_gelu"),  # clip-vit-large-patch14
            ((512, 12, 768, 12, 32, 512), "quick_gelu"),  # clip-vit-base-patch32
        ],
    )
    def test_clips_in_hugging_face_layout(self, sizes, activation):
        state = clip(*sizes)
        config = infer_config(state, "model.safetensors")
        assert config.vision_config.hidden_act == config.text_config.hidden_act == activation
        assert shapes(state) == wanted(lambda: transformers.CLIPModel(config))

    def test_pickscore_has_the_published_size(self):
        assert sum(v.numel() for k, v in clip(1024, 24, 1280, 32, 14, 1024).items() if "position_ids" not in k) == (
            986_109_441
        )

    def test_image_reward(self):
        state = image_reward_file()
        numbers = {key: value.numel() for key, value in state.items() if "position_ids" not in key}
        assert sum(numbers.values()) == 303_301_632 + 141_977_088 + 927_969 + 459_264
        converted = image_reward.to_transformers(state)
        assert shapes(converted) == wanted(ImageRewardModel)

    @pytest.mark.parametrize(
        ("head", "indices", "prefix", "width"),
        [
            (aesthetic.laion_head, (0, 2, 4, 6, 7), "layers", 768),
            (aesthetic.v25_head, (0, 2, 4, 6, 8), "scoring_head", 1152),
        ],
    )
    def test_aesthetic_heads(self, head, indices, prefix, width, tmp_path):
        widths = (width, 1024, 128, 64, 16, 1)
        state = {}
        for index, inputs, outputs in zip(indices, widths, widths[1:], strict=False):
            state |= {
                f"{prefix}.{index}.weight": torch.randn(outputs, inputs),
                f"{prefix}.{index}.bias": torch.randn(outputs),
            }
        torch.save(state, tmp_path / "head.pth")
        loaded = aesthetic.load_head(head(), tmp_path / "head.pth")
        layers = [layer.weight for layer in loaded.layers.values()]
        assert all(torch.equal(layer, state[f"{prefix}.{i}.weight"]) for layer, i in zip(layers, indices, strict=True))


class TestFormats:
    STATE: ClassVar = {"layers.0.weight": torch.arange(6.0).view(2, 3), "layers.0.bias": torch.ones(2)}

    @pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth", ".bin"])
    def test_every_ending_is_read(self, ending, tmp_path):
        path = tmp_path / f"file{ending}"
        if ending == ".safetensors":
            safetensors.save_file(self.STATE, path)
        else:
            torch.save(self.STATE, path)
        read = read_weights([path])
        assert read.keys() == self.STATE.keys() and all(torch.equal(read[k], v) for k, v in self.STATE.items())

    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_state_dict_inside_a_checkpoint(self, legacy, tmp_path):
        torch.save({"epoch": 3, "state_dict": self.STATE}, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
        assert read_weights([tmp_path / "c.pt"]).keys() == self.STATE.keys()

    @pytest.mark.parametrize("plain", [False, True])
    @pytest.mark.parametrize("ending", [".pt", ".pth", ".bin"])
    def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(self, ending, plain, tmp_path):
        trap = tmp_path / "sprung"

        class Code:
            def __reduce__(self):
                return (open, (str(trap), "w"))

        path = tmp_path / f"evil{ending}"
        if plain:
            path.write_bytes(pickle.dumps({"layers.0.weight": Code()}))
        else:
            torch.save({**self.STATE, "layers.1.weight": Code()}, path)
        with pytest.raises(VerifierError, match=f"evil\\{ending} is no readable weights file"):
            read_weights([path])
        assert not trap.exists()

    def test_a_checkpoint_that_is_no_dictionary(self, tmp_path):
        torch.save([torch.zeros(2)], tmp_path / "list.pt")
        with pytest.raises(VerifierError, match=r"list.pt holds a list"):
            read_weights([tmp_path / "list.pt"])

    def test_another_architecture_is_named(self, tmp_path):
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, tmp_path / "resnet.pt")
        with pytest.raises(VerifierError, match=r"resnet.pt has no vision_model"):
            clip_weights.build_clip(read_weights([tmp_path / "resnet.pt"]), "resnet.pt")
