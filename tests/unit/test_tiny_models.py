"""The embedded networks: shapes, sizes, exact conversions between parameterisations, loading errors, quality."""

import math

import pytest
import torch

from testtime.models.tiny import vocabulary
from testtime.models.tiny.autoencoder import Autoencoder
from testtime.models.tiny.denoiser import Denoiser, log_sigma_table
from testtime.models.tiny.loading import WeightsError, load_autoencoder, load_denoiser, load_family, load_into
from testtime.models.tiny.text_encoder import TextEncoder
from testtime.samplers.processes.schedules import scaled_linear_sigmas


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return Denoiser("v", width=48, middle=2, heads=4, channels=16, context=24).eval()


def twin(trunk: Denoiser, parameterisation: str) -> Denoiser:
    other = Denoiser(parameterisation, width=48, middle=2, heads=4, channels=16, context=24).eval()
    other.load_state_dict(trunk.state_dict())
    return other


def test_eps_reading_is_the_trunk(trunk):
    x, context = torch.randn(3, 4, 16, 16), torch.randn(3, 16, 24)
    timesteps = torch.tensor([0.0, 431.0, 999.0])
    phi = torch.atan(log_sigma_table()[timesteps.long()].exp().float())
    sin, cos = phi.sin().view(-1, 1, 1, 1), phi.cos().view(-1, 1, 1, 1)
    with torch.no_grad():
        velocity, eps = trunk(x, phi, context), twin(trunk, "eps")(x, timesteps, context)
    torch.testing.assert_close(eps, sin * x + cos * velocity, atol=1e-5, rtol=1e-5)
    # and the clean estimate through sigma, as a sampler computes it, is the trunk's
    sigma = (sin / cos).double()
    x0 = x.double() * (1 + sigma**2).sqrt() - sigma * eps
    torch.testing.assert_close(x0, (cos * x - sin * velocity).double(), atol=1e-4, rtol=1e-4)


def test_flow_reading_is_the_trunk(trunk):
    s = torch.tensor([0.02, 0.5, 1.0])
    column = s.view(-1, 1, 1, 1)
    norm = torch.sqrt(column**2 + (1 - column) ** 2)
    x, context = torch.randn(3, 4, 16, 16), torch.randn(3, 16, 24)
    phi = torch.atan2(s, 1 - s)
    sin, cos = phi.sin().view(-1, 1, 1, 1), phi.cos().view(-1, 1, 1, 1)
    with torch.no_grad():
        velocity = trunk(x / norm, phi, context)
        flow = twin(trunk, "flow")(x, 1000 * s, context)
    clean, noise = cos * x / norm - sin * velocity, sin * x / norm + cos * velocity
    torch.testing.assert_close(flow, noise - clean, atol=1e-5, rtol=1e-5)
    # the two estimates explain the state: x = (1 - s) x0 + s eps
    torch.testing.assert_close((1 - column) * clean + column * noise, x, atol=1e-5, rtol=1e-5)


def test_schedule_is_the_samplers(trunk):
    torch.testing.assert_close(log_sigma_table().exp(), scaled_linear_sigmas(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (18, 30)])
def test_other_latent_sizes(trunk, size):
    with torch.no_grad():
        assert trunk(torch.randn(2, 4, *size), torch.ones(2), torch.randn(2, 16, 24)).shape == (2, 4, *size)


def test_odd_latent_is_refused_by_name(trunk):
    with pytest.raises(ValueError, match=r"latent size is \(15, 16\).*even"):
        trunk(torch.randn(1, 4, 15, 16), torch.ones(1), torch.randn(1, 16, 24))


def test_unknown_parameterisation():
    with pytest.raises(ValueError, match="choose one of v, eps, flow"):
        Denoiser("x0")


def test_autoencoder_sizes():
    model = Autoencoder(fine=16, coarse=16, decoder=16).eval()
    with torch.no_grad():
        latents = model.encode(torch.zeros(1, 3, 128, 192))
        assert latents.shape == (1, 4, 16, 24)
        assert model.decode(latents).shape == (1, 3, 128, 192)
    with pytest.raises(ValueError, match="multiples of 8"):
        model.encode(torch.zeros(1, 3, 100, 128))


def test_vocabulary_never_fails():
    tokens = vocabulary.encode_batch(["", "A photo of a RED star!", "quixotic zebra " * 20])
    assert tokens.shape == (3, 16)
    assert (tokens[0] == vocabulary.PAD).all()
    assert (tokens[2] == vocabulary.UNK).all()
    assert vocabulary.UNK not in tokens[1]


def test_text_encoder_tells_order_apart():
    torch.manual_seed(0)
    encoder = TextEncoder(width=24, depth=2, heads=4)
    context, pooled = encoder(vocabulary.encode_batch(["a star left of a ring", "a ring left of a star"]))
    assert context.shape == (2, 16, 24) and pooled.shape == (2, 24)
    assert not torch.allclose(context[0], context[1])


def test_missing_and_damaged_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"flow\.safetensors is missing in .*reinstall"):
        load_denoiser("flow", tmp_path)
    (tmp_path / "flow.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(WeightsError, match=r"flow\.safetensors .* is damaged"):
        load_denoiser("flow", tmp_path)


def test_weights_of_another_architecture_are_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "flow.safetensors"))
    with pytest.raises(WeightsError, match="does not fit this version"):
        load_into(Denoiser("flow"), "flow", tmp_path)


@pytest.mark.slow
def test_shipped_autoencoder_reconstructs_fresh_drawings():
    import numpy as np

    from testtime.models.tiny.train.autoencoder import psnr
    from testtime.models.tiny.train.common import as_images, training_drawing

    model, scale = load_autoencoder()
    images = as_images(np.stack([training_drawing(20_000_000 + k) for k in range(64)]))
    assert psnr(model, images) >= 28.0
    with torch.no_grad():
        assert float((model.encode(images) * scale).std()) == pytest.approx(1.0, abs=0.1)


def test_latents_in_the_models_scale_decode_to_their_picture():
    """The networks see latents of unit variance, the autoencoder its own; they differ by a factor of 0.84 only."""
    from testtime.models.tiny.pipeline import TinyDecode

    family = load_family()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = (family.autoencoder.decode(latents).movedim(1, -1) + 1.0) / 2.0
        found = TinyDecode(family)(latents * family.latent_scale)
        forgotten = TinyDecode(family)(latents)
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(forgotten, expected, atol=1e-2)


def test_shipped_family_follows_colours():
    """One denoising step from mid noise must pull the picture towards the prompt's colour (red against blue)."""
    from testtime.models.tiny.pipeline import SamplingSettings, shapes_process
    from testtime.samplers.methods import BestOfN
    from testtime.samplers.run.search import run_search

    family = load_family()
    prompts = ["a red circle", "a blue circle"]
    process = shapes_process(prompts, SamplingSettings(steps=8, seed=3), family)
    result = run_search(BestOfN(particles=1), process, None, prompts)
    images = process.to_pixels(process.decode(result.latents))
    redness = (images[..., 0] - images[..., 2]).flatten(1).amax(1)
    blueness = (images[..., 2] - images[..., 0]).flatten(1).amax(1)
    assert redness[0] > redness[1] and blueness[1] > blueness[0]
    assert math.isfinite(float(result.latents.abs().max()))
