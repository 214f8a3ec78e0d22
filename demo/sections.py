"""What the demo shows: the parts of its page, the methods of each, and an entry per method and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..reports.names import PLAIN
from ..samplers.methods.registry import METHODS
from ..samplers.run.trace import Trace
from ..shapes_world.captions import Prompt

DIFFUSION, VAR = "diffusion", "var"
TTS_VAR_PARTICLES = 2  # N: images that TTS-VAR finishes, of the 8 N that it begins with

COLOURS = {
    "plain": "var(--plain)",
    "best_of_n": "var(--bon)",
    "svdd": "var(--svdd)",
    "das": "var(--das)",
    "fk": "var(--fk)",
    "tts_var": "var(--ttsvar)",
}
"""CSS colours of the methods that the demo shows."""


def summary_of(method: str) -> str:
    """What a method does, in a sentence."""
    if method == PLAIN:
        return "One sample without any search: the baseline, at a fraction of the cost."
    return METHODS[method].summary


@dataclass(frozen=True)
class Entry:
    """One method on one prompt.

    Attributes:
        method: key in the registry, or "plain"; prompt: what was asked for.
        image: uint8 ``[H, W, 3]``, the winner; score, held_out: of the verifier that steered and of one that did not.
        correct: whether ShapesEval finds exactly what the prompt asks for, and nothing else.
        trace, winner: record of the search and the winner's particle id.
        finalists: (particle id, image) of finished images.
        nfe, backward, seconds: forward passes, how many of them were differentiated, and wall-clock time.
        model: what drew the image, as in ``Section.model``.
    """

    method: str
    prompt: Prompt
    image: np.ndarray
    score: float
    held_out: float | None
    correct: bool
    trace: Trace
    winner: int
    finalists: Sequence[tuple[int, np.ndarray]]
    nfe: int
    backward: int
    seconds: float
    model: str = DIFFUSION

    @property
    def judged(self) -> int:
        """Images that the verifier saw, previews included."""
        return self.trace.meta["ledger"]["verifier_images"]

    @property
    def flops(self) -> float:
        """Floating-point operations of the model and of its decoder; 0 for models whose process counts none."""
        return self.trace.meta["ledger"]["flops"]

    @property
    def name(self) -> str:
        """Name of its files, without an ending; unique on a page."""
        prefix = "" if self.model == DIFFUSION else f"{self.model}-"
        return f"{prefix}{self.prompt.task}-{self.method}"


@dataclass(frozen=True)
class About:
    """How the page was made: ``where`` (ComfyUI or library), ``budget`` (multiple of plain), steps, seed, machine."""

    where: str
    budget: int
    steps: int
    seed: int
    machine: str
    seconds: float
    verifier: str
    held_out: str


@dataclass(frozen=True)
class Section:
    """A part of the page: one model with its methods, on the prompts of all parts.

    Attributes:
        model: "diffusion" or "var"; title: the heading.
        lead, cost: what the part is about, and what its table counts ("{budget}" is filled in).
        bench: the command that measures the same on many prompts.
        methods: as in ``Entry``, in the order of the columns.
        start: where the family trees begin.
        compute: whether the table has a column of FLOPs: for models whose forward passes differ in cost.
    """

    model: str
    title: str
    lead: str
    methods: tuple[str, ...]
    cost: str
    bench: str
    start: str
    compute: bool = False


SECTIONS = (
    Section(
        model=DIFFUSION,
        title="A diffusion model",
        lead="The image emerges from noise in small steps; the searches score previews of it along the way.",
        methods=("plain", "best_of_n", "svdd", "das", "fk"),
        cost="NFE: forward passes of the denoiser, two per step and sample with guidance. Every scored image is also "
        "decoded; DAS sends the gradient of its score back through the decoder. The reward is what the search "
        "optimises; the held-out reward comes from a second model that only watches. Six images say little about a "
        "method:",
        bench="testtime bench shapes",
        start="noise",
    ),
    Section(
        model=VAR,
        title="A next-scale model",
        lead="The same search ideas on a model that draws an image scale by scale, from 1 \u00d7 1 to 8 \u00d7 8 "
        "tokens: Infinity's classes in a tiny configuration.",
        methods=("plain", "best_of_n", "tts_var"),
        cost="NFE: forward passes of the transformer, two per scale and sample with guidance. They differ in cost, the "
        "last scale has 64 times the tokens of the first, so GFLOP counts what transformer and decoder compute, "
        "decodes for the verifier included. Decoding costs half as much as drawing in this model, so frequent scoring "
        f"is expensive. Best-of-N finishes {{budget}} images; TTS-VAR begins with {8 * TTS_VAR_PARTICLES} and finishes "
        f"{TTS_VAR_PARTICLES}.",
        bench="testtime bench var",
        start="empty image",
        compute=True,
    ),
)
