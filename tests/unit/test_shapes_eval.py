"""ShapesEval reads drawings as they were drawn, under blur and noise too, and refuses what is no image."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import testtime.shapes_world.evaluator as evaluator
from testtime.shapes_world.captions import sample_prompt
from testtime.shapes_world.drawing import draw
from testtime.shapes_world.evaluator import UNKNOWN, check, detect, evaluate, exactly
from testtime.shapes_world.reading import read_caption
from testtime.shapes_world.sampling import sample_scene
from testtime.shapes_world.scene import COLOURS, SHAPES, TASKS, Object

METRICS = Path(evaluator.__file__).with_name("metrics.json")


def drawing(seed: int, task: str):
    prompt = sample_prompt(seed, task)
    scene = sample_scene(seed, prompt)
    return draw(scene), scene, prompt


def test_agrees_with_the_drawings():
    figures = check(180)
    assert figures["agreement"] >= 0.99
    assert figures["object_lists_exact"] >= 0.98
    assert figures["false_prompts"] > 150


def test_the_committed_figures_meet_the_target():
    figures = json.loads(METRICS.read_text())["drawn"]
    assert figures["drawings"] >= 2000 and figures["agreement"] >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    "transform",
    [
        lambda image: np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.0))),
        lambda image: np.clip(image + np.random.default_rng(0).normal(0, 6, image.shape), 0, 255).astype(np.uint8),
        lambda image: image.astype(np.float32) / 255,
        lambda image: np.asarray(Image.fromarray(image).resize((192, 192), Image.Resampling.BICUBIC)),
    ],
    ids=["blur", "noise", "float", "larger"],
)
def test_reads_imperfect_pictures(transform):
    assert check(60, transform=transform)["agreement"] >= 0.96


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_colour(shape):
    from testtime.shapes_world.captions import Prompt, Requirement

    for number, colour in enumerate(COLOURS):
        prompt = Prompt("", "colors", (Requirement(shape, colour),))
        scene = sample_scene(number, prompt)
        seen = detect(draw(scene))
        assert [(d.shape, d.colour) for d in seen] == [(shape, colour)]
        assert abs(seen[0].x - scene.objects[0].x) < 3 and abs(seen[0].y - scene.objects[0].y) < 3
        assert seen[0].radius == pytest.approx(scene.objects[0].radius, rel=0.2)


def test_positions_are_those_of_the_image_given():
    image, _scene, _ = drawing(11, "colors")
    small, large = detect(image)[0], detect(np.kron(image, np.ones((2, 2, 1), np.uint8)))[0]
    assert large.x == pytest.approx(2 * small.x, abs=3) and large.radius == pytest.approx(2 * small.radius, rel=0.1)


def test_nothing_is_found_where_nothing_is():
    assert detect(np.full((128, 128, 3), 200, np.uint8)) == []
    assert detect(np.random.default_rng(0).integers(195, 205, (128, 128, 3)).astype(np.uint8)) == []


def test_a_formless_piece_satisfies_no_prompt():
    image = np.full((128, 128, 3), 230, np.uint8)
    image[40:46, 10:110] = image[40:100, 100:110] = COLOURS["red"]  # an angle iron
    seen = detect(image)
    assert [d.shape for d in seen] == [UNKNOWN]
    for task in ("single_object", "colors"):
        assert not evaluate(image, sample_prompt(0, task)).correct


def test_verdicts_say_why():
    image, _, prompt = drawing(5, "two_object")
    assert evaluate(image, prompt).correct
    verdict = evaluate(np.full((128, 128, 3), 230, np.uint8), prompt)
    assert not verdict.correct and "found 0" in verdict.reason
    assert json.loads(json.dumps(verdict.to_dict()))["detections"] == []


@pytest.mark.parametrize("task", TASKS)
def test_another_scene_is_no_answer(task):
    wrong = sum(evaluate(drawing(seed, task)[0], sample_prompt(seed + 500, task)).correct for seed in range(20))
    assert wrong <= 6


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((128, 128)), r"shape \[H, W, 3\], got \[128, 128\]"),
        (np.zeros((16, 128, 3), np.uint8), "at least 32 pixels, got 16x128"),
        (np.full((64, 64, 3), np.nan), "NaN"),
        (np.zeros((64, 64, 3), np.int32), "uint8, or floating point"),
    ],
)
def test_bad_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        detect(image)


def test_exactly_is_what_a_person_counts():
    """Two stars satisfy "a red star" by GenEval's rules, and are not exactly that; one is."""
    prompt = read_caption("a red star")
    scene = sample_scene(1, sample_prompt(1, "single_object"))
    for count, exact in ((1, True), (2, False)):
        objects = tuple(Object("star", "red", 30.0 + 60 * k, 64.0, 20.0, 0.0) for k in range(count))
        picture = draw(replace(scene, objects=objects))
        assert evaluate(picture, prompt).correct and exactly(picture, prompt) is exact
    assert not exactly(picture, read_caption("a blue star"))
    assert exactly(picture, read_caption("two red stars"))
