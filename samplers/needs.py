"""What a search needs against what a process can do: compared once, with one sentence for every pair that fails."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .protocols import Capabilities, SearchError

ODE = "diffusion or flow model on an ODE"

REASONS: dict[str, tuple[str, str, str]] = {
    # capability: (what the search does, what a next-scale model lacks, what to use there)
    "has_initial_noise": (
        "it searches among starting noises",
        "these images start from nothing and draw their noise scale by scale",
        "Best-of-N, Random Search or TTS-VAR",
    ),
    "can_renoise": (
        "it moves between noise levels",
        "a next-scale model has none",
        "TTS-VAR, Best-of-N, SMC or FK Steering",
    ),
    "can_join": (
        "its chains stand at different steps",
        "the cache of a next-scale model holds one step",
        "TTS-VAR, Best-of-N, SMC or FK Steering",
    ),
    "can_differentiate": (
        "it follows the gradient of the score",
        "bits have none",
        "SMC, which is DAS without the gradient (guidance 0)",
    ),
    "can_choose_noise": (
        "its rounds turn the noise of a move",
        "bits are drawn without one",
        "rounds 0",
    ),
    "can_reprompt": (
        "it changes prompts during the search",
        "a next-scale model reads its prompt once, before the first scale",
        "a search without prompt rewriting",
    ),
}


def check_needs(title: str, needs: Iterable[str], capabilities: Capabilities, eta: Any = None) -> None:
    """Raise SearchError, in one sentence with method, kind of model, reason and what to use, for the first need unmet.

    Args:
        title: of the search. needs: names of ``Capabilities``.
        capabilities: of the process. eta: noise of its moves, for the message.
    """
    for need in sorted(needs):
        if not getattr(capabilities, need):
            raise SearchError(_sentence(title, need, capabilities.kind, eta))


def _sentence(title: str, need: str, kind: str, eta: Any) -> str:
    if need == "can_branch":
        return (
            f"eta is {eta}: on a {kind} model without noise in its moves clones of a particle never separate, so "
            f"{title} has nothing to choose from; use eta > 0 (1 = ancestral), Set SDE, or Best-of-N"
        )
    if need == "has_code_maps":
        return f"clusters by codes need a next-scale model: on this {kind} model set cluster_by of {title} to features"
    does, lacks, use = REASONS[need]
    if kind == "next-scale":
        return f"{title} does not work on a next-scale model: {does}, and {lacks}; use {use}"
    if need == "can_reprompt":
        return f"{title} needs a text encoder, because {does}: clip is missing, connect the CLIP of this {kind} model"
    return f"{title} does not work on this {kind} model: {does}, which it cannot; use {use}"
