"""Bits, codes and the multi-scale autoencoder."""

import math

import pytest
import torch

from testtime.models.infinity.bits import (
    add_scale,
    bit_probability,
    bits_of,
    codes_of,
    fold,
    sample_bits,
    scale_input,
    unfold,
)
from testtime.models.infinity.schedules import ScaleSchedule
from testtime.models.infinity.vae import BSQVae, VaeConfig, quantize_scale, teacher_inputs

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4)
CONFIG = VaeConfig(6, base=8, multipliers=(1, 2, 2), blocks=1, groups=4)


def pair(p):
    """Logits of a bit that is one with probability p."""
    return torch.tensor([math.log(1 - p), math.log(p)])


def test_probability_at_temperatures():
    assert bit_probability(pair(0.8)) == pytest.approx(0.8)
    assert bit_probability(pair(0.8), tau=0.5) == pytest.approx(0.64 / 0.68)


@pytest.mark.parametrize(("p", "expected"), [(0.02, 0.0), (0.029, 0.0), (0.031, 0.031), (0.969, 0.969), (0.971, 1.0)])
def test_nucleus_makes_nearly_certain_bits_certain(p, expected):
    assert bit_probability(pair(p), top_p=0.97) == pytest.approx(expected, abs=1e-6)


def test_nucleus_never_drops_both_outcomes():
    assert bit_probability(pair(0.3), top_p=0.1) == 0 and bit_probability(pair(0.7), top_p=0.1) == 1
    assert bit_probability(pair(0.5), top_p=0.1) in (0, 1)


def test_frequencies_follow_the_probability():
    torch.manual_seed(0)
    logits = torch.stack([pair(p) for p in (0.01, 0.1, 0.5, 0.9, 0.999)])
    n = 20_000
    bits = sample_bits(logits.expand(n, 5, 2), torch.rand(n, 5), tau=1.0, top_p=0.97)
    assert bits.dtype == torch.uint8
    expected = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    sigma = (expected * (1 - expected) / n).sqrt()
    assert ((bits.float().mean(0) - expected).abs() <= 4.5 * sigma).all()


@pytest.mark.parametrize("factor", [1, 2])
def test_codes_have_length_one_and_give_their_bits_back(factor):
    torch.manual_seed(0)
    bits = torch.randint(0, 2, (2, 6, 8), dtype=torch.uint8)
    codes = codes_of(bits, (2, 3), factor)
    assert codes.shape == (2, 8 // factor**2, 2 * factor, 3 * factor)
    assert torch.allclose(codes.norm(dim=1), torch.ones(()))
    back = fold(bits_of(codes).float(), factor).flatten(2).transpose(1, 2)
    assert torch.equal(back.to(torch.uint8), bits)


def test_folding_is_undone_by_unfolding():
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    assert torch.equal(unfold(fold(x, 2), 2), x) and fold(x, 2).shape == (2, 12, 2, 3)
    assert fold(x, 1) is x


def test_first_scale_fills_the_map_and_the_last_adds_as_it_is():
    total = torch.zeros(1, 4, 4, 4)
    one = torch.tensor([[[1, 0, 1, 1]]], dtype=torch.uint8)
    total = add_scale(total, one, (1, 1))
    assert torch.equal(total[0, :, 2, 3], torch.tensor([0.5, -0.5, 0.5, 0.5])) and total.std((2, 3)).max() == 0
    last = torch.randint(0, 2, (1, 16, 4), dtype=torch.uint8)
    assert torch.equal(add_scale(total, last, (4, 4)) - total, codes_of(last, (4, 4)))
    assert torch.equal(scale_input(total, (4, 4))[0, 5], total[0, :, 1, 1])


def test_encoding_is_the_teacher_path_without_mistakes():
    torch.manual_seed(0)
    model = BSQVae(CONFIG).eval()
    images = torch.rand(2, 16, 16, 3)
    bits, total = model.encode(images, SCHEDULE)
    again = torch.zeros_like(total)
    for own, grid in zip(bits, SCHEDULE.grids, strict=True):
        again = add_scale(again, own, grid)
    assert torch.equal(again, total)
    z = model.encoder(images.permute(0, 3, 1, 2) * 2 - 1)
    inputs, targets = teacher_inputs(z, SCHEDULE)
    assert torch.equal(targets, torch.cat(bits, 1)) and inputs.shape == (2, 29, 6)


def test_each_scale_brings_the_sum_nearer_to_unit_length_codes():
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(4, 6, 4, 4), dim=1)
    total, errors = torch.zeros_like(z), []
    for grid in SCHEDULE.grids:
        _, total = quantize_scale(z, total, grid)
        errors.append(float((z - total).square().mean()))
    assert errors[-1] < errors[0]


def test_mistakes_are_answered_by_later_targets():
    """With a corrupted first scale the second scale's targets code the residual that the mistake left."""
    torch.manual_seed(0)
    z = torch.randn(1, 4, 4, 4)
    inputs, targets = teacher_inputs(z, SCHEDULE)
    flipped, answers = teacher_inputs(z, SCHEDULE, corrupt=lambda bits: 1 - bits if bits.shape[1] == 1 else bits)
    assert torch.equal(targets[:, :1], answers[:, :1])
    assert not torch.equal(targets[:, 1:5], answers[:, 1:5]) and not torch.equal(inputs, flipped)


@pytest.mark.parametrize("factor", [1, 2])
def test_images_of_the_right_size_come_back(factor):
    torch.manual_seed(0)
    config = VaeConfig(6, base=8, multipliers=(1, 2, 2), blocks=1, groups=4)
    model = BSQVae(config).eval()
    bits, total = model.encode(torch.rand(1, 16 * factor, 16 * factor, 3), SCHEDULE, factor)
    assert bits[-1].shape == (1, 16, 6 * factor**2) and total.shape == (1, 6, 4 * factor, 4 * factor)
    images = model.decode(total)
    assert images.shape == (1, 16 * factor, 16 * factor, 3) and images.min() >= 0 and images.max() <= 1
    with pytest.raises(ValueError, match=r"needs \(32, 32\)" if factor == 2 else r"needs \(16, 16\)"):
        model.encode(torch.rand(1, 8, 16, 3), SCHEDULE, factor)


def test_sizes_are_read_from_the_weights():
    shapes = {name: tuple(value.shape) for name, value in BSQVae(CONFIG).state_dict().items()}
    assert VaeConfig.from_shapes(shapes, groups=4) == CONFIG and CONFIG.stride == 4
