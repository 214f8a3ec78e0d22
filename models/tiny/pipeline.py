"""The embedded family as a ``Process``: prompts in, particles out, without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers.processes.chunking import Chunker
from ...samplers.processes.denoise import Denoised
from ...samplers.processes.diffusion import DiffusionProcess, Start
from ...samplers.processes.kernel import VE, Flow
from ...samplers.processes.schedules import flow_schedule, normal_schedule, scaled_linear_sigmas, timestep_at
from ...samplers.processes.sharing import SharedRows
from ...samplers.processes.streams import Streams
from ...samplers.protocols import SearchError
from .loading import Family, load_family

MODELS = ("diffusion", "flow")


@dataclass(frozen=True)
class SamplingSettings:
    """How the embedded models are sampled.

    Attributes:
        model: "diffusion" (eps-prediction) or "flow" (rectified flow).
        steps: transitions, >= 1.
        cfg: guidance scale; 1 needs a single conditional pass.
        eta: 0 (ODE) .. 1 (ancestral).
        seed: base seed of all noise.
        size: image width and height in pixels, multiples of 16.
        max_batch: particles per model call, None for all at once.
        autocast: torch dtype for the networks' matrix work, None for float32 throughout.
        gradient_through: "denoiser" or "decoder", see ``DiffusionProcess``.
        group_offset: number of the first prompt in a larger set, see ``Streams``.
    """

    model: str = "diffusion"
    steps: int = 20
    cfg: float = 2.5
    eta: float = 1.0
    seed: int = 0
    size: tuple[int, int] = (128, 128)
    max_batch: int | None = None
    autocast: torch.dtype | None = None
    gradient_through: str = "denoiser"
    group_offset: int = 0


class TinyDenoise:
    """Classifier-free guidance over an embedded network, as ``samplers.processes.denoise.Denoise``.

    Particles may have prompts of their own (``encode``, ``prompts``). Rows of the same state then share their
    unconditional pass, within a call and with the call before: candidates that differ in their prompt only cost one
    pass each.

    Args:
        network: eps- or flow-network of the family.
        model: "diffusion" or "flow".
        context: ``[G, L, W]`` text states per group; unconditional: ``[1, L, W]``.
        cfg: guidance scale.
        autocast: dtype for autocast, or None.
        reader: texts -> text states ``[n, L, W]``, for prompts of particles; None where there are none.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        model: str,
        context: Tensor,
        unconditional: Tensor,
        cfg: float,
        autocast: torch.dtype | None = None,
        reader: Callable[[Sequence[str]], Tensor] | None = None,
    ):
        self.network, self.model, self.cfg = network, model, cfg
        self.context, self.unconditional, self.autocast = context, unconditional, autocast
        self.table = scaled_linear_sigmas()
        self.nfe_per_call = 1 if cfg == 1.0 else 2
        self.can_encode = reader is not None
        self._reader = reader
        self._read: dict[str, Tensor] = {}
        self._shared = SharedRows()

    def encode(self, texts: Sequence[str]) -> None:
        """Prepare prompts of particles."""
        if self._reader is None:
            raise SearchError("this denoiser has no reader: prompts of particles cannot be encoded")
        self._read.update(zip(texts, self._reader(list(texts)), strict=True))

    def forget(self) -> None:
        """Share nothing with the call before."""
        self._shared = SharedRows()

    def __call__(self, x: Tensor, sigma: float, group: Tensor, prompts: Sequence[str | None] | None = None) -> Denoised:
        """Clean estimates ``[n, 4, h, w]`` float32 of states ``x`` at ``sigma``."""
        context = self.context[group]
        if prompts is not None:
            own = [context[row] if text is None else self._read[text] for row, text in enumerate(prompts)]
            context = torch.stack(own)
        if self.nfe_per_call == 1:
            return Denoised(x - sigma * self._predict(x, sigma, context), len(x))
        if prompts is not None:
            prediction, nfe = self._guided_and_shared(x, sigma, context)
            return Denoised(x - sigma * prediction, nfe)
        # [uncond, cond] rows in one call, as ComfyUI batches them
        context = torch.cat([self.unconditional.expand_as(context), context])
        negative, positive = self._predict(torch.cat([x, x]), sigma, context).chunk(2)
        # eps and flow velocity alike: x0 = x - sigma * prediction
        return Denoised(x - sigma * (negative + self.cfg * (positive - negative)), 2 * len(x))

    def prompt_embedding(self, group: Tensor) -> Tensor:
        """``[n, W]``: the mean of the text states over the tokens."""
        return self.context.mean(1)[group.to(self.context.device)]

    def _guided_and_shared(self, x: Tensor, sigma: float, context: Tensor) -> tuple[Tensor, int]:
        """(guided prediction, forward passes); the unconditional pass is run once per state that is new."""
        plan = self._shared.plan(x, sigma)
        rows = torch.cat([x[plan.new], x])
        unconditional = self.unconditional.expand(len(plan.new), -1, -1)
        output = self._predict(rows, sigma, torch.cat([unconditional, context]))
        negative = self._shared.complete(plan, output[: len(plan.new)])
        positive = output[len(plan.new) :]
        return negative + self.cfg * (positive - negative), len(rows)

    def _predict(self, x: Tensor, sigma: float, context: Tensor) -> Tensor:
        """The network's prediction (noise or velocity) for states in the sampler's scale."""
        if self.model == "flow":
            timestep = torch.full((len(x),), sigma * 1000.0)
        else:
            timestep = timestep_at(sigma, self.table).float().expand(len(x))
            x = x / (1.0 + sigma * sigma) ** 0.5
        with self._precision():
            return self.network(x, timestep.to(x), context).float()

    def _precision(self):
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.context.device.type, dtype=self.autocast)


class TinyDecode:
    """Latents in the model's scale -> images ``[n, H, W, 3]`` around 0..1."""

    def __init__(self, family: Family, autocast: torch.dtype | None = None):
        self.family, self.autocast = family, autocast

    def __call__(self, x0: Tensor) -> Tensor:
        """Decode ``[n, 4, h, w]``."""
        scaled = x0 / self.family.latent_scale
        with nullcontext() if self.autocast is None else torch.autocast(x0.device.type, dtype=self.autocast):
            decoded = self.family.autoencoder.decode(scaled)
        return (decoded.float() + 1.0).movedim(1, -1) / 2.0


@torch.no_grad()
def encode_prompts(family: Family, prompts: Sequence[str]) -> Tensor:
    """Text states ``[n, L, W]`` of prompts ("" is the unconditional one)."""
    tokens = family.vocabulary.encode_batch(list(prompts))
    return family.text_encoder(tokens)[0]


def shapes_process(
    prompts: Sequence[str], settings: SamplingSettings | None = None, family: Family | None = None
) -> DiffusionProcess:
    """A ``DiffusionProcess`` over the embedded family, one group per prompt.

    Raises:
        SearchError: unknown model, no prompts, or a size that is not a multiple of 16.
    """
    settings = settings or SamplingSettings()
    if settings.model not in MODELS:
        raise SearchError(f"model is {settings.model!r}: choose one of {', '.join(MODELS)}")
    if not prompts:
        raise SearchError("prompts is empty: at least one is needed")
    height, width = settings.size
    if height % 16 or width % 16 or min(settings.size) < 16:
        raise SearchError(f"size is {settings.size}: height and width must be multiples of 16")
    family = family or load_family()
    network = family.flow if settings.model == "flow" else family.diffusion
    denoise = TinyDenoise(
        network,
        settings.model,
        encode_prompts(family, prompts),
        encode_prompts(family, [""]),
        settings.cfg,
        settings.autocast,
        lambda texts: encode_prompts(family, texts),
    )
    flow = settings.model == "flow"
    return DiffusionProcess(
        denoise,
        Flow() if flow else VE(),
        flow_schedule(settings.steps) if flow else normal_schedule(settings.steps),
        TinyDecode(family, settings.autocast),
        shape=(4, height // 8, width // 8),
        groups=len(prompts),
        streams=Streams(settings.seed, settings.group_offset),
        eta=settings.eta,
        start=Start(),
        chunker=Chunker(settings.max_batch),
        gradient_through=settings.gradient_through,
    )
