"""preview_vae of images: a TAESD as the host's VAE object."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import SVDD, BestOfN
from testtime.samplers.protocols import SearchError


@pytest.fixture(scope="module")
def taesd():
    """``taesd(channels)`` -> VAE of a TAESD with random weights, loaded as VAE Loader does."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    def make(channels: int = 4):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            network = TAESD(latent_channels=channels)
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter, std=0.05)
        weights = {
            f"{own}.{key}": value
            for own in ("taesd_encoder", "taesd_decoder")
            for key, value in getattr(network, own).state_dict().items()
        }
        weights |= {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}
        return comfy.sd.VAE(sd=weights)

    return make


def counted(vae):
    """Numbers of latents in the calls of ``vae.decode``, as a list that grows."""
    calls, decode = [], vae.decode
    vae.decode = lambda latents, **more: calls.append(len(latents)) or decode(latents, **more)
    return calls


@pytest.mark.parametrize("kind", ["eps", "sd3"])
def test_looks_go_through_the_small_decoder_and_finished_images_through_the_real_one(
    setup, search_ksampler, taesd, kind, monkeypatch
):
    given = setup(kind)
    monkeypatch.setattr("testtime.samplers.run.judging.LEAST", -1.0)  # random weights agree on nothing
    small = taesd(given.latent["samples"].shape[1])
    quick = counted(small)
    out = search_ksampler(given, SVDD(4), preview_vae=small)
    assert sum(quick) >= 8
    with torch.inference_mode():
        expected = given.verifier.score(given.vae.decode(out.finalists["samples"]), ["a red square"] * 4)
    assert out.scores.values == pytest.approx(expected[: len(out.scores.values)].tolist(), abs=1e-4)


def test_a_small_decoder_that_ranks_otherwise_is_given_up(setup, search_ksampler, monkeypatch, taesd):
    given = setup("eps")
    plain = search_ksampler(given, SVDD(8)).best["samples"]
    small = taesd()
    quick, decode = counted(small), given.vae.decode
    small.decode = lambda latents: quick.append(len(latents)) or decode(latents).flip(-1)  # blue is red
    out = search_ksampler(given, SVDD(8), preview_vae=small)
    assert sum(quick) == 8 and torch.equal(out.best["samples"], plain)


def test_a_small_decoder_of_other_latents_is_refused_before_the_first_step(setup, search_ksampler, taesd):
    given = setup("eps")
    with pytest.raises(
        SearchError, match=r"preview_vae decodes 16 channels, this model's latents have 4: connect .* taesd or taesdxl"
    ):
        search_ksampler(given, BestOfN(2), preview_vae=taesd(16))
