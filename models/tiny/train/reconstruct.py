"""Render the verifiers' training pairs as the generators would: ``python -m testtime.models.tiny.train.reconstruct``.

A verifier that steers a search sees decoded previews, not drawings. Every picture of the pools is encoded; one in three
is decoded as it is, the others are noised to a random level first and denoised in one step with their own prompt, which
gives the blurred and half-decided pictures that a search asks about. Needs the autoencoder and the diffusion model.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from ..loading import Family, load_family
from ..pipeline import TinyDenoise, encode_prompts
from .common import as_images
from .hard_pairs import sample_hard_pair
from .verifier_data import Pair, sample_pair
from .verifier_loop import RUNS, VALIDATION_SEED
from .verifier_pool import decoded_name, load_pool

SIGMAS = (0.5, 8.0)  # log-uniform; beyond, nothing of the picture is left
BATCH = 64


@torch.no_grad()
def rendered(pairs: list[Pair], images: np.ndarray, family: Family, rng: np.random.Generator) -> np.ndarray:
    """uint8 ``[n, 2, 128, 128, 3]``: ``images`` of the same shape after the generator's hands."""
    flat = as_images(images.reshape(-1, *images.shape[2:]))
    latents = family.autoencoder.encode(flat).float() * family.latent_scale
    # The first prompt is true of the first picture only; the second picture is denoised with the second prompt.
    context = encode_prompts(family, [prompt.text for pair in pairs for prompt in pair.prompts])
    denoise = TinyDenoise(family.diffusion, "diffusion", context, encode_prompts(family, [""]), cfg=1.0)
    sigma = float(np.exp(rng.uniform(*np.log(SIGMAS))))
    chosen = torch.from_numpy(rng.random(len(flat)) > 1 / 3)
    noise = torch.from_numpy(rng.standard_normal(tuple(latents.shape)).astype(np.float32))
    denoised = denoise(latents + sigma * noise, sigma, torch.arange(len(flat))).x0
    latents[chosen] = denoised[chosen].float()
    pixels = (family.autoencoder.decode(latents / family.latent_scale).float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).reshape(images.shape).numpy()


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--pairs", type=int, default=16000, help="training pairs, as in the verifiers' trainings")
    parser.add_argument("--hard-pairs", type=int, default=8000, help="likewise, of the pairs that differ in what binds")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    family = load_family()
    pools = [(500, VALIDATION_SEED, sample_pair, "pairs"), (options.hard_pairs, 1, sample_hard_pair, "hard"),
             (options.pairs, 1, sample_pair, "pairs")]  # fmt: skip
    for count, seed, sample, kind in pools:
        path = RUNS / "pool" / decoded_name(kind, seed, count)
        if path.exists():
            continue
        pairs, images = load_pool(RUNS / "pool", count, seed, sample=sample, kind=kind)
        partial = path.with_suffix(".partial.npy")
        shape = (count, 1, *images.shape[1:])
        out = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        for first in range(0, count, BATCH):
            rng = np.random.default_rng([seed, first, 0xDEC])
            chosen = slice(first, first + BATCH)
            with torch.autocast("cpu", torch.bfloat16):
                out[chosen, 0] = rendered(pairs[chosen], images[chosen], family, rng)
        out.flush()
        partial.rename(path)


if __name__ == "__main__":
    main()
