"""Training and measuring of the judges: hard pairs, dense labels, rollouts, rank correlation."""

import numpy as np
import pytest
import torch

from testtime.models.tiny.loading import load_family
from testtime.models.tiny.pipeline import SamplingSettings, shapes_process
from testtime.models.tiny.train.hard_pairs import hard_pair, sample_hard_pair
from testtime.models.tiny.train.judges import rank_correlation, redrawn, scores
from testtime.models.tiny.train.reconstruct import rendered
from testtime.models.tiny.train.rollouts import Rollouts, graded, joined, roll_out
from testtime.models.tiny.train.verifier_data import Thing
from testtime.models.tiny.train.verifier_loop import GridHead
from testtime.models.tiny.train.verifier_pool import IGNORE, Feed, grid_labels
from testtime.models.tiny.var_pipeline import var_process
from testtime.shapes_world.captions import sample_prompt
from testtime.shapes_world.drawing import draw
from testtime.shapes_world.evaluator import evaluate
from testtime.shapes_world.rules import decide
from testtime.shapes_world.sampling import sample_scene
from testtime.shapes_world.scene import RELATIONS, TASKS


def kinds(things) -> tuple:
    return sorted(t.shape for t in things), sorted(t.colour for t in things)


@pytest.mark.parametrize("task", TASKS)
def test_a_hard_pair_is_right_and_wrong_by_the_exact_evaluator(task):
    agreed = 0
    for seed in range(12):
        prompt, (right, wrong), images = hard_pair(seed, task)
        assert prompt.task == task and decide(prompt, right)[0] and not decide(prompt, wrong)[0]
        agreed += evaluate(images[0], prompt).correct and not evaluate(images[1], prompt).correct
        if task in ("position", "color_attr"):
            assert kinds(right) == kinds(wrong)  # a bag of words cannot tell them apart
        if task == "counting":
            assert abs(len(right) - len(wrong)) == 1
    assert agreed >= 11


def test_the_second_prompt_of_a_hard_pair_is_false_of_the_right_picture():
    pairs = [sample_hard_pair(seed)[0] for seed in range(20)]
    assert all(decide(p.prompts[0], p.things[0])[0] and not decide(p.prompts[1], p.things[0])[0] for p in pairs)
    assert 4 <= sum(p.prompts[0].task == "position" for p in pairs) <= 16


def test_sides_are_those_of_two_objects():
    star, ring = Thing("star", "red", 30, 64, 20, 0), Thing("ring", "blue", 95, 70, 20, 0)
    sides = grid_labels((star, ring))[:, 3].view(8, 8)
    assert sides[4, 1] == RELATIONS.index("left of") and sides[4, 6] == RELATIONS.index("right of")
    assert sides[0, 4] == IGNORE  # ground
    assert (grid_labels((star,))[:, 3] == IGNORE).all()
    diagonal = Thing("ring", "blue", 90, 120, 20, 0)
    named = set(grid_labels((star, diagonal))[:, 3].tolist())
    assert named == {IGNORE} or len(named) == 3


def test_the_dense_loss_is_finite_without_any_side():
    labels = torch.stack([grid_labels((Thing("star", "red", 40, 40, 20, 0),))] * 2)
    assert torch.isfinite(GridHead(16).loss(torch.randn(2, 64, 16), labels))


def test_batches_mix_both_pools_and_are_a_function_of_the_step(tmp_path):
    feed = Feed(tmp_path, 8, 1, hard=0.5, hard_count=8)
    again = Feed(tmp_path, 8, 1, hard=0.5, hard_count=8)
    first, second = feed.batch(16, 5, 3), again.batch(16, 5, 3)
    assert first[0] == second[0] and torch.equal(first[1], second[1]) and torch.equal(first[2], second[2])
    assert first[1].shape == (32, 3, 128, 128) and first[2].shape == (32, 64, 4)
    seen = {pair.prompts[0].text for step in range(4) for pair in feed.batch(16, 5, step)[0]}
    assert seen & {p.prompts[0].text for p in feed.pools[0].pairs}
    assert seen & {p.prompts[0].text for p in feed.pools[1].pairs}
    assert Feed(tmp_path, 8, 1).batch(8, 5, 0)[1].shape == (16, 3, 128, 128)


def test_grades_follow_what_is_drawn():
    for seed in range(12):
        prompt = sample_prompt(seed, TASKS[seed % 6])
        assert graded(draw(sample_scene(seed, prompt)), prompt) == (1.0, True)
    _, _, images = hard_pair(3, "color_attr")
    prompt, _, _ = hard_pair(3, "color_attr")
    grade, correct = graded(images[1], prompt)
    assert not correct and grade < 1.0


def rollouts_with(grades) -> Rollouts:
    grades = np.asarray(grades, np.float32)
    prompts = tuple(sample_prompt(seed, "position") for seed in range(len(grades)))
    previews = np.zeros((1, grades.size, 4, 4, 3), np.uint8)
    return Rollouts(prompts, ("finished",), previews, grades.ravel(), grades.ravel() >= 1.0)


def test_rank_correlation_is_within_prompts():
    rollouts = rollouts_with([[-1.0, 0.5, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, -1.0, -0.5, 0.2]])
    perfect = rank_correlation(rollouts, rollouts.grades)
    assert perfect["spearman"] == 1.0 and perfect["told"] == 1.0 and perfect["prompts"] == 2
    assert rank_correlation(rollouts, -rollouts.grades)["spearman"] == -1.0
    # a judge that knows only the prompt tells nothing, whatever it says of the prompts
    knows_prompt = np.repeat([5.0, -5.0, 0.0], 4) + np.tile([0.01, -0.01, 0.02, -0.02], 3)
    shuffled = []
    for k in range(200):
        given = np.random.default_rng(k).permuted(knows_prompt.reshape(3, 4), axis=1).ravel()
        shuffled.append(rank_correlation(rollouts, given)["spearman"])
    assert abs(np.mean(shuffled)) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flow", "var"])
def test_rolling_out_looks_at_the_named_steps_and_at_the_end(model):
    prompts = [sample_prompt(seed, "colors") for seed in (1, 2)]
    texts = [prompt.text for prompt in prompts]
    process = (
        var_process(texts) if model == "var" else shapes_process(texts, SamplingSettings("flow", steps=3, eta=0.0))
    )
    found = roll_out(process, prompts, 2, {1: "early", 2: "late"})
    assert found.looks == ("early", "late", "finished") and found.particles == 2
    assert found.previews.shape == (3, 4, 128, 128, 3) and found.previews.dtype == np.uint8
    assert len(np.unique(found.previews[2].reshape(4, -1), axis=0)) == 4  # particles differ
    assert found.grades.shape == found.correct.shape == (4,) and np.abs(found.grades).max() <= 1.0
    both = joined([found, found])
    assert len(both.prompts) == 4 and both.particles == 2 and both.previews.shape[1] == 8


def test_scores_are_the_judges_own():
    images = np.random.default_rng(0).integers(0, 256, (70, 128, 128, 3), dtype=np.uint8)
    mean = scores(lambda pictures, tokens: pictures.mean((1, 2, 3)) + tokens[:, 0], images, ["a star"] * 70)
    expected = images.reshape(70, -1).mean(1) / 255 + scores(lambda p, t: t[:, 0].float(), images, ["a star"] * 70)
    np.testing.assert_allclose(mean, expected, atol=1e-4)


def test_pictures_of_the_generator_are_those_of_the_drawings():
    """What the judges also train on and are measured on: the generator's hands blur a drawing, and change no other."""
    family = load_family()
    drawn = [sample_hard_pair(seed) for seed in range(2)]
    pairs, images = [pair for pair, _ in drawn], np.stack([image for _, image in drawn])
    rendered_images = rendered(pairs, images, family, np.random.default_rng(3))
    once, again = (redrawn(images.reshape(-1, 128, 128, 3), sigma, family) for sigma in (0.05, 4.0))
    assert rendered_images.shape == images.shape and rendered_images.dtype == np.uint8

    def error(other):
        return float(np.abs(other.reshape(images.shape).astype(float) - images).mean())

    assert 0 < error(rendered_images) < 20
    assert 0 < error(once) < 0.5 * error(again)  # most of a picture is plain ground, which both keep
