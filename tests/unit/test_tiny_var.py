"""The embedded next-scale model: it fits together, and its loss is what it says."""

import math

import pytest
import torch

from testtime.models.infinity.bits import add_scale
from testtime.models.infinity.vae import quantize_scale, teacher_inputs
from testtime.models.tiny.text_encoder import TextEncoder
from testtime.models.tiny.train.var import (
    ENDS,
    PredictableVae,
    ScalePrior,
    corrupted_batch,
    dropped,
    straight_through,
    vae_loss,
)
from testtime.models.tiny.var import SCHEDULE, bit_loss, new_transformer, new_vae, text_features


@pytest.mark.slow
def test_parts_fit_together_and_learn():
    torch.manual_seed(0)
    vae, model = new_vae(), new_transformer()
    images = torch.rand(2, 128, 128, 3)
    _bits, total = vae.encode(images, SCHEDULE)
    assert vae.decode(total).shape == images.shape and total.shape == (2, 16, 8, 8)
    inputs, targets = teacher_inputs(total, SCHEDULE)
    with torch.no_grad():
        text = text_features(["a red circle", "two stars"], TextEncoder())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss = bit_loss(model(inputs, text, SCHEDULE), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(2), abs=0.02) and losses[-1] < losses[0] - 0.01


def test_size():
    assert sum(p.numel() for p in new_transformer().parameters()) < 5.5e6
    assert sum(p.numel() for p in new_vae().parameters()) < 3.5e6


def test_loss_weighs_scales():
    tokens = sum(SCHEDULE.lengths)
    bits = torch.ones(1, tokens, 16)
    logits = torch.zeros(1, tokens, 16, 2)
    assert float(bit_loss(logits, bits)) == pytest.approx(math.log(2))
    logits[:, 0, :, 1] = 100.0  # the first token is right: it weighs eight tokens of the last scale
    share = 8 / sum(8 * side for side in (1, 2, 3, 4, 5, 6, 8, 8))
    assert float(bit_loss(logits, bits)) == pytest.approx(math.log(2) * (1 - share), rel=1e-4)


def test_quantiser_passes_gradients_and_changes_no_value():
    torch.manual_seed(0)
    z = torch.randn(2, 16, 8, 8, requires_grad=True)
    codes, loss = straight_through(z)
    bits, targets = teacher_inputs(z.detach(), SCHEDULE)
    assert bits.shape == (2, sum(SCHEDULE.lengths) - 1, 16) and targets.shape == (2, sum(SCHEDULE.lengths), 16)
    assert torch.isfinite(loss)
    codes.square().sum().backward()
    assert z.grad.abs().min() >= 0 and z.grad.abs().sum() > 0
    total = torch.zeros(2, 16, 8, 8)
    for bits, grid in zip(targets.split(SCHEDULE.lengths, 1), SCHEDULE.grids, strict=True):
        total = add_scale(total, bits, grid)
    assert torch.allclose(codes, total, atol=1e-5)


def test_a_drawing_that_ends_early_has_the_codes_and_the_gradient_of_its_scales_only():
    torch.manual_seed(0)
    z = torch.randn(3, 16, 8, 8, requires_grad=True)
    ends = torch.tensor([2, 8, 4])
    codes, _ = straight_through(z, ends)
    for row, end in enumerate(ends):
        total = torch.zeros(1, 16, 8, 8)
        for grid in SCHEDULE.grids[:end]:
            _, total = quantize_scale(z[row : row + 1].detach(), total, grid)
        assert torch.allclose(codes[row : row + 1], total, atol=1e-5)
    codes[0].square().sum().backward()  # two scales: the cells of a quarter of the grid share one gradient
    quarters = z.grad[0].unfold(1, 4, 4).unfold(2, 4, 4)
    assert z.grad[0].abs().sum() > 0 and not z.grad[1:].any()
    spread = quarters.std(dim=(-1, -2)).mean()
    assert spread < 0.1 * quarters.abs().mean()


def test_every_drawing_ends_after_one_of_the_scales():
    assert len(ENDS) == len(SCHEDULE) and float(ENDS.sum()) == pytest.approx(1.0) and ENDS[-1] > 0


def test_codes_and_prior_meet_each_other():
    """The prior learns to guess the codes, and the codes are moved towards what it guesses."""
    torch.manual_seed(0)
    z, prior = torch.nn.Parameter(torch.randn(4, 16, 8, 8).double()), ScalePrior(16, width=16).double()

    def surprise() -> torch.Tensor:
        return straight_through(z, prior=prior)[1] - straight_through(z)[1]

    before, optimizer = float(surprise().detach()), torch.optim.Adam(prior.parameters(), lr=0.02)
    for _ in range(10):
        optimizer.zero_grad()
        surprise().backward()
        optimizer.step()
    learnt = float(surprise().detach())
    assert learnt < 0.95 * before

    # A bit that flips changes all that comes after it: the step is too short for any to flip.
    (slope,) = torch.autograd.grad(surprise(), z)
    step = 1e-9 / slope.norm()
    with torch.no_grad():
        z -= step * slope
    assert float(surprise().detach()) - learnt == pytest.approx(-float(step * slope.square().sum()), rel=0.01)


def test_one_training_step_of_each_stage():
    torch.manual_seed(0)
    vae, generator = PredictableVae(), torch.Generator().manual_seed(0)
    loss = vae_loss(vae, torch.rand(2, 3, 128, 128) * 2 - 1, generator)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in vae.parameters())
    inputs, targets = corrupted_batch(torch.randn(4, 16, 8, 8), generator)
    model = new_transformer()
    with torch.no_grad():
        text = text_features(["a star"] * 4, TextEncoder())
    bit_loss(model(inputs, dropped(text, model.empty_text, generator), SCHEDULE), targets).backward()
    assert torch.isfinite(model.head.weight.grad).all()


def test_images_are_encoded_once_for_all_steps(tmp_path, monkeypatch):
    import numpy as np

    from testtime.models.tiny.train import var as training

    torch.manual_seed(0)
    vae = new_vae().requires_grad_(False)
    monkeypatch.setattr(training, "RUNS", tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (11, 128, 128, 3), dtype=np.uint8)
    found = training.latents(vae, images, batch=2)
    expected = vae.encoder(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    assert found.dtype == torch.float16 and found.shape == expected.shape
    assert float((found - expected).std()) < 0.03 * float(expected.std())  # encoded in bfloat16

    def encode(images):
        raise RuntimeError("encoded again")

    monkeypatch.setattr(vae.encoder, "forward", encode)
    vae.decoder.conv_out.bias.add_(1.0)  # another decoder codes nothing differently
    assert torch.equal(training.latents(vae, images), found)
    next(vae.encoder.parameters()).add_(0.1)
    with pytest.raises(RuntimeError, match="encoded again"):
        training.latents(vae, images)
