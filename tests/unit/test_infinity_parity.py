"""Side by side with the published implementation, same random weights, float32: logits, bits, codes, images."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from testtime.models.infinity.attention import KVCache
from testtime.models.infinity.bits import add_scale, sample_bits, scale_input
from testtime.models.infinity.config import RELEASED, InfinityConfig, config_from_shapes
from testtime.models.infinity.loading import assign, convert_transformer, convert_vae
from testtime.models.infinity.schedules import ScaleSchedule, schedule_for
from testtime.models.infinity.text import TextFeatures
from testtime.models.infinity.transformer import Guidance, Infinity
from testtime.models.infinity.vae import RELEASED_VAES, BSQVae, VaeConfig

from .infinity_reference import (
    build,
    needed,
    published_shapes,
    published_vae_shapes,
    redraw,
    reference_modules,
    reference_shapes,
)

pytestmark = needed


@pytest.fixture(scope="module")
def figures():
    """What was measured; written to the file that ``INFINITY_RESULTS`` names, if it names one."""
    measured = {}
    yield measured
    if os.environ.get("INFINITY_RESULTS"):
        body = {
            "reference": "github.com/FoundationVision/Infinity at 4c27bbb, float32 on a CPU, random weights",
            "torch": torch.__version__,
            "cases": measured,
        }
        path = Path(os.environ["INFINITY_RESULTS"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body, indent=1) + "\n")


def published(modules, d=8, patchify=False):
    """The published transformer and autoencoder with random weights."""
    infinity, vae = modules
    config = InfinityConfig(
        4, 128, 4, bits=4 * d if patchify else d, patchify=patchify, text_width=256, text_length=32, pool_heads=2
    )
    model = build(infinity, config, 2)
    redraw(model, seed=1)
    mult = [1, 2, 4, 4] if patchify else [1, 2, 4, 4, 4]
    auto = vae.vae_model(
        None, "dynamic", d, 2**d, patch_size=8 if patchify else 16, encoder_ch_mult=mult, decoder_ch_mult=mult
    )
    return model, auto


def ours(model, auto, patchify):
    """Our classes with the same weights, through the loader."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    config = config_from_shapes({name: tuple(value.shape) for name, value in state.items()}, patchify)
    converted, unknown = convert_transformer(state, config)
    mine = Infinity(config).eval().requires_grad_(False)
    assign(mine, converted, "published", unknown)
    codes = convert_vae(auto.state_dict())
    vae = BSQVae(VaeConfig.from_shapes({name: tuple(value.shape) for name, value in codes.items()}))
    assign(vae, codes, "published autoencoder")
    return mine.requires_grad_(False), vae.eval().requires_grad_(False)


def run_published(model, auto, schedule, prompts, options):
    """The published sampler; returns its guided logits, its bits per scale, its code map and its random numbers."""
    seen = {"logits": [], "bits": [], "uniforms": []}
    model.rng = torch.Generator()
    original = auto.quantizer.lfq.indices_to_codes
    get_logits, multinomial = model.get_logits, torch.multinomial

    def keep_logits(h, cond):
        out = get_logits(h, cond)
        seen["logits"].append(out.clone())
        return out

    def keep_bits(bits, label_type):
        seen["bits"].append(bits.clone())
        return original(bits, label_type=label_type)

    def keep_uniforms(p, num_samples, replacement, generator):
        # One draw of torch's multinomial is argmax(p / q) with q ~ Exp(1): for two outcomes a one if and only if
        # q1 / (q0 + q1) < p1. So the same random numbers drive our sampler.
        twin = torch.Generator()
        twin.set_state(generator.get_state())
        q = torch.empty_like(p).exponential_(1, generator=twin)
        seen["uniforms"].append(q[:, 1] / q.sum(1))
        return multinomial(p, num_samples=num_samples, replacement=replacement, generator=generator)

    def keep_map(total):
        seen["map"] = total.clone()
        return torch.zeros(len(total), 3, 1, 1)

    model.get_logits, torch.multinomial = keep_logits, keep_uniforms
    auto.quantizer.lfq.indices_to_codes, auto_decode, auto.decode = keep_bits, auto.decode, keep_map
    lengths = [len(prompt) for prompt in prompts]
    cumulative = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    try:
        model.autoregressive_infer_cfg(
            vae=auto,
            scale_schedule=[(1, h, w) for h, w in schedule.grids],
            label_B_or_BLT=(torch.cat(prompts), lengths, cumulative, max(lengths)),
            B=len(prompts),
            g_seed=7,
            cfg_list=[options["cfg"]] * len(schedule),
            tau_list=[options["tau"]] * len(schedule),
            top_k=900,
            top_p=options["top_p"],
            returns_vemb=1,
            cfg_insertion_layer=[options["layer"]],
            vae_type=1,
            ret_img=True,
            inference_mode=True,
        )
    finally:
        torch.multinomial = multinomial
        auto.quantizer.lfq.indices_to_codes, auto.decode = original, auto_decode
    return seen


@torch.no_grad()
def run_ours(model, schedule, prompts, options, uniforms):
    """Free running with our classes: nothing is copied from the other side but the uniforms."""
    n, factor, k = len(prompts), model.config.fold, len(schedule)
    prompt = model.prompt(TextFeatures.stack(prompts))
    rows = prompt.rows(torch.arange(n))
    guidance = Guidance(options["cfg"], (options["layer"],))
    cache = KVCache(n)
    h, w = schedule.grids[-1]
    total = torch.zeros(n, model.config.code_dim, factor * h, factor * w)
    logits, bits = [], []
    for scale, grid in enumerate(schedule.grids):
        start = cache.length
        if scale < k - 1:
            cache = cache.grow(grid[0] * grid[1], schedule.offsets[-2], model.layout(prompt.branches))
            part = cache.chunk(slice(0, n), start)
        else:
            part = cache.frozen(slice(0, n))
        codes = scale_input(total, grid, factor) if scale else None
        logits.append(model.step(codes, rows, schedule, scale, part, guidance))
        own = sample_bits(logits[-1], uniforms[scale].view(n, grid[0] * grid[1], -1), options["tau"], options["top_p"])
        bits.append(own)
        total = add_scale(total, own, grid, factor)
    return logits, bits, total


CASES = {
    "square": (1.0, False, {}),
    "wide": (0.571, False, {}),
    "tall": (1.75, False, {}),
    "patches": (1.0, True, {}),
    "inner guidance": (1.0, False, {"layer": -2}),
    "no guidance": (1.0, False, {"cfg": 1.0}),
    "certain bits": (1.0, False, {"tau": 0.2, "top_p": 0.9}),
}


@pytest.mark.parametrize("case", CASES)
def test_free_running_sampling_is_equal(case, figures):
    aspect, patchify, changes = CASES[case]
    options = {"cfg": 3.0, "tau": 1.0, "top_p": 0.97, "layer": 0} | changes
    schedule = schedule_for(aspect, "0.06M")
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randn(length, 256, generator=generator) for length in (7, 11)]
    with reference_modules() as modules, torch.no_grad():
        model, auto = published(modules, d=6, patchify=patchify)
        seen = run_published(model, auto, schedule, [prompt.clone() for prompt in prompts], options)
        mine, _ = ours(model, auto, patchify)
    logits, bits, total = run_ours(mine, schedule, prompts, options, seen["uniforms"])
    worst = 0.0
    for scale, (a, b) in enumerate(zip(logits, seen["logits"], strict=True)):
        if options["cfg"] != 1 and options["layer"] == 0:
            b = options["cfg"] * b[:2] + (1 - options["cfg"]) * b[2:]
        worst = max(worst, float((a.flatten(2) - b).abs().max() / b.abs().max()))
        theirs = seen["bits"][scale][:, 0].permute(0, 3, 1, 2)
        theirs = F.pixel_unshuffle(theirs, 2) if patchify else theirs
        assert torch.equal(bits[scale].long(), theirs.flatten(2).transpose(1, 2)), f"bits of scale {scale}"
    map_error = float((total - seen["map"].squeeze(2)).abs().max())
    figures[f"sampling: {case}"] = {
        "scales": len(schedule),
        "tokens": schedule.offsets[-1],
        "relative logit error": worst,
        "code map error": map_error,
        "bits that differ": 0,
        "bits": sum(b.numel() for b in bits),
    }
    assert worst < 1e-5 and map_error < 1e-5
    ones = torch.cat([b.flatten() for b in bits]).float().mean()
    assert 0.1 < ones < 0.9  # the comparison was of random bits, not of a degenerate network


@pytest.mark.parametrize("patchify", [False, True])
def test_encoded_bits_and_decoded_images_are_equal(patchify, figures):
    torch.manual_seed(0)
    schedule = ScaleSchedule.square(1, 2, 3, 4)
    factor = 2 if patchify else 1
    images = torch.rand(1, 64, 64, 3)
    with reference_modules() as modules, torch.no_grad():
        model, auto = published(modules, d=6, patchify=patchify)
        redraw(auto.encoder, seed=4, std=0.05)
        redraw(auto.decoder, seed=5, std=0.05)
        _, vae = ours(model, auto, patchify)
        scales = [(1, factor * h, factor * w) for h, w in schedule.grids]
        _, z, _, bits, _, _ = auto.encode(images.permute(0, 3, 1, 2) * 2 - 1, scale_schedule=scales)
        decoded = auto.decode(z if z.dim() == 4 else z.squeeze(2))
    own_bits, total = vae.encode(images, schedule, factor)
    for a, b in zip(own_bits, bits, strict=True):
        b = b[:, 0].permute(0, 3, 1, 2)
        b = F.pixel_unshuffle(b, 2) if patchify else b
        assert torch.equal(a.long(), b.flatten(2).transpose(1, 2).long())
    theirs = (decoded.clamp(-1, 1).permute(0, 2, 3, 1) + 1) / 2
    error = float((vae.decode(total) - theirs).abs().max())
    figures[f"autoencoder: {'stride 8, patches' if patchify else 'stride 16'}"] = {
        "bits that differ": 0,
        "image error": error,
    }
    assert error < 2e-5 and float(theirs.std()) > 0.01


@pytest.mark.parametrize(("name", "chunks"), [("infinity_2b", 8), ("infinity_8b", 8), ("layer12", 4), ("layer48", 4)])
def test_key_table_is_that_of_the_published_class(name, chunks):
    with reference_modules() as modules:
        shapes = reference_shapes(modules[0], RELEASED[name], chunks)
    assert shapes == published_shapes(RELEASED[name], chunks)


@pytest.mark.parametrize("patchify", [False, True])
def test_key_table_of_the_autoencoder_is_that_of_the_published_class(patchify):
    config = RELEASED_VAES["infinity_vae_d56_f8_14_patchify" if patchify else "infinity_vae_d32reg"]
    mult = list(config.multipliers)
    with reference_modules() as (_, vae), torch.device("meta"):
        theirs = vae.vae_model(
            None,
            "dynamic",
            config.code_dim,
            2**config.code_dim,
            patch_size=config.stride,
            encoder_ch_mult=mult,
            decoder_ch_mult=mult,
        )
    assert {k: tuple(v.shape) for k, v in theirs.state_dict().items()} == published_vae_shapes(config)
