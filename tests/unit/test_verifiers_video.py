"""Judges of clips: verifiers of pictures on chosen frames, measures of motion, a VLM that is shown a film strip."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.frames import Shown
from testtime.samplers.looks import judge, wishes
from testtime.samplers.protocols import ScoreContext, Verifier
from testtime.samplers.verifier import CLIP
from testtime.verifiers.base import VerifierError
from testtime.verifiers.ensemble import EnsembleVerifier, Voice
from testtime.verifiers.human import Answer, HumanVerifier
from testtime.verifiers.pictures import film_strips
from testtime.verifiers.registry import create
from testtime.verifiers.video.frames import FramesVerifier
from testtime.verifiers.video.motion import FLOOR, MotionVerifier, measure
from testtime.verifiers.vlm.judge import VLMJudgeVerifier


class Brightness(Verifier):
    name = "brightness"

    def score(self, images, prompts, context=None):
        assert images.dim() == 4
        return images.mean((1, 2, 3))


def square(frames: int = 8, step: int = 4, side: int = 96) -> torch.Tensor:
    """A clip ``[F, side, side, 3]`` of a red square that moves ``step`` pixels a frame over grey."""
    clip = torch.full((frames, side, side, 3), 0.6)
    for k in range(frames):
        left = 20 + k * step
        clip[k, 40:60, left : left + 20] = torch.tensor([0.9, 0.1, 0.1])
    return clip


def flickering() -> torch.Tensor:
    swing = torch.tensor([1.04, 0.96] * 4).view(8, 1, 1, 1)
    return (square(step=0) * swing).clamp(0, 1)


CLIPS = {
    "moving": square(),
    "frozen": square(step=0),
    "flicker": flickering(),
    "fade": square(step=0) * torch.linspace(1.0, 0.85, 8).view(8, 1, 1, 1),
    "shuffled": square()[torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])],
}
MEASURED = {name: measure(clip[None]) for name, clip in CLIPS.items()}


def test_frozen_clips_measure_zero():
    found = MEASURED["frozen"]
    assert [float(part) for part in found] == [0.0, 0.0, 0.0, 1.0]


def test_amount_of_motion_is_the_area_that_changes():
    """The square's edges sweep 4 columns of 20 pixels on either side, each by the mean contrast of the colours."""
    contrast = (0.3 + 0.5 + 0.5) / 3
    assert float(MEASURED["moving"].amount) == pytest.approx(2 * 4 * 20 * contrast / 96**2, rel=1e-5)


def test_flicker_tells_itself_from_fades_and_motion():
    flicker = {name: float(found.flicker) for name, found in MEASURED.items()}
    assert flicker["flicker"] > 50 * max(flicker[name] for name in ("moving", "fade", "shuffled"))
    assert float(MEASURED["shuffled"].jitter) > 2 * float(MEASURED["moving"].jitter)


def test_the_score_is_highest_for_the_amount_that_was_asked_for():
    clips = torch.stack([CLIPS[name] for name in ("moving", "frozen", "flicker")])
    calm = MotionVerifier("calm", frames=8).judge(clips)
    assert calm.score.dtype == torch.float64 and calm.score.argmax() == 0
    assert float(calm.score[1]) == pytest.approx(-math.log((0.01 + FLOOR) / FLOOR))
    still = MotionVerifier("still", frames=8).score(clips)
    assert still[1] > still[2]
    assert set(calm.members) == {"amount", "flicker", "jitter", "likeness"}


def test_a_freezing_reward_is_not_on_offer():
    """Whatever the settings, a frozen clip never beats one that moves as much as was asked for."""
    for amount, step in (("calm", 4), ("lively", 12)):
        clips = torch.stack([square(step=step, frames=5), square(step=0, frames=5)])
        for likeness in (0.0, 5.0):
            score = MotionVerifier(amount, likeness_weight=likeness).score(clips)
            assert score[0] > score[1]


def test_frames_that_lie_apart_measure_the_motion_of_one_frame():
    whole = square(frames=9, step=3)
    apart = ScoreContext(torch.tensor([0]), frames=Shown((0, 2, 4, 6, 8), 9))
    near = MotionVerifier(frames=9).judge(whole[None])
    far = MotionVerifier(frames=9).judge(whole[None, ::2], [], apart)
    assert float(far.members["amount"]) == pytest.approx(float(near.members["amount"]), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"amount": "fast"}, "'fast'"), ({"flicker_weight": -1.0}, "flicker_weight is -1.0"), ({"frames": 1}, "is 1")],
)
def test_wrong_settings_of_motion_are_named(options, message):
    with pytest.raises(VerifierError, match=message):
        MotionVerifier(**options)


def test_pictures_have_no_motion():
    with pytest.raises(VerifierError, match="'motion' judges videos: these are 2 images"):
        MotionVerifier().score(torch.rand(2, 8, 8, 3))
    broken = square()[None].clone()
    broken[0, 2, 0, 0] = math.nan
    assert MotionVerifier(frames=8).score(broken).isnan().all()


@pytest.mark.parametrize(
    ("how", "value"), [("mean", 0.5), ("minimum", 0.2), ("first", 0.2), ("median", 0.4), ("lower quartile", 0.3)]
)
def test_frames_verifier_aggregates(how, value):
    clip = torch.tensor([0.2, 0.9, 0.4, 0.9, 0.9]).view(1, 5, 1, 1, 1).expand(1, 5, 4, 4, 3)
    verifier = FramesVerifier(Brightness(), "uniform", 3, how)
    if how in ("mean", "minimum", "first", "median"):
        clip = torch.tensor([0.2, 9.0, 0.4, 9.0, 0.9]).view(1, 5, 1, 1, 1).expand(1, 5, 4, 4, 3)
    context = ScoreContext(torch.tensor([0]), frames=Shown((0, 1, 2, 3, 4), 5))
    found = judge(verifier, clip, ["a"], context)
    assert float(found.score) == pytest.approx(value)
    assert list(found.members) == ["frame 1", "frame 3", "frame 5"]


def test_frames_verifier_judges_pictures_as_ever():
    images = torch.rand(3, 4, 4, 3)
    assert torch.equal(judge(FramesVerifier(Brightness()), images, ["a"] * 3).score, images.mean((1, 2, 3)))
    with pytest.raises(VerifierError, match="aggregate is 'best'"):
        FramesVerifier(Brightness(), how="best")
    with pytest.raises(VerifierError, match="which is 'odd'"):
        FramesVerifier(Brightness(), "odd")


def test_an_ensemble_shows_every_member_what_it_wants():
    clips = torch.stack([square(), square(step=0)])
    motion, frames = MotionVerifier(frames=8), FramesVerifier(Brightness(), "first", 1)
    both = EnsembleVerifier([Voice(motion, 1.0), Voice(frames, 1.0)], "sum")
    assert both.sees == CLIP and both.least_frames == 2
    assert {(choice.which, choice.count) for choice in wishes(both)} == {("first", 8), ("first", 1)}
    found = judge(both, clips, ["a", "b"])
    expected = motion.score(clips) + clips[:, 0].mean((1, 2, 3)).double()
    assert found.score.tolist() == pytest.approx(expected.tolist())
    assert {"motion", "brightness on frames", "amount", "flicker"} <= set(found.members)


def test_members_are_made_by_name():
    made = create("frames", verifier="jpeg_compressibility", which="middle", how="minimum")
    assert isinstance(made, FramesVerifier) and made.inner.name == "jpeg_compressibility"
    assert isinstance(create("motion", amount="lively"), MotionVerifier)


def test_film_strips_hold_every_frame_in_order():
    clip = torch.stack([torch.full((40, 60, 3), value) for value in (0.1, 0.4, 0.7, 1.0)])[None]
    strip = film_strips(clip, (0, 5, 10, 15), gap=4)
    assert strip.shape == (1, 2 * 40 + 4, 2 * 60 + 4, 3)
    centres = [strip[0, 30, 40], strip[0, 30, 104], strip[0, 74, 40], strip[0, 74, 104]]
    assert [float(pixel.mean()) for pixel in centres] == pytest.approx([0.1, 0.4, 0.7, 1.0], abs=0.005)
    assert (strip[0, :14, :8] < 0.5).any(), "the number is written"


class Asked:
    name, module = "asked", None

    def __init__(self, answer):
        self.questions, self.shapes, self.answer = [], [], answer

    def ask(self, pixels, questions, rubric):
        self.questions += questions
        self.shapes.append(tuple(pixels.shape))
        return [rubric.read(self.answer) for _ in questions]


def test_a_vlm_is_shown_a_film_strip_and_fills_in_the_rubric_of_videos():
    grades = {"alignment": 8, "quality": 7, "motion": 6, "identity": 5, "physics": 4, "overall": 6}
    asker = Asked(
        str({name: {"explanation": "so", "score": value} for name, value in grades.items()}).replace("'", '"')
    )
    verifier = VLMJudgeVerifier(asker, "video")
    clips = torch.rand(2, 8, 20, 30, 3)
    found = judge(verifier, clips, ["a red square moves", "a blue one"])
    assert found.score.tolist() == [6.0, 6.0]
    assert found.members["vlm_judge(asked).motion"].tolist() == [6.0, 6.0]
    assert sum(shape[0] for shape in asker.shapes) == 2
    assert all("film strip: 6 frames of one video" in question for question in asker.questions)
    assert "a red square moves" in asker.questions[0] and "identity" in asker.questions[0]


def test_a_person_is_shown_the_clip_and_the_other_verifier_its_frames():
    seen = []

    def ask(question):
        seen.append(question.images.shape)
        return Answer((1,))

    class Run:
        pass

    run = Run()
    verifier = HumanVerifier(Brightness(), ask, (1.0,))
    clips = torch.tensor([0.9, 0.1]).view(2, 1, 1, 1, 1).expand(2, 3, 4, 4, 3)
    found = judge(verifier, clips, ["a", "a"], ScoreContext(torch.tensor([0, 0]), run=run))
    assert seen == [(2, 3, 4, 4, 3)] and found.score[1] > found.score[0]
