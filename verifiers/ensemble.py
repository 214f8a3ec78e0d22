"""Several verifiers as one: weighted z-scores, mean ranks, or mean softmaxes.

Members live on different scales, so they are brought to a common one first. That can be done against the other
candidates of the same prompt ("set": Ma et al. 2025, arXiv 2501.09732, ranks; TTS-VAR, softmax) or against fixed
constants. Only fixed constants give a score that means the same at every step: use them for SMC, DAS and FK steering;
set-relative scores are for Best-of-N and for choosing within one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..samplers.looks import judge
from ..samplers.protocols import ScoreContext, Values, Verifier
from ..samplers.verifier import CLIP
from .base import VerifierError, check_images, check_prompts

COMBINATIONS = ("zscore", "zscore_set", "rank", "softmax", "sum")
RELATIVE = ("zscore_set", "rank", "softmax")
"""Those that compare candidates with each other."""
_TINY_SPREAD = 1e-8  # members that do not tell the candidates apart contribute nothing


@dataclass(frozen=True)
class Voice:
    """One verifier of an ensemble and how much it counts.

    Attributes:
        verifier: any verifier.
        weight: factor of its normalised score, any finite number (negative turns it round). 0: held out, its scores
            are reported and never steer.
        mean, std: constants of "zscore"; None takes the verifier's ``default_scale``, or 0 and 1 without one.
    """

    verifier: Verifier
    weight: float = 1.0
    mean: float | None = None
    std: float | None = None

    def scale(self) -> tuple[float, float]:
        """(mean, std) in force."""
        mean, std = self.verifier.default_scale
        return (mean if self.mean is None else self.mean), (std if self.std is None else self.std)


class EnsembleVerifier(Verifier):
    """Combined score of several verifiers.

    Combinations, for scores ``s_k`` of member k with weight ``w_k`` and W the sum of ``|w_k|``:

    - "zscore": ``sum w_k (s_k - mean_k) / std_k / W`` with fixed constants; comparable between steps.
    - "zscore_set": the same with mean and spread of the candidates of each prompt.
    - "rank": weighted mean of ``(N - rank) / (N - 1)``, ties averaged, 1 = best.
    - "softmax": weighted mean of the softmax over the candidates, each member's scores divided by their spread, or by
      ``temperature`` (1 as TTS-VAR publishes it, where a member with a narrow range has little say).
    - "sum": ``sum w_k s_k`` as they are.

    "zscore_set", "rank" and "softmax" are not ``differentiable`` for a search, whatever their members are: candidates
    compete for a constant total, so the gradient of its sum, which guides a search, is zero.

    Args:
        voices: at least one; their verifiers are the attribute ``members``.
        combine: one of the above.
        temperature: of "softmax"; None takes each member's spread over the candidates.
        max_batch: images per call of a member, None for all at once (set-relative combinations must see a prompt's
            candidates in one ``score`` call, so the splitting has to happen here).

    Raises:
        VerifierError: no member, unknown combination, a weight or scale that cannot work.
    """

    sees = CLIP  # every member is shown what it wants to see

    def __init__(
        self,
        voices: Sequence[Voice],
        combine: str = "zscore",
        max_batch: int | None = None,
        temperature: float | None = None,
    ):
        if not voices:
            raise VerifierError("voices is empty: an ensemble needs at least one verifier")
        if combine not in COMBINATIONS:
            raise VerifierError(f"combine is {combine!r}: choose one of {', '.join(COMBINATIONS)}")
        for voice in voices:
            if not math.isfinite(voice.weight):
                raise VerifierError(f"the weight of {voice.verifier.name!r} is {voice.weight}: it must be finite")
            if not voice.scale()[1] > 0:
                raise VerifierError(f"the std of {voice.verifier.name!r} is {voice.scale()[1]}: it must be positive")
        if not any(voice.weight for voice in voices):
            raise VerifierError("every weight is 0: at least one verifier must count")
        if temperature is not None and not 0 < temperature < math.inf:
            raise VerifierError(f"temperature is {temperature}: it must be positive")
        self.voices, self.combine, self.max_batch = tuple(voices), combine, max_batch
        self.temperature = temperature
        self.members = tuple(voice.verifier for voice in voices)
        self.keys = _unique([verifier.name for verifier in self.members])
        self.name = f"{combine}({', '.join(self.keys)})"
        self.relative = combine in RELATIVE
        steering = [voice.verifier for voice in voices if voice.weight]
        self.differentiable = not self.relative and all(verifier.differentiable for verifier in steering)
        self.needs_prompt = any(verifier.needs_prompt for verifier in self.members)
        self.least_frames = max(verifier.least_frames for verifier in self.members)

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Combined scores float64 ``[n]``."""
        return self.judge(images, prompts, context).score

    def judge(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Values:
        """Combined scores float64 ``[n]``, and every member's own (detached, by name)."""
        images = images if images.dim() == 5 else check_images(images)
        prompts = check_prompts(prompts, len(images), self.name, self.needs_prompt)
        own, parts = self._ask(images, prompts, context)
        members = {name: scores.detach() for name, scores in (own | parts).items()}
        steering = [key for key, voice in zip(self.keys, self.voices, strict=True) if voice.weight]
        table = torch.stack([own[key].cpu().to(torch.float64) for key in steering])
        if not self.relative:
            return Values(self._combine_fixed(table), None, members)
        combined = torch.empty_like(table[0])
        for prompt in dict.fromkeys(prompts):
            rows = torch.tensor([row for row, other in enumerate(prompts) if other == prompt])
            combined = combined.index_put((rows,), self._combine_set(table[:, rows]))
        return Values(combined, None, members)

    def wants_all(self, context: ScoreContext) -> bool:
        """Whether this combination, or a member, must see all candidates at once."""
        return self.relative or any(member.wants_all(context) for member in self.members)

    def score_members(self, images: Tensor, prompts: Sequence[str] | str) -> dict[str, Tensor]:
        """Every member's own scores ``[n]``, by name, in order."""
        prompts = check_prompts(prompts, len(images), self.name, self.needs_prompt)
        return self._ask(images, prompts, None)[0]

    def _ask(
        self, images: Tensor, prompts: list[str], context: ScoreContext | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(the members' scores ``[n]`` by name, those of the members' own parts, e.g. the axes of a rubric)."""
        size = self.max_batch or len(images)
        scores: dict[str, list[Tensor]] = {key: [] for key in self.keys}
        parts: dict[str, list[Tensor]] = {}
        # member by member, so that a host moves each network to the device once
        for key, voice in zip(self.keys, self.voices, strict=True):
            for start in range(0, len(images), size):
                rows = slice(start, start + size)
                shown = images[rows] if voice.weight else images[rows].detach()  # what only watches guides nothing
                told = None if context is None else context.rows(rows)
                values = judge(voice.verifier, shown, prompts[rows], told)
                scores[key].append(values.score)
                for name, part in values.members.items():
                    parts.setdefault(name, []).append(part)
        joined = {name: torch.cat(pieces) for name, pieces in parts.items()}
        whole = {name: values for name, values in joined.items() if len(values) == len(images)}
        return {key: torch.cat(pieces) for key, pieces in scores.items()}, whole

    def _weights(self, table: Tensor) -> Tensor:
        weights = torch.tensor([voice.weight for voice in self.voices if voice.weight], dtype=table.dtype)
        return weights if self.combine == "sum" else weights / weights.abs().sum()

    def _combine_fixed(self, table: Tensor) -> Tensor:
        if self.combine == "zscore":
            mean, std = torch.tensor([voice.scale() for voice in self.voices if voice.weight], dtype=table.dtype).T
            table = (table - mean[:, None]) / std[:, None]
        return (self._weights(table)[:, None] * table).sum(0)

    def _combine_set(self, table: Tensor) -> Tensor:
        """Scores ``[k, m]`` of one prompt's candidates -> ``[m]``; a non-finite one spoils only its own image."""
        normalise: dict[str, Callable[[Tensor], Tensor]] = {
            "zscore_set": standardise,
            "rank": ranks,
            "softmax": lambda scores: shares(scores, self.temperature),
        }
        rows = torch.stack([normalise[self.combine](scores) for scores in table])
        combined = (self._weights(table)[:, None] * rows).sum(0)
        bad = ~torch.isfinite(table).all(0)
        return combined.masked_fill(bad, float("nan"))


def standardise(scores: Tensor) -> Tensor:
    """``(s - mean) / std`` over the finite scores ``[m]``; zeros where they do not differ."""
    finite = torch.isfinite(scores)
    kept = scores[finite]
    if len(kept) < 2 or kept.std(correction=0) < _TINY_SPREAD:
        return torch.zeros_like(scores)
    centred = torch.where(finite, scores, kept.mean().detach()) - kept.mean()
    return centred / kept.std(correction=0)


def ranks(scores: Tensor) -> Tensor:
    """Share of the others that a score beats, ties counting half: 1 = best, 0 = worst; 0.5 for a single candidate."""
    if len(scores) == 1:
        return torch.full_like(scores, 0.5)
    values = torch.where(torch.isnan(scores), -torch.inf, scores.detach())
    mine, other = values[:, None], values[None, :]
    beaten = (mine > other).sum(1) + 0.5 * ((mine == other).sum(1) - 1)
    return beaten.to(scores.dtype) / (len(scores) - 1)


def shares(scores: Tensor, temperature: float | None = None) -> Tensor:
    """Softmax over the finite scores ``[m]`` at a temperature, None: their spread; 0 for the others."""
    finite = torch.isfinite(scores)
    if not finite.any():
        return torch.zeros_like(scores)
    scaled = standardise(scores) if temperature is None else scores.nan_to_num(0.0, 0.0, 0.0) / temperature
    return torch.softmax(scaled.masked_fill(~finite, -torch.inf), 0)


def _unique(names: list[str]) -> list[str]:
    """Names with a number appended where one occurs again."""
    seen: dict[str, int] = {}
    unique: list[Any] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique
