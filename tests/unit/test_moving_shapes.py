"""Moving Shapes: captions are read as they are written, clips show them, and the evaluator sees what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from testtime.shapes_world.moving import (
    DIRECTIONS,
    FRAMES,
    KINDS,
    SIDE,
    Mover,
    MovingPrompt,
    draw_moving,
    evaluate_moving,
    read_moving,
    reversed_prompt,
    sample_moving,
)

SEEDS = range(40)
CLIPS = {seed: (sample_moving(seed), draw_moving(sample_moving(seed), seed)) for seed in SEEDS}


def share(verdicts) -> float:
    found = [verdict.correct for verdict in verdicts]
    return sum(found) / len(found)


@pytest.mark.slow
def test_drawn_clips_show_what_their_captions_say():
    wrong = {seed: evaluate_moving(clip, prompt) for seed, (prompt, clip) in CLIPS.items()}
    wrong = {seed: (CLIPS[seed][0].text, verdict.reason) for seed, verdict in wrong.items() if not verdict.correct}
    assert not wrong


def test_clips_are_of_the_size_told_and_the_same_for_the_same_seed():
    prompt, clip = CLIPS[3]
    assert clip.shape == (FRAMES, SIDE, SIDE, 3) and clip.dtype == np.uint8
    assert np.array_equal(clip, draw_moving(prompt, 3)) and not np.array_equal(clip, draw_moving(prompt, 4))


@pytest.mark.slow
def test_backwards_frozen_and_exchanged_clips_are_wrong():
    assert share(evaluate_moving(clip[::-1], prompt) for prompt, clip in CLIPS.values()) == 0.0
    frozen = [np.repeat(clip[:1], FRAMES, axis=0) for _, clip in CLIPS.values()]
    assert share(map(evaluate_moving, frozen, (prompt for prompt, _ in CLIPS.values()))) == 0.0
    switched = []
    for seed, (prompt, clip) in CLIPS.items():
        other = prompt.movers[0]._replace(colour="red" if prompt.movers[0].colour != "red" else "blue")
        taken = {mover.colour for mover in prompt.movers[1:]}
        if other.colour in taken:
            continue
        changed = draw_moving(MovingPrompt((other, *prompt.movers[1:])), seed)
        switched.append(evaluate_moving(np.concatenate([clip[:4], changed[4:]]), prompt).correct)
    assert len(switched) > 25 and not any(switched)


def test_a_clip_played_backwards_is_one_of_the_opposite_caption():
    assert share(evaluate_moving(clip[::-1], reversed_prompt(prompt)) for prompt, clip in CLIPS.values()) == 1.0


def test_shuffled_frames_go_back_on_their_way():
    order = [3, 0, 6, 1, 7, 2, 5, 4]
    assert share(evaluate_moving(clip[order], prompt) for prompt, clip in CLIPS.values()) == 0.0


def test_captions_are_read_as_they_are_written():
    kinds = {sample_moving(seed).kind for seed in SEEDS}
    assert kinds == set(KINDS)
    for prompt, _ in CLIPS.values():
        assert read_moving(prompt.text) == prompt
    said = MovingPrompt((Mover("circle", "orange", "left"), Mover("square", "blue", "stays")))
    assert said.text == "an orange circle moves left and a blue square stays" and said.kind == "one_stays"
    for text in ("a red circle", "a red circle moves away", "a mauve circle moves left", "a red circle stays", ""):
        assert read_moving(text) is None


@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_a_kind(kind):
    prompts = [sample_moving(seed, kind) for seed in range(30)]
    assert {prompt.kind for prompt in prompts} == {kind}
    assert {mover.does for prompt in prompts for mover in prompt.movers} >= set(DIRECTIONS)
    assert all(len({mover.colour for mover in prompt.movers}) == len(prompt.movers) for prompt in prompts)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="kind is 'three_move'"):
        sample_moving(0, "three_move")
    with pytest.raises(ValueError, match="at least 2 frames"):
        evaluate_moving(np.zeros((1, 96, 96, 3)), CLIPS[0][0])
