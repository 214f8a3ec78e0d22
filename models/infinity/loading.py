"""Released Infinity checkpoints into this package's classes: key tables, strictness, file formats."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .config import InfinityConfig, config_from_shapes
from .transformer import Infinity
from .vae import BSQVae, VaeConfig

State = dict[str, Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used. The message names the file or the tensors and what is expected."""


# Published names that do not depend on the block, and ours.
_OUTER = {
    "cfg_uncond": "empty_text",
    "pos_start": "start",
    "text_norm.weight": "text_norm.weight",
    "text_proj_for_sos.ca.mat_q": "pool.query",
    "text_proj_for_sos.ca.mat_kv.weight": "pool.key_value.weight",
    "text_proj_for_sos.ca.v_bias": "pool.key_value.bias",
    "text_proj_for_sos.ca.proj": "pool.out",
    "text_proj_for_ca.0": "text_in",
    "text_proj_for_ca.2": "text_out",
    "lvl_embed.weight": "levels.weight",
    "word_embed": "word",
    "shared_ada_lin.1": "modulation",
    "head_nm.ada_lin.1": "head_modulation",
    "head": "head",
}
_INNER = {
    "ada_gss": "modulation",
    "sa.scale_mul_1H11": "self_attention.log_scale",
    "sa.mat_qkv.weight": "self_attention.qkv.weight",
    "sa.q_bias": "self_attention.qkv.bias",
    "sa.v_bias": "self_attention.qkv.bias",
    "sa.proj": "self_attention.out",
    "ca.mat_q": "cross_attention.query",
    "ca.mat_kv.weight": "cross_attention.key_value.weight",
    "ca.v_bias": "cross_attention.key_value.bias",
    "ca.proj": "cross_attention.out",
    "ca_norm": "norm",
    "ffn.fc1": "feed_forward.fc1",
    "ffn.fc2": "feed_forward.fc2",
}
_DROPPED = ("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen")
_BLOCK = re.compile(r"(?:block_chunks\.(\d+)\.module\.(\d+)|blocks\.(\d+))\.(.+)")


def convert_transformer(state: Mapping[str, Tensor], config: InfinityConfig | None = None) -> tuple[State, set[str]]:
    """Published tensors of a transformer under our names and in our shapes.

    The separate biases of queries and values become one bias whose part for the keys is zero, as it is there too.

    Returns:
        (our state, published names that nothing here wants).

    Raises:
        CheckpointError: a key bias that must be zero is not.
    """
    config = config or config_from_shapes({name: tuple(value.shape) for name, value in state.items()})
    per_chunk = 1 + max((int(m[2]) for m in map(_BLOCK.fullmatch, state) if m and m[2]), default=0)
    out: State = {}
    unknown: set[str] = set()
    for name, value in state.items():
        if name in _DROPPED:
            continue
        if name.endswith("zero_k_bias"):
            if not value.is_meta and bool(value.any()):
                raise CheckpointError(f"{name} is not zero: this is not a released kind of Infinity model")
            continue
        match = _BLOCK.fullmatch(name)
        if match:
            number = int(match[3]) if match[3] else int(match[1]) * per_chunk + int(match[2])
            ours = _translate(match[4], _INNER)
            ours = None if ours is None else f"blocks.{number}.{ours}"
        else:
            ours = _translate(name, _OUTER)
        if ours is None:
            unknown.add(name)
        else:
            _place(out, ours, name, value, config)
    return out, unknown


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    if name in table:
        return table[name]
    stem, _, kind = name.rpartition(".")
    return f"{table[stem]}.{kind}" if kind in ("weight", "bias") and stem in table else None


def _place(out: State, ours: str, name: str, value: Tensor, config: InfinityConfig) -> None:
    """Put a published tensor where it belongs, reshaped."""
    if name.endswith("q_bias"):
        rest = out.get(ours, value.new_zeros(3 * len(value)))
        out[ours] = torch.cat([value, rest[len(value) :]])
    elif name.endswith("v_bias"):
        parts = 3 if ".sa." in name else 2
        rest = out.get(ours, value.new_zeros(parts * len(value)))
        out[ours] = torch.cat([rest[: -len(value)], value])
    elif name.endswith("scale_mul_1H11") or name == "pos_start":
        out[ours] = value.flatten()
    elif name.endswith(("ada_gss", "mat_q")):
        out[ours] = value.reshape(value.shape[-2:])
    elif name == "cfg_uncond":
        missing = config.text_length - len(value)
        out[ours] = F.pad(value, (0, 0, 0, missing)) if missing > 0 else value[: config.text_length]
    else:
        out[ours] = value


def convert_vae(state: Mapping[str, Tensor]) -> State:
    """Published tensors of an autoencoder under our names: without wrappers, quantiser and losses."""
    out: State = {}
    for name, value in state.items():
        if any(word in name for word in ("disc", "lpips", "perceptual")) or name.endswith("lfq.mask"):
            continue
        # Released files wrap each layer ("conv1.conv", "norm1.norm", "downsample.conv.conv"), older ones less so.
        stem, kind = name.rsplit(".", 1)
        parts = stem.split(".")
        while parts[-1] in ("conv", "norm"):
            parts.pop()
        out[".".join([*parts, kind])] = value
    return out


def assign(module: nn.Module, state: State, what: str, leftover: set[str] = frozenset()) -> None:
    """Load ``state`` strictly into ``module`` without copying. CheckpointError lists what does not fit."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    missing = sorted(expected.keys() - state.keys())
    surplus = sorted(leftover | (state.keys() - expected.keys()))
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems = [
        f"{label}: {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}"
        for label, names in (("missing", missing), ("unknown", surplus), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"{what} does not fit: {'; '.join(problems)}")
    module.load_state_dict(state, assign=True)


def read_state(path: Path | str) -> State:
    """Tensors of a checkpoint: one .safetensors or .pth file, or a folder of shards with an index.

    Pickled files are read with weights only; anything else in them is refused.

    Raises:
        CheckpointError: the file is missing, damaged or holds more than tensors.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: download it from huggingface.co/FoundationVision/Infinity")
    if path.is_dir():
        indices = sorted(path.glob("*.index.json"))
        if not indices:
            raise CheckpointError(f"{path} has no *.index.json: give the folder with all shards, or a single file")
        shards = sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))
        absent = [name for name in shards if not (path / name).is_file()]
        if absent:
            raise CheckpointError(f"{path} lacks {', '.join(absent)}: download these shards again")
        return {name: value for shard in shards for name, value in read_state(path / shard).items()}
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        body = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error
    # Training checkpoints nest the transformer, autoencoder files nest the weights beside a discriminator.
    for keys in (("trainer", "gpt_fsdp"), ("vae",)):
        inner = body
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if inner is not None:
            body = inner
            break
    if not isinstance(body, dict) or not all(isinstance(value, Tensor) for value in body.values()):
        raise CheckpointError(f"{path} holds more than named tensors: it is not a released Infinity file")
    return body


def load_transformer(
    path: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    patchify: bool | None = None,
    linear: type[nn.Linear] = nn.Linear,
) -> Infinity:
    """Transformer of a released or trained checkpoint, frozen, its blocks' layers in ``dtype``."""
    state = read_state(path)
    try:
        config = config_from_shapes({name: tuple(value.shape) for name, value in state.items()}, patchify)
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]}") from error
    converted, unknown = convert_transformer(state, config)
    with torch.device("meta"):
        model = Infinity(config, linear)
    assign(model, converted, str(path), unknown)
    model.float()
    return model.cast(dtype).to(device).eval().requires_grad_(False)


def load_vae(path: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> BSQVae:
    """Autoencoder of a released checkpoint, frozen. Its sizes follow from the shapes."""
    state = convert_vae(read_state(path))
    config = VaeConfig.from_shapes({name: tuple(value.shape) for name, value in state.items()})
    with torch.device("meta"):
        model = BSQVae(config)
    assign(model, state, str(path))
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)
