"""Where the demo's images come from: the library here, ComfyUI in ``demo_comfy``. Both give the same ``Entry``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from .. import __version__
from ..bench.presets import search_for
from ..models.tiny.loading import Family, load_family
from ..models.tiny.pipeline import SamplingSettings, shapes_process
from ..samplers.protocols import Verifier
from ..samplers.session import run_search
from ..shapes_world.captions import Prompt
from ..shapes_world.evaluator import evaluate
from ..shapes_world.scene import TASKS
from ..verifiers.registry import create
from .demo_page import Entry


@dataclass(frozen=True)
class Settings:
    """What both backends are asked to do.

    Attributes:
        budget: forward passes as a multiple of plain sampling, >= 2.
        steps: denoising steps, >= 2.
        seed: of prompts and noise.
        cfg: guidance scale.
        verifier, held_out: registry names of the judge that steers and of the one that only watches.
    """

    budget: int = 8
    steps: int = 20
    seed: int = 0
    cfg: float = 2.5
    verifier: str = "shapes_preference"
    held_out: str = "shapes_clip"

    def noise_seed(self, prompt: Prompt) -> int:
        """The sampling seed of a prompt: another one for each task, the same one for all methods."""
        return self.seed * len(TASKS) + TASKS.index(prompt.task)


class Backend(Protocol):
    """Runs one method on one prompt; a context manager. ``where`` says in words what it runs in."""

    where: str
    verifier: str
    held_out: str

    def run(self, method: str, prompt: Prompt) -> Entry:
        """The search's outcome; ``correct`` is left False for ``judge`` to decide."""
        ...


def judge(image: np.ndarray, prompt: Prompt) -> bool:
    """ShapesEval's verdict on uint8 ``[H, W, 3]``; no search ever sees it."""
    return evaluate(image, prompt).correct


def as_bytes(images: Tensor) -> np.ndarray:
    """Images ``[n, H, W, 3]`` in 0..1 -> uint8."""
    return (images.clamp(0.0, 1.0) * 255.0).round().byte().cpu().numpy()


class LibraryBackend:
    """The embedded diffusion model through ``testtime`` alone.

    Args:
        settings: what to run.
        family, judges: networks and (verifier, held-out verifier) to use instead of the trained ones.

    Raises:
        WeightsError: trained weights are needed and missing.
    """

    where = f"the library (testtime {__version__}, no ComfyUI)"

    def __init__(
        self, settings: Settings, family: Family | None = None, judges: tuple[Verifier, Verifier] | None = None
    ):
        self.settings = settings
        self.family = family or load_family()
        self.judges = judges or (create(settings.verifier), create(settings.held_out))
        self.verifier, self.held_out = (judge.name for judge in self.judges)

    def __enter__(self) -> LibraryBackend:
        return self

    def __exit__(self, *exception) -> None:
        """Nothing to give back."""

    def run(self, method: str, prompt: Prompt) -> Entry:
        """See ``Backend.run``."""
        settings = self.settings
        sampling = SamplingSettings(
            steps=settings.steps,
            cfg=settings.cfg,
            seed=settings.noise_seed(prompt),
            gradient_through="decoder",
        )
        process = shapes_process([prompt.text], sampling, self.family)
        search = search_for(method, settings.budget, settings.steps)
        result = run_search(search, process, self.judges[0], [prompt.text], held_out=self.judges[1])
        images = as_bytes(process.to_pixels(process.decode(result.finalists)))
        return Entry(
            method=method,
            prompt=prompt,
            image=images[0],
            score=float(result.scores[0]),
            held_out=float(result.held_out[0]),
            correct=False,
            trace=result.trace,
            winner=result.particles[0],
            finalists=list(zip(result.particles, images, strict=True)),
            nfe=result.ledger.nfe,
            backward=result.ledger.backward,
            seconds=result.trace.records[-1].seconds,
        )
