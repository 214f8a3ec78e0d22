"""Ensembles: the algebra of each combination."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.methods import SMC, BestOfN
from testtime.samplers.protocols import Verifier
from testtime.samplers.run.search import run_search
from testtime.verifiers.aesthetic.jpeg import JPEGVerifier
from testtime.verifiers.base import VerifierError, WrappedVerifier
from testtime.verifiers.ensemble import COMBINATIONS, EnsembleVerifier, Voice, ranks, shares, standardise

from . import oracles


class Brightness(Verifier):
    """Mean of one colour, times a factor."""

    differentiable = True

    def __init__(self, channel=0, factor=1.0, name="brightness"):
        self.channel, self.factor, self.name = channel, factor, name

    def score(self, images, prompts, context=None):
        return images[..., self.channel].mean((1, 2)) * self.factor


def images(n=6, seed=0):
    return torch.rand(n, 1, 1, 3, generator=torch.Generator().manual_seed(seed))


def ensemble(combine, weights=(1.0, 1.0), factors=(1.0, 1.0), **options):
    voices = [Voice(Brightness(k, f, f"v{k}"), w) for k, (w, f) in enumerate(zip(weights, factors, strict=True))]
    return EnsembleVerifier(voices, combine, **options)


def test_ranks_with_ties_and_bad_scores():
    assert ranks(torch.tensor([3.0, 1.0, 2.0])).tolist() == [1.0, 0.0, 0.5]
    assert ranks(torch.tensor([1.0, 1.0, 0.0])).tolist() == [0.75, 0.75, 0.0]
    assert ranks(torch.tensor([math.nan, 5.0, -math.inf])).tolist() == [0.25, 1.0, 0.25]
    assert ranks(torch.tensor([7.0])).tolist() == [0.5]


def test_standardise_ignores_bad_scores_and_flat_sets():
    z = standardise(torch.tensor([1.0, 3.0, math.nan], dtype=torch.float64))
    assert z.tolist() == [-1.0, 1.0, 0.0]
    assert standardise(torch.full((4,), 2.0)).tolist() == [0.0] * 4


def test_shares_sum_to_one_and_leave_out_bad_scores():
    weights = shares(torch.tensor([1.0, 2.0, math.nan], dtype=torch.float64))
    assert weights[2] == 0 and float(weights.sum()) == pytest.approx(1.0)
    assert float(weights[1] / weights[0]) == pytest.approx(math.exp(2.0))


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_order_of_the_images_does_not_matter(combine):
    x, turn = images(), torch.tensor([3, 0, 5, 1, 4, 2])
    judge = ensemble(combine)
    torch.testing.assert_close(judge.score(x, "p")[turn], judge.score(x[turn], "p"))


@pytest.mark.parametrize("combine", ["zscore_set", "rank", "softmax"])
def test_set_relative_scores_do_not_feel_a_members_scale(combine):
    x = images()
    torch.testing.assert_close(ensemble(combine).score(x, "p"), ensemble(combine, factors=(1.0, 50.0)).score(x, "p"))


@pytest.mark.parametrize("combine", ["zscore_set", "rank", "softmax"])
def test_prompts_are_ranked_among_their_own(combine):
    x, prompts = images(), ["a", "b", "a", "b", "a", "b"]
    judge = ensemble(combine)
    both = judge.score(x, prompts)
    torch.testing.assert_close(both[::2], judge.score(x[::2], "a"))
    torch.testing.assert_close(both[1::2], judge.score(x[1::2], "b"))


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("size", [1, 4])
def test_chunks_do_not_change_scores(combine, size):
    x = images()
    torch.testing.assert_close(ensemble(combine).score(x, "p"), ensemble(combine, max_batch=size).score(x, "p"))


def test_fixed_zscore_formula():
    voices = [Voice(Brightness(0, name="a"), 3.0, mean=0.5, std=0.1), Voice(Brightness(1, name="b"), -1.0, 0.2, 2.0)]
    x = images()
    expected = (3 * (x[:, 0, 0, 0] - 0.5) / 0.1 - (x[:, 0, 0, 1] - 0.2) / 2.0) / 4
    judge = EnsembleVerifier(voices)
    torch.testing.assert_close(judge.score(x, "p"), expected.double())
    assert not judge.relative  # fit for potentials across steps


def test_sum_is_plain():
    x = images()
    torch.testing.assert_close(ensemble("sum", (2.0, 1.0)).score(x, "p"), (2 * x[:, 0, 0, 0] + x[:, 0, 0, 1]).double())


def test_default_scale_of_a_member_is_used():
    jpeg = JPEGVerifier()
    assert Voice(jpeg).scale() == jpeg.default_scale
    assert Voice(Brightness()).scale() == (0.0, 1.0)


def test_members_own_scores_stay_readable():
    judge = EnsembleVerifier([Voice(Brightness(0, name="x")), Voice(Brightness(1, name="x"))])
    x = images().requires_grad_()
    members = judge.judge(x, ["p"] * len(x)).members
    assert list(members) == ["x", "x#2"]
    assert torch.equal(members["x#2"], x[:, 0, 0, 1].detach()) and not members["x"].requires_grad


@pytest.mark.parametrize("combine", ["zscore", "sum"])
def test_gradient_flows(combine):
    x = images().double().requires_grad_()
    judge = ensemble(combine)
    assert judge.differentiable
    assert torch.autograd.gradcheck(lambda t: judge.score(t, ["a", "b"] * 3), (x,))


@pytest.mark.parametrize("combine", ["zscore_set", "softmax"])
def test_candidates_that_share_a_constant_total_give_no_guidance(combine):
    x = images().double().requires_grad_()
    (gradient,) = torch.autograd.grad(ensemble(combine).score(x, "p").sum(), x)
    assert float(gradient.abs().max()) < 1e-12
    assert not ensemble(combine).differentiable


@pytest.mark.parametrize(
    ("search", "warned"), [(SMC(3), True), (SMC(3, start=1.0, end=1.0), False), (BestOfN(3), False)]
)
def test_a_search_whose_weights_compare_steps_warns_of_relative_scores(search, warned):
    judge = oracles.FunctionVerifier(lambda x0: ranks(x0[:, 0]))
    judge.relative = ensemble("rank").relative
    result = run_search(search, oracles.keyed(steps=5, groups=1), judge, ["p"])
    assert any("compares the candidates" in text for text in result.warnings) == warned


def test_rank_and_undifferentiable_members_say_so():
    assert not ensemble("rank").differentiable
    assert not EnsembleVerifier([Voice(Brightness()), Voice(JPEGVerifier())]).differentiable


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_a_bad_score_spoils_only_its_own_image(combine):
    x = images()
    x[2] = math.nan
    scores = ensemble(combine).score(x, "p")
    assert torch.isnan(scores[2]) and torch.isfinite(scores[[0, 1, 3, 4, 5]]).all()


@pytest.mark.parametrize(
    ("voices", "combine", "words"),
    [
        ([], "zscore", "empty"),
        ([Voice(Brightness())], "vote", "zscore"),
        ([Voice(Brightness(), math.nan)], "sum", "finite"),
        ([Voice(Brightness(), std=0.0)], "zscore", "positive"),
        ([Voice(Brightness(), 0.0)], "zscore", "every weight is 0"),
    ],
)
def test_bad_settings_are_named(voices, combine, words):
    with pytest.raises(VerifierError, match=words):
        EnsembleVerifier(voices, combine)


class Blue(Brightness):
    """Watches only; it has no gradient and no score for one image."""

    differentiable = False

    def score(self, images, prompts, context=None):
        assert not images.requires_grad
        values = super().score(images, prompts).clone()
        values[0] = math.nan
        return values


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_a_member_of_weight_0_is_reported_and_never_steers(combine):
    voices = [Voice(Brightness(0, name="a")), Voice(Brightness(1, name="b"), -0.5)]
    watched = EnsembleVerifier([*voices, Voice(Blue(2, name="c"), 0.0)], combine)
    x = images(n=4).double().requires_grad_()
    alone = EnsembleVerifier(voices, combine)
    torch.testing.assert_close(watched.score(x, "p"), alone.score(x, "p"))
    assert watched.differentiable is alone.differentiable
    members = watched.judge(x, "p").members
    assert list(members) == ["a", "b", "c"] and torch.isnan(members["c"][0])


def test_softmax_at_temperature_1_is_the_published_mean_of_softmaxes():
    """TTS-VAR's HPS + ImageReward: softmax over the candidates per verifier, then the mean."""
    x = images()
    first, second = x[:, 0, 0, 0].double(), 3 * x[:, 0, 0, 1].double()
    expected = (torch.softmax(first, 0) + torch.softmax(second, 0)) / 2
    torch.testing.assert_close(ensemble("softmax", factors=(1.0, 3.0), temperature=1.0).score(x, "p"), expected)
    with pytest.raises(VerifierError, match="temperature is 0: it must be positive"):
        ensemble("softmax", temperature=0)


class Framed(WrappedVerifier):
    """The oracle's states [n, 3] as images of one pixel; everything else is the judge's."""

    def judge(self, states, prompts, context=None):
        return self.inner.judge(states.sigmoid()[:, None, None], prompts, context)


class TestTrace:
    """Every member's own score stands in the trace beside the ensemble's."""

    @staticmethod
    def entries(search, combine="zscore", **options):
        voices = [Voice(Brightness(0, name="red")), Voice(Brightness(1, 2.0, "green")), Voice(Brightness(2), 0.0)]
        judge = EnsembleVerifier(voices, combine, **options)
        result = run_search(search, oracles.keyed(steps=4, groups=1), Framed(judge), ["p"])
        return [entry for record in result.trace.records for entry in record.particles], result

    @pytest.mark.parametrize("search", [BestOfN(particles=5), SMC(particles=4)], ids=lambda search: search.name)
    def test_members_add_up_to_the_score(self, search):
        entries, result = self.entries(search)
        scored = [entry for entry in entries if entry["score"] is not None]
        assert scored and all(list(entry["members"]) == ["red", "green", "brightness"] for entry in scored)
        for entry in scored:
            own = entry["members"]
            assert entry["score"] == pytest.approx((own["red"] + own["green"]) / 2)
        assert all("members" not in entry for entry in entries if entry["score"] is None)
        assert '"members": {"red"' in result.trace.to_json()

    def test_relative_ensembles_too(self):
        entries, _ = self.entries(BestOfN(particles=5), "rank")
        assert sum("members" in entry for entry in entries) == 5
