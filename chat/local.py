"""A local chat model that sees images: the next token's probabilities, and short answers.

Any image-text-to-text model of transformers in a local Hugging Face folder (Qwen2.5-VL, Qwen3-VL, LLaVA, SmolVLM).
Its own processor makes the input, so what is scored is what the model was trained on.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..verifiers.base import VerifierError, freeze, module_device


class ChatVLM(nn.Module):
    """Model and processor behind a plain module, whose ``device`` a host may set.

    Args:
        model: of ``AutoModelForImageTextToText``.
        processor: of ``AutoProcessor``, with a chat template.

    Raises:
        VerifierError: the processor has no chat template.
    """

    half_safe = ("model",)

    def __init__(self, model: nn.Module, processor: Any):
        super().__init__()
        if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
            raise VerifierError('the model has no chat template: it must be one that answers questions ("Instruct")')
        self.model, self.processor = freeze(model), processor
        processor.tokenizer.padding_side = "left"  # the last position must be the last word of every row
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        self._limits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def inputs(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, Tensor]:
        """The processor's tensors for one picture and one question each, up to where the answer begins."""
        prompts = [self._dialogue(text) for text in texts]
        made = self.processor(
            text=prompts, images=[[picture] for picture in pictures], padding=True, return_tensors="pt"
        )
        device, dtype = module_device(self.model), next(self.model.parameters()).dtype
        return {
            key: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for key, value in made.items()
            if isinstance(value, Tensor)
        }

    def next_token(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Log-probabilities of the answer's first token, float32 ``[n, vocabulary]``."""
        only_last = {"logits_to_keep": 1} if self._limits else {}
        logits = self.model(**self.inputs(pictures, texts), **only_last).logits[:, -1]
        return torch.log_softmax(logits.float(), -1)

    def answer(self, pictures: Sequence[Image.Image], texts: Sequence[str], tokens: int) -> list[str]:
        """What the model says, greedily, in at most ``tokens`` tokens."""
        inputs = self.inputs(pictures, texts)
        written = self.model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, temperature=None, top_p=None, top_k=None
        )
        fresh = written[:, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.batch_decode(fresh, skip_special_tokens=True)

    def first_token(self, word: str) -> int:
        """Id of the first token of ``word`` at the start of an answer."""
        ids = self.processor.tokenizer.encode(word, add_special_tokens=False)
        unknown = self.processor.tokenizer.unk_token_id
        if not ids or (unknown is not None and ids[0] == unknown):
            raise VerifierError(f"the model's vocabulary has no token for {word!r}: its probability cannot be read")
        return int(ids[0])

    def _dialogue(self, text: str) -> str:
        question = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )


def load_vlm(folder: str | Path, repository: str = "Qwen/Qwen3-VL-4B-Instruct") -> ChatVLM:
    """A chat model from a local Hugging Face folder, in the precision of its file. Nothing is downloaded.

    Args:
        folder: with ``config.json``, weights, processor and tokenizer files.
        repository: what to suggest where there is none.

    Raises:
        VerifierError: no model there, or one of another kind.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise VerifierError(
            f"folder {folder} has no config.json: a chat model that sees images must be there, e.g. "
            f'`hf download {repository} --local-dir "{folder}"`'
        )
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        with torch.no_grad():
            model = AutoModelForImageTextToText.from_pretrained(str(folder), local_files_only=True, **_as_stored())
        processor = AutoProcessor.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise VerifierError(f"the model in {folder} is no chat model that can be loaded: {error}") from error
    if not hasattr(processor, "tokenizer"):
        raise VerifierError(f"the processor in {folder} has no tokenizer: the model does not read text")
    return ChatVLM(model, processor)


def _as_stored() -> dict[str, str]:
    """The option that keeps the precision of the file; its name changed."""
    import transformers

    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if version >= (4, 56) else "torch_dtype": "auto"}
