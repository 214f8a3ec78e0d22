"""Prompts for judges: without the syntax of prompt boxes, cleaned as CLIP's authors do, cut to what a tower reads."""

from __future__ import annotations

import html
import logging
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("testtime")

# What ftfy writes otherwise: quotes, ligatures, line breaks; widths and compositions are Unicode's own tables.
_QUOTES = {**dict.fromkeys(map(ord, "\u02bc\u2018\u2019\u201a\u201b"), "'"),
           **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f"), '"')}  # fmt: skip
_LIGATURES = {ord(letter): unicodedata.normalize("NFKC", letter)
              for letter in "\u0132\u0133\u01c4\u01c5\u01c6\u01c7\u01c8\u01c9\u01ca\u01cb\u01cc\u01f1\u01f2\u01f3"
                            "\ufb00\ufb01\ufb02\ufb03\ufb04\ufb06"} | {0x149: "\u02bcn", 0xFB05: "\u017ft"}  # fmt: skip
_BREAKS = {0x2028: "\n", 0x2029: "\n"}
_WINDOWS = {code: letter for code in range(0x80, 0xA0)
            if (letter := bytes([code]).decode("windows-1252", "ignore"))}  # fmt: skip
_UNSEEN = dict.fromkeys([*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF,
                         *range(0xFFF9, 0xFFFD)])  # fmt: skip
_WIDE = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)
         if unicodedata.normalize("NFKC", chr(code)) != chr(code)} | {0x3000: " "}  # fmt: skip


def cleaned(text: str) -> str:
    """What the tokenizers of OpenAI's CLIP, open_clip and HPSv2 do first: ftfy, HTML entities twice, single spaces.

    ftfy is used where it is installed. Without it everything that it does to sound text is done here; only text that
    was once decoded wrongly ("â€œ") stays as it is.
    """
    try:
        import ftfy
    except ImportError:
        text = _fixed(text)
    else:
        text = ftfy.fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split())


def _fixed(text: str) -> str:
    text = html.unescape(text) if "<" not in text else text
    text = text.translate(_WINDOWS).translate(_LIGATURES).translate(_WIDE).translate(_QUOTES)
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_BREAKS).translate(_UNSEEN)
    return unicodedata.normalize("NFC", text)


class Tokens:
    """Token ids of prompts at a fixed length. A prompt that is too long is cut, and the first one is reported.

    Args:
        tokenizer: of transformers.
        length: tokens per prompt, padding and special tokens included.
        name: of the verifier, for the notice.
        clean: let ``cleaned`` see the prompts first, as the original CLIP does and transformers does not.
    """

    def __init__(self, tokenizer: Any, length: int, name: str, clean: bool = False):
        self.tokenizer, self.length, self.name, self.clean = tokenizer, length, name, clean
        self._said = False

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """``[n, 2, length]`` int64: token ids, and the attention mask (1 = read)."""
        prompts = [cleaned(prompt) for prompt in prompts] if self.clean else list(prompts)
        whole = self.tokenizer(prompts, verbose=False)["input_ids"]
        self.notice(max(len(ids) for ids in whole))
        words = self.tokenizer(
            prompts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        return torch.stack([words["input_ids"], words["attention_mask"]], 1)

    def notice(self, count: int) -> None:
        """Log, the first time, that a prompt of ``count`` tokens is longer than what is read."""
        if count > self.length and not self._said:
            self._said = True
            log.warning(
                "verifier %s reads %d tokens: a prompt of %d tokens is cut, what follows is not judged",
                self.name,
                self.length,
                count,
            )
