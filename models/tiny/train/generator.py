"""Train the embedded generators: ``python -m testtime.models.tiny.train.generator STAGE``.

Stages, in order:
    trunk      text encoder and denoiser together, variance-preserving, v-prediction, all noise levels
    diffusion  fine-tunes the trunk as an eps-model on Stable Diffusion's discrete schedule; text encoder frozen
    flow       fine-tunes the trunk as a rectified flow; text encoder frozen

Every stage resumes from its checkpoint in ``runs/`` and exports the averaged weights. ``--export-only`` writes the
weights of the last checkpoints without training (the later stages fall back on the trunk).
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np
import torch
from torch import Tensor, nn

from ....shapes_world.captions import caption, compatible_prompts
from ..denoiser import TRAINING_STEPS, Denoiser, log_sigma_table
from ..loading import load_autoencoder
from ..text_encoder import TextEncoder
from ..vocabulary import encode, encode_batch
from .common import RUNS, Loop, arguments, as_images, drawings, export, in_parallel, kept, record, training_scene

STAGES = ("trunk", "diffusion", "flow")
CAPTIONS = 4  # wordings kept per drawing
DROPOUT = 0.12  # captions left out, for classifier-free guidance


def training_tokens(seed: int) -> np.ndarray:
    """uint8 ``[CAPTIONS, 16]``: token ids of captions of ``training_scene(seed)``, half of them its own prompt's."""
    prompt, scene = training_scene(seed)
    rng = np.random.default_rng([seed, 0xCA])
    texts = [caption(prompt, rng) for _ in range(CAPTIONS // 2)]
    others = compatible_prompts(scene, rng) or [prompt]
    texts += [others[rng.integers(len(others))].text for _ in range(CAPTIONS - len(texts))]
    return np.array([encode(text) for text in texts], dtype=np.uint8)


def captions_of(count: int) -> Tensor:
    """Tokens uint8 ``[count, CAPTIONS, 16]`` of the training drawings, made once and kept."""
    tokens = kept(RUNS / f"tokens-{count}.npy", lambda: in_parallel(training_tokens, 0, count))
    return torch.from_numpy(np.array(tokens))


def dataset(count: int) -> tuple[Tensor, Tensor]:
    """Scaled latents float16 ``[count, 4, 16, 16]``, made once and kept, and ``captions_of(count)``."""
    latents = kept(RUNS / f"latents-{count}.npy", lambda: scaled_latents(count))
    return torch.from_numpy(np.array(latents)), captions_of(count)


@torch.no_grad()
def scaled_latents(count: int) -> np.ndarray:
    """float16 ``[count, 4, 16, 16]`` of the training drawings, in bfloat16 autocast."""
    autoencoder, scale = load_autoencoder()
    images, parts = drawings(0, count), []
    with torch.autocast("cpu", torch.bfloat16):
        for first in range(0, count, 128):
            latents = autoencoder.encode(as_images(images[first : first + 128]))
            parts.append((latents.float() * scale).half().numpy())
    return np.concatenate(parts)


class Batches:
    """Draws (x0, tokens, eps) of a step."""

    def __init__(self, count: int, batch: int):
        self.latents, self.tokens = dataset(count)
        self.batch = batch

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x0 ``[B, 4, 16, 16]``, tokens int64 ``[B, 16]`` (some emptied), eps like x0."""
        rows = torch.from_numpy(rng.integers(0, len(self.latents), self.batch))
        wording = torch.from_numpy(rng.integers(0, CAPTIONS, self.batch))
        tokens = self.tokens[rows, wording].long()
        tokens[torch.from_numpy(rng.random(self.batch) < DROPOUT)] = 0
        x0 = self.latents[rows].float()
        return x0, tokens, torch.randn(x0.shape, generator=generator)


def trunk_loss(model: nn.ModuleDict, batches: Batches, rng, generator) -> Tensor:
    """Velocity error at log-normal noise levels, one in eight at a uniform angle to reach the ends.

    The median is sigma = 3: a latent of this world says the same thing in many places, so that shapes can still be read
    at sigma = 4 and are decided between 2 and 14, while nothing but texture is left to be learned below 1.
    """
    x0, tokens, eps = batches.draw(rng, generator)
    n = len(x0)
    phi = torch.atan(torch.exp(1.1 * torch.randn(n, generator=generator) + 1.1))
    uniform = torch.rand(n, generator=generator) * (math.pi / 2)
    phi = torch.where(torch.rand(n, generator=generator) < 0.125, uniform, phi)
    sin, cos = phi.sin().view(-1, 1, 1, 1), phi.cos().view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        context, _ = model["text"](tokens)
        velocity = model["denoiser"].velocity(cos * x0 + sin * eps, phi, context).float()
    return (velocity - (cos * eps - sin * x0)).square().mean()


def diffusion_loss(model: nn.ModuleDict, batches: Batches, rng, generator) -> Tensor:
    """eps error over the discrete schedule, weighted by min(1 + sigma^2, 5) (min-SNR weighting, Hang et al. 2023)."""
    x0, tokens, eps = batches.draw(rng, generator)
    t = torch.from_numpy(rng.integers(0, TRAINING_STEPS, len(x0)))
    sigma = log_sigma_table()[t].exp().float()
    scale = (1 + sigma * sigma).rsqrt().view(-1, 1, 1, 1)
    x = (x0 + sigma.view(-1, 1, 1, 1) * eps) * scale
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            context, _ = model["text"](tokens)
        predicted = model["denoiser"](x, t.float(), context).float()
    weight = (1 + sigma * sigma).clamp(max=5.0)
    return (weight * (predicted - eps).square().mean((1, 2, 3))).mean()


def flow_loss(model: nn.ModuleDict, batches: Batches, rng, generator) -> Tensor:
    """Flow-matching error with logit-normal times (Esser et al. 2024, section 3.1), shifted to where shapes are decided
    (see ``trunk_loss``)."""
    x0, tokens, eps = batches.draw(rng, generator)
    s = torch.sigmoid(1.0 + torch.randn(len(x0), generator=generator)).view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            context, _ = model["text"](tokens)
        predicted = model["denoiser"]((1 - s) * x0 + s * eps, 1000 * s.flatten(), context).float()
    return (predicted - (eps - x0)).square().mean()


def build(parameterisation: str) -> nn.ModuleDict:
    """Fresh text encoder and denoiser."""
    return nn.ModuleDict({"text": TextEncoder(), "denoiser": Denoiser(parameterisation).initialise()})


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Entries of one module of a ``ModuleDict`` state, without the prefix."""
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(name + ".")}


def trunk_average() -> dict[str, Tensor]:
    """Averaged weights of the trunk's last checkpoint."""
    path = RUNS / "trunk.pt"
    if not path.exists():
        raise SystemExit(f"{path.name} is missing in {path.parent}: train the trunk first (stage 'trunk')")
    return torch.load(path, weights_only=True)["average"]


def train(stage: str, options: argparse.Namespace) -> None:
    """Run or resume one stage and export it."""
    model = build({"trunk": "v", "diffusion": "eps", "flow": "flow"}[stage])
    if stage == "trunk":
        loop = Loop("trunk", model, options.steps, options.rate, warmup=300, ema=0.999, seed=options.seed)
    else:
        model.load_state_dict(trunk_average())
        model["text"].requires_grad_(False)
        loop = Loop(stage, model, options.steps, options.rate, warmup=50, ema=0.998, seed=options.seed + 1)
    loop.resume()
    if not options.export_only:
        batches = Batches(options.images, options.batch)
        loss = {"trunk": trunk_loss, "diffusion": diffusion_loss, "flow": flow_loss}[stage]
        loop.run(lambda rng, generator: loss(model, batches, rng, generator))
    if loop.rank:
        return
    average = loop.averaged()
    if stage == "trunk":
        export("text_encoder", part(average, "text"))
        for name in ("diffusion", "flow"):  # until these stages have run, the trunk stands in for both
            if not (RUNS / f"{name}.pt").exists():
                export(name, part(average, "denoiser"))
    else:
        export(stage, part(average, "denoiser"))
    metrics = {
        "steps": loop.step,
        "batch": options.batch * loop.processes,
        "loss": loop.recent_loss(),
        "seconds": loop.seconds,
    }
    record(stage, {**metrics, "parameters": sum(p.numel() for p in model["denoiser"].parameters())})


def main() -> None:
    """Command line entry."""
    stage = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if stage not in STAGES:
        raise SystemExit(f"stage is {stage!r}: choose one of {', '.join(STAGES)}")
    defaults = {"trunk": (4_700, 1e-3), "diffusion": (300, 2e-4), "flow": (300, 2e-4)}[stage]
    options = arguments(__doc__.split(":")[0], steps=defaults[0], batch=64, rate=defaults[1])
    assert encode_batch([""]).sum() == 0, "the empty caption must be all padding: dropout relies on it"
    train(stage, options)


if __name__ == "__main__":
    main()
