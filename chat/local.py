"""A local chat model that sees images: the next token's probabilities, and answers.

Any image-text-to-text model of transformers in a local Hugging Face folder (Qwen2.5-VL, Qwen3-VL, InternVL3, SmolVLM2,
Gemma 3, LLaVA). Its own processor and chat template make the input, so what is read is what the model was trained on.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .conversation import ChatError, Poll, Reply, Turn, Unanswered, writable
from .loading import load_parts
from .reading import answer_in

TOP_P = 0.95  # of sampled answers
_SIGNS = ("image_token", "video_token", "audio_token")


class LocalVLM(nn.Module):
    """Model and processor behind a plain module, whose ``device`` a host may set.

    Args:
        model: a transformers model with ``generate``.
        processor: the one that belongs to it, with a chat template.
        name: for messages.

    Attributes:
        movable: False for quantised weights, which stay where they were loaded.

    Raises:
        ChatError: the processor has no chat template or no tokenizer.
    """

    half_safe = ("model",)

    def __init__(self, model: nn.Module, processor: Any, name: str = "vlm"):
        super().__init__()
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None:
            raise ChatError(f"the processor of model {name!r} has no tokenizer: the model does not read text")
        if not (getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
            raise ChatError(f'model {name!r} has no chat template: choose one that answers questions ("Instruct")')
        self.model, self.processor, self.name = model.eval().requires_grad_(False), processor, name
        self.movable = getattr(model, "quantization_method", None) is None
        tokenizer.padding_side = "left"  # the last position must be the last word of every row
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        reads = inspect.signature(model.forward).parameters
        self._limits = "logits_to_keep" in reads
        # Many tokenizers give them to models that know nothing of it; generate of older transformers refuses those.
        self._dropped = {"token_type_ids"} - set(reads)
        signs = {*tokenizer.all_special_tokens, *(getattr(processor, name, None) for name in _SIGNS)}
        self._signs = sorted((sign for sign in signs if isinstance(sign, str) and sign), key=len, reverse=True)

    def inputs(self, conversations: Sequence[Sequence[Turn]]) -> dict[str, Tensor]:
        """The processor's tensors for conversations, up to where the answer begins, on the model's device."""
        texts = [self.rendered(turns) for turns in conversations]
        images = [[image for turn in turns for image in turn.images] for turns in conversations]
        options: dict[str, Any] = {"images": images} if any(images) else {}
        start = self.processor.tokenizer.bos_token
        if start and all(text.startswith(start) for text in texts):  # the template wrote it already
            options["add_special_tokens"] = False
        made = self.processor(text=texts, padding=True, return_tensors="pt", **options)
        weight = next(self.model.parameters())
        floating = weight.dtype if weight.dtype.is_floating_point else None
        return {
            key: value.to(weight.device, floating if floating and value.is_floating_point() else value.dtype)
            for key, value in made.items()
            if isinstance(value, Tensor) and key not in self._dropped
        }

    def next_token(self, conversations: Sequence[Sequence[Turn]]) -> Tensor:
        """Log-probabilities of the answers' first token, float32 ``[n, vocabulary]``."""
        only_last = {"logits_to_keep": 1} if self._limits else {}
        logits = self.model(**self.inputs(conversations), **only_last).logits[:, -1]
        return torch.log_softmax(logits.float(), -1)

    def answer(
        self, turns: Sequence[Turn], tokens: int, temperature: float = 0.0, seed: int = 0, poll: Poll = lambda: None
    ) -> Reply:
        """What the model says in at most ``tokens`` tokens; the same seed gives the same answer on the same device.

        Raises:
            Unanswered: out of memory.
        """
        poll()
        inputs = self.inputs([turns])
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": TOP_P}
        devices = [inputs["input_ids"].device] if inputs["input_ids"].is_cuda else []
        # generate draws from the global source; put back afterwards, so that nothing else notices.
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed % 2**63)
            try:
                written = cast(Any, self.model).generate(
                    **inputs, max_new_tokens=tokens, stopping_criteria=_polling(poll), **sampling
                )
            except torch.OutOfMemoryError as error:
                raise Unanswered(f"out of memory while {self.name} was writing") from error
        fresh = written[0, inputs["input_ids"].shape[1] :]
        text = self.processor.tokenizer.decode(fresh, skip_special_tokens=True)
        said, unfinished = answer_in(writable(text))
        return Reply(said, cut=unfinished or (len(fresh) >= tokens and int(fresh[-1]) not in self._ends()))

    def answer_token(self, word: str) -> int:
        """Id of the token with which an answer that is ``word`` begins, after what the chat template puts before it.

        Where the template ends with "Assistant:" the model was trained to go on with " Yes", elsewhere with "Yes":
        two tokens, of which one is next to impossible. So the template is asked to render the answer, too, and the
        token is read where the two texts part.

        Raises:
            ChatError: the vocabulary has no such token, or the template opens a thought first.
        """
        question = Turn("user", "?")
        before = self.rendered([question])
        if answer_in(before)[1]:
            raise ChatError(
                f"model {self.name!r} thinks before it answers, so the probability of {word!r} cannot be read from its "
                f'first word: choose an "Instruct" model, or rubric axes'
            )
        after = self._after(before, self._with_answer(question, word), word)
        encode = self.processor.tokenizer.encode
        start, whole = (encode(text, add_special_tokens=False) for text in (before, before + after))
        if whole[: len(start)] != start or len(whole) == len(start):  # the tokens run across the border
            whole = [*start, *encode(after, add_special_tokens=False)]
        found = whole[len(start)] if len(whole) > len(start) else None
        if found is None or found == self.processor.tokenizer.unk_token_id:
            raise ChatError(
                f"the vocabulary of {self.name!r} has no token for {word!r}: its probability cannot be read"
            )
        return int(found)

    @staticmethod
    def _after(before: str, whole: str, word: str) -> str:
        """What follows ``before`` where the answer is ``word``: it, and the space that leads to it."""
        end = whole.rfind(word)
        if end < 0:
            return word
        if whole.startswith(before) and end >= len(before):
            return whole[len(before) : end + len(word)]
        gap = whole[len(whole[:end].rstrip()) : end]  # the answer is rendered otherwise than it is asked for
        there = before[len(before.rstrip()) :]
        return word if there.endswith(gap) else gap + word

    def _with_answer(self, question: Turn, word: str) -> str:
        """The conversation with its answer; "" where the template takes none."""
        for content in ([{"type": "text", "text": word}], word):
            messages = [*_messages([question]), {"role": "assistant", "content": content}]
            try:
                return self.processor.apply_chat_template(messages, tokenize=False, enable_thinking=False)
            except Exception:  # noqa: BLE001 - templates raise what they like
                continue
        return ""

    def rendered(self, turns: Sequence[Turn]) -> str:
        """A conversation in the model's own form, up to where its answer begins.

        Raises:
            ChatError: its template refuses it.
        """
        turns = [replace(turn, text=self._harmless(turn.text)) for turn in turns]
        render = self.processor.apply_chat_template
        try:
            return render(_messages(turns), add_generation_prompt=True, tokenize=False, enable_thinking=False)
        except Exception as error:  # templates raise what they like
            # Some models know no system role: its text goes before the question.
            if turns[0].role != "system" or len(turns) < 2:
                raise ChatError(f"the chat template of {self.name!r} refuses the question: {error}") from error
        system, question, *rest = turns
        return self.rendered([replace(question, text=f"{system.text}\n\n{question.text}"), *rest])

    def _harmless(self, text: str) -> str:
        """A text without the model's own signs: ``<image>`` in a prompt is no image, ``<|im_end|>`` ends no turn."""
        for sign in self._signs:
            text = text.replace(sign, " ")
        return text

    def _ends(self) -> set[int]:
        """Tokens that end an answer."""
        settings = getattr(self.model, "generation_config", None)
        ends = getattr(settings, "eos_token_id", None)
        listed = ends if isinstance(ends, list | tuple) else [ends]
        return {int(end) for end in (*listed, self.processor.tokenizer.eos_token_id) if end is not None}


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as chat templates take them, the pictures before the words."""
    made = []
    for turn in turns:
        parts = [*({"type": "image"} for _ in turn.images), {"type": "text", "text": turn.text}]
        made.append({"role": turn.role, "content": parts})
    return made


def _polling(poll: Poll) -> Any:
    """Stopping criteria that never stop, but let ``poll`` raise between two words."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Polling(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
            poll()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Polling()])


def load_local_vlm(folder: str | Path, dtype: str = "auto", quantisation: str = "none") -> LocalVLM:
    """A chat model from a local Hugging Face folder. Nothing is downloaded, and no code of the folder is run.

    Args:
        folder: with config.json, safetensors weights, processor and tokenizer files.
        dtype, quantisation: of ``loading.load_parts``.

    Raises:
        ChatError: no model there, one of another kind, or one that cannot be loaded.
    """
    folder = Path(folder)
    return LocalVLM(*load_parts(folder, dtype, quantisation), name=folder.name)
