"""The published Infinity implementation on a CPU, for side-by-side tests, and what its files look like.

Nothing of it is in this repository. ``INFINITY_PATH`` names a checkout of github.com/FoundationVision/Infinity (tested
with commit 4c27bbb); without it the tests that need it are skipped, and say so.
"""

import contextlib
import io
import os
import random
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

PATH = os.environ.get("INFINITY_PATH", "")
needed = pytest.mark.skipif(
    not PATH, reason="INFINITY_PATH is not set: parity with the published Infinity code was not tested"
)


def published_shapes(config, chunks):
    """Tensor names and shapes of a released transformer, written down from its files' documentation."""
    c, ct, bits, hidden = config.width, config.text_width, config.bits, config.hidden
    pool = config.pool_heads
    shapes = {
        "cfg_uncond": (config.text_length, ct),
        "pos_start": (1, 1, c),
        "text_norm.weight": (ct,),
        "text_proj_for_sos.ca.mat_q": (1, pool, c // pool),
        "text_proj_for_sos.ca.mat_kv.weight": (2 * c, ct),
        "text_proj_for_sos.ca.v_bias": (c,),
        "text_proj_for_sos.ca.zero_k_bias": (c,),
        "text_proj_for_sos.ca.proj.weight": (c, c),
        "text_proj_for_sos.ca.proj.bias": (c,),
        "text_proj_for_ca.0.weight": (c, ct),
        "text_proj_for_ca.0.bias": (c,),
        "text_proj_for_ca.2.weight": (c, c),
        "text_proj_for_ca.2.bias": (c,),
        "lvl_embed.weight": (15, c),
        "word_embed.weight": (c, bits),
        "word_embed.bias": (c,),
        "shared_ada_lin.1.weight": (6 * c, c),
        "shared_ada_lin.1.bias": (6 * c,),
        "head_nm.ada_lin.1.weight": (2 * c, c),
        "head_nm.ada_lin.1.bias": (2 * c,),
        "head.weight": (2 * bits, c),
        "head.bias": (2 * bits,),
    }
    block = {
        "ada_gss": (1, 1, 6, c),
        "sa.scale_mul_1H11": (1, config.heads, 1, 1),
        "sa.mat_qkv.weight": (3 * c, c),
        "sa.q_bias": (c,),
        "sa.v_bias": (c,),
        "sa.zero_k_bias": (c,),
        "sa.proj.weight": (c, c),
        "sa.proj.bias": (c,),
        "ca.mat_q.weight": (c, c),
        "ca.mat_q.bias": (c,),
        "ca.mat_kv.weight": (2 * c, c),
        "ca.v_bias": (c,),
        "ca.zero_k_bias": (c,),
        "ca.proj.weight": (c, c),
        "ca.proj.bias": (c,),
        "ca_norm.weight": (c,),
        "ca_norm.bias": (c,),
        "ffn.fc1.weight": (hidden, c),
        "ffn.fc1.bias": (hidden,),
        "ffn.fc2.weight": (c, hidden),
        "ffn.fc2.bias": (c,),
    }
    per_chunk = config.depth // chunks
    for n in range(config.depth):
        prefix = f"block_chunks.{n // per_chunk}.module.{n % per_chunk}."
        shapes |= {prefix + name: shape for name, shape in block.items()}
    return shapes


def published_vae_shapes(config):
    """Tensor names and shapes of a released autoencoder."""
    shapes = {"quantizer.lfq.mask": (config.code_dim,), "quantize.lfq.mask": (config.code_dim,)}

    def layer(name, kind, shape):
        shapes[f"{name}.{kind}.weight"] = shape
        shapes[f"{name}.{kind}.bias"] = shape[:1]

    def residual(name, fan_in, fan_out):
        layer(f"{name}.norm1", "norm", (fan_in,))
        layer(f"{name}.conv1", "conv", (fan_out, fan_in, 3, 3))
        layer(f"{name}.norm2", "norm", (fan_out,))
        layer(f"{name}.conv2", "conv", (fan_out, fan_out, 3, 3))
        if fan_in != fan_out:
            layer(f"{name}.nin_shortcut", "conv", (fan_out, fan_in, 1, 1))

    widths = [config.base * m for m in config.multipliers]
    top = len(widths) - 1
    layer("encoder.conv_in", "conv", (config.base, 3, 3, 3))
    layer("decoder.conv_in", "conv", (widths[-1], config.code_dim, 3, 3))
    last = config.base
    for level, width in enumerate(widths):
        for i in range(config.blocks):
            residual(f"encoder.down.{level}.block.{i}", last if i == 0 else width, width)
        last = width
        if level < top:
            layer(f"encoder.down.{level}.downsample.conv", "conv", (width, width, 3, 3))
        above = widths[min(level + 1, top)]
        for i in range(config.blocks + 1):
            residual(f"decoder.up.{level}.block.{i}", above if i == 0 else width, width)
        if level:
            layer(f"decoder.up.{level}.upsample.conv", "conv", (width, width, 3, 3))
    for side in ("encoder", "decoder"):
        for i in (1, 2):
            residual(f"{side}.mid.block_{i}", widths[-1], widths[-1])
    layer("encoder.norm_out", "norm", (widths[-1],))
    layer("decoder.norm_out", "norm", (config.base,))
    layer("encoder.conv_out", "conv", (config.code_dim, widths[-1], 3, 3))
    layer("decoder.conv_out", "conv", (3, config.base, 3, 3))
    return shapes


def _attention_varlen(q, kv, cu_seqlens_q, cu_seqlens_k, *_, softmax_scale=None, **__):
    """What the variable-length kernel computes: each sample's queries attend to its own keys."""
    out = []
    for i in range(len(cu_seqlens_q) - 1):
        query = q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]].transpose(0, 1)
        key, value = kv[cu_seqlens_k[i] : cu_seqlens_k[i + 1]].permute(1, 2, 0, 3)
        out.append(F.scaled_dot_product_attention(query, key, value, scale=softmax_scale).transpose(0, 1))
    return torch.cat(out)


def _stubs():
    """Modules that the published code imports and a CPU does not have, or that inference does not need."""

    def module(name, **content):
        made = types.ModuleType(name)
        made.__dict__.update(content)
        return made

    def flash_attn_func(q, k, v):
        raise AssertionError("not used here")

    drop = {"DropPath": torch.nn.Identity, "drop_path": lambda x, *_: x}
    return {
        "flash_attn": module(
            "flash_attn", flash_attn_func=flash_attn_func, flash_attn_varlen_kvpacked_func=_attention_varlen
        ),
        "timm": module("timm"),
        "timm.models": module("timm.models", register_model=lambda f: f),
        "timm.models.layers": module("timm.models.layers", **drop),
        "timm.loss": module("timm.loss", SoftTargetCrossEntropy=torch.nn.CrossEntropyLoss),
        "pytz": module("pytz", timezone=lambda *_: None),
        "imageio": module("imageio"),
        "torchvision": module("torchvision", transforms=module("torchvision.transforms")),
        "torchvision.transforms": module("torchvision.transforms"),
    }


@contextlib.contextmanager
def reference_modules():
    """``(infinity.models.infinity, infinity.models.bsq_vae.vae)`` of the published code, on the CPU in float32.

    Its hard-wired bfloat16 casts become no-ops: the comparison is of arithmetic, not of rounding.
    """
    saved = {name: value for name, value in sys.modules.items() if name.split(".")[0] in ("infinity",)}
    stubs = _stubs()
    saved |= {name: sys.modules[name] for name in stubs if name in sys.modules}
    compile_, bfloat16, state = torch.compile, torch.bfloat16, random.getstate()
    sys.modules.update(stubs)
    sys.path.insert(0, str(Path(PATH)))
    torch.compile = lambda *a, **k: a[0] if a else (lambda f: f)
    torch.bfloat16 = torch.float32
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import infinity.models.bsq_vae.vae as vae
            import infinity.models.infinity as infinity

        yield infinity, vae
    finally:
        torch.compile, torch.bfloat16 = compile_, bfloat16
        random.setstate(state)
        sys.path.remove(str(Path(PATH)))
        for name in [name for name in sys.modules if name.split(".")[0] == "infinity" or name in stubs]:
            del sys.modules[name]
        sys.modules.update(saved)


@torch.no_grad()
def redraw(module, seed=0, std=0.08):
    """Weights large enough that every part of the network matters, the published initialisation being almost zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "scale_mul" in name:
            parameter.copy_(1.9 + 2 * noise)
        elif name.endswith("norm.weight"):
            parameter.copy_(1 + std * noise)
        else:
            parameter.copy_(std * noise)


class _Codes:
    """What the published transformer asks of an autoencoder when it is built."""

    def __init__(self, d):
        self.embed_dim, self.vocab_size = d, 2**d
        self.quantizer = self.lfq = self
        self.mask = None


def build(infinity, config, chunks):
    """The published transformer of ``config`` (its switches as in all released models)."""
    with contextlib.redirect_stdout(io.StringIO()):
        return infinity.Infinity(
            vae_local=_Codes(config.code_dim),
            text_channels=config.text_width,
            text_maxlen=config.text_length,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=4,
            drop_path_rate=0,
            block_chunks=chunks,
            shared_aln=True,
            raw_scale_schedule=None,
            checkpointing=None,
            customized_flash_attn=False,
            fused_norm=True,
            pad_to_multiplier=128,
            use_flex_attn=False,
            add_lvl_embeding_only_first_block=1,
            use_bit_label=1,
            rope2d_each_sa_layer=1,
            rope2d_normalized_by_hw=2,
            pn="0.06M",
            apply_spatial_patchify=int(config.patchify),
            inference_mode=True,
            train_h_div_w_list=[1.0],
        ).eval()


def reference_shapes(infinity, config, chunks):
    """Tensor names and shapes of the published class, built without memory."""
    saved = torch.nn.init.trunc_normal_, torch.Tensor.item, infinity.precompute_rope2d_freqs_grid
    torch.nn.init.trunc_normal_ = lambda tensor, *_, **__: tensor
    torch.Tensor.item = lambda self: 0.0 if self.is_meta else saved[1](self)
    infinity.precompute_rope2d_freqs_grid = lambda **_: {}
    try:
        with torch.device("meta"):
            model = build(infinity, config, chunks)
    finally:
        torch.nn.init.trunc_normal_, torch.Tensor.item, infinity.precompute_rope2d_freqs_grid = saved
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
