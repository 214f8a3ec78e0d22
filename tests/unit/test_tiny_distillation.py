"""Distillation of the embedded flow: what the student is taught, on flows whose steps are known in closed form."""

import pytest
import torch

from testtime.models.tiny.denoiser import Denoiser
from testtime.models.tiny.train import distil
from testtime.models.tiny.train.distil import distillation_loss, first_weights, guided, plain, two_steps
from testtime.samplers.processes.schedules import flow_schedule

CONTEXT = torch.zeros(3, 16, 24)


def growing(x, s, context):
    """dx/ds = x: an Euler step from a to b multiplies by 1 + (b - a)."""
    return x


def test_two_euler_steps_in_closed_form():
    x, times = torch.randn(3, 4, 8, 8), torch.tensor([[1.0] * 3, [0.75] * 3, [0.5] * 3])
    mean = two_steps(growing, x, times, CONTEXT)
    torch.testing.assert_close(x + (0.5 - 1.0) * mean, x * 0.75 * 0.75)
    constant = two_steps(lambda x, s, context: torch.full_like(x, 3.0), x, times, CONTEXT)
    torch.testing.assert_close(constant, torch.full_like(x, 3.0))


@pytest.mark.parametrize("steps", [8, 4])
def test_the_loss_is_zero_for_a_student_that_covers_two_steps_and_not_for_the_teacher(steps):
    x0, eps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    index = torch.tensor([0, 1, steps - 1])
    half = 1 / (2 * steps)

    def student(x, s, context):  # (1 - half)^2 in one step of length 2 half
        return x * (1 - (1 - half) ** 2) / (2 * half)

    assert float(distillation_loss(student, growing, steps, x0, eps, index, CONTEXT)) < 1e-10
    assert float(distillation_loss(growing, growing, steps, x0, eps, index, CONTEXT)) > 1e-5


def test_the_loss_weighs_clean_estimates_up_to_a_bound():
    x0, eps = torch.zeros(3, 4, 8, 8), torch.zeros(3, 4, 8, 8)

    def off_by_one(x, s, context):
        return torch.ones_like(x)

    def still(x, s, context):
        return torch.zeros_like(x)

    starts = flow_schedule(8)[:8]
    for k in (0, 4, 7):
        found = distillation_loss(off_by_one, still, 8, x0, eps, torch.full((3,), k), CONTEXT)
        assert float(found) == pytest.approx(min(1.0, 5 * float(starts[k]) ** 2), rel=1e-5)


def test_guidance_is_in_the_teacher():
    torch.manual_seed(0)
    network = Denoiser("flow", width=48, middle=1, heads=4, channels=16, context=24).eval()
    x, s, context = torch.randn(2, 4, 16, 16), torch.tensor([0.9, 0.4]), torch.randn(2, 16, 24)
    empty = torch.randn(1, 16, 24)
    with torch.no_grad():
        conditional, nothing = plain(network)(x, s, context), plain(network)(x, s, empty.expand(2, -1, -1))
        torch.testing.assert_close(guided(network, empty, 1.0)(x, s, context), conditional, atol=1e-5, rtol=1e-5)
        expected = nothing + 2.5 * (conditional - nothing)
        torch.testing.assert_close(guided(network, empty, 2.5)(x, s, context), expected, atol=1e-5, rtol=1e-5)


def test_rounds_come_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "RUNS", tmp_path)
    with pytest.raises(SystemExit, match=r"flow\.pt is missing in .*run 'generator flow' first"):
        first_weights(8)
    with pytest.raises(SystemExit, match=r"turbo8\.pt is missing in .*run 'distil 8' first"):
        first_weights(4)
