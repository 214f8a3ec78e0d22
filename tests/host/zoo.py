"""Models of the zoo, built: MODEL, VAE and conditions of a kind, on the host that is there."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from .conftest import _patcher, build_vae, randomise
from .video_models import build_wan_vae
from .zoo_models import ZOO, ImageModel

# Networks that refuse what they do not know: the class of their parameters, by the beginning of ``image_model``.
_PARAMETERS = {
    "flux": ("comfy.ldm.flux.model", "FluxParams"),
    "chroma_radiance": ("comfy.ldm.chroma_radiance.model", "ChromaRadianceParams"),
    "chroma": ("comfy.ldm.chroma.model", "ChromaParams"),
    "hunyuan_video": ("comfy.ldm.hunyuan_video.model", "HunyuanVideoParams"),
}


def exists(kind: str) -> bool:
    """Whether the host knows models of a kind."""
    import comfy.supported_models as supported

    return hasattr(supported, ZOO[kind].family) and ZOO[kind].known()


def _config(model: ImageModel) -> dict[str, Any]:
    config = dict(model.config() if callable(model.config) else model.config)
    name = str(config.get("image_model", ""))
    if name == "lumina2":
        from comfy.ldm.lumina.model import NextDiT

        return _known_to(NextDiT, config)
    for beginning, (module, parameters) in _PARAMETERS.items():
        if name.startswith(beginning):
            owner = getattr(importlib.import_module(module), parameters)
            known = {key for cls in owner.__mro__ for key in getattr(cls, "__annotations__", {})}
            return {key: value for key, value in config.items() if key in known or key == "image_model"}
    return config


def _known_to(network: type, config: dict[str, Any]) -> dict[str, Any]:
    """``config`` without what an older ``network`` does not take."""
    names = inspect.signature(network.__init__).parameters
    return {key: value for key, value in config.items() if key in names}


def build_image_model(kind: str, sizes: dict[str, Any] | None = None, seed: int = 0):
    """A MODEL of the zoo, of other ``sizes`` if given."""
    import comfy.supported_models as supported

    made = ZOO[kind]
    sizes = sizes or _config(made)
    config = getattr(supported, made.family)(sizes)
    config.unet_config.update(sizes)  # classes bring sizes of their own
    config.set_inference_dtype(torch.float32, None)
    with torch.no_grad():
        model = config.get_model(dict(made.weights), "")
        made.after(model)
    randomise(model.diffusion_model, seed)
    return _patcher(config, model)


def build_image_vae(kind: str, model):
    """A VAE that decodes the latents of a kind, as its MODEL hands them out."""
    made = ZOO[kind]
    if made.vae == "wan":
        return build_wan_vae(channels=model.model.process_latent_out(image_latent(kind)["samples"]).shape[1])
    if made.vae == "pixels":
        import comfy.sd

        return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    if made.vae == "flux2":
        return _exchanged(_flux2_network(), made)
    if made.vae == "hunyuan":
        return _exchanged(_hunyuan_network(), made)
    return build_vae(made.channels, halvings=made.cells.bit_length() - 1)


def _flux2_network() -> torch.nn.Module:
    """Flux.2's autoencoder: 32 channels, normalised, four cells of which are one of the model's."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    sizes = {"double_z": True, "z_channels": 32, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
    sizes |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    network = AutoencoderKL(ddconfig={**sizes, "batch_norm_latent": True}, embed_dim=32)
    network.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 128))
    network.bn.running_var.copy_(torch.linspace(0.5, 2.0, 128))
    return network


def _hunyuan_network() -> torch.nn.Module:
    """HunyuanImage's autoencoder: 64 channels, 32 pixels along a cell."""
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    sizes = {"in_channels": 3, "out_channels": 3, "z_channels": 64, "block_out_channels": [64] * 6}
    sizes |= {"num_res_blocks": 1, "ffactor_spatial": 32, "downsample_match_channel": True}
    sizes |= {"upsample_match_channel": True}
    return AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.hunyuan_video.vae.Encoder", "params": sizes},
        decoder_config={"target": "comfy.ldm.hunyuan_video.vae.Decoder", "params": sizes},
    )


def _exchanged(network: torch.nn.Module, made: ImageModel):
    """A VAE as ComfyUI's loader leaves it, around another network."""
    import comfy.model_management as management
    import comfy.model_patcher

    vae = build_vae(4)
    vae.first_stage_model = randomise(network, 7).eval()
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = made.channels, made.cells, made.cells
    vae.patcher = comfy.model_patcher.ModelPatcher(
        network, load_device=vae.device, offload_device=management.vae_offload_device()
    )
    return vae


def image_conditioning(kind: str, seed: int):
    """CONDITIONING of random tokens."""
    made, generator = ZOO[kind], torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, 6, made.width, generator=generator)
    return [[tokens, made.extra(generator, made.channels)]]


def image_latent(kind: str, batch: int = 1) -> dict[str, torch.Tensor]:
    """An empty LATENT."""
    made = ZOO[kind]
    return {"samples": torch.zeros(batch, made.channels, *((1,) if made.timed else ()), *made.size)}
