"""Train the embedded next-scale model: ``python -m testtime.models.tiny.train.var vae``, then ``... var transformer``.

    vae          reconstruction after a scale drawn at random, commitment, bit entropy and the surprise of a prior,
                 through the straight-through quantiser
    transformer  teacher forcing with bitwise self-correction (Han et al. 2024, section 3.3); autoencoder and the
                 generators' text encoder are frozen

Both see drawings on even ground: a texture is noise that nobody asks for, and bits that code it say nothing. Both
resume from ``runs/`` and are deterministic for a seed.
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...infinity.bits import codes_of
from ...infinity.text import TextFeatures, without_text
from ...infinity.vae import BSQVae, quantize_scale, teacher_inputs
from ..loading import load_into, load_text_encoder
from ..var import SCHEDULE, bit_loss, new_transformer, new_vae
from .common import (
    RUNS,
    Loop,
    arguments,
    as_images,
    drawings,
    export,
    kept,
    plain_drawing,
    rank_and_processes,
    record,
)
from .shards import DROPOUT, captions_of

HELD_OUT, HELD_OUT_FIRST = 256, 10_000_000
SHARDS = 8
FLIP = 0.3  # strongest corruption of a scale's bits in training
# Of the drawings, the share that is decoded after each scale.
ENDS = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.2, 0.2, 0.1, 0.2])
SOFTNESS, SURPRISE = 2.0, 0.05  # slope of soft bits, weight of the prior's cross-entropy


class ScalePrior(nn.Module):
    """Guesses a scale's bits from what the codes before it add up to, cell by cell; only the training needs it."""

    def __init__(self, bits: int, width: int = 128):
        super().__init__()
        self.levels = nn.Embedding(len(SCHEDULE), width)
        self.first = nn.Conv2d(bits, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.head = nn.Conv2d(width, bits, 1)

    def forward(self, total: Tensor, scale: int) -> Tensor:
        """Logits ``[B, d, *grid]`` of the bits of ``scale``, given the sum ``[B, d, h, w]`` of those before it."""
        x = F.interpolate(total, size=SCHEDULE.grids[scale], mode="area")
        x = F.gelu(self.first(x) + self.levels.weight[scale][:, None, None])
        for block in self.blocks:
            x = x + F.gelu(block(x))
        return self.head(x)


class PredictableVae(nn.Module):
    """The autoencoder with the prior that its codes are to be predictable for (Ramanujan et al. 2024).

    Attributes:
        vae: what is exported; prior: what is left behind.
    """

    def __init__(self):
        super().__init__()
        self.vae = new_vae()
        self.prior = ScalePrior(self.vae.config.code_dim)


def straight_through(z: Tensor, scales: Tensor | None = None, prior: ScalePrior | None = None) -> tuple[Tensor, Tensor]:
    """Summed codes of the first ``scales [B]`` scales (None: of all) with gradients to ``z`` ``[B, d, h, w]``, and the
    quantiser's loss.

    Per scale: commitment of the unit residual to its code, certainty of each bit, variety of each bit over the batch;
    with ``prior`` also the cross-entropy between its guess and the residual's soft bits, for both of them to mend.
    """
    total, kept_total = torch.zeros_like(z), torch.zeros_like(z)
    loss, surprise = z.new_zeros(()), z.new_zeros(())
    for scale, grid in enumerate(SCHEDULE.grids):
        residual = F.normalize(F.interpolate(z - total, size=grid, mode="area"), dim=1)
        with torch.no_grad():
            bits, reached = quantize_scale(z, total, grid)
            code = codes_of(bits, grid)
        p = torch.sigmoid(4 * residual * 100 / z.shape[1] ** 0.5)
        entropy = _entropy(p).sum(1).mean() - _entropy(p.mean((0, 2, 3))).sum()
        loss = loss + 0.25 * (residual - code).square().sum(1).mean() + 1e-3 * entropy
        if prior is not None:
            soft = torch.sigmoid(SOFTNESS * residual * z.shape[1] ** 0.5)
            surprise = surprise + F.binary_cross_entropy_with_logits(prior(total, scale), soft, reduction="sum")
        gain = reached - total + F.interpolate(residual - residual.detach(), size=z.shape[-2:], mode="bilinear")
        kept_total = kept_total + (gain if scales is None else gain * (scale < scales)[:, None, None, None])
        total = reached
    surprise = surprise / (len(z) * sum(SCHEDULE.lengths) * z.shape[1])
    return kept_total, 0.1 * loss / len(SCHEDULE) + SURPRISE * surprise


def _entropy(p: Tensor) -> Tensor:
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def vae_loss(model: PredictableVae, batch: Tensor, generator: torch.Generator) -> Tensor:
    """Loss of images ``[B, 3, 128, 128]`` in -1..1.

    A drawing is decoded after a scale drawn from ``ENDS``: nested dropout (Rippel et al. 2014), without which nearly
    all of a picture's meaning is in the last scale, whose bits are drawn independently of each other.
    """
    with torch.autocast(batch.device.type, torch.bfloat16):
        z = model.vae.encoder(batch)
    scales = 1 + torch.multinomial(ENDS, len(batch), replacement=True, generator=generator)
    total, quantiser = straight_through(z.float(), scales, model.prior)
    with torch.autocast(batch.device.type, torch.bfloat16):
        decoded = model.vae.decoder(total)
    decoded = decoded.float()
    edges = sum((decoded.diff(dim=axis) - batch.diff(dim=axis)).abs().mean() for axis in (2, 3))
    return F.l1_loss(decoded, batch) + F.mse_loss(decoded, batch) + 0.1 * edges + quantiser


@torch.no_grad()
def psnr(vae: BSQVae, images: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of images ``[n, 3, 128, 128]`` in -1..1 after quantisation."""
    values = []
    for batch in images.split(32):
        pixels = (batch.permute(0, 2, 3, 1) + 1) / 2
        decoded = vae.decode(vae.encode(pixels, SCHEDULE)[1])
        values.append(-10 * (decoded - pixels).square().mean((1, 2, 3)).log10())
    return float(torch.cat(values).mean())


def train_vae(options) -> None:
    """Stage one."""
    images, model = drawings(0, options.images, drawing=plain_drawing), PredictableVae()
    loop = Loop("var_vae", model, options.steps, options.rate, warmup=100, ema=0.999, seed=options.seed)
    loop.resume()

    def loss_of(rng, generator):
        return vae_loss(model, as_images(images[rng.integers(0, len(images), options.batch)]), generator)

    if not options.export_only:
        loop.run(loss_of)
    model.load_state_dict(loop.averaged())
    export("var_vae", model.vae.state_dict(), packed=True)
    quality = psnr(model.vae.eval(), as_images(drawings(HELD_OUT_FIRST, HELD_OUT, drawing=plain_drawing)[:]))
    record(
        "var_vae",
        {"psnr_db": quality, "steps": loop.step, "seconds": loop.seconds, "batch": options.batch * loop.processes},
    )


def corrupted_batch(z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets (see ``teacher_inputs``); every scale's bits flip with a probability of its own."""

    def corrupt(bits: Tensor) -> Tensor:
        strength = FLIP * torch.rand((), generator=generator)
        return bits ^ (torch.rand(bits.shape, generator=generator) < strength).to(bits)

    return teacher_inputs(z, SCHEDULE, corrupt=corrupt)


def dropped(text: TextFeatures, empty: Tensor, generator: torch.Generator) -> TextFeatures:
    """``text`` with a share of the captions replaced by the learned rows of the empty prompt."""
    drop = torch.rand(len(text), generator=generator) < DROPOUT
    features = torch.where(drop[:, None, None], without_text(text, empty).features, text.features)
    return TextFeatures(features, text.mask)


@torch.no_grad()
def latents(vae: BSQVae, images: np.ndarray, batch: int = 64) -> Tensor:
    """What the encoder makes of uint8 ``[n, 128, 128, 3]``: float16 ``[n, 16, 8, 8]``, made once per encoder and kept.

    Kept in ``SHARDS`` files, which the processes of a ``torchrun``, however many, make between them.
    """
    state = torch.cat([value.reshape(-1) for value in vae.encoder.state_dict().values()])
    name = f"var_latents-{hashlib.sha256(state.numpy().tobytes()).hexdigest()[:12]}-{len(images)}"
    rank, processes = rank_and_processes()

    def shard(k: int) -> np.ndarray:
        return kept(RUNS / f"{name}-{k}of{SHARDS}.npy", lambda: encoded(range(k, len(images), SHARDS)))

    def encoded(numbers: range) -> np.ndarray:
        parts = []
        for rows in torch.arange(numbers.start, numbers.stop, numbers.step).split(batch):
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(vae.encoder(as_images(images[rows.numpy()])).half().numpy())
        return np.concatenate(parts)

    for k in range(rank, SHARDS, processes):
        shard(k)
    if processes > 1:
        distributed.barrier()
    found = np.empty((len(images), vae.config.code_dim, *SCHEDULE.grids[-1]), np.float16)
    for k in range(SHARDS):
        found[k::SHARDS] = shard(k)
    return torch.from_numpy(found)


def train_transformer(options) -> None:
    """Stage two."""
    images, captions = drawings(0, options.images, drawing=plain_drawing), captions_of(options.images)
    vae, encoder, model = new_vae(), load_text_encoder(), new_transformer()
    load_into(vae, "var_vae")
    encoded = latents(vae, images)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # on processors, too: attention stays in bfloat16
    loop = Loop("var", model, options.steps, options.rate, warmup=100, ema=0.999, seed=options.seed)
    loop.resume()

    def loss_of(rng, generator):
        rows = rng.integers(0, len(encoded), options.batch)
        tokens = captions[rows, rng.integers(0, captions.shape[1], options.batch)].long()
        with torch.no_grad():
            inputs, targets = corrupted_batch(encoded[rows].float(), generator)
            context, _ = encoder(tokens)
        text = TextFeatures(context.float(), torch.ones(context.shape[:2], dtype=torch.bool))
        # On a processor the plain formula is faster for so few tokens than the blocked kernel, backwards most of all.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = model(inputs, dropped(text, model.empty_text, generator), SCHEDULE)
        return bit_loss(logits.float(), targets)

    if not options.export_only:
        loop.run(loss_of)
    export("var", loop.averaged(), packed=True)
    record(
        "var",
        {
            "loss": loop.recent_loss(),
            "steps": loop.step,
            "seconds": loop.seconds,
            "batch": options.batch * loop.processes,
        },
    )


def main() -> None:
    """Command line entry."""
    stages = {"vae": (train_vae, 4000, 16, 1e-3), "transformer": (train_transformer, 12_000, 64, 1e-3)}
    if len(sys.argv) < 2 or sys.argv[1] not in stages:
        raise SystemExit(f"first argument: one of {', '.join(stages)}")
    run, steps, batch, rate = stages[sys.argv.pop(1)]
    run(arguments(__doc__.split(":")[0], steps=steps, batch=batch, rate=rate))


if __name__ == "__main__":
    main()
