"""The cost formulas against torch's FLOP counter, and against the table of the released models."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from testtime.models.infinity.attention import KVCache
from testtime.models.infinity.config import RELEASED, InfinityConfig
from testtime.models.infinity.flops import cache_bytes, decode_flops, image_flops, prompt_flops, scale_flops
from testtime.models.infinity.schedules import ScaleSchedule, schedule_for
from testtime.models.infinity.text import TextFeatures
from testtime.models.infinity.transformer import Guidance, Infinity, Prompt
from testtime.models.infinity.vae import RELEASED_VAES, BSQVae, VaeConfig


def counted(function):
    # The counter knows matrix products; of the fused attention kernels it knows only some, and which one is taken
    # depends on the processor. The plain one is made of products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scale"), [("infinity_2b", 0), ("infinity_2b", 5), ("infinity_2b", 12), ("layer32", 7)]
)
def test_scale_of_a_released_model_costs_what_the_counter_says(name, scale):
    """On the meta device: the operations of the real sizes, without their memory."""
    config, schedule, n, tokens = RELEASED[name], schedule_for(), 3, 20
    with torch.device("meta"):
        model = Infinity(config)
        shape = (1, 2, 2, config.heads, tokens, config.head_dim)
        prompt = Prompt(
            torch.empty(1, 2, config.width),
            torch.empty(1, 2, 1, 6, config.width),
            [torch.empty(shape)] * config.depth,
            None,
        )
        codes = torch.empty(n, schedule.lengths[scale], config.bits) if scale else None
    past = schedule.offsets[scale]
    cache = KVCache(n).grow(schedule.offsets[scale + 1], 0, model.layout(2)).chunk(slice(0, n), past)
    rows = prompt.rows(torch.zeros(n, dtype=torch.int64))
    flops = counted(lambda: model.step(codes, rows, schedule, scale, cache, Guidance(3.0)))
    assert flops == n * scale_flops(config, schedule, scale, tokens)


def test_prompt_costs_what_the_counter_says():
    config = InfinityConfig(3, 32, 2, bits=8, text_width=16, text_length=9, pool_heads=4, hidden=64)
    model = Infinity(config)
    text = TextFeatures.stack([torch.randn(7, 16)] * 2)
    assert counted(lambda: model.prompt(text)) == 2 * prompt_flops(config, 7)


@pytest.mark.parametrize("multipliers", [(1, 2, 4, 4, 4), (1, 2, 4, 4)])
def test_decoding_costs_what_the_counter_says(multipliers):
    config = VaeConfig(6, base=32, multipliers=multipliers)
    with torch.device("meta"):
        model = BSQVae(config)
        codes = torch.empty(2, 6, 4, 3)
    assert counted(lambda: model.decode(codes)) == 2 * decode_flops(config, 4, 3)


def test_released_models_cost_what_is_known_of_them():
    """TFLOP of an image with guidance and 20 text tokens; the last four of 13 scales are nine tenths of it."""
    schedule = schedule_for()
    costs = [scale_flops(RELEASED["infinity_2b"], schedule, k, 20) / 1e12 for k in range(13)]
    assert sum(costs) == pytest.approx(115.1, rel=2e-3)
    assert costs[12] == pytest.approx(53.43, rel=2e-3) and sum(costs[9:]) / sum(costs) > 0.89
    large = image_flops(RELEASED["infinity_8b"], schedule, 20) / 1e12
    assert large == pytest.approx(381.5, rel=4e-3)
    assert decode_flops(RELEASED_VAES["infinity_vae_d32reg"], 64, 64) / 1e12 == pytest.approx(9.85, rel=2e-3)
    assert decode_flops(RELEASED_VAES["infinity_vae_d32reg"], 16, 16) / 1e12 == pytest.approx(0.62, abs=0.01)


def test_cache_size_is_that_of_the_cache():
    config = InfinityConfig(3, 32, 2, bits=8, text_width=16, text_length=9, pool_heads=4, hidden=64)
    schedule = ScaleSchedule.square(1, 2, 3, 4)
    grown = KVCache(5).grow(14, 0, Infinity(config).layout(2))
    assert grown.bytes() == 5 * cache_bytes(config, schedule.offsets[-2], element=4)
    assert cache_bytes(RELEASED["infinity_2b"], 10521) / 2**30 == pytest.approx(5.137, abs=1e-3)


@pytest.mark.slow
def test_a_shrinking_population_costs_what_the_paper_draws():
    """Fig. 2 of TTS-VAR as its code draws: 1.29 times one image of the 2B model, and no more cache than one image."""
    from testtime.bench.infinity_schedule import BY_FORMULA, by_formula, populations

    config, schedule = BY_FORMULA["infinity_2b at 1M"]
    assert populations(schedule) == [8, 8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1]
    found = by_formula(config, schedule, populations(schedule))
    assert found["tflop_of_one"] == pytest.approx(115.1, rel=2e-3)
    assert found["tflop_shrinking"] == pytest.approx(148.6, rel=3e-3)
    assert found["times_flop"] == pytest.approx(1.29, abs=5e-3)
    assert found["cache_gib_of_one"] == pytest.approx(3.137, abs=2e-3)  # the last scale is not kept
    assert found["cache_gib_shrinking"] == found["cache_gib_of_one"]
