"""Searches do what they are for: more particles and gradients raise scores, one particle is plain sampling."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import DAS, BestOfN
from testtime.samplers.smc.tempering import Alpha

from .conftest import judged
from .test_methods_on_models import KINDS, UNGUIDED, make

pytestmark = pytest.mark.host


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", UNGUIDED)
def test_one_particle_is_plain_sampling(setup, search_ksampler, name, kind):
    given = setup(kind)
    plain = search_ksampler(given, BestOfN(1), steps=3).best["samples"]
    assert torch.equal(search_ksampler(given, make(name, 1), steps=3).best["samples"], plain)


@pytest.mark.parametrize("kind", KINDS)
def test_more_particles_never_lose_to_fewer(setup, search_ksampler, kind):
    """The first of N particles is the one that a single run draws, so Best-of-N can only win."""
    given = setup(kind, batch=3)
    few, many = search_ksampler(given, BestOfN(1)), search_ksampler(given, BestOfN(5))
    pairs = list(zip(judged(given, few.best).tolist(), judged(given, many.best).tolist(), strict=True))
    assert all(more >= less - 1e-6 for less, more in pairs) and any(more > less + 1e-5 for less, more in pairs)


@pytest.mark.parametrize("name", ["svdd-greedy", "smc-adaptive", "fk-max", "das-denoiser"])
def test_the_verifier_steers(setup, search_ksampler, name):
    """Turned round by its prompt, the same search ends at the other end of the scale."""
    given = setup("eps", batch=3)
    red = judged(given, search_ksampler(given, make(name, 4), prompt="a red square").best)
    blue = judged(given, search_ksampler(given, make(name, 4), prompt="a blue square").best)
    assert (red > blue).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_climb(setup, search_ksampler, kind):
    """Guidance with one particle, so nothing to select from, still raises the scores."""
    given = setup(kind, batch=3)
    plain = judged(given, search_ksampler(given, BestOfN(1), cfg=1.0).best)
    guided = DAS(1, alpha=Alpha(2e-4, "absolute"), tempering="none", start=0.0)
    assert (judged(given, search_ksampler(given, guided, cfg=1.0).best) - plain).mean() > 1e-3


@pytest.mark.parametrize("kind", ["eps", "flux"])
def test_image_to_image_with_many_particles(setup, search_ksampler, kind):
    """At a low denoise the candidates stay near the picture, at a high one they spread."""
    given = setup(kind)
    given.latent["samples"] = torch.randn(given.latent["samples"].shape, generator=torch.Generator().manual_seed(4))

    def spread(denoise: float) -> float:
        return float(search_ksampler(given, BestOfN(3), denoise=denoise).finalists["samples"].std(0).mean())

    assert 0 < spread(0.2) < spread(1.0)
