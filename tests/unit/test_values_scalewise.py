"""Values of unfinished next-scale images: bits give back the states, what a network learns, searches that use it."""

from __future__ import annotations

import pytest
import torch

from testtime.models.infinity.bits import add_scale, bits_between
from testtime.samplers.methods import SVDD, TTSVAR
from testtime.samplers.methods.population_plan import PopulationPlan
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search
from testtime.values.learned import LearnedScaleValue, LearnedValue, load_learned
from testtime.values.network import ValueConfig, ValueNetwork
from testtime.values.ranks import caveat_of, preview_ranks, step_at
from testtime.values.scale_network import ScaleValueConfig, ScaleValueNetwork
from testtime.values.scale_rollouts import ScaleRollouts, collect_scalewise
from testtime.values.training import CHECKED_TIMES, TrainingSettings, ranks, train

from . import oracles
from .scale_world import SCHEDULE, Brightness, networks, process, prompts

PLAN = PopulationPlan(4, {}, {2: 2, 4: 1})


@pytest.fixture(scope="module")
def nets():
    return networks()


def make(nets):
    def of(texts, first):
        from testtime.samplers.processes.streams import Streams

        found = process(nets, groups=len(texts), lengths=[3 + int(text) for text in texts])
        found.streams = Streams(0, group_offset=first)
        found.text = prompts(*(3 + int(text) for text in texts))
        return found

    return of


@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.parametrize(("grid", "last"), [((1, 1), (8, 8)), ((3, 5), (7, 12)), ((8, 8), (8, 8))])
def test_bits_come_back_from_what_they_added(fold, grid, last):
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(2, 4, fold * last[0], fold * last[1], generator=generator)
    bits = torch.randint(0, 2, (2, grid[0] * grid[1], 4 * fold**2), generator=generator, dtype=torch.uint8)
    assert torch.equal(bits_between(before, add_scale(before, bits, grid, fold), grid, fold), bits)


@pytest.mark.parametrize("patchify", [False, True])
def test_collected_bits_give_back_the_states_of_the_process(tmp_path, patchify):
    nets = networks(patchify)
    data = collect_scalewise(make(nets), Brightness(), ["1", "2"], 6, tmp_path, batch=4, per_prompt=2)
    assert data.prompt.tolist() == [0, 0, 1, 1, 0, 0] and data.bits.dtype == torch.uint8
    running = make(nets)(["1", "1", "2", "2"], 0)
    state = running.start(1)
    for scale in range(running.steps):
        state, _ = running.advance(state)
        assert torch.allclose(data.code_maps(torch.arange(4), scale), state.x, atol=1e-5)
    images = running.preview(running.predict(state), 0)
    assert torch.allclose(data.reward[:4], Brightness().score(images, []).float(), atol=1e-6)
    again = collect_scalewise(make(nets), Brightness(), ["1", "2"], 6, tmp_path, batch=4, per_prompt=2)
    assert torch.equal(again.bits, data.bits)
    with pytest.raises(SearchError, match="collected with other settings"):
        collect_scalewise(make(nets), Brightness(), ["1", "2"], 6, tmp_path, batch=4, per_prompt=3)


def planted(count=200, each=8):
    """Images whose reward is how many of the first two scales' bits are ones, with the sign that the prompt says."""
    generator = torch.Generator().manual_seed(3)
    text = prompts(*[3 + k % 2 for k in range(count)])
    sign = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    number = torch.arange(count).repeat_interleave(each)
    bits = torch.randint(0, 2, (len(number), sum(SCHEDULE.lengths), 8), generator=generator, dtype=torch.uint8)
    early = bits[:, : SCHEDULE.offsets[2]].float().mean((1, 2))
    features = text.features.clone()
    word = torch.randn(features.shape[2], generator=generator)
    features[:, 0] = sign[:, None] * word  # says which sign
    text = type(text)(features, text.mask)
    return ScaleRollouts(SCHEDULE, 1, bits, 10 * sign[number] * (early - 0.5) + number % 3, number, text)


@pytest.mark.slow
def test_network_reads_code_maps_and_words(tmp_path):
    """The sign of the reward is a word of the prompt: without the text states no rank correlation could be had."""
    settings = TrainingSettings(steps=500, batch=64, learning_rate=3e-3, width=16, save_every=500)
    network = train(planted(), settings, tmp_path, about={"verifier": "planted"})
    held = network.about["ranks"]
    assert held["0.1"] > 0.6 and held["0.7"] > 0.6  # early scales decide
    # At the first scale a third of the bits that matter is there.
    assert held["0.9"] < held["0.1"]
    value = load_learned(tmp_path / "value.safetensors")
    assert isinstance(value, LearnedScaleValue) and value.verifier == "planted"
    assert ranks(value.network, planted())["0.5"] > 0.6


def written(tmp_path, about=None, **config):
    """A file of an untrained network for the process of ``make``."""
    sizes = {"channels": 8, "scales": len(SCHEDULE), "text": 16, "width": 8, **config}
    ScaleValueNetwork(ScaleValueConfig(**sizes), {"model": "a small one", **(about or {})}).save(
        tmp_path / "v.safetensors"
    )
    return load_learned(tmp_path / "v.safetensors")


class Seen(LearnedScaleValue):
    """Keeps what the network was asked."""

    def bind(self, process):
        inner, asked = super().bind(process), []
        object.__setattr__(self, "asked", asked)

        def value(x, level, group):
            asked.append((len(x), round(level, 4)))
            return inner(x, level, group)

        return value


def test_values_choose_without_a_decode(nets, tmp_path):
    """TTS-VAR asks the network at its two selections; only finished images are decoded and judged."""
    running = make(nets)(["1", "2"], 0)
    search = TTSVAR(2, PLAN, value_function=written(tmp_path))
    result = run_search(search, running, Brightness(), ["1", "2"])
    assert result.ledger.decodes == 4 == 2 * search.verifications(running)
    assert torch.isfinite(result.scores).all() and result.status == "complete" and not result.warnings
    images = running.preview(running.predict(running.start(1)), 0)
    assert len(images) == 2
    direct = run_search(SVDD(3, value_function=written(tmp_path)), make(nets)(["1"], 0), Brightness(), ["1"])
    assert torch.isfinite(direct.scores).all()


def test_network_is_asked_with_the_scale_that_was_drawn(nets, tmp_path):
    """The value of a state is that of its code map, scale and text, whichever chunk asks."""
    running = make(nets)(["1", "2"], 0)
    learned = written(tmp_path)
    state = running.start(2)
    for _ in range(3):
        state, _ = running.advance(state)
    bound = learned.bind(running)(state.x, running.sigmas[state.step], state.group)
    text = running.text_states(state.group)
    expected = learned.network.value(state.x, torch.full((4,), 2), text.features, text.mask)
    assert torch.allclose(bound, expected) and len(bound.unique()) == 4


def test_what_does_not_fit_is_named(nets, tmp_path):
    running = make(nets)(["1"], 0)
    for config, message in [
        (
            {"scales": 13},
            r"takes 8 code channels, 13 scales, 16 text .*this model has 8 code channels, 6 scales",
        ),
        ({"channels": 32}, "takes 32 code channels"),
        ({"text": 2048}, "2048 text channels"),
    ]:
        with pytest.raises(SearchError, match=message):
            run_search(TTSVAR(1, PLAN, value_function=written(tmp_path, **config)), running, Brightness(), ["1"])
    with pytest.raises(SearchError, match=r"reads the codes of a next-scale model .*this diffusion model has none"):
        run_search(SVDD(2, value_function=written(tmp_path)), oracles.keyed(), oracles_judge(), ["p"] * 2)
    noisy = ValueNetwork(ValueConfig(8, True, 0, 16))
    noisy.save(tmp_path / "noisy.safetensors")
    assert isinstance(load_learned(tmp_path / "noisy.safetensors"), LearnedValue)
    with pytest.raises(SearchError, match="is no value network of this pack"):
        LearnedScaleValue.load(tmp_path / "noisy.safetensors")
    with pytest.raises(SearchError, match="a next-scale model"):
        run_search(SVDD(2, value_function=LearnedValue(noisy)), running, Brightness(), ["1"])


def oracles_judge():
    return oracles.FunctionVerifier(lambda x: x[:, 0], "first")


def test_a_network_that_ranks_worse_than_previews_warns(nets, tmp_path):
    about = {"ranks": {"0.5": 0.21, "0.1": 0.8}, "preview_ranks": {"0.5": 0.54, "0.1": 0.7}}
    result = run_search(
        TTSVAR(1, PLAN, value_function=written(tmp_path, about)), make(nets)(["1"], 0), Brightness(), ["1"]
    )
    assert "worse than previews do (rank correlation 0.21 against 0.54 at level 0.5)" in result.warnings[0]
    assert caveat_of({"ranks": {"0.5": 0.6}, "preview_ranks": {"0.5": 0.5}}) == "" == caveat_of({})


def test_previews_are_ranked_at_the_states_that_values_are(nets):
    """Scales as the training counts them; a flow's level is its time; a finished image is ranked by itself."""
    running, data = make(nets)(["1"], 0), planted(2)
    for time in CHECKED_TIMES:
        _, scale, _, _ = data.states(torch.arange(3), torch.full((3,), time), torch.Generator())
        assert step_at(running, time) == int(scale[0]) + 1
    flow = oracles.keyed()
    levels = [b / (a + b) for a, b in map(flow.interpolant.coefficients, flow.sigmas)]
    for time in (0.0, *CHECKED_TIMES):
        assert abs(levels[step_at(flow, time)] - time) == min(abs(level - time) for level in levels)
    assert step_at(flow, 0.0) == flow.steps

    found = preview_ranks(make(nets), Brightness(), ["1", "2"], (0.1, 0.9))
    assert -1 <= found["0.9"] < found["0.1"] <= 1


@pytest.mark.slow
def test_command_trains_a_next_scale_network(tmp_path, capsys):
    from testtime.cli.main import main

    arguments = ["train-value", str(tmp_path), "--model", "next-scale", "--images", "12", "--per-prompt", "3",
                 "--sample-batch", "6", "--train-steps", "3", "--train-batch", "4", "--width", "8", "--device",
                 "cpu"]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "rank correlation within a prompt (of previews)" in said
    value = load_learned(tmp_path / "value.safetensors")
    assert value.network.about["model"] == "Shapes World, next-scale" and "preview_ranks" in value.network.about
