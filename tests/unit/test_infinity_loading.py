"""The key tables of the released checkpoints against the classes: strict, every shape equal, nothing left over."""

import json

import pytest
import torch
from safetensors.torch import save_file

from testtime.models.infinity.config import RELEASED, InfinityConfig, config_from_shapes
from testtime.models.infinity.loading import (
    CheckpointError,
    assign,
    convert_transformer,
    convert_vae,
    load_transformer,
    load_vae,
    read_state,
)
from testtime.models.infinity.transformer import Infinity
from testtime.models.infinity.vae import RELEASED_VAES, BSQVae, VaeConfig

from .infinity_reference import published_shapes, published_vae_shapes

SMALL = InfinityConfig(4, 32, 2, bits=8, text_width=16, text_length=6, pool_heads=4, hidden=64)
SMALL_VAE = VaeConfig(4, base=8, multipliers=(1, 2), blocks=1, groups=4)


def meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def drawn(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: torch.zeros_like(x) if name.endswith("zero_k_bias") else x for name, x in state.items()}


@pytest.mark.parametrize(
    ("name", "chunks", "tensors", "billions"),
    [("infinity_2b", 8, 694, 2.205), ("infinity_8b", 8, 862, 8.376), ("layer12", 4, None, 0.125)],
)
def test_released_transformers_load_strictly(name, chunks, tensors, billions):
    config = RELEASED[name]
    state = meta(published_shapes(config, chunks))
    if tensors:
        assert len(state) == tensors
    assert config_from_shapes({key: tuple(value.shape) for key, value in state.items()}) == config
    converted, unknown = convert_transformer(state)
    with torch.device("meta"):
        model = Infinity(config)
    assign(model, converted, name, unknown)
    # Ours counts the zero biases of the keys, which the published table keeps apart.
    zero = sum(value.numel() for key, value in state.items() if key.endswith("zero_k_bias"))
    assert (sum(p.numel() for p in model.parameters()) - zero) / 1e9 == pytest.approx(billions, abs=6e-4)


@pytest.mark.parametrize("name", RELEASED_VAES)
def test_released_autoencoders_load_strictly(name):
    config = RELEASED_VAES[name]
    state = meta(published_vae_shapes(config))
    assert len(state) == (226 if "f8" in name else 270)
    converted = convert_vae(state)
    assert VaeConfig.from_shapes({key: tuple(value.shape) for key, value in converted.items()}) == config
    with torch.device("meta"):
        model = BSQVae(config)
    assign(model, converted, name)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(81.6 if "f8" in name else 110.1, abs=0.5)


def test_old_spellings_of_autoencoder_keys_mean_the_same():
    shapes = published_vae_shapes(SMALL_VAE)
    new = convert_vae(meta(shapes))
    old = convert_vae(meta({key.replace(".conv.", ".", 1).replace(".norm.", "."): v for key, v in shapes.items()}))
    assert new.keys() == old.keys()


def test_values_arrive_where_they_belong(tmp_path):
    state = drawn(published_shapes(SMALL, 2))
    torch.save(state, tmp_path / "model.pth")
    model = load_transformer(tmp_path / "model.pth")
    third = model.blocks[3]  # chunk 1, block 1
    prefix = "block_chunks.1.module.1."
    bias = third.self_attention.qkv.bias.view(3, -1)
    assert torch.equal(bias[0], state[prefix + "sa.q_bias"]) and torch.equal(bias[2], state[prefix + "sa.v_bias"])
    assert not bias[1].any()
    bias = third.cross_attention.key_value.bias.view(2, -1)
    assert torch.equal(bias[1], state[prefix + "ca.v_bias"]) and not bias[0].any()
    assert torch.equal(third.modulation, state[prefix + "ada_gss"][0, 0])
    assert torch.equal(model.start, state["pos_start"].flatten())
    assert not any(p.requires_grad for p in model.parameters()) and model.config == SMALL


def test_training_checkpoints_and_safetensors_hold_the_same(tmp_path):
    state = drawn(published_shapes(SMALL, 2))
    torch.save({"trainer": {"gpt_fsdp": state}, "epoch": 3}, tmp_path / "ar-ckpt.pth")
    save_file(state, tmp_path / "model.safetensors")
    first, second = (load_transformer(tmp_path / name) for name in ("ar-ckpt.pth", "model.safetensors"))
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_shards_are_joined_and_a_missing_one_is_named(tmp_path):
    state = drawn(published_shapes(SMALL, 2))
    names = sorted(state)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / file)
    index = {key: file for file, keys in parts.items() for key in keys}
    (tmp_path / "model.index.json").write_text(json.dumps({"weight_map": index}))
    assert read_state(tmp_path).keys() == state.keys()
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks b.safetensors"):
        read_state(tmp_path)


def test_blocks_dtype_leaves_the_rest_in_float32(tmp_path):
    torch.save({name: x.half() for name, x in drawn(published_shapes(SMALL, 2)).items()}, tmp_path / "model.pth")
    model = load_transformer(tmp_path / "model.pth", dtype=torch.bfloat16)
    block = model.blocks[0]
    assert block.dtype == block.self_attention.qkv.bias.dtype == torch.bfloat16
    assert {p.dtype for p in (model.head.weight, model.pool.out.weight, block.modulation)} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), "missing: head.bias"),
        (lambda s: s.update({"extra.weight": torch.ones(1)}), "unknown: extra.weight"),
        (lambda s: s.update({"head.bias": torch.ones(3)}), r"head.bias is \(3,\), not \(16,\)"),
        (lambda s: s["text_proj_for_sos.ca.zero_k_bias"].fill_(1), "zero_k_bias is not zero"),
        (lambda s: s.pop("word_embed.weight"), "'word_embed.weight' is missing"),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("block")], "not an Infinity transformer"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    state = drawn(published_shapes(SMALL, 2))
    change(state)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message):
        load_transformer(tmp_path / "model.pth")


class Surprise:
    pass


def test_bad_files(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist: download"):
        read_state(tmp_path / "none.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / "broken.safetensors")
    torch.save({"a": Surprise()}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_state(tmp_path / "code.pth")
    torch.save({"a": 3}, tmp_path / "number.pth")
    with pytest.raises(CheckpointError, match="more than named tensors"):
        read_state(tmp_path / "number.pth")


def test_autoencoder_file_with_a_discriminator(tmp_path):
    config = VaeConfig(4, base=32, multipliers=(1, 2), blocks=1)
    state = drawn(published_vae_shapes(config)) | {"image_disc.conv.weight": torch.ones(1)}
    torch.save({"vae": state, "step": torch.ones(1)}, tmp_path / "vae.pth")
    model = load_vae(tmp_path / "vae.pth")
    assert model.config == config
    assert torch.equal(model.decoder.up[1].upsample.weight, state["decoder.up.1.upsample.conv.conv.weight"])
