"""A vision-language model on this machine as a rewriter, through transformers' own classes: no remote code."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .base import ChatRewriter, Poll, RewriterError, Turn, Unanswered
from .template import Template

log = logging.getLogger("testtime")

QUANTISATIONS = ("none", "int8", "int4")
DTYPES = ("auto", "bfloat16", "float16", "float32")
SUGGESTION = "Qwen/Qwen3-VL-4B-Instruct (9 GB) or HuggingFaceTB/SmolVLM2-2.2B-Instruct (4.5 GB)"
_SIBLINGS = {
    "internvl_chat": "the same model from a repository whose name ends in -hf, e.g. OpenGVLab/InternVL3-1B-hf",
    "llava_llama": "a llava-hf repository, e.g. llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "minicpmv": SUGGESTION,
    "phi3_v": SUGGESTION,
}
"""Model types of repositories that need code of their own -> what to take instead."""


class VLMRewriter(ChatRewriter):
    """Shows the preview to an image-text-to-text model.

    Args:
        model: a transformers model with ``generate``; processor: the one that belongs to it, with a chat template.
        name: for reports.
        template: instructions.
        temperature: 0 takes the likeliest words, above it samples.
        max_tokens: longest answer.

    Attributes:
        module: the network, for a host that moves it between devices.
        movable: False for quantised weights, which stay where they were loaded.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor: Any,
        name: str = "vlm",
        template: Template | None = None,
        temperature: float = 0.7,
        max_tokens: int = 512,
    ):
        super().__init__(name, template)
        if not temperature >= 0:
            raise RewriterError(f"temperature is {temperature}: it must be >= 0")
        if max_tokens < 16:
            raise RewriterError(f"max_tokens is {max_tokens}: at least 16 are needed")
        if getattr(processor, "chat_template", None) is None:
            raise RewriterError(f"model {name!r} has no chat template: choose an instruction-tuned model")
        self.module = model.eval().requires_grad_(False)
        self.processor = processor
        self.temperature, self.max_tokens = temperature, max_tokens
        self.movable = getattr(model, "quantization_method", None) is None

    def complete(self, turns: Sequence[Turn], seed: int, poll: Poll) -> tuple[str, int]:
        """One generation; the same seed gives the same answer on the same device."""
        poll()
        inputs = self._inputs(turns)
        length = inputs["input_ids"].shape[1]
        sampling = {"do_sample": False}
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": 0.95}
        devices = [inputs["input_ids"].device] if inputs["input_ids"].is_cuda else []
        # generate draws from the global source; put back afterwards, so that nothing else notices.
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed % 2**63)
            try:
                output = self.module.generate(
                    **inputs, max_new_tokens=self.max_tokens, stopping_criteria=_polling(poll), **sampling
                )
            except torch.OutOfMemoryError as error:
                raise Unanswered(f"out of memory while {self.name} was writing") from error
        (text,) = self.processor.batch_decode(output[:, length:], skip_special_tokens=True)
        return text, 1

    def _inputs(self, turns: Sequence[Turn]) -> dict[str, Any]:
        """What the model takes, on its device."""
        messages, images = [], []
        for turn in turns:
            parts = [{"type": "text", "text": turn.text}]
            if turn.image is not None:
                parts.insert(0, {"type": "image"})
                images.append(turn.image)
            messages.append({"role": turn.role, "content": parts})
        text = self._rendered(messages)
        options: dict[str, Any] = {"images": [images]} if images else {}
        start = getattr(getattr(self.processor, "tokenizer", None), "bos_token", None)
        if start and text.startswith(start):  # the template wrote it already
            options["add_special_tokens"] = False
        made = self.processor(text=[text], return_tensors="pt", **options)
        weight = next(self.module.parameters())
        floating = weight.dtype if weight.dtype.is_floating_point else None
        return {
            key: value.to(weight.device, floating if floating and torch.is_floating_point(value) else value.dtype)
            for key, value in made.items()
            if isinstance(value, torch.Tensor)
        }

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        """The conversation in the model's own form."""
        render = self.processor.apply_chat_template
        try:
            return render(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            # Some models know no system role: its text goes before the question.
            if messages[0]["role"] != "system":
                raise RewriterError(f"the chat template of {self.name!r} refuses the question: {error}") from error
        system, question, *rest = messages
        joined = [*question["content"][:-1], {"type": "text", "text": ""}]
        joined[-1]["text"] = f"{system['content'][-1]['text']}\n\n{question['content'][-1]['text']}"
        return self._rendered([{"role": "user", "content": joined}, *rest])


def _polling(poll: Poll):
    """Stopping criteria that never stop, but let ``poll`` raise between two words."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Polling(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            poll()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Polling()])


def load_vlm(
    folder: Path,
    *,
    dtype: str = "auto",
    quantisation: str = "none",
    template: Template | None = None,
    temperature: float = 0.7,
    max_tokens: int = 512,
) -> VLMRewriter:
    """Load a model folder as it is downloaded from the Hugging Face hub. Nothing is fetched, no remote code is run.

    Args:
        folder: with config.json, safetensors weights, processor and tokenizer files.
        dtype: one of ``DTYPES``; auto takes the file's.
        quantisation: one of ``QUANTISATIONS``; int8 and int4 need bitsandbytes and a GPU.
        template, temperature, max_tokens: see ``VLMRewriter``.

    Raises:
        RewriterError: not such a folder, an unknown model type, or a missing library, with what would help.
    """
    if dtype not in DTYPES:
        raise RewriterError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
    kind = check_folder(folder)
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError as error:
        raise RewriterError(f"this transformers has no image-text-to-text models: update it ({error})") from error
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    weights = {**options, "use_safetensors": True, _dtype_name(): "auto" if dtype == "auto" else getattr(torch, dtype)}
    if quantisation != "none":
        weights["quantization_config"] = _quantised(quantisation)
    try:
        processor = AutoProcessor.from_pretrained(folder, **options)
        model = AutoModelForImageTextToText.from_pretrained(folder, **weights)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RewriterError(f"model {folder.name!r} ({kind}) cannot be loaded: {reason}") from error
    return VLMRewriter(model, processor, folder.name, template, temperature, max_tokens)


def check_folder(folder: Path) -> str:
    """Model type of a folder; RewriterError says what is wrong with one that cannot be loaded, without loading it."""
    file = folder / "config.json"
    if not file.is_file():
        raise RewriterError(f"model is {folder.name!r}: there is no config.json in {folder}; suggested: {SUGGESTION}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = str(config["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise RewriterError(f"model is {folder.name!r}: its config.json names no model_type") from error
    known = known_types()
    if kind not in known:
        instead = _SIBLINGS.get(kind, SUGGESTION)
        why = "needs remote code, which is never run" if "auto_map" in config else "is not one transformers knows"
        raise RewriterError(f"model is {folder.name!r}: its type {kind!r} {why}; take {instead} or update transformers")
    return kind


def known_types() -> frozenset[str]:
    """Model types that the installed transformers can load as image-text-to-text models."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as names
    except ImportError as error:
        raise RewriterError(f"this transformers has no image-text-to-text models: update it ({error})") from error
    return frozenset(names)


def _dtype_name() -> str:
    """What the installed transformers calls the weights' type."""
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _quantised(quantisation: str):
    if quantisation not in QUANTISATIONS:
        raise RewriterError(f"quantisation is {quantisation!r}: choose one of {', '.join(QUANTISATIONS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RewriterError(f"quantisation is {quantisation!r}: it needs `pip install bitsandbytes`; or choose 'none'")
    if not torch.cuda.is_available():
        raise RewriterError(f"quantisation is {quantisation!r}: it needs a CUDA GPU; choose 'none'")
    from transformers import BitsAndBytesConfig

    if quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")
