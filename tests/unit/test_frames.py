"""Frames of clips: which are looked at, what becomes of their scores, and candidates that are finished one by one."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from testtime.samplers.frames import FrameChoice, Shown, aggregate, scaled, still, union
from testtime.samplers.looks import judge
from testtime.samplers.methods import BestOfN, RandomSearch, ZeroOrderSearch
from testtime.samplers.protocols import ScoreContext
from testtime.samplers.run.search import run_search
from testtime.samplers.verifier import CLIP, Verifier

from .oracles import keyed
from .searches import TARGET

CHOICES = [
    (FrameChoice("uniform", 5), 81, (0, 20, 40, 60, 80)),
    (FrameChoice("uniform", 3), 9, (0, 4, 8)),
    (FrameChoice("uniform", 4), 3, (0, 1, 2)),
    (FrameChoice("uniform", 1), 9, (4,)),
    (FrameChoice("first", 2), 9, (0, 1)),
    (FrameChoice("last", 2), 9, (7, 8)),
    (FrameChoice("middle"), 9, (4,)),
    (FrameChoice("first and last"), 9, (0, 8)),
    (FrameChoice("first and last"), 1, (0,)),
    (FrameChoice("all"), 4, (0, 1, 2, 3)),
]


@pytest.mark.parametrize(("choice", "count", "frames"), CHOICES)
def test_frames_that_are_chosen(choice, count, frames):
    assert choice.of(count) == frames


def test_frames_that_the_user_gave_are_left_out_while_others_remain():
    assert FrameChoice("uniform", 3).of(9, first=1) == (1, 5, 8)
    assert FrameChoice("first").of(9, first=1) == (1, 2, 3, 4, 5)
    assert FrameChoice("first", 1).of(1, first=1) == (0,)


@pytest.mark.parametrize("count", range(1, 40))
def test_uniform_frames_are_distinct_and_hold_both_ends(count):
    for wanted in range(2, 12):
        frames = FrameChoice("uniform", wanted).of(count)
        assert len(frames) == min(wanted, count) and frames[0] == 0 and frames[-1] == count - 1
        gaps = [b - a for a, b in pairwise(frames)]
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("wrong", [{"which": "odd"}, {"count": 0}, {"longest": 0}])
def test_wrong_choices_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FrameChoice(**wrong)


def test_judges_of_a_run_are_shown_what_either_wants():
    wanted = union([FrameChoice("first", 1), FrameChoice("uniform", 3)], 9)
    assert wanted == (0, 4, 8)
    shown = Shown(wanted, 9)
    assert shown.places(FrameChoice("first", 1)) == [0]
    assert shown.places(FrameChoice("uniform", 3)) == [0, 1, 2]
    assert shown.places(FrameChoice("uniform", 9)) == [0, 1, 2]  # the nearest there are


def test_aggregates():
    scores = torch.tensor([[1.0, 2.0, 6.0], [1.0, math.nan, 1.0]])
    expected = {"mean": 3.0, "minimum": 1.0, "lower quartile": 1.5, "median": 2.0, "first": 1.0}
    for how, value in expected.items():
        found = aggregate(scores, how)
        assert found.dtype == torch.float64 and found[0] == value and found[1].isnan()
    with pytest.raises(ValueError, match="'best'"):
        aggregate(scores, "best")


def test_large_frames_are_averaged_down_and_small_ones_left_alone():
    frames = torch.rand(2, 8, 16, 3)
    assert scaled(frames, 16) is frames
    half = scaled(frames, 8)
    assert half.shape == (2, 4, 8, 3)
    assert torch.allclose(half[0, 0, 0], frames[0, :2, :2].mean((0, 1)))


class Brightness(Verifier):
    """How bright a picture is."""

    name = "brightness"

    def __init__(self, frames=None):
        self.frames, self.calls = frames, []

    def score(self, images, prompts, context=None):
        self.calls.append((tuple(images.shape), list(prompts), None if context is None else context.group.tolist()))
        return images.mean((1, 2, 3))


def test_a_verifier_of_pictures_scores_a_clip_by_the_mean_of_its_frames():
    clips = torch.arange(2 * 3).float().view(2, 3, 1, 1, 1).expand(2, 3, 4, 4, 3) / 10
    verifier = Brightness()
    context = ScoreContext(torch.tensor([0, 1]), frames=Shown((0, 4, 8), 9))
    values = judge(verifier, clips, ["a", "b"], context)
    assert values.score.tolist() == pytest.approx([0.1, 0.4])
    assert {name: part.tolist() for name, part in values.members.items()} == {
        "frame 1": pytest.approx([0.0, 0.3]),
        "frame 5": pytest.approx([0.1, 0.4]),
        "frame 9": pytest.approx([0.2, 0.5]),
    }
    assert verifier.calls == [((6, 4, 4, 3), ["a"] * 3 + ["b"] * 3, [0, 0, 0, 1, 1, 1])]


def test_only_the_wanted_frames_are_scored_and_pictures_stay_pictures():
    clips = torch.rand(2, 3, 4, 4, 3)
    verifier = Brightness(FrameChoice("middle"))
    assert judge(verifier, clips, ["a", "b"]).score.tolist() == pytest.approx(clips[:, 1].mean((1, 2, 3)).tolist())
    judge(verifier, clips[:, 0], ["a", "b"])
    assert [shape for shape, *_ in verifier.calls] == [(2, 4, 4, 3)] * 2
    assert torch.equal(still(clips), clips[:, 1]) and still(clips[:, 0]).shape == (2, 4, 4, 3)


def test_a_verifier_of_clips_gets_them_whole():
    verifier = Brightness()
    verifier.sees = CLIP
    verifier.score = lambda images, prompts, context=None: images.mean((1, 2, 3, 4))
    clips = torch.rand(2, 3, 4, 4, 3)
    assert judge(verifier, clips, ["a", "b"]).score.tolist() == pytest.approx(clips.mean((1, 2, 3, 4)).tolist())


# --- candidates that are finished one by one


def dear(**options):
    """A closed-form process whose candidates are finished one after the other."""
    process = keyed(steps=5, **options)
    process.whole_first = True
    return process


METHODS = [BestOfN(4), RandomSearch(4), RandomSearch(5, halvings=(0.25, 0.5)), ZeroOrderSearch(3, 2)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.population}")
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_after_the_other_finds_what_side_by_side_finds(method, eta):
    prompts = ["a", "b"]
    together = run_search(method, keyed(steps=5, eta=eta), TARGET, prompts)
    alone = run_search(method, dear(eta=eta), TARGET, prompts)
    assert torch.equal(together.latents, alone.latents) and torch.equal(together.scores, alone.scores)
    assert torch.equal(together.finalists, alone.finalists) and torch.equal(together.group, alone.group)
    assert (together.ledger.nfe, together.ledger.decodes) == (alone.ledger.nfe, alone.ledger.decodes)
    assert together.selection_bias == pytest.approx(alone.selection_bias)


def test_a_limit_leaves_whole_candidates():
    """17 calls pay for three candidates of 5 steps and the beginning of a fourth."""
    whole = run_search(BestOfN(4), dear(groups=1), TARGET, ["a"])
    cut = run_search(BestOfN(4), dear(groups=1), TARGET, ["a"], max_nfe=17)
    assert cut.status == "budget" and len(cut.scores) == 3
    table = {e["slot"]: e["score"] for e in whole.trace.records[-1].particles}
    assert sorted(cut.scores.tolist()) == pytest.approx(sorted(table[slot] for slot in range(3)))
    assert cut.scores[0] == cut.scores.max()


def test_an_error_in_a_candidate_leaves_those_before():
    process, kept = dear(groups=1), []
    calls = iter(range(100))
    denoise = process.denoise

    class Failing:
        nfe_per_call, can_encode = 1, False

        def __call__(self, *arguments):
            if next(calls) == 12:
                raise RuntimeError("out of luck")
            return denoise(*arguments)

        prompt_embedding = staticmethod(lambda group: None)

    process.denoise = Failing()
    with pytest.raises(RuntimeError, match="out of luck"):
        run_search(BestOfN(4), process, TARGET, ["a"], rescue=kept.append)
    assert kept[0].status == "failed" and len(kept[0].scores) == 2 and torch.isfinite(kept[0].scores).all()


def test_the_family_tree_of_candidates_made_one_after_the_other():
    from testtime.samplers.after.replay import Replay

    result = run_search(BestOfN(3), dear(groups=1), TARGET, ["a"])
    steps = [record.step for record in result.trace.records]
    assert steps == [0, 1, 2, 3, 4, 5] * 3 + [5]
    best = result.particles[0]
    path = result.trace.lineage(best)
    assert len(path.slots) == 6 and len(set(path.slots)) == 1
    again = run_search(Replay(path), keyed(steps=5, groups=1), None, ["a"])
    assert torch.allclose(again.latents, result.latents)
