"""A person as verifier: asked when due, obeyed exactly, and never in the way."""

from __future__ import annotations

import math
import time

import pytest
import torch

from testtime.samplers.methods import DAS, SMC, SVDD, BestOfN, RandomSearch
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha
from testtime.verifiers.base import VerifierError
from testtime.verifiers.human import Answer, HumanVerifier, parse_marks, reordered

from .oracles import keyed
from .searches import TARGET

ALPHA = Alpha(0.3, "absolute")


class Person:
    """Answers with ``say(question)`` and remembers what was asked."""

    def __init__(self, say=lambda question: None):
        self.say, self.asked = say, []

    def __call__(self, question):
        self.asked.append(question)
        return self.say(question)


def judged(search, person, marks=(0.5, 1.0), **options):
    process = options.pop("process", None) or keyed(groups=options.pop("groups", 1))
    return run_search(search, process, HumanVerifier(TARGET, person, marks), ["p", "q"][: process.groups], **options)


def test_who_is_not_there_changes_nothing():
    for search in (SMC(4, alpha=ALPHA), SVDD(3), BestOfN(4)):
        alone = run_search(search, keyed(groups=1), TARGET, ["p"])
        person = Person()
        asked = judged(search, person)
        assert torch.equal(alone.finalists, asked.finalists) and torch.equal(alone.scores, asked.scores)
        assert person.asked


def test_the_person_is_asked_once_for_every_mark():
    person = Person()
    judged(SMC(4, alpha=ALPHA), person, (0.3, 0.6, 1.0))
    # 9 steps: 0.3 is reached at step 3, 0.6 at step 6, the end at the last clean estimate
    assert [question.step for question in person.asked] == [3, 6, 8]
    assert all(len(question.images) == 4 and question.steps == 9 for question in person.asked)
    once = Person()
    judged(BestOfN(4), once, (0.3, 0.6, 1.0))
    assert [question.step for question in once.asked] == [9]


def test_every_run_and_every_round_begins_anew():
    person = Person()
    judge = HumanVerifier(TARGET, person, (1.0,))
    for _ in range(2):
        run_search(BestOfN(3), keyed(groups=1), judge, ["p"])
    assert len(person.asked) == 2


def test_a_pick_wins_and_what_is_dropped_is_gone():
    def worst_first(question):
        order = question.scores.argsort().tolist()
        return Answer((order[0],), frozenset(order[2:]))

    result = judged(BestOfN(5), Person(worst_first))
    plain = run_search(BestOfN(5), keyed(groups=1), TARGET, ["p"])
    assert torch.equal(result.latents[0], plain.finalists[-1])
    assert int(torch.isnan(result.scores).sum()) == 3
    assert not result.warnings  # nothing is wrong with a verifier that rejects


def test_two_that_are_kept_are_the_ancestors_of_all():
    def keep_two(question):
        if question.step > 5:
            return None
        return Answer((1, 3), frozenset({0, 2, 4, 5}))

    result = judged(SMC(6, alpha=ALPHA), Person(keep_two), (0.5, 1.0))
    record = next(r for r in result.trace.records if r.step == 5)
    kept = {record.particles[1]["id"], record.particles[3]["id"]}
    assert record.resampled == [True]
    later = next(r for r in result.trace.records if r.step == 6)
    assert {entry["parent"] for entry in later.particles} <= kept


def test_images_of_a_batch_are_asked_about_together():
    def keep_the_last_of_the_second(question):
        assert question.group == [0, 0, 0, 1, 1, 1] and question.prompts == ["p"] * 3 + ["q"] * 3
        return Answer((5,))

    result = judged(BestOfN(3), Person(keep_the_last_of_the_second), groups=2)
    plain = run_search(BestOfN(3), keyed(groups=2), TARGET, ["p", "q"])
    assert torch.equal(result.latents[0], plain.latents[0])
    slots = {e["id"]: e["slot"] for e in result.trace.records[-1].particles}
    assert slots[result.particles[3]] == 2


@pytest.mark.slow
def test_waiting_costs_no_time_budget():
    def slowly(question):
        time.sleep(1.6)
        return Answer((0,))

    result = judged(SMC(3, alpha=ALPHA), Person(slowly), (0.5,), max_seconds=1.5)
    assert result.status == "complete"
    assert result.ledger.total_seconds < 1.5 and result.ledger.seconds["verifier"] < 1.5


def test_a_large_population_is_shown_whole_although_it_is_chunked():
    from testtime.samplers.processes.chunking import Chunker

    process = keyed(groups=1)
    process.chunker = Chunker(2)
    person = Person()
    judged(BestOfN(5), person, process=process)
    assert [len(question.images) for question in person.asked] == [5]


@pytest.mark.slow
def test_nothing_of_the_run_is_held_afterwards():
    import gc
    import weakref

    judge = HumanVerifier(TARGET, Person(), (1.0,))
    process = keyed(groups=1)
    gone = weakref.ref(process)
    run_search(SMC(3, alpha=ALPHA), process, judge, ["p"])
    del process
    gc.collect()
    assert gone() is None


def test_it_gives_no_gradient_and_works_in_rounds():
    with pytest.raises(SearchError, match="not differentiable"):
        judged(DAS(3, alpha=ALPHA), Person())
    person = Person()
    judged(RandomSearch(6), person, (1.0,))
    assert person.asked


@pytest.mark.parametrize(
    ("values", "answer", "wanted"),
    [
        ([1.0, 3.0, 2.0], Answer(), [1.0, 3.0, 2.0]),
        ([1.0, 3.0, 2.0], Answer((0,)), [3.0, 2.0, 1.0]),
        ([1.0, 3.0, 2.0], Answer((0, 2)), [3.0, 1.0, 2.0]),
        ([1.0, 3.0, 2.0], Answer((), frozenset({1})), [2.0, -math.inf, 3.0]),
        ([5.0, 5.0, 5.0], Answer((2,)), [4.5, 4.0, 5.0]),
        ([math.nan, 3.0, 1.0], Answer((0,)), [3.0, 1.0, 1.0 - 2 / 3]),
        ([math.nan, math.nan], Answer((1,)), [0.0, 1.0]),
        ([2.0, 2.0, 1.0], Answer((2,)), [2.0 - 1e-6, 1.0, 2.0]),
    ],
)
def test_a_ranking_is_written_in_the_other_verifiers_scores(values, answer, wanted):
    found = reordered(torch.tensor(values, dtype=torch.float64), [0] * len(values), answer).tolist()
    assert found == pytest.approx(wanted)


def test_only_images_that_were_spoken_of_change():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert reordered(values, [0, 0, 1, 1], Answer((0,))).tolist() == [2.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer((0, 0)), "twice"),
        (Answer((0,), frozenset({0})), "twice"),
        (Answer((9,)), "numbered 0 to 3"),
        (Answer((-1,)), "numbered"),
        (Answer((True,)), "numbered"),
        (Answer(("1",)), "numbered"),
        (Answer((), frozenset({2, 3})), "nothing is left of image 2"),
    ],
)
def test_answers_that_make_no_sense_are_named(answer, message):
    assert message in answer.problem([0, 0, 1, 1])
    assert Answer((0, 2), frozenset({1})).problem([0, 0, 1, 1]) is None


def test_marks():
    assert parse_marks("50%, 80 %; end") == (0.5, 0.8, 1.0)
    assert parse_marks("25 25%") == (0.25,)
    for text, message in (("", "empty"), ("half", "'half'"), ("0%", "'0%'"), ("120%", "'120%'"), ("nan", "'nan'")):
        with pytest.raises(VerifierError, match=message):
            parse_marks(text)
    with pytest.raises(VerifierError, match="ask_at"):
        HumanVerifier(TARGET, Person(), ())
