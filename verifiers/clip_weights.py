"""CLIP weights from single files: reading, recognising the architecture, and building the model strictly."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import VerifierError
from .openclip_layout import is_openclip, to_transformers

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

# Width of an image tower -> heads, where a head is not 64 wide (ViT-H/14, ViT-g/14, ViT-bigG/14)
_VISION_HEADS = {1280: 16, 1408: 16, 1664: 16}
_LOGIT_SCALE = 4.6052  # log(100), where every CLIP ends up; the cosine does not use it
_START_TOKEN, _END_TOKEN = 49406, 49407


def read_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Tensors of one or several files together, without the buffers that transformers computes itself.

    Raises:
        VerifierError: no file, a missing one, or one that is no weights file.
    """
    if not paths:
        raise VerifierError("files is empty: name a CLIP model, or an image tower and a text tower")
    state: dict[str, Tensor] = {}
    for path in paths:
        state.update(_read(path))
    if is_openclip(state):
        state = to_transformers(state)
    return {key: value for key, value in state.items() if not key.endswith("position_ids")}


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise VerifierError(f"there is no file {path}: put a CLIP model in Hugging Face key layout there")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0][:200]
        raise VerifierError(
            f"{path} is no readable weights file: it is damaged, or holds more than tensors (code in it is never run): "
            f"{reason}"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, _safetensor_error()) as error:
        raise VerifierError(f"{path} is no readable weights file (incomplete download?): {error}") from error
    if not isinstance(state, dict):
        raise VerifierError(f"{path} holds a {type(state).__name__}: it must hold tensors by name")
    state = state.get("state_dict", state)
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _safetensor_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


def infer_config(state: dict[str, Tensor], source: str, hidden_act: str | None = None) -> CLIPConfig:
    """Architecture of a CLIP from its tensors' shapes.

    Shapes do not tell the activation: OpenAI's models use quick_gelu, the larger ones of LAION (ViT-H and above) gelu.

    Raises:
        VerifierError: a tower is missing or the layout is another one.
    """
    for key, what in {
        "vision_model.embeddings.patch_embedding.weight": "an image tower",
        "visual_projection.weight": "the projection of the image tower",
        "text_model.embeddings.token_embedding.weight": "a text tower",
        "text_projection.weight": "the projection of the text tower",
    }.items():
        if key not in state:
            raise VerifierError(
                f"{source} has no {key}, so it lacks {what}: CLIPScore needs both towers of the same CLIP, "
                "in one file or in two"
            )
    patches = state["vision_model.embeddings.patch_embedding.weight"]
    places = state["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    width, patch = patches.shape[0], patches.shape[-1]
    words = state["text_model.embeddings.token_embedding.weight"]
    large = width >= 1280
    activation = hidden_act or ("gelu" if large else "quick_gelu")
    dimension = state["visual_projection.weight"].shape[0]
    from transformers import CLIPConfig

    return CLIPConfig(
        projection_dim=dimension,
        vision_config={
            "hidden_size": width,
            "intermediate_size": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": _layers(state, "vision_model"),
            "num_attention_heads": _VISION_HEADS.get(width, max(1, width // 64)),
            "image_size": round(places**0.5) * patch,
            "patch_size": patch,
            "hidden_act": activation,
            "projection_dim": dimension,
        },
        text_config={
            "vocab_size": words.shape[0],
            "hidden_size": words.shape[1],
            "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": _layers(state, "text_model"),
            "num_attention_heads": max(1, words.shape[1] // 64),
            "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
            "hidden_act": activation,
            "projection_dim": dimension,
            "bos_token_id": min(_START_TOKEN, words.shape[0] - 2),
            "eos_token_id": min(_END_TOKEN, words.shape[0] - 1),
        },
    )


def _layers(state: dict[str, Tensor], tower: str) -> int:
    prefix = f"{tower}.encoder.layers."
    return 1 + max(int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix))


def build_clip(state: dict[str, Tensor], source: str, hidden_act: str | None = None) -> CLIPModel:
    """A ``transformers.CLIPModel`` in float32 with exactly these weights.

    Raises:
        VerifierError: tensors missing, left over or of another shape; ``source`` names the files.
    """
    config = infer_config(state, source, hidden_act)
    from transformers import CLIPModel

    state = {"logit_scale": torch.tensor(_LOGIT_SCALE), **state}
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in CLIPModel(config).state_dict().items()}
    wanted = {key: shape for key, shape in wanted.items() if not key.endswith("position_ids")}
    missing = sorted(wanted.keys() - state.keys())
    left_over = sorted(state.keys() - wanted.keys())
    different = sorted(key for key in wanted.keys() & state.keys() if wanted[key] != state[key].shape)
    for keys, problem in ((missing, "lacks"), (left_over, "has unknown"), (different, "has, in another shape,")):
        if keys:
            listed = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            raise VerifierError(f"{source} is not a CLIP that can be used: it {problem} {listed}")
    # from_pretrained without a path skips the random initialisation, which takes longer than loading
    state = {key: value.float() for key, value in state.items()}
    return CLIPModel.from_pretrained(None, config=config, state_dict=state, trust_remote_code=False).float()
