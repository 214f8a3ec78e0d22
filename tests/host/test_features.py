"""What people put on models and conditions: one particle is the stock sampler with it, and so is one among several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from testtime.samplers.methods import DAS, BestOfN
from testtime.samplers.smc.tempering import Alpha

from .conftest import (
    SD3_CONFIG,
    SD15_CONFIG,
    _patcher,
    channels_of,
    conditioning,
    feature,
    flux_config,
    randomise,
)
from .test_conditioning import assert_found_among, close
from .zoo import build_image_model

pytestmark = pytest.mark.host


def ask(node: Any, **inputs: Any) -> Any:
    """The first output of a node of either generation."""
    if hasattr(node, "execute"):
        return node.execute(**inputs).result[0]
    return getattr(node(), node.FUNCTION)(**inputs)[0]


# --- weights


def lora_for(model, seed: int = 11) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 for every weight of attention of a MODEL."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, weight in model.model.diffusion_model.named_parameters():
        if weight.dim() == 2 and ("attn" in name or "to_q" in name):
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            found[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=generator)
            found[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator) / 4
    assert found
    return found


def lora(given) -> None:
    import comfy.sd

    given.model = comfy.sd.load_lora_for_models(given.model, None, lora_for(given.model), 0.5, 0.0)[0]


def hooked_lora(given) -> None:
    """A LoRA of one of two prompts only, which gets weaker on the way (Create Hook LoRA, Set Hook Keyframes)."""
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora_for(given.model), strength_model=0.5, strength_clip=0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0, guarantee_steps=1))
    frames.add(comfy.hooks.HookKeyframe(strength=0.2, start_percent=0.5))
    hooks.set_keyframes_on_hooks(frames)
    given.positive = comfy.hooks.set_hooks_for_conditioning(given.positive, hooks=hooks)


def fp8(given) -> None:
    """Weights in eight bits, cast layer by layer."""
    import comfy.supported_models as supported

    config = supported.SD3(SD3_CONFIG)
    config.set_inference_dtype(torch.float8_e4m3fn, torch.float32)
    model = config.get_model({}, "")
    randomise(model.diffusion_model, 0)
    for parameter in model.diffusion_model.parameters():
        parameter.data = parameter.data.to(torch.float8_e4m3fn)
    given.model = _patcher(config, model)


def compiled(given) -> None:
    """The node's wrapper, with the compiler that needs no C++."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    given.model = given.model.clone()
    set_torch_compile_wrapper(model=given.model, backend="eager")


class Packed(torch.nn.Module):
    """A linear layer of eight-bit numbers with a scale per row, unpacked when it is called, as GGUF's are."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__()
        weight = layer.weight.data
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
        self.register_buffer("packed", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.packed.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def packed(given) -> None:
    """Every linear layer of the blocks of a transformer, packed."""
    given.model = build_image_model("sd3")
    for module in list(given.model.model.diffusion_model.joint_blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, Packed(child))


def adapter(given) -> None:
    """An image adapter: text states get more tokens in every cross attention (as IP-Adapter and its kin do)."""
    more = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(13))

    def patch(q, k, v, extra_options):
        tokens = more.to(k).expand(len(k), -1, -1)
        return q, torch.cat([k, tokens], 1), torch.cat([v, tokens], 1)

    given.model = given.model.clone()
    given.model.set_model_attn2_patch(patch)


# --- guidance


def rescale_cfg(given) -> None:
    from comfy_extras.nodes_model_advanced import RescaleCFG

    given.model = ask(RescaleCFG, model=given.model, multiplier=0.7)


def perturbed_attention(given) -> None:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    given.model = ask(PerturbedAttentionGuidance, model=given.model, scale=3.0)


def self_attention(given) -> None:
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    given.model = ask(SelfAttentionGuidance, model=given.model, scale=0.5, blur_sigma=2.0)


def freeu(given) -> None:
    from comfy_extras.nodes_freelunch import FreeU_V2

    given.model = ask(FreeU_V2, model=given.model, b1=1.3, b2=1.4, s1=0.9, s2=0.2)


def skip_layers(given) -> None:
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    layers = {"double_layers": "0", "single_layers": ""}
    given.model = ask(
        SkipLayerGuidanceDiT,
        model=given.model,
        scale=3.0,
        start_percent=0.0,
        end_percent=1.0,
        rescaling_scale=0.0,
        **layers,
    )


# --- conditions


def timestep_ranges(given) -> None:
    """One prompt for the first half of the steps, another for the second."""
    import nodes

    between = nodes.ConditioningSetTimestepRange().set_range
    first = between(given.positive, 0.0, 0.5)[0]
    given.positive = first + between(conditioning(given.kind, 1, seed=7), 0.5, 1.0)[0]


def reference(count: int) -> Callable[[Any], None]:
    """``count`` images that an edit model looks at."""

    def apply(given) -> None:
        from comfy_extras.nodes_edit_model import ReferenceLatent

        generator = torch.Generator().manual_seed(12)
        for size in (8, 6)[:count]:
            latent = {"samples": torch.randn(1, channels_of(given.kind), size, size, generator=generator)}
            given.positive = ask(ReferenceLatent, conditioning=given.positive, latent=latent)

    return apply


def hinted(given, network, **options: Any) -> None:
    """A ControlNet on both prompts, with an image each for the latents of the batch."""
    import comfy.controlnet
    import comfy.model_management as management

    import nodes

    pictures = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(8))
    control = comfy.controlnet.ControlNet(randomise(network, 9), load_device=management.get_torch_device(), **options)
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    vae = given.vae if "latent_format" in options else None
    given.positive, given.negative = apply(given.positive, given.negative, control, pictures, 1.0, 0.0, 1.0, vae=vae)


def flux_controlnet(given) -> None:
    """One that takes pixels (XLabs)."""
    import comfy.ldm.flux.controlnet
    import comfy.ops

    network = comfy.ldm.flux.controlnet.ControlNetFlux(
        operations=comfy.ops.disable_weight_init, dtype=torch.float32, **flux_config()
    )
    hinted(given, network, extra_conds=["y", "guidance"])


TWO_BLOCKS = {
    **SD3_CONFIG,
    "depth": 2,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 16, "out_features": 128}},
}
"""An SD3 that a ControlNet can work on: the output of its last block is left out."""


def sd3_controlnet(given) -> None:
    """One that takes latents: its hint is encoded by the VAE."""
    import comfy.cldm.mmdit
    import comfy.latent_formats
    import comfy.ops

    network = comfy.cldm.mmdit.ControlNet(
        num_blocks=1, operations=comfy.ops.disable_weight_init, dtype=torch.float32, **TWO_BLOCKS
    )
    hinted(given, network, compression_ratio=1, latent_format=comfy.latent_formats.SD3())


def context_windows(given) -> None:
    """Six rows of the latent at a time, two of them shared (Context Windows, over the height)."""
    import comfy.context_windows as windows

    handler = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=6,
        context_overlap=2,
        context_stride=1,
        closed_loop=False,
        dim=2,
    )
    given.model = given.model.clone()
    given.model.model_options["context_handler"] = handler
    windows.create_prepare_sampling_wrapper(given.model)


FEATURES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "LoRA": ("eps", lora),
    "LoRA on a transformer": ("flux", lora),
    "LoRA of a hook, weaker on the way": ("eps", hooked_lora),
    "weights in fp8": ("sd3", fp8),
    "weights packed in layers of their own (GGUF)": ("sd3", packed),
    "image adapter, a patch of cross attention": ("eps", adapter),
    "torch.compile": ("eps", compiled),
    "RescaleCFG": ("v", rescale_cfg),
    "PAG": ("eps", perturbed_attention),
    "SAG": ("eps", self_attention),
    "FreeU": ("eps", freeu),
    "SLG": ("sd3", skip_layers),
    "timestep ranges of prompts": ("eps", timestep_ranges),
    "timestep ranges of prompts, on a flow": ("sd3", timestep_ranges),
    "one reference image": ("flux", reference(1)),
    "two reference images": ("flux", reference(2)),
    "ControlNet of Flux": ("flux", flux_controlnet),
    "ControlNet of SD3": ("sd3", sd3_controlnet),
    "context windows": ("eps", context_windows),
}
BATCH = {"context windows": 1}
"""Images of a batch, where the host cannot do two."""

SAME_PICTURE = {"torch.compile"}
"""Features that change no number."""


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_there_for_every_particle(setup, search_ksampler, ksampler, name):
    kind, apply = FEATURES[name]
    given = setup(kind, batch=BATCH.get(name, 2))
    if name == "ControlNet of SD3":
        given.model = build_image_model("sd3", TWO_BLOCKS)
    plain = ksampler(given, "euler")
    apply(given)
    stock = ksampler(given, "euler")
    assert close(stock, plain, 1e-3) == (name in SAME_PICTURE)
    assert close(search_ksampler(given, BestOfN(1), eta=0.0).best, stock, 2e-5)
    assert_found_among(search_ksampler(given, BestOfN(4), eta=0.0).finalists, stock)


@pytest.mark.parametrize(
    "name",
    [
        "LoRA",
        "LoRA of a hook, weaker on the way",
        "weights packed in layers of their own (GGUF)",
        "image adapter, a patch of cross attention",
        "one reference image",
    ],
)
def test_a_gradient_goes_through_a_feature(setup, search_ksampler, name):
    kind, apply = FEATURES[name]
    given = setup(kind)
    apply(given)
    out = search_ksampler(given, DAS(2, alpha=Alpha(0.5), start=0.0), steps=3)
    assert out.trace.meta["warnings"] == []
    assert max(entry["gradient_scale"] for record in out.trace.records for entry in record.particles) > 0


def guided_by(given, guider, search_sampler) -> dict[str, torch.Tensor]:
    """A LATENT from SamplerCustomAdvanced with a guider of someone else."""
    from comfy_extras import nodes_custom_sampler as custom

    from testtime.nodes.search_ksampler import schedule

    with torch.inference_mode():
        return ask(
            custom.SamplerCustomAdvanced,
            noise=custom.Noise_RandomNoise(3),
            guider=guider,
            sampler=search_sampler,
            sigmas=schedule(given.model, "normal", 4, 1.0),
            latent_image=given.latent,
        )


@pytest.mark.parametrize("name", ["BasicGuider", "DualCFGGuider", "DualCFGGuider, nested"])
def test_guiders(setup, name):
    from comfy_extras import nodes_custom_sampler as custom

    from testtime.nodes.search_sampler import SearchSamplerNode

    given = setup("sd3", batch=2)
    middle = conditioning("sd3", 1, seed=9)
    if name == "BasicGuider":
        guider = ask(custom.BasicGuider, model=given.model, conditioning=given.positive)
    else:
        import inspect

        inputs = {"cond1": given.positive, "cond2": middle, "negative": given.negative}
        options = {"cfg_conds": 2.0, "cfg_cond2_negative": 1.5}
        makes = getattr(custom.DualCFGGuider, "execute", None) or custom.DualCFGGuider.get_guider
        if "nested" in name:
            feature("style" in inspect.signature(makes).parameters, "DualCFGGuider has one style")
        if "style" in inspect.signature(makes).parameters:
            options["style"] = "nested" if "nested" in name else "regular"
        guider = ask(custom.DualCFGGuider, model=given.model, **inputs, **options)
    stock = guided_by(given, guider, ask(custom.KSamplerSelect, sampler_name="euler"))
    with torch.inference_mode():
        ours = SearchSamplerNode.execute(given.verifier, given.vae, BestOfN(1), 0.0, "a red square").result[0]
    assert close(guided_by(given, guider, ours), stock, 2e-5)


def test_a_unet_of_the_setup_has_what_freeu_looks_for():
    """FreeU works on features of two and four times the first width: the small network must have the first of them."""
    assert SD15_CONFIG["model_channels"] * 2 == SD15_CONFIG["model_channels"] * max(SD15_CONFIG["channel_mult"])
