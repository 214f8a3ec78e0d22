"""Tournaments: strengths in closed form, what they gain over grades, whom they ask, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.methods import SMC, SVDD, BestOfN, ZeroOrderSearch
from testtime.samplers.plan import Plan
from testtime.samplers.protocols import Interrupted, SearchError
from testtime.samplers.run.trace import Trace
from testtime.samplers.tournament import Tournament, bradley_terry, strengths

from . import oracles
from .searches import TARGET, best_scores, check_whole, run


class Duel(oracles.FunctionVerifier):
    """Compares by a quality of its own, with a liking for the first place."""

    pairwise = True

    def __init__(self, quality=lambda x: x.mean(1), bias=0.0, words=False, action=None):
        super().__init__(quality, "duel")
        self.bias, self.words, self.asked, self.action = bias, words, 0, action

    def prefer(self, first, second, prompts, context=None):
        if self.action is not None:
            self.action()
        self.asked += len(first)
        assert len(prompts) == len(first) == len(context.group)
        odds = 2 * (self.function(first) - self.function(second)) + self.bias
        return torch.where(odds > 0, math.inf, -math.inf) if self.words else odds


def odds_of(quality, bias=0.0):
    return quality[:, None] - quality[None] + bias


@pytest.mark.parametrize("bias", [0.0, 1.5, -3.0])
def test_exact_log_odds_give_back_the_qualities_whatever_the_bias(bias):
    quality = torch.tensor([0.3, -1.0, 2.0, 0.9], dtype=torch.float64)
    others = (quality.sum() - quality) / 3
    assert torch.allclose(strengths(odds_of(quality, bias)), quality - others)


def test_words_are_counted():
    """a beats b and c in both orders, b beats c in one order only: a first, b before c."""
    inf = math.inf
    odds = torch.tensor([[0, inf, inf], [-inf, 0, inf], [-inf, inf, 0]], dtype=torch.float64)
    # b against c: "first" both times, whoever stands there
    found = strengths(odds)
    assert found[0] > found[1] == pytest.approx(float(found[2]))


def test_no_answer_counts_half_a_win_each():
    odds = torch.full((3, 3), math.nan, dtype=torch.float64)
    assert torch.allclose(strengths(odds), torch.zeros(3, dtype=torch.float64), atol=1e-9)


def test_bradley_terry_is_the_maximum_of_its_likelihood():
    wins = torch.tensor([[0, 3.0, 1], [1, 0, 2], [1, 0, 0]], dtype=torch.float64)
    found = bradley_terry(wins)

    def likelihood(s):
        pairs = (wins * torch.nn.functional.logsigmoid(s[:, None] - s[None])).sum()
        return pairs + 0.5 * (torch.nn.functional.logsigmoid(s) + torch.nn.functional.logsigmoid(-s)).sum()

    for k in range(3):
        for step in (-0.01, 0.01):
            moved = found.clone()
            moved[k] += step
            assert likelihood(moved) < likelihood(found)


@pytest.mark.parametrize(("words", "least"), [(False, 1.28), (True, 1.24)])
def test_a_tournament_of_four_finds_more_than_grades(words, least):
    """8 candidates, 5 grades with noise .5, a logistic judge of slope 2 with bias 1.5: 1.11 by grades, best 1.42."""
    generator = torch.Generator().manual_seed(0)
    images, by_grades, by_tournament = 600, 0.0, 0.0
    for _ in range(images):
        quality = torch.randn(8, generator=generator, dtype=torch.float64)
        grades = (quality + 0.5 * torch.randn(8, generator=generator, dtype=torch.float64) + 2).round().clamp(0, 4)

        def ask(first, second, quality=quality):
            odds = 2 * (quality[first] - quality[second]) + 1.5
            if not words:
                return odds
            said = torch.rand(len(odds), generator=generator) < torch.sigmoid(odds)
            return torch.where(said, math.inf, -math.inf).double()

        choice = Tournament(Duel()).choose(grades, ask)
        by_grades += float(quality[grades.argmax()]) / images
        by_tournament += float(quality[choice.order[0]]) / images
        assert choice.asked == 12
    assert by_grades == pytest.approx(1.11, abs=0.1)
    assert by_tournament > least


def test_only_the_best_take_part_and_ties_at_the_cut_go_by_row():
    score = torch.tensor([1.0, math.nan, 3.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    asked = []

    def ask(first, second):
        asked.extend(zip(first.tolist(), second.tolist(), strict=True))
        return torch.zeros(len(first), dtype=torch.float64)

    choice = Tournament(Duel(), finalists=4).choose(score, ask)
    assert {row for pair in asked for row in pair} == {0, 2, 3, 4} and len(asked) == 12
    assert choice.order.tolist() == [2, 4, 0, 3, 5, 1]  # nothing told them apart: by score, then by row
    assert choice.tied and torch.isnan(choice.strength[[1, 5]]).all()


def test_nobody_is_asked_about_one_image():
    choice = Tournament(Duel()).choose(torch.tensor([math.nan, 2.0], dtype=torch.float64), None)
    assert choice.order.tolist() == [1, 0] and choice.asked == 0


@pytest.mark.parametrize("search", [BestOfN(6), SVDD(4), SMC(6), ZeroOrderSearch(2, 2)], ids=lambda s: s.name)
def test_the_judge_has_the_last_word(search):
    """Whatever the method: the winner is the judge's best of the four with the highest scores; scores stay."""
    judge = Duel(lambda x: x[:, 2], bias=1.0)
    result = run(Plan(search, tournament=Tournament(judge)))
    check_whole(result, "complete")
    for g in range(2):
        mine = torch.nonzero(result.group == g).flatten()
        top = mine[result.scores[mine].argsort(descending=True, stable=True)[:4]]
        assert float(judge.function(result.latents[g][None])) == pytest.approx(
            float(judge.function(result.finalists[top]).max())
        )
    assert torch.allclose(TARGET.score(result.finalists, []), result.scores)
    final = result.trace.records[-1].particles
    assert sum("strength" in entry for entry in final) == 2 * min(4, len(final) // 2)
    assert Trace.from_json(result.trace.to_json()).records[-1].particles == final
    assert result.trace.meta["title"].endswith("tournament of 4")


def test_it_costs_what_it_says_and_is_counted():
    judge = Duel()
    plain, played = run(BestOfN(6)), run(Plan(BestOfN(6), tournament=Tournament(judge, 3)))
    assert judge.asked == 2 * Tournament(judge, 3).comparisons(6) == 12
    assert played.ledger.verifier_images == plain.ledger.verifier_images + 12
    assert played.ledger.nfe == plain.ledger.nfe


def test_a_cancel_among_the_finalists_leaves_the_best_by_score():
    def stop():
        raise Interrupted

    result = run(Plan(BestOfN(6), tournament=Tournament(Duel(action=stop))))
    check_whole(result, "interrupted")
    assert torch.allclose(best_scores(result), best_scores(run(BestOfN(6))))


def test_a_judge_that_answers_nothing_changes_nothing():
    class Silent(Duel):
        def prefer(self, first, second, prompts, context=None):
            return torch.full((len(first),), math.nan)

    result = run(Plan(BestOfN(6), tournament=Tournament(Silent())))
    assert torch.equal(result.latents, run(BestOfN(6)).latents)
    assert any("no difference between the best two" in text for text in result.warnings)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(BestOfN(4), tournament=Tournament(TARGET)), "'target' grades one image at a time.*VLM Verifier"),
        (Plan(BestOfN(4), tournament=Tournament(Duel(), 1)), "finalists is 1: at least 2"),
        (Plan(SMC(4), output="sample", tournament=Tournament(Duel())), "output is 'sample' with a tournament"),
    ],
)
def test_bad_settings_are_named(plan, message):
    with pytest.raises(SearchError, match=message):
        run(plan)
