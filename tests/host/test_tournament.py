"""The node Tournament in a running host: the judge has the last word, and what it needs is loaded for it."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import BestOfN
from testtime.samplers.plan import Plan
from testtime.samplers.protocols import SearchError, Verifier

pytestmark = pytest.mark.host


class Brightness(Verifier):
    """Scores by brightness; compares by darkness."""

    name, needs_prompt, pairwise = "brightness", False, True

    def score(self, images, prompts, context=None):
        return images.mean((1, 2, 3))

    def prefer(self, first, second, prompts, context=None):
        return second.mean((1, 2, 3)) - first.mean((1, 2, 3)) + 0.5  # and likes the first place


def node():
    from testtime.nodes.tournament_node import TournamentNode

    return TournamentNode


def test_the_judge_has_the_last_word_in_a_search(setup, search_ksampler):
    given, judge = setup(), Brightness()
    given.verifier = judge
    plan = node().execute(search=Plan(BestOfN(4)), judge=judge, finalists=4).args[0]
    assert plan.title == "Best-of-N, tournament of 4"
    plain, played = (search_ksampler(given, search) for search in (Plan(BestOfN(4)), plan))
    assert sorted(plain.scores.values) == pytest.approx(sorted(played.scores.values), abs=1e-6)
    assert plain.scores.values[0] == max(plain.scores.values)
    assert played.scores.values[0] == min(played.scores.values)
    assert torch.equal(played.best["samples"], played.finalists["samples"][:1])


def test_a_judge_that_grades_only_is_named():
    class Grades(Brightness):
        pairwise = False

    with pytest.raises(SearchError, match=r"grades one image at a time.*VLM Verifier"):
        node().execute(search=Plan(BestOfN(4)), judge=Grades(), finalists=4)
