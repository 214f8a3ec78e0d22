"""Loading of the embedded family's weights."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from . import vocabulary
from .autoencoder import Autoencoder
from .denoiser import Denoiser
from .packing import unpack
from .text_encoder import TextEncoder

WEIGHTS = Path(__file__).parent / "weights"
_REMEDY = "the weights ship with the pack: reinstall it, or train them (models/tiny/train/README.md)"


class WeightsError(RuntimeError):
    """A weights file is missing or cannot be used. The message names the file, its folder and the remedy."""


@dataclass(frozen=True)
class Family:
    """The embedded text-to-image family, in eval mode, without gradients on the weights.

    Attributes:
        vocabulary: the tokenizer module (``encode_batch``).
        autoencoder, text_encoder, diffusion, flow: networks.
        latent_scale: factor from autoencoder latents to unit variance (the models' scale).
    """

    vocabulary: object
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    diffusion: Denoiser
    flow: Denoiser
    latent_scale: float


def missing_weights(names: Iterable[str], folder: Path = WEIGHTS) -> str:
    """Which of the weights ``names`` are not in ``folder`` and what to do about it; "" if all are there."""
    files = [f"{name}.safetensors" for name in names if not (folder / f"{name}.safetensors").is_file()]
    if not files:
        return ""
    return f"{', '.join(files)} {'is' if len(files) == 1 else 'are'} missing in {folder}: {_REMEDY}"


def load_state(name: str, folder: Path = WEIGHTS) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of ``<folder>/<name>.safetensors``. WeightsError if that cannot be read."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        raise WeightsError(missing_weights([name], folder))
    try:
        with safe_open(str(path), framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return unpack(state), file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path.name} in {path.parent} is damaged ({error}): {_REMEDY}") from error


def load_into(module: nn.Module, name: str, folder: Path = WEIGHTS) -> dict[str, str]:
    """Load ``name``'s weights into ``module``, strictly; freezes it, sets eval mode, returns the file's metadata."""
    state, metadata = load_state(name, folder)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{name}.safetensors in {folder} does not fit this version of the pack: {error}") from error
    module.eval().requires_grad_(False)
    return metadata


def load_autoencoder(folder: Path = WEIGHTS) -> tuple[Autoencoder, float]:
    """Autoencoder in float32 and its latent scale."""
    model = Autoencoder()
    metadata = load_into(model, "autoencoder", folder)
    if "latent_scale" not in metadata:
        raise WeightsError(f"autoencoder.safetensors in {folder} has no latent_scale in its metadata: reinstall")
    return model.to(memory_format=torch.channels_last), float(metadata["latent_scale"])


def load_text_encoder(folder: Path = WEIGHTS) -> TextEncoder:
    """Text encoder in float32, with or without the convolution over neighbouring words, as its file has it."""
    state, _ = load_state("text_encoder", folder)
    near = state.get("near.weight")
    model = TextEncoder(reach=0 if near is None else near.shape[-1] // 2)
    load_into(model, "text_encoder", folder)
    return model


def load_denoiser(name: str, folder: Path = WEIGHTS) -> Denoiser:
    """The "diffusion" (eps-prediction), "flow" or "flow_turbo" (distilled to few steps) network in float32."""
    model = Denoiser({"diffusion": "eps", "flow": "flow", "flow_turbo": "flow"}[name])
    load_into(model, name, folder)
    return model


@functools.lru_cache(maxsize=4)
def load_family(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Family:
    """The whole family. Cached: callers share the (frozen) modules.

    Args:
        dtype, device: of the networks.

    Raises:
        WeightsError: a file is missing, damaged or of another version.
    """
    autoencoder, scale = load_autoencoder()
    parts = [autoencoder, load_text_encoder(), load_denoiser("diffusion"), load_denoiser("flow")]
    autoencoder, text_encoder, diffusion, flow = (module.to(device=device, dtype=dtype) for module in parts)
    return Family(vocabulary, autoencoder, text_encoder, diffusion, flow, scale)
