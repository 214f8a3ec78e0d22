"""A chat model's folder: what is in it, before it is loaded, and how it is loaded without any code of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from .conversation import ChatError
from .reading import parsed

QUANTISATIONS = ("none", "int8", "int4")
DTYPES = ("auto", "bfloat16", "float16", "float32")
SUGGESTION = "Qwen/Qwen3-VL-4B-Instruct (9 GB) or HuggingFaceTB/SmolVLM2-2.2B-Instruct (4.5 GB)"
LARGEST_CONFIG = 4_000_000
_SIBLINGS = {
    "internvl_chat": "the same model from a repository whose name ends in -hf, e.g. OpenGVLab/InternVL3-1B-hf",
    "llava_llama": "a llava-hf repository, e.g. llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "minicpmv": SUGGESTION,
    "phi3_v": SUGGESTION,
}
"""Model types of repositories that need code of their own -> what to take instead."""


def check_folder(folder: Path) -> str:
    """Model type of a folder; ChatError says what is wrong with one that cannot be loaded, without loading it."""
    file = folder / "config.json"
    if not file.is_file():
        name = SUGGESTION.split()[0]
        raise ChatError(
            f"model is {folder.name!r}: there is no config.json in {folder}; a vision-language model must be there, "
            f'e.g. `hf download {name} --local-dir "{folder}"`; suggested: {SUGGESTION}'
        )
    config = parsed(file.read_bytes()[:LARGEST_CONFIG])
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(kind, str):
        raise ChatError(f"model is {folder.name!r}: its config.json names no model_type")
    if kind not in known_types():
        instead = _SIBLINGS.get(kind, SUGGESTION)
        why = "needs code of its own, which is never run" if carries_code(folder) else "is not one transformers knows"
        raise ChatError(
            f"model is {folder.name!r}: its type {kind!r} {why}, so no chat model that can be loaded is here; take "
            f"{instead} or update transformers"
        )
    return kind


def carries_code(folder: Path) -> bool:
    """Whether a model folder brings Python code that transformers could be told to run."""
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            config = parsed(file.read_bytes()[:LARGEST_CONFIG])
            if isinstance(config, dict) and "auto_map" in config:
                return True
    return (folder / "custom_generate").is_dir()


def known_types() -> frozenset[str]:
    """Model types that the installed transformers can load as image-text-to-text models."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as names
    except ImportError as error:
        raise ChatError(f"this transformers has no image-text-to-text models: update it ({error})") from error
    return frozenset(names)


def load_parts(folder: Path, dtype: str = "auto", quantisation: str = "none") -> tuple[torch.nn.Module, Any]:
    """(model, processor) of a folder as it is downloaded from the Hugging Face hub. Nothing is fetched, no code is run.

    Args:
        folder: with config.json, safetensors weights, processor and tokenizer files.
        dtype: one of ``DTYPES``; auto takes the file's.
        quantisation: one of ``QUANTISATIONS``; int8 and int4 need bitsandbytes and a GPU.

    Raises:
        ChatError: not such a folder, an unknown model type, or a missing library, with what would help.
    """
    if dtype not in DTYPES:
        raise ChatError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
    kind = check_folder(folder)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    weights: dict[str, Any] = {_dtype_name(): "auto" if dtype == "auto" else getattr(torch, dtype)}
    if quantisation != "none":
        weights["quantization_config"] = _quantised(quantisation)
    safe: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    try:
        with torch.no_grad():
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False, **safe, **weights)
    except Exception as error:  # the folder is somebody else's, and libraries raise what they like
        reason = " ".join(str(error).split())[:300]
        if carries_code(folder):  # transformers would advise to let it run
            reason = f"it needs code of its own, which is never run; take {_SIBLINGS.get(kind, SUGGESTION)}"
        raise ChatError(
            f"model {folder.name!r} ({kind}) is no chat model that can be loaded from {folder}: {reason}"
        ) from error
    return model, processor


def _dtype_name() -> str:
    """What the installed transformers calls the weights' type."""
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _quantised(quantisation: str) -> Any:
    if quantisation not in QUANTISATIONS:
        raise ChatError(f"quantisation is {quantisation!r}: choose one of {', '.join(QUANTISATIONS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ChatError(f"quantisation is {quantisation!r}: it needs `pip install bitsandbytes`; or choose 'none'")
    if not torch.cuda.is_available():
        raise ChatError(f"quantisation is {quantisation!r}: it needs a CUDA GPU; choose 'none'")
    from transformers import BitsAndBytesConfig

    if quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")
