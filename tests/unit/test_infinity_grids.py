"""Infinity's configurations, scale schedules and rotary embedding."""

import pytest
import torch

from testtime.models.infinity.config import RELEASED, InfinityConfig
from testtime.models.infinity.rope import rotary_table, rotate
from testtime.models.infinity.schedules import BUDGETS, TABLES, ScaleSchedule, schedule_for


def test_hidden_width_rounds_halves_to_even():
    hidden = {name: config.hidden for name, config in RELEASED.items()}
    assert hidden["infinity_2b"] == 8192 and hidden["infinity_8b"] == 14336
    assert hidden["layer32"] == 8192 and hidden["layer48"] == 13312


def test_released_models_have_the_published_token_and_code_sizes():
    assert RELEASED["infinity_2b"].code_dim == 32 and RELEASED["infinity_2b"].head_dim == 128
    assert RELEASED["infinity_8b"].code_dim == 14 and RELEASED["infinity_8b"].fold == 2


@pytest.mark.parametrize(
    ("sizes", "word"),
    [((2, 30, 4), "multiple of 4"), ((2, 32, 5), "multiple of 4"), ((2, 32, 4, 32, False, 64, 8, 5), "pool heads")],
)
def test_sizes_that_cannot_work_are_refused(sizes, word):
    with pytest.raises(ValueError, match=word):
        InfinityConfig(*sizes)


def test_token_counts_of_the_square_schedules():
    assert [schedule_for(1.0, budget).offsets[-1] for budget in BUDGETS] == [521, 2521, 6425, 10521]


@pytest.mark.parametrize("ratio", TABLES)
def test_every_schedule_has_its_ratio_and_about_its_pixels(ratio):
    for budget, pixels in zip(BUDGETS, (256**2, 512**2, 768**2, 1024**2), strict=True):
        schedule = schedule_for(ratio, budget)
        h, w = schedule.grids[-1]
        assert h / w == pytest.approx(ratio, abs=0.01)
        assert 256 * h * w == pytest.approx(pixels, rel=0.25)
        assert schedule.reference == TABLES[ratio][-1]


def test_ratio_without_a_schedule_names_the_nearest():
    assert schedule_for(0.9).grids[-1] == (64, 64)
    with pytest.raises(ValueError, match="nearest is 1"):
        schedule_for(0.9, exact=True)
    with pytest.raises(ValueError, match=r"0.06M, 0.25M, 0.60M, 1M"):
        schedule_for(1.0, "2M")
    with pytest.raises(ValueError, match="must be > 0"):
        schedule_for(float("nan"))


def test_schedule_must_start_with_one_token_and_not_shrink():
    with pytest.raises(ValueError, match="start token"):
        ScaleSchedule.square(2, 4)
    with pytest.raises(ValueError, match="shrink"):
        ScaleSchedule.square(1, 4, 2)


def test_coarse_grid_shares_the_coordinates_of_the_reference():
    """At 256 pixels the 16 x 16 grid counts in the rows 0, 4, .. 60 of the 64 x 64 grid that training ended with."""
    schedule = schedule_for(1.0, "0.06M")
    cos, sin = rotary_table(schedule, 16)
    full_cos, _ = rotary_table(schedule_for(1.0, "1M"), 16)
    coarse = cos[schedule.offsets[-2] :].view(16, 16, 8)
    fine = full_cos[-64 * 64 :].view(64, 64, 8)
    assert torch.equal(coarse, fine[::4, ::4])
    assert cos.shape == sin.shape == (521, 8)


def test_odd_ratios_round_halves_to_even():
    cos, sin = rotary_table(ScaleSchedule(((1, 1), (4, 4)), (10, 10)), 8)
    angle = torch.atan2(sin, cos)[1:].view(4, 4, 4)
    assert torch.allclose(angle[:, 0, 0].cos(), torch.tensor([0.0, 2.0, 5.0, 8.0]).cos(), atol=1e-6)  # 2.5 -> 2


def test_rotation_depends_on_differences_only():
    cos, sin = rotary_table(ScaleSchedule.square(1, 4, 8), 8)
    torch.manual_seed(0)
    q, k = torch.randn(2, 8)
    fine = slice(17, 81)
    product = torch.einsum("ad,bd->ab", rotate(q, cos[fine], sin[fine]), rotate(k, cos[fine], sin[fine]))
    product = product.view(8, 8, 8, 8)
    assert torch.allclose(product[1, 2, 4, 3], product[3, 3, 6, 4], atol=1e-5)
    assert not torch.allclose(product[1, 2, 4, 3], product[1, 2, 3, 4], atol=1e-3)
