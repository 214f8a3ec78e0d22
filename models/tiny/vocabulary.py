"""Word-level tokenizer of Shapes World: sixteen tokens, no files, no failures on unknown words."""

from __future__ import annotations

import re

import torch

CONTEXT_LENGTH = 16
"""Tokens per caption; longer captions are cut, shorter ones padded."""

PAD, UNK = 0, 1

# The order is part of the trained weights: append new words, never reorder.
WORDS = (
    "<pad>", "<unk>",
    "a", "an", "the", "of", "and", "is", "to", "on", "photo", "picture", "drawing", "image", "object", "objects",
    "left", "right", "above", "below", "over", "under",
    "one", "two", "three", "four",
    "red", "orange", "yellow", "green", "blue", "purple", "brown", "pink", "black", "white",
    "circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent",
    "circles", "squares", "triangles", "stars", "crosses", "rings", "hearts", "crescents",
    "moves", "stays", "up", "down",
)  # fmt: skip

# Other spellings of words the models know.
_ALIASES = {
    "1": "one",
    "2": "two",
    "3": "three",
    "4": "four",
    "photograph": "photo",
    "beneath": "below",
    "violet": "purple",
    "disc": "circle",
    "disk": "circle",
    "moon": "crescent",
}

_INDEX = {word: index for index, word in enumerate(WORDS)}
_TOKEN = re.compile(r"[a-z0-9]+")

VOCABULARY_SIZE = 64
"""Rows of the models' embedding tables: room for words appended later without changing a weight's shape."""


def words(text: str) -> list[str]:
    """Split a caption into lower-case words without punctuation."""
    return _TOKEN.findall(text.lower())


def encode(text: str) -> list[int]:
    """Token ids of a caption: always `CONTEXT_LENGTH` integers, `UNK` for unknown words, `PAD` at the end.

    The empty caption, all `PAD`, is what the generators were trained on as "no prompt".
    """
    ids = [_INDEX.get(_ALIASES.get(word, word), UNK) for word in words(text)][:CONTEXT_LENGTH]
    return ids + [PAD] * (CONTEXT_LENGTH - len(ids))


def encode_batch(texts: list[str]) -> torch.Tensor:
    """`encode` of several captions: LongTensor [B, 16]."""
    return torch.tensor([encode(text) for text in texts], dtype=torch.long).reshape(len(texts), CONTEXT_LENGTH)


def known(text: str) -> bool:
    """Whether every word of the caption is in the vocabulary."""
    return all(_ALIASES.get(word, word) in _INDEX for word in words(text))
