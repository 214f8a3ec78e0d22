"""What a caption says of each of its nouns: colour, number, side of a relation. Read from the words, learned from them.

Trained on pictures alone, the text encoder's states tell which words a caption has and not which belong together (a
linear probe of the first generators' encoder: the colour of the first noun in "a red circle and a blue square" 52 %,
the left one of two shapes 52 %; chance is 50). A drawing model cannot bind what its text states have not bound.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....shapes_world.scene import COLOURS, RELATIONS, SHAPES
from ..vocabulary import VOCABULARY_SIZE, WORDS

NUMBERS = ("two", "three", "four")
_RELATION_WORDS = {"left": "left of", "right": "right of", "above": "above", "over": "above", "below": "below",
                   "under": "below"}  # fmt: skip
_REVERSED = (1, 0, 3, 2)  # of RELATIONS


def _table(numbered: dict[str, int]) -> Tensor:
    """int64 ``[VOCABULARY_SIZE]``: 1 + the number of each word in ``numbered``, else 0."""
    table = torch.zeros(VOCABULARY_SIZE, dtype=torch.long)
    for word, number in numbered.items():
        table[WORDS.index(word)] = number + 1
    return table


_SHAPE = _table({word: k for word in WORDS for k, s in enumerate(SHAPES) if word in (s, s + "s", s + "es")})
_COLOUR = _table({colour: k for k, colour in enumerate(COLOURS)})
_NUMBER = _table({word: k for k, word in enumerate(NUMBERS)})
_RELATION = _table({word: RELATIONS.index(relation) for word, relation in _RELATION_WORDS.items()})


def said_of_nouns(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What a caption of Shapes World says of each of its nouns.

    Args:
        tokens: int64 ``[B, 16]``.

    Returns:
        nouns: bool ``[B, 16]``, where a shape's name stands.
        said: int64 ``[3, B, 16]``: 1 + number of the colour, 1 + number in ``NUMBERS``, 1 + number in ``RELATIONS`` of
        what the noun is to the other one (reversed for the second noun); 0 where nothing is said, or no noun stands.
    """
    nouns = _SHAPE[tokens] > 0
    before = F.pad(tokens, (2, 0))
    colour = _COLOUR[before[:, 1:-1]]
    number = _NUMBER[torch.where(colour > 0, before[:, :-2], before[:, 1:-1])]
    relation = _RELATION[tokens].amax(1, keepdim=True)
    reverse = torch.tensor((0, *(1 + k for k in _REVERSED)))
    side = torch.where(nouns.cumsum(1) > 1, reverse[relation], relation)
    return nouns, torch.stack([colour, number, side]) * nouns


class WordNames(nn.Module):
    """Reads from the text state of a noun what is said of it, by a linear layer each. Dropped after training."""

    def __init__(self, width: int = 192):
        super().__init__()
        sizes = (len(SHAPES), len(COLOURS), len(NUMBERS), len(RELATIONS))
        self.heads = nn.ModuleList(nn.Linear(width, size + 1) for size in sizes)

    def forward(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Mean cross-entropy over nouns: the noun's own shape, and ``said_of_nouns``. 0 where there is no noun.

        Args:
            context: ``[B, 16, width]``; tokens: int64 ``[B, 16]``.
        """
        nouns, said = said_of_nouns(tokens)
        states = context[nouns]
        if not len(states):
            return context.sum() * 0.0
        targets = [_SHAPE[tokens][nouns], *(kind[nouns] for kind in said)]
        return sum(F.cross_entropy(head(states).float(), t) for head, t in zip(self.heads, targets, strict=True))

    @torch.no_grad()
    def accuracy(self, context: Tensor, tokens: Tensor) -> dict[str, float]:
        """Share of nouns named right: colour, number and relation, each among the nouns of which it is said."""
        nouns, said = said_of_nouns(tokens)
        found = {}
        for name, head, kind in zip(("colour", "number", "relation"), self.heads[1:], said, strict=True):
            where = nouns & (kind > 0)
            found[name] = float((head(context[where]).argmax(-1) == kind[where]).float().mean())
        return found
