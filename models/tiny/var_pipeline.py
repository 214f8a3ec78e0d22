"""The embedded next-scale model as a ``Process``: prompts in, particles out, without ComfyUI."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...samplers.processes.chunking import Chunker
from ...samplers.processes.streams import Streams
from ...samplers.protocols import SearchError
from ..infinity.packed import pack
from ..infinity.process import ScalewiseProcess
from ..infinity.sampling import ScaleSampling
from ..infinity.scale_state import Decoder
from ..infinity.transformer import Infinity
from ..infinity.vae import BSQVae
from .loading import WEIGHTS, load_into, load_text_encoder
from .text_encoder import TextEncoder
from .var import SCHEDULE, new_transformer, new_vae, text_features


@dataclass(frozen=True)
class VarSettings:
    """How the embedded next-scale model is sampled.

    Attributes:
        cfg, tau, top_p: see ``models.infinity.process.ScaleSampling``.
        seed: of all noise.
        max_batch: particles per model call, None for all at once.
        preview_side: codes along one side that unfinished images are decoded at, 0 for all (8).
        group_offset: number of the first prompt in a larger set, see ``Streams``.
    """

    cfg: float = 3.0
    tau: float = 1.0
    top_p: float = 0.97
    seed: int = 0
    max_batch: int | None = None
    preview_side: int = 0
    group_offset: int = 0


@dataclass(frozen=True)
class VarFamily:
    """The networks, in eval mode, without gradients on the weights."""

    transformer: Infinity
    vae: BSQVae
    text_encoder: TextEncoder

    @torch.no_grad()
    def decode(self, total: Tensor) -> Tensor:
        """Code maps ``[n, 16, h, w]`` -> images ``[n, 16 h, 16 w, 3]`` in 0..1."""
        return self.vae.decode(total)


@functools.lru_cache(maxsize=2)
def load_var_family(folder: Path = WEIGHTS) -> VarFamily:
    """The trained networks in float32. Cached: callers share them. Raises WeightsError."""
    transformer, vae = new_transformer(), new_vae()
    load_into(transformer, "var", folder)
    load_into(vae, "var_vae", folder)
    pack(transformer)
    return VarFamily(transformer, vae, load_text_encoder())


def var_process(
    prompts: Sequence[str], settings: VarSettings | None = None, family: VarFamily | None = None
) -> ScalewiseProcess:
    """A ``ScalewiseProcess`` over the embedded model, one group per prompt.

    Raises:
        SearchError: no prompts, or sampling settings that cannot work.
    """
    settings, family = settings or VarSettings(), family or load_var_family()
    if not prompts:
        raise SearchError("prompts is empty: at least one is needed")
    sampling = ScaleSampling(settings.cfg, settings.tau, settings.top_p)
    with torch.no_grad():
        text = text_features(list(prompts), family.text_encoder)
        prompt = family.transformer.prompt(text, sampling.guided)
    return ScalewiseProcess(
        family.transformer,
        prompt,
        SCHEDULE,
        Decoder(family.decode, family.vae.config, settings.preview_side),
        len(prompts),
        Streams(settings.seed, settings.group_offset),
        sampling=sampling,
        text=text,
        chunker=Chunker(settings.max_batch),
    )
