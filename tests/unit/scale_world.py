"""A small next-scale model with random weights, for tests of processes and searches."""

import torch

from testtime.models.infinity.config import InfinityConfig
from testtime.models.infinity.process import ScalewiseProcess
from testtime.models.infinity.sampling import ScaleSampling
from testtime.models.infinity.scale_state import Decoder
from testtime.models.infinity.schedules import ScaleSchedule
from testtime.models.infinity.text import TextFeatures
from testtime.models.infinity.transformer import Infinity
from testtime.models.infinity.vae import BSQVae, VaeConfig
from testtime.samplers.processes.chunking import Chunker
from testtime.samplers.processes.streams import Streams
from testtime.samplers.protocols import Verifier

from .infinity_reference import redraw

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4, 6, 8)
SAMPLING = ScaleSampling(cfg=1.5, tau=1.0, top_p=0.97)


def networks(patchify=False):
    """(transformer, autoencoder), frozen: 8 bits a token, images of 32 or 64 pixels."""
    config = InfinityConfig(2, 32, 2, bits=8, patchify=patchify, text_width=16, text_length=8, pool_heads=4, hidden=64)
    model = Infinity(config).eval().requires_grad_(False)
    redraw(model, seed=2, std=0.12)
    vae = BSQVae(VaeConfig(config.code_dim, base=8, multipliers=(1, 1, 2), blocks=1, groups=4))
    redraw(vae, seed=3, std=0.2)
    return model, vae.eval().requires_grad_(False)


def prompts(*lengths):
    """Random text features of the given lengths."""
    generator = torch.Generator().manual_seed(4)
    return TextFeatures.stack([torch.randn(length, 16, generator=generator) for length in lengths])


def process(nets, groups=1, seed=0, chunk=None, sampling=SAMPLING, preview=0, lengths=None, **options):
    """A process over ``nets``; one prompt per group unless ``lengths`` says otherwise."""
    model, vae = nets
    prompt = model.prompt(prompts(*(lengths or range(3, 3 + groups))), guided=sampling.guided)
    decoder = Decoder(vae.decode, vae.config, preview)
    return ScalewiseProcess(
        model, prompt, SCHEDULE, decoder, groups, Streams(seed), sampling=sampling, chunker=Chunker(chunk), **options
    )


class Brightness(Verifier):
    """A judge that likes red."""

    name, differentiable = "brightness", False

    def score(self, images, prompts, context=None):
        return images[..., 0].mean((1, 2)).double()
