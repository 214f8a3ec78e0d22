"""Where the demo's images come from: the library here, ComfyUI in ``demo_comfy``. Both give the same ``Entry``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from .. import __version__
from ..bench.presets import search_for
from ..models.tiny.loading import Family, load_family
from ..models.tiny.pipeline import SamplingSettings, shapes_process
from ..models.tiny.var_pipeline import VarFamily, VarSettings, load_var_family, var_process
from ..samplers.clustering import Extractor
from ..samplers.method import SearchMethod
from ..samplers.methods import TTSVAR
from ..samplers.protocols import Process, Verifier
from ..samplers.run.search import run_search
from ..shapes_world.captions import Prompt
from ..shapes_world.evaluator import exactly
from ..shapes_world.scene import TASKS
from ..verifiers.embedded import ShapesFeatures
from ..verifiers.registry import create
from .sections import DIFFUSION, TTS_VAR_PARTICLES, VAR, Entry


@dataclass(frozen=True)
class Settings:
    """What both backends are asked to do.

    Attributes:
        budget: forward passes as a multiple of plain sampling, >= 2; N of Best-of-N on the next-scale model.
        steps: denoising steps of the diffusion model, >= 2.
        seed: of prompts and noise.
        cfg: guidance scale of the diffusion model; the next-scale model has that of ``VarSettings``.
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

    def run(self, method: str, prompt: Prompt, model: str = DIFFUSION) -> Entry:
        """The search's outcome on ``model`` ("diffusion" or "var"); ``correct`` is left for ``judge`` to decide."""
        ...


def judge(image: np.ndarray, prompt: Prompt) -> bool:
    """Whether uint8 ``[H, W, 3]`` shows exactly what the prompt asks for; no search ever sees it."""
    return exactly(image, prompt)


def as_bytes(images: Tensor) -> np.ndarray:
    """Images ``[n, H, W, 3]`` in 0..1 -> uint8."""
    return (images.clamp(0.0, 1.0) * 255.0).round().byte().cpu().numpy()


@dataclass(frozen=True)
class Networks:
    """What the library backend runs.

    Attributes:
        diffusion, var: the two embedded families.
        judges: (verifier, held-out verifier).
        features: what TTS-VAR clusters images by.
    """

    diffusion: Family
    var: VarFamily
    judges: tuple[Verifier, Verifier]
    features: Extractor

    @classmethod
    def trained(cls, settings: Settings) -> Networks:
        """Those of the pack. Raises WeightsError or FileNotFoundError where weights are missing."""
        judges = create(settings.verifier), create(settings.held_out)
        return cls(load_family(), load_var_family(), judges, ShapesFeatures())


class LibraryBackend:
    """The embedded models through ``testtime`` alone.

    Args:
        settings: what to run.
        networks: what to use instead of the trained ones.

    Raises:
        WeightsError, FileNotFoundError: trained weights are needed and missing.
    """

    where = f"the library (testtime {__version__}, no ComfyUI)"

    def __init__(self, settings: Settings, networks: Networks | None = None):
        self.settings = settings
        self.networks = networks or Networks.trained(settings)
        self.verifier, self.held_out = (judge.name for judge in self.networks.judges)

    def __enter__(self) -> LibraryBackend:
        return self

    def __exit__(self, *exception) -> None:
        """Nothing to give back."""

    def run(self, method: str, prompt: Prompt, model: str = DIFFUSION) -> Entry:
        """See ``Backend.run``."""
        search, process, decode = (self._next_scale if model == VAR else self._diffusion)(method, prompt)
        verifier, held_out = self.networks.judges
        result = run_search(search, process, verifier, [prompt.text], held_out=held_out)
        images = as_bytes(decode(result.finalists))
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
            model=model,
        )

    def _diffusion(self, method: str, prompt: Prompt) -> tuple[SearchMethod, Process, Callable[[Tensor], Tensor]]:
        """Search, process, and finalists -> images ``[n, H, W, 3]``."""
        settings = self.settings
        sampling = SamplingSettings(
            steps=settings.steps,
            cfg=settings.cfg,
            seed=settings.noise_seed(prompt),
            gradient_through="decoder",
        )
        process = shapes_process([prompt.text], sampling, self.networks.diffusion)
        search = search_for(method, settings.budget)
        return search, process, lambda latents: process.to_pixels(process.decode(latents))

    def _next_scale(self, method: str, prompt: Prompt) -> tuple[SearchMethod, Process, Callable[[Tensor], Tensor]]:
        """As ``_diffusion``."""
        sampling = VarSettings(seed=self.settings.noise_seed(prompt))
        process = var_process([prompt.text], sampling, self.networks.var)
        if method == "tts_var":
            search = TTSVAR(TTS_VAR_PARTICLES, extractor=self.networks.features)
        else:
            search = search_for(method, self.settings.budget)
        return search, process, self.networks.var.decode
