"""Edits by a diffusion model of the graph, one sampling run or one ordinary search each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..samplers.ledger import Ledger
from ..samplers.plan import Plan
from ..samplers.protocols import SearchError, Verifier
from .host.looks import as_vae_takes, one_frame
from .host.results import HostResult
from .host.run import AUTO_ETA, SearchOptions
from .host.sources import REFERENCES
from .search_ksampler import guided_sample, schedule
from .search_sampler import SearchSampler

REFERENCE, SEEN, LATENT = "reference latent", "reference latent and prompt", "image to image"
MOVERS = (REFERENCE, SEEN, LATENT)
"""How a model is shown the image: Flux Kontext, Flux.2; Qwen-Image-Edit, whose text encoder sees it, too; any model."""
SEEN_SIDE = 384


@dataclass(frozen=True)
class Sampling:
    """KSampler's settings of an edit. ``denoise`` is used by image to image alone; the others begin from noise."""

    steps: int = 20
    cfg: float = 2.5
    sampler: str = "euler"
    scheduler: str = "simple"
    denoise: float = 0.6


class GraphEditor:
    """``samplers.after.refine.Editor`` by a MODEL, a CLIP and a VAE.

    Args:
        model, clip, vae, negative: of the graph.
        sampling: of every run.
        mover: one of ``MOVERS``.
        prompt: what the image should show: an image-to-image model follows it, since it understands no instructions.
        plan, verifier: a search that every edit is, or None for plain sampling.

    Raises:
        SearchError: an unknown mover, a denoise that edits nothing, a search without a verifier.
    """

    name = "graph"
    starts_anew = True

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        negative: Any,
        sampling: Sampling,
        mover: str,
        prompt: str,
        plan: Plan | None = None,
        verifier: Verifier | None = None,
    ):
        if mover not in MOVERS:
            raise SearchError(f"editor is {mover!r}: choose one of {', '.join(MOVERS)}")
        if plan is not None and verifier is None:
            raise SearchError("search is connected and verifier is not: connect an Edit Judge, a search needs a judge")
        if clip is None or vae is None:
            raise SearchError("clip or vae is missing: an edit needs words and an encoded image")
        self.model, self.clip, self.vae, self.negative = model, clip, vae, negative
        self.sampling, self.mover, self.prompt, self.plan, self.verifier = sampling, mover, prompt, plan, verifier
        self._latent: Tensor | None = None  # of the image that was edited last

    def edit(self, image: Tensor, instruction: str, seed: int, count: int, ledger: Ledger) -> Tensor:
        """See ``Editor``."""
        latent = self._encoded(image)
        if self.mover == LATENT:
            return self._made(
                self._worded(self.prompt), latent, self.sampling.denoise, instruction, image, seed, count, ledger
            )
        pictures = [_small(image)] if self.mover == SEEN else []
        positive = [[tokens, {**extra, REFERENCES: [latent]}] for tokens, extra in self._worded(instruction, pictures)]
        return self._made(positive, torch.zeros_like(latent), 1.0, instruction, image, seed, count, ledger)

    def fresh(self, prompt: str, seed: int, count: int, ledger: Ledger) -> Tensor:
        """See ``Editor``: the size is that of the image before."""
        if self._latent is None:
            raise SearchError("there is no image yet whose size a fresh one could have")
        return self._made(self._worded(prompt), torch.zeros_like(self._latent), 1.0, prompt, None, seed, count, ledger)

    def _worded(self, text: str, pictures: list[Tensor] | None = None) -> Any:
        """CONDITIONING of a text, and of pictures that the text encoder sees."""
        tokens = self.clip.tokenize(text, **({"images": pictures} if pictures else {}))
        return self.clip.encode_from_tokens_scheduled(tokens)

    def _encoded(self, image: Tensor) -> Tensor:
        """``[1, C, h, w]``. SearchError where the VAE is of another family than the model."""
        latent = self.vae.encode(image[None, ..., :3])
        wanted = getattr(getattr(self.model.model, "latent_format", None), "latent_channels", latent.shape[1])
        if latent.shape[1] != wanted:
            raise SearchError(
                f"vae makes latents of {latent.shape[1]} channels, this model's have {wanted}: connect its own VAE"
            )
        self._latent = latent
        return latent

    def _made(
        self,
        positive: Any,
        latent: Tensor,
        denoise: float,
        told: str,
        image: Tensor | None,
        seed: int,
        count: int,
        ledger: Ledger,
    ) -> Tensor:
        """``count`` images of one conditioning, each with a seed of its own."""

        chosen, made = self.sampling, []
        for number in range(count):
            own = (seed * 1_000_003 + number) % 2**63
            sigmas = schedule(self.model, chosen.scheduler, chosen.steps, denoise, chosen.sampler)
            passes = (len(sigmas) - 1) * (1 if chosen.cfg == 1.0 else 2)
            found: list[HostResult] = []
            sampler, particles, plan = comfy.samplers.sampler_object(chosen.sampler), 1, self.plan
            if plan is not None and image is not None:
                left = None if ledger.max_nfe is None else ledger.max_nfe - ledger.nfe
                options = SearchOptions(
                    plan, self.verifier, self.vae, told, eta=AUTO_ETA, source=image[None],
                    max_nfe=left or 0, on_result=found.append,
                )  # fmt: skip
                if left is not None:
                    ledger.check(passes)
                sampler, particles = SearchSampler(options), plan.method.population
            with ledger.model(passes) as call:
                result = guided_sample(
                    self.model, (positive, self.negative), chosen.cfg, sampler, sigmas, {"samples": latent}, own,
                    particles,
                )  # fmt: skip
                if found:
                    call.nfe = int(found[-1].trace.meta["ledger"]["nfe"])
            with ledger.decode(1):
                made.append(one_frame(self.vae.decode(as_vae_takes(self.vae, result)))[0, ..., :3])
        return torch.stack(made).float().clamp(0.0, 1.0).cpu()


def _small(image: Tensor) -> Tensor:
    """``[1, h, w, 3]`` of about 384 x 384 pixels, as Qwen-Image-Edit's text node shows pictures."""
    height, width = image.shape[:2]
    scale = (SEEN_SIDE * SEEN_SIDE / (height * width)) ** 0.5
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = torch.nn.functional.interpolate(image.movedim(-1, 0)[None], size, mode="area")
    return pixels.movedim(1, -1)
