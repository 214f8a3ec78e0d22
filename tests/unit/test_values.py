"""Value networks: what they converge to, resuming, files, and searches that use them."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import DAS, SMC, SVDD
from testtime.samplers.processes.kernel import VE, Flow
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha
from testtime.values.learned import LearnedValue
from testtime.values.network import ValueConfig, ValueNetwork, load_value
from testtime.values.rollouts import Rollouts, collect
from testtime.values.training import TrainingSettings, batch_of, centred, explained, groups_of, ranks, split, train

from . import oracles

pytestmark = pytest.mark.slow  # networks are trained

MEANS, WEIGHTS, VARIANCE = torch.tensor([[-1.5, -1.5], [1.0, 1.0]]), torch.tensor([0.3, 0.7]), 0.16
TARGET = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1), "target")


def world(groups=1, seed=0, steps=60, interpolant=None):
    """Two modes in the plane, whose values are known in closed form."""
    interpolant = interpolant or Flow()
    denoiser = oracles.MixtureDenoiser(MEANS, WEIGHTS, VARIANCE, interpolant)
    return oracles.process(denoiser, steps, groups, seed, dim=2, flow=isinstance(interpolant, Flow))


def exact_value(x, time):
    """``E[-(|x0 - 1|^2) / 2 | x]`` for x at ``time`` of the linear path: the posterior is a mixture of Gaussians."""
    a, b = 1 - time, time
    total = a * a * VARIANCE + b * b
    gap = x[:, None, :].double() - a * MEANS.double()[None]
    share = torch.softmax(WEIGHTS.double().log() - gap.square().sum(-1) / (2 * total), 1)
    mean = MEANS.double()[None] + a * VARIANCE / total * gap
    spread = VARIANCE * b * b / total
    return -(share * ((mean - 1).square().mean(-1) + spread)).sum(1)


def noised(x0, time, seed=5):
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    return (1 - time) * x0 + time * noise


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollouts")
    return collect(lambda prompts, first: world(len(prompts), first), TARGET, ["p"], 12_000, folder, batch=6000)


SETTINGS = TrainingSettings(steps=1000, batch=256, learning_rate=3e-3, width=32, save_every=500)


@pytest.fixture(scope="module")
def trained(rollouts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("value")
    train(rollouts, SETTINGS, folder, about={"verifier": "target"})
    return folder / "value.safetensors"


def distance(network, rollouts, time):
    """Mean squared distance to the exact conditional expectation, in units of the latter's variance."""
    x = noised(rollouts.x0[:4000], time)
    exact = exact_value(x, time)
    learned = network.value(x, torch.full((len(x),), time)).double()
    return float((learned - exact).square().mean() / exact.var())


@pytest.mark.parametrize("time", [0.1, 0.3, 0.5, 0.7])
def test_value_converges_to_the_conditional_expectation(rollouts, trained, tmp_path_factory, time):
    network = load_value(trained)
    assert distance(network, rollouts, time) < 0.02
    # What it explains of the rewards is what can be explained: Var E[r | x] / Var r.
    x = noised(rollouts.x0, time)
    possible = float(exact_value(x, time).var() / rollouts.reward.double().var())
    noise = float((rollouts.reward.double() - exact_value(x, time)).square().mean() / rollouts.reward.double().var())
    assert possible + noise == pytest.approx(1.0, abs=0.05)  # the rollouts themselves follow the closed form
    if str(time) in network.about["explained"]:
        assert network.about["explained"][str(time)] == pytest.approx(possible, abs=0.05)


def test_more_training_comes_closer(rollouts, trained, tmp_path):
    short = train(rollouts, TrainingSettings(**{**vars(SETTINGS), "steps": 60}), tmp_path)
    assert distance(load_value(trained), rollouts, 0.3) < 0.3 * distance(short, rollouts, 0.3)


def test_a_learned_value_steers_as_the_exact_one_does(trained):
    """SVDD-MC with the network against SVDD with the closed form, and against plain sampling."""
    groups = 3000
    learned = LearnedValue.load(trained)
    means = {}
    for name, function in (("learned", learned), ("exact", exact_value)):  # a flow's sigma is its time
        search = SVDD(4, value_function=function)
        means[name] = float(run_search(search, world(groups, 8, 20), TARGET, ["p"] * groups).scores.mean())
    plain = run_search(SVDD(1), world(groups, 8, 20), TARGET, ["p"] * groups)
    assert means["learned"] == pytest.approx(means["exact"], abs=0.02)
    assert means["learned"] > float(plain.scores.mean()) + 1.0


def test_values_spare_the_denoiser_and_the_verifier(trained):
    judge = oracles.FunctionVerifier(TARGET.function, "target")
    result = run_search(SVDD(4, value_function=LearnedValue.load(trained)), world(1, 1, 10), judge, ["p"])
    assert result.ledger.nfe == 10 and result.ledger.decodes == 1
    assert result.warnings == []


def test_smc_takes_a_learned_value(trained):
    """Its weights end at the verifier's score of the finished images, so the target is the same."""
    learned = LearnedValue.load(trained)
    means = {}
    for name, function in (("learned", learned), ("exact", exact_value)):
        search = SMC(16, alpha=Alpha(0.1, "absolute"), value_function=function)
        result = run_search(search, world(100, 2, 20), TARGET, ["p"] * 100)
        assert result.ledger.decodes == 100 * 16  # only the finished ones
        means[name] = float(result.scores.mean())
    plain = run_search(SMC(1), world(1600, 2, 20), TARGET, ["p"] * 1600)
    assert means["learned"] == pytest.approx(means["exact"], abs=0.1)
    assert means["learned"] > float(plain.scores.mean()) + 1.0
    with pytest.raises(SearchError, match="guidance follows the gradient of the verifier"):
        DAS(2, value_function=learned).check_settings()


def test_the_same_network_fits_every_interpolant(trained):
    """States of one noise level differ by a factor only: the value of a VE state is that of the flow state."""
    learned = LearnedValue.load(trained)
    x, group = torch.randn(5, 2), torch.zeros(5, dtype=torch.int64)
    flow = learned.bind(world())(x, 0.4, group)
    ve = learned.bind(world(interpolant=VE()))(x / 0.6, 0.4 / 0.6, group)
    assert torch.allclose(flow, ve, atol=1e-5)


def test_a_foreign_verifier_is_noticed(trained):
    other = oracles.FunctionVerifier(lambda x: x[:, 0], "other")
    result = run_search(SVDD(2, value_function=LearnedValue.load(trained)), world(), other, ["p"])
    assert "expects scores of 'target', the verifier is 'other'" in result.warnings[0]


def test_training_resumes_to_the_same_network(rollouts, tmp_path):
    few = Rollouts(rollouts.x0[:200], rollouts.reward[:200], rollouts.condition[:200])
    settings = TrainingSettings(steps=30, batch=16, width=16, save_every=10)
    whole = train(few, settings, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(step, steps, error):
        if step == 17:
            raise Stop

    with pytest.raises(Stop):
        train(few, settings, tmp_path / "cut", progress=stop)
    assert not (tmp_path / "cut" / "value.safetensors").exists()
    seen = []
    again = train(few, settings, tmp_path / "cut", progress=lambda step, steps, error: seen.append(step))
    assert seen == list(range(11, 31))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(SearchError, match="other settings"):
        train(few, TrainingSettings(steps=31, batch=16, width=16), tmp_path / "cut")


def test_rollouts_resume(tmp_path):
    made = []

    def make(prompts, first):
        made.append(first)
        return world(len(prompts), first, 5)

    settings = {"batch": 4, "about": {"steps": 5}}
    first = collect(make, TARGET, ["p"], 6, tmp_path, **settings)
    assert made == [0, 4] and len(first) == 6
    more = collect(make, TARGET, ["p"], 11, tmp_path, **settings)
    assert made == [0, 4, 8] and torch.equal(more.x0[:6], first.x0)
    with pytest.raises(SearchError, match="collected with other settings"):
        collect(make, TARGET, ["p"], 6, tmp_path, batch=4, about={"steps": 6})


def images(tmp_path, **config):
    """A file of an untrained network for images."""
    ValueNetwork(ValueConfig(**{"channels": 4, "width": 16, **config}), {"model": "SD"}).save(
        tmp_path / "v.safetensors"
    )
    return LearnedValue.load(tmp_path / "v.safetensors")


def test_networks_of_another_shape_are_named(tmp_path, trained):
    from testtime.models.tiny.pipeline import SamplingSettings, shapes_process
    from testtime.verifiers.registry import create

    process = shapes_process(["two red stars"], SamplingSettings(model="flow", steps=4))
    for value, message in [
        (images(tmp_path, channels=16), r"takes latents \[16, h, w\] \(trained on SD\).*are \[4, 16, 16\]"),
        (LearnedValue.load(trained), r"takes latents \[2\].*are \[4, 16, 16\]"),
        (images(tmp_path, condition=77), r"prompt embedding of width 77, this model gives one of width \d+"),
    ]:
        with pytest.raises(SearchError, match=message):
            run_search(SVDD(2, value_function=value), process, create("shapes_clip"), ["two red stars"])
    with pytest.raises(SearchError, match="this model gives none"):
        images(tmp_path, channels=2, spatial=False, condition=3).check(world())


def test_other_files_are_named(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(SearchError, match="cannot be read as a value network"):
        load_value(tmp_path / "missing.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(SearchError, match="is no value network of this pack"):
        load_value(tmp_path / "other.safetensors")


def test_images_of_any_size_and_prompts_count(tmp_path):
    network = ValueNetwork(ValueConfig(4, True, 8, 16))
    for block in network.stages[0]:
        torch.nn.init.normal_(block.second.weight, std=0.1)
    x, time = torch.randn(3, 4, 17, 9), torch.full((3,), 0.5)
    values = network.value(x, time, torch.randn(3, 8))
    assert values.shape == (3,) and torch.isfinite(values).all()
    assert not torch.equal(values, network.value(x, time, torch.randn(3, 8)))
    assert torch.isfinite(network.value(x, torch.ones(3), torch.randn(3, 8))).all()  # pure noise
    assert explained(ValueNetwork(ValueConfig(2, False)), Rollouts(torch.randn(9, 2), torch.ones(9), torch.empty(9, 0)))


def test_command_trains_resumes_and_names_bad_input(tmp_path, capsys):
    from testtime.cli.main import main

    arguments = ["train-value", str(tmp_path), "--model", "flow", "--images", "6", "--steps", "2",
                 "--sample-batch", "3", "--train-steps", "4", "--train-batch", "4", "--width", "16",
                 "--device", "cpu"]  # fmt: skip
    assert main(arguments) == 0
    assert "share of the score" in capsys.readouterr().out
    value = LearnedValue.load(tmp_path / "value.safetensors")
    assert value.verifier == "shapes_preference" and value.network.config.condition > 0
    stamp = (tmp_path / "rollouts" / "rollouts-0000000.safetensors").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (tmp_path / "rollouts" / "rollouts-0000000.safetensors").stat().st_mtime_ns == stamp
    from testtime.models.tiny.pipeline import SamplingSettings, shapes_process
    from testtime.verifiers.registry import create

    process = shapes_process(["two red stars"], SamplingSettings(model="flow", steps=4))
    result = run_search(SVDD(2, value_function=value), process, create("shapes_preference"), ["two red stars"])
    assert torch.isfinite(result.scores).all()
    capsys.readouterr()
    for wrong, message in [
        (["--width", "17"], "width is 17"),
        (["--verifier", "nobody"], "nobody"),
        (["--prompts", str(tmp_path / "none.txt")], "none.txt"),
        (["--steps", "3"], "collected with other settings"),
    ]:
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err


def many_prompts(prompts=40, each=8, within=1.0):
    """Rewards that depend on the prompt (spread 2) and, by ``within``, on the sample's own first number."""
    generator = torch.Generator().manual_seed(1)
    number = torch.arange(prompts).repeat_interleave(each)
    condition = torch.randn(prompts, 4, generator=generator)[number]
    x0 = torch.randn(len(number), 2, generator=generator)
    return Rollouts(x0, 2 * condition[:, 0] + within * x0[:, 0], condition, number)


def test_whole_prompts_are_held_out():
    data = many_prompts()
    kept, taught = split(data, 0.1)
    assert len(kept) == 32 and kept.prompt.unique().tolist() == [0, 1, 2, 3]
    assert not set(kept.prompt.tolist()) & set(taught.prompt.tolist()) and len(kept) + len(taught) == len(data)


def test_centred_error_is_that_of_differences_and_of_means():
    """Two groups of two: by hand. A single sample counts in full, as without prompts."""
    error = torch.tensor([1.0, 3.0, -1.0, -1.0])
    found = float(centred(error, torch.tensor([0, 0, 1, 1])))
    assert found == pytest.approx((1 + 1 + 0 + 0) / 4 + 0.1 * (4 + 4 + 1 + 1) / 4)
    assert float(centred(error, torch.arange(4))) == pytest.approx(float(error.square().mean()))


def test_batches_hold_samples_of_the_same_prompts():
    groups = groups_of(many_prompts())
    rows, group = batch_of(groups, 320, 20, torch.Generator().manual_seed(2))
    assert len(rows) == 20 and group.tolist() == [0] * 8 + [1] * 8 + [2] * 4
    assert all(len((rows[group == k] // 8).unique()) == 1 for k in range(3))
    assert groups_of(Rollouts(torch.zeros(5, 2), torch.zeros(5), torch.empty(5, 0))) == []


def test_a_network_that_knows_only_the_prompt_has_rank_correlation_zero(tmp_path):
    """It explains most of the variance all the same; one that reads the sample has both."""
    settings = TrainingSettings(steps=400, batch=128, learning_rate=5e-3, width=32, save_every=400)
    blind = train(many_prompts(within=0.0), settings, tmp_path / "blind")
    data = many_prompts(prompts=60)
    assert explained(blind, data)["0.1"] > 0.5
    assert all(abs(rank) < 0.25 for rank in ranks(blind, data).values())
    seeing = train(many_prompts(), settings, tmp_path / "seeing")
    assert ranks(seeing, data)["0.1"] > 0.8 > 0.35 > abs(ranks(seeing, data)["0.9"])
    assert seeing.about["ranks"]["0.1"] > 0.8  # of the prompts held out, in the file
    assert ranks(seeing, Rollouts(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2, 4))) == {}


def test_rollouts_of_several_images_per_prompt(tmp_path):
    made = []

    def make(prompts, first):
        made.append(list(prompts))
        return world(len(prompts), first, 5)

    data = collect(make, TARGET, ["a", "b", "c"], 7, tmp_path, batch=4, per_prompt=2)
    assert made == [["a", "a", "b", "b"], ["c", "c", "a", "a"]]
    assert data.prompt.tolist() == [0, 0, 1, 1, 2, 2, 0]
    with pytest.raises(SearchError, match="per_prompt is 0"):
        collect(make, TARGET, ["a"], 4, tmp_path / "x", per_prompt=0)
