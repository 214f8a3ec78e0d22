"""A checklist that a vision-language model goes through, item by item: is it in the picture, yes or no?"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ...chat.syntax import plain
from ..base import VerifierError, check_images
from ..pictures import to_bytes
from .judge import Asked, Asker
from .rubric import RUBRICS

QUESTION = 'Does this figure show "{item}"? Please answer Yes or No.'
AGAIN = "Look at the whole picture. Is this true of it: {item}? Please answer Yes or No."
_CLAUSE = re.compile(r"[,.;:\n]+\s*")


def clauses(prompt: str) -> list[str]:
    """The parts of a prompt between its punctuation, as ``plain`` reads it, each once."""
    return list(dict.fromkeys(part.strip() for part in _CLAUSE.split(plain(prompt)) if part.strip()))


class ChecklistCritic:
    """See ``samplers.after.refine.Critic``.

    Args:
        asker: who is asked; see ``judge.Asker``.
        items: the checklist; empty takes the clauses of the prompt.

    Raises:
        VerifierError: more items than are asked about.
    """

    def __init__(self, asker: Asker, items: Sequence[str] = (), most: int = 12):
        self.asker, self.items, self.name = asker, [item.strip() for item in items if item.strip()], asker.name
        if len(self.items) > most:
            raise VerifierError(f"items has {len(self.items)} lines: at most {most}, every image is asked about each")

    def checklist(self, prompt: str) -> list[str]:
        """The items."""
        return self.items or clauses(prompt)

    def chances(self, images: Tensor, items: Sequence[str], again: bool = False) -> Tensor:
        """P(yes) float64 ``[n, C]``, NaN without an answer; item by item, so that a server gets all images at once."""
        question, pixels = AGAIN if again else QUESTION, to_bytes(check_images(images))
        columns = []
        for item in items:
            asked = [Asked(question.format(item=item), (picture,)) for picture in pixels]
            answers = self.asker.ask_of(asked, RUBRICS["yes_no"])
            columns.append([math.nan if isinstance(answer, str) else answer["yes"] for answer in answers])
        return torch.tensor(columns, dtype=torch.float64).T
