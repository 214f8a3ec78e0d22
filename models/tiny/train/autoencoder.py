"""Train the embedded autoencoder: ``python -m testtime.models.tiny.train.autoencoder``.

Mean squared error plus a little L1; noise on the latents makes the decoder forgiving, a weak pull to zero keeps them
bounded. Reports PSNR on drawings that were never trained on, and the latents' scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..autoencoder import Autoencoder
from .common import Loop, arguments, as_images, drawings, export, record

HELD_OUT, HELD_OUT_FIRST = 512, 10_000_000
LATENT_NOISE = 0.06


def psnr(model: Autoencoder, images: torch.Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB (8-bit range)."""
    values = []
    with torch.no_grad():
        for batch in images.split(64):
            error = (model(batch).clamp(-1, 1) - batch).square().mean((1, 2, 3)) / 4
            values.append(-10 * error.log10())
    return float(torch.cat(values).mean())


def main() -> None:
    """Command line entry."""
    options = arguments(__doc__.split(":")[0], steps=2000, batch=32, rate=1.5e-3)
    images = drawings(0, options.images)
    model = Autoencoder().to(memory_format=torch.channels_last)
    loop = Loop("autoencoder", model, options.steps, options.rate, warmup=100, ema=0.995, seed=options.seed)
    loop.resume()

    def loss_of(rng, generator):
        batch = as_images(images[rng.integers(0, len(images), options.batch)])
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(batch).float()
            noise = torch.randn(latents.shape, generator=generator)
            decoded = model.decode(latents + LATENT_NOISE * noise).float()
        return F.mse_loss(decoded, batch) + 0.1 * F.l1_loss(decoded, batch) + 1e-4 * latents.square().mean()

    if not options.export_only:
        loop.run(loss_of)
    model.load_state_dict(loop.averaged())
    model.eval()
    held_out = as_images(drawings(HELD_OUT_FIRST, HELD_OUT)[:])
    with torch.no_grad():
        scale = 1.0 / float(torch.cat([model.encode(batch) for batch in held_out.split(64)]).std())
    export("autoencoder", model.state_dict(), {"latent_scale": repr(scale)})
    metrics = {"psnr_db": psnr(model, held_out), "held_out": HELD_OUT, "latent_scale": scale, "steps": loop.step}
    record("autoencoder", {**metrics, "seconds": loop.seconds, "batch": options.batch, "images": options.images})
    print(metrics)


if __name__ == "__main__":
    main()
