"""Infinity's transformer: stepping with a cache, selections, guidance, masks, precision."""

import pytest
import torch

from testtime.models.infinity.attention import KVCache
from testtime.models.infinity.config import InfinityConfig
from testtime.models.infinity.packed import can_pack, pack
from testtime.models.infinity.schedules import ScaleSchedule
from testtime.models.infinity.text import TextFeatures, without_text
from testtime.models.infinity.transformer import Guidance, Infinity

from .infinity_reference import redraw

CONFIG = InfinityConfig(3, 32, 2, bits=8, text_width=16, text_length=9, pool_heads=4, hidden=64)
SCHEDULE = ScaleSchedule.square(1, 2, 3, 4)
CAPACITY = SCHEDULE.offsets[-2]
GUIDED = Guidance(2.0)


@pytest.fixture(scope="module")
def model():
    network = Infinity(CONFIG).eval().requires_grad_(False)
    redraw(network, std=0.15)
    return network


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(1)
    return TextFeatures.stack([torch.randn(4, 16), torch.randn(7, 16)])


def inputs(n, seed=0):
    """Inputs of scales 1 .. 3 of n particles."""
    generator = torch.Generator().manual_seed(seed)
    return [None, *(torch.randn(n, length, 8, generator=generator) for length in SCHEDULE.lengths[1:])]


def run(model, prompt, index, codes, scales=None, cache=None, chunks=None, guidance=GUIDED, capacity=CAPACITY):
    """Logits of each scale in ``scales`` and the cache after them, in chunks of the given sizes."""
    n = len(index)
    cache = cache or KVCache(n)
    sizes = chunks or [n]
    logits = []
    for scale in scales or range(len(SCHEDULE)):
        start = cache.length
        last = scale == len(SCHEDULE) - 1
        grown = cache if last else cache.grow(SCHEDULE.lengths[scale], capacity, model.layout(prompt.branches))
        parts, first = [], 0
        for size in sizes:
            rows = slice(first, first + size)
            part = grown.frozen(rows) if last else grown.chunk(rows, start)
            own = None if codes[scale] is None else codes[scale][rows]
            parts.append(model.step(own, prompt.rows(index[rows]), SCHEDULE, scale, part, guidance))
            first += size
        logits.append(torch.cat(parts))
        cache = grown
    return logits, cache


def close(a, b, tolerance=2e-5):
    return all(torch.allclose(x, y, atol=tolerance, rtol=tolerance) for x, y in zip(a, b, strict=True))


def test_stepping_with_a_cache_equals_one_masked_pass(model, text):
    index = torch.tensor([0, 1, 0])
    codes = inputs(3)
    stepped, _ = run(model, model.prompt(text, guided=False), index, codes, guidance=Guidance())
    picked = TextFeatures(text.features[index], text.mask[index])
    whole = model(torch.cat(codes[1:], 1), picked, SCHEDULE)
    assert close([torch.cat(stepped, 1)], [whole])
    assert whole.shape == (3, 30, 8, 2)


def test_guidance_at_the_logits_mixes_two_plain_passes(model, text):
    index = torch.tensor([0, 1])
    codes = inputs(2)
    guided, _ = run(model, model.prompt(text), index, codes, guidance=Guidance(3.0))
    plain, _ = run(model, model.prompt(text, guided=False), index, codes, guidance=Guidance())
    empty = model.prompt(without_text(text, model.empty_text), guided=False)
    free, _ = run(model, empty, index, codes, guidance=Guidance())
    assert close(guided, [3.0 * a - 2.0 * b for a, b in zip(plain, free, strict=True)], 1e-4)


def test_guidance_of_one_reads_the_conditional_branch(model, text):
    index, codes = torch.tensor([0, 1]), inputs(2)
    both, _ = run(model, model.prompt(text), index, codes, guidance=Guidance(1.0))
    one, _ = run(model, model.prompt(text, guided=False), index, codes, guidance=Guidance(1.0))
    assert close(both, one)


def test_guidance_inside_the_network(model, text):
    """Mixing at the output of the last block commutes with nothing but the linear head: it differs from logits."""
    index, codes = torch.tensor([0, 1]), inputs(2)
    inside, _ = run(model, model.prompt(text), index, codes, guidance=Guidance(2.0, (-1,)))
    outside, _ = run(model, model.prompt(text), index, codes, guidance=Guidance(2.0, (0,)))
    assert not close(inside, outside, 1e-2)
    again, _ = run(model, model.prompt(text), index, codes, guidance=Guidance(1.0, (-1,)))
    plain, _ = run(model, model.prompt(text), index, codes, guidance=Guidance(1.0))
    assert close(again, plain)


def test_padding_of_other_prompts_changes_nothing(model, text):
    codes = inputs(1)
    alone = TextFeatures(text.features[:1, :4], text.mask[:1, :4])
    a, _ = run(model, model.prompt(text), torch.tensor([0]), codes)
    b, _ = run(model, model.prompt(alone), torch.tensor([0]), codes)
    assert close(a, b) and model.prompt(alone).mask is None


def test_negative_prompt_stands_in_the_second_branch(model, text):
    codes = inputs(2)
    negative = TextFeatures(text.features[1:], text.mask[1:])
    a, _ = run(model, model.prompt(text, negative=negative), torch.tensor([1, 1]), codes, guidance=Guidance(4.0))
    b, _ = run(model, model.prompt(text, guided=False), torch.tensor([1, 1]), codes, guidance=Guidance())
    assert close(a, b, 1e-4)  # the same text in both branches: guidance has nothing to do
    with pytest.raises(ValueError, match="3 negative prompts for 2 prompts"):
        model.prompt(text, negative=TextFeatures.stack([torch.randn(2, 16)] * 3))


@pytest.mark.parametrize("picks", [[2, 0, 2], [1], [3, 3, 3, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_selected_particles_continue_as_if_alone(model, text, picks, after):
    index, codes = torch.tensor([0, 1, 1, 0]), inputs(4)
    prompt = model.prompt(text)
    _, cache = run(model, prompt, index, codes, range(after))
    pick = torch.tensor(picks)
    mine = [None if c is None else c[pick] for c in codes]
    rest, _ = run(model, prompt, index[pick], mine, range(after, 4), cache.select(pick))
    fresh, _ = run(model, prompt, index[pick], mine)
    assert close(rest, fresh[after:])


def test_selecting_then_continuing_is_exact(model, text):
    """Bit for bit: the same rows in the same batch, with and without a selection that keeps them in place."""
    index, codes = torch.tensor([0, 1]), inputs(2)
    prompt = model.prompt(text)
    _, cache = run(model, prompt, index, codes, range(2))
    plain, _ = run(model, prompt, index, codes, range(2, 4), cache)
    doubled = cache.select(torch.tensor([0, 1, 1])).select(torch.tensor([0, 2]))
    selected, _ = run(model, prompt, index, codes, range(2, 4), doubled)
    assert all(torch.equal(a, b) for a, b in zip(plain, selected, strict=True))


def test_two_continuations_of_one_cache_do_not_disturb_each_other(model, text):
    index, a, b = torch.tensor([0, 1]), inputs(2), inputs(2, seed=5)
    prompt = model.prompt(text)
    _, cache = run(model, prompt, index, a, range(2))
    _, first = run(model, prompt, index, a, range(2, 3), cache)
    _, second = run(model, prompt, index, b, range(2, 3), cache)
    assert first.buffer is cache.buffer and second.buffer is not cache.buffer
    rest, _ = run(model, prompt, index, a, range(3, 4), first)
    whole, _ = run(model, prompt, index, a)
    assert close(rest, whole[3:])


def test_cache_is_copied_only_when_it_must_be(model, text):
    index, codes = torch.tensor([0, 1]), inputs(2)
    prompt = model.prompt(text)
    _, cache = run(model, prompt, index, codes, range(1))
    assert cache.select(torch.tensor([0, 1])) is cache
    assert cache.select(torch.tensor([1, 1])).buffer is cache.buffer
    _, longer = run(model, prompt, index, codes, range(1, 3), cache)
    assert longer.buffer is cache.buffer and longer.length == CAPACITY
    # Two branches, three layers of two heads of 16 channels, keys and values, 14 tokens without the last scale.
    assert longer.bytes() == 2 * 2 * 3 * 2 * 2 * 16 * 14 * 4
    _, tight = run(model, prompt, index, codes, range(2), capacity=0)
    assert tight.buffer.capacity == 5


@pytest.mark.parametrize("chunks", [[1, 1, 1, 1], [3, 1], [2, 2]])
def test_chunks_change_nothing(model, text, chunks):
    index, codes = torch.tensor([0, 1, 1, 0]), inputs(4)
    prompt = model.prompt(text)
    whole, _ = run(model, prompt, index, codes)
    parts, _ = run(model, prompt, index, codes, chunks=chunks)
    assert close(whole, parts)


def test_half_precision_stays_near(model, text):
    index, codes = torch.tensor([0, 1]), inputs(2)
    half = Infinity(CONFIG).eval().requires_grad_(False)
    half.load_state_dict(model.state_dict())
    half.cast(torch.bfloat16)
    a, _ = run(model, model.prompt(text), index, codes, guidance=Guidance())
    b, cache = run(half, half.prompt(text), index, codes, guidance=Guidance())
    error = max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(a, b, strict=True))
    assert 1e-5 < error < 0.05 and b[0].dtype == torch.float32
    assert cache.buffer.layers[0].dtype == torch.bfloat16


def test_prompts_that_are_too_long_and_missing_branches_are_named(model):
    long = TextFeatures.stack([torch.randn(10, 16)])
    with pytest.raises(ValueError, match="10 tokens: this model takes 9"):
        model.prompt(long)
    with pytest.raises(ValueError, match="10 tokens: this model takes 9"):
        model.prompt(long, guided=False)
    short = model.prompt(TextFeatures.stack([torch.randn(3, 16)]), guided=False)
    with pytest.raises(ValueError, match="without its unconditional branch"):
        run(model, short, torch.tensor([0]), inputs(1))
    with pytest.raises(ValueError, match="no tokens"):
        TextFeatures(torch.zeros(1, 2, 16), torch.zeros(1, 2, dtype=torch.bool))


def test_gradients_reach_every_parameter(text):
    network = Infinity(CONFIG)
    codes = torch.cat(inputs(2)[1:], 1)
    empty = without_text(text, network.empty_text)
    both = TextFeatures(torch.cat([text.features, empty.features]), torch.cat([text.mask, empty.mask]))
    network(torch.cat([codes, codes]), both, SCHEDULE).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.skipif(not can_pack(), reason="this build of torch has no oneDNN layout for linear layers")
def test_packed_layers_compute_the_same():
    from .scale_world import networks, process

    plain, packed = networks(), networks()
    assert pack(packed[0]) and not list(packed[0].blocks[0].feed_forward.parameters())
    runs = []
    for nets in (plain, packed):
        proc = process(nets, groups=2)
        state = proc.start(2)
        for _ in range(proc.steps):
            state, _ = proc.advance(state)
        runs.append(state.x)
    assert torch.allclose(*runs, atol=1e-5)


def test_models_that_learn_are_not_packed():
    from .scale_world import networks

    model = networks()[0].requires_grad_(True)
    assert not pack(model) and isinstance(model.blocks[0].feed_forward.fc1, torch.nn.Linear)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_and_serve_all_layers_and_scales():
    """One graph each for the first scale, those between and the last; the compiler itself is left out (minutes)."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    from .scale_world import networks, process

    runs = []
    dynamo.reset()
    for compiled in (False, True):
        nets = networks()
        if compiled:
            counters.clear()
            nets[0].compile_blocks(backend="eager")
        proc = process(nets, groups=2)
        state = proc.start(2)
        for _ in range(proc.steps):
            state, _ = proc.advance(state)
        runs.append(state.x)
    assert torch.equal(*runs)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 3
    dynamo.reset()
