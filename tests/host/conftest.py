"""Tiny random networks of ComfyUI's own classes, and the few helpers that every host test needs.

ComfyUI is imported into the test process, on the CPU. Its ``nodes`` module and our ``testtime.nodes`` do not collide,
because our package is only ever imported as ``testtime``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from testtime.installation.locate import find_comfyui
from testtime.samplers.protocols import Verifier


def _import_comfyui() -> None:
    """Put ComfyUI first on the path and make it a CPU host, before ``comfy.model_management`` decides otherwise."""
    found = find_comfyui()
    if found is None or str(found.root) in sys.path:
        return
    sys.path.insert(0, str(found.root))
    from comfy.cli_args import args

    args.cpu = True


_import_comfyui()


def feature(there: bool, without: str) -> None:
    """Skip the test on hosts that lack what it is about; ``without`` is a sentence about these hosts."""
    if not there:
        pytest.skip(f"on this host {without}")


@pytest.fixture(scope="session", autouse=True)
def _single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _journals(tmp_path_factory):
    """Journals of searches in this process do not go to the user's output folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTTIME_JOURNAL", str(tmp_path_factory.mktemp("journals")))
        yield


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that neither explode nor vanish: ComfyUI's layers start uninitialised, some of its blocks at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            values = values / parameter[0].numel() ** 0.5
        elif name.endswith(("weight", "scale")):
            values = 1 + 0.1 * values
        else:
            values = 0.1 * values
        parameter.data = values
        parameter.requires_grad_(False)
    for name, buffer in module.named_buffers():
        if name.endswith("pos_embed"):  # comes with a checkpoint; until then it is whatever lay in the memory
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return module


def _patcher(config, model):
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    del config
    model.eval()
    return ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


SD15_CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 16,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "legacy": False,
    "adm_in_channels": None,
}

SD3_CONFIG = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "depth": 1,
    "adm_in_channels": 8,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 16, "out_features": 64}},
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "pos_embed_scaling_factor": None,
}

FLUX_CONFIG = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 8,
    "context_in_dim": 16,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}


def flux_config() -> dict:
    """``FLUX_CONFIG`` with what newer hosts ask for besides, as their checkpoint loaders set it for Flux.1."""
    from comfy.ldm.flux.model import FluxParams

    newer = {"txt_ids_dims": []}
    return {**FLUX_CONFIG, **{key: value for key, value in newer.items() if key in FluxParams.__annotations__}}


def build_model(kind: str, seed: int = 0):
    """A MODEL (ModelPatcher) of a tiny random network: "eps", "v", "inpaint" (SD1.5 UNet), "sd3" or "flux"."""
    import comfy.model_base as model_base
    import comfy.supported_models as supported

    if kind in ("eps", "v", "inpaint"):
        config = supported.SD15({**SD15_CONFIG, "in_channels": 9 if kind == "inpaint" else 4})
        config.unet_config["num_heads"] = 4
    else:
        config = supported.SD3(SD3_CONFIG) if kind == "sd3" else supported.Flux(flux_config())
    config.set_inference_dtype(torch.float32, None)
    v_prediction = model_base.ModelType.V_PREDICTION
    model = model_base.BaseModel(config, v_prediction) if kind == "v" else config.get_model({}, "")
    randomise(model.diffusion_model, seed)
    return _patcher(config, model)


def build_vae(channels: int = 4, seed: int = 7, halvings: int = 3):
    """A VAE of a tiny random AutoencoderKL: 2^halvings pixels per cell, ``channels`` latent channels."""
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL

    ddconfig = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1] * (halvings + 1),
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"ddconfig": ddconfig, "embed_dim": channels}
    weights = randomise(AutoencoderKL(**params), seed).state_dict()
    vae = comfy.sd.VAE(sd=weights, config={"params": params})
    # What the loader reads off the weights, where it is not told of the network's sizes.
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = channels, 2**halvings, 2**halvings
    return vae


def conditioning(kind: str, batch: int = 1, seed: int = 1):
    """CONDITIONING of random tokens, one different entry per row."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, 6, 16, generator=generator)
    extra = {}
    if kind in ("sd3", "flux"):
        extra["pooled_output"] = torch.randn(batch, 8, generator=generator)
    if kind == "flux":
        extra["guidance"] = 3.5
    return [[tokens, extra]]


def channels_of(kind: str) -> int:
    """Latent channels of a model kind."""
    return 16 if kind in ("sd3", "flux") else 4


def watched(model, before: Callable[[int], None] | None = None) -> tuple[object, list[int]]:
    """(clone of a MODEL, list that gets the row count of every forward pass of its network).

    ``before`` is called with that count before the network runs; what it raises, the network raises.
    """
    rows: list[int] = []

    def count(apply_model, call):
        if before is not None:
            before(len(call["input"]))
        rows.append(len(call["input"]))
        return apply_model(call["input"], call["timestep"], **call["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(count)
    return clone, rows


def judged(given, latent, prompt: str = "a red square") -> torch.Tensor:
    """Scores of a LATENT as the stock decoder shows it."""
    with torch.inference_mode():
        images = given.vae.decode(latent["samples"])
        images = images.reshape(-1, *images.shape[-3:])  # some VAEs show an image as a clip of one frame
        return given.verifier.score(images, [prompt] * len(images))


class Redness(Verifier):
    """A small real verifier: how much redder than blue an image is; the prompt "blue" turns it round."""

    name = "redness"
    differentiable = True

    def __init__(self):
        self.calls: list[int] = []

    def score(self, images, prompts, context=None):
        self.calls.append(len(images))
        sign = torch.tensor([-1.0 if "blue" in prompt else 1.0 for prompt in prompts], device=images.device)
        return sign * (images[..., 0] - images[..., 2]).mean((1, 2))


class WeightedRedness(torch.nn.Module, Verifier):
    """Redness through a learned convolution, to have a verifier with weights."""

    name = "weighted_redness"
    differentiable = True

    def __init__(self):
        super().__init__()
        self.filter = torch.nn.Conv2d(3, 1, 3)

    def score(self, images, prompts, context=None):
        return self.filter(images.movedim(-1, 1)).mean((1, 2, 3))


@pytest.fixture(scope="session")
def models() -> Callable[[str], object]:
    """``models(kind)`` -> MODEL, built once per kind."""
    built: dict[str, object] = {}

    def get(kind: str):
        if kind not in built:
            built[kind] = build_model(kind)
        return built[kind]

    return get


@pytest.fixture(scope="session")
def vaes() -> Callable[[str], object]:
    """``vaes(kind)`` -> VAE that fits a model kind."""
    built: dict[int, object] = {}

    def get(kind: str):
        channels = channels_of(kind)
        if channels not in built:
            built[channels] = build_vae(channels)
        return built[channels]

    return get


@pytest.fixture
def setup(models, vaes):
    """``setup(kind, batch=1, size=(8, 8), ...)`` -> everything that the sampling nodes take."""

    def make(kind: str = "eps", batch: int = 1, size: tuple[int, int] = (8, 8), prompts: int = 1):
        return SimpleNamespace(
            kind=kind,
            model=models(kind),
            vae=vaes(kind),
            positive=conditioning(kind, prompts, seed=1),
            negative=conditioning(kind, 1, seed=2),
            latent={"samples": torch.zeros(batch, channels_of(kind), *size)},
            verifier=Redness(),
        )

    return make


@pytest.fixture
def search_ksampler():
    """``search_ksampler(setup, search, **inputs)``: run Search KSampler as the server does, in inference mode."""

    def run(given, search, **inputs):
        from testtime.nodes.search_ksampler import SearchKSamplerNode

        values = {
            "model": given.model,
            "seed": 3,
            "steps": 4,
            "cfg": 2.0,
            "scheduler": "normal",
            "positive": given.positive,
            "negative": given.negative,
            "latent_image": given.latent,
            "denoise": 1.0,
            "verifier": given.verifier,
            "vae": given.vae,
            "search": search,
            "eta": 1.0,
            "prompt": "a red square",
            **inputs,
        }
        with torch.inference_mode():
            output = SearchKSamplerNode.execute(**values)
        best, finalists, scores, trace = output.result
        return SimpleNamespace(best=best, finalists=finalists, scores=scores, trace=trace)

    return run


@pytest.fixture
def ksampler():
    """``ksampler(setup, sampler_name, **inputs)`` -> LATENT of the stock KSampler."""

    def run(given, sampler_name: str, **inputs):
        import nodes

        values = {"seed": 3, "steps": 4, "cfg": 2.0, "scheduler": "normal", "denoise": 1.0, **inputs}
        with torch.inference_mode():
            return nodes.KSampler().sample(
                given.model,
                values["seed"],
                values["steps"],
                values["cfg"],
                sampler_name,
                values["scheduler"],
                given.positive,
                given.negative,
                values.get("latent_image", given.latent),
                denoise=values["denoise"],
            )[0]

    return run
