"""The drawn world: scenes, drawings, captions, GenEval's rules, the suite and its uncertainty."""

import json
import math

import numpy as np
import pytest

from testtime.models.tiny import vocabulary
from testtime.shapes_world.captions import Prompt, Requirement, caption, compatible_prompts, sample_prompt
from testtime.shapes_world.drawing import draw, object_mask, outlines
from testtime.shapes_world.rules import decide, relations
from testtime.shapes_world.sampling import sample_scene
from testtime.shapes_world.scene import COLOURS, RELATIONS, SHAPES, TASKS, Object, Scene
from testtime.shapes_world.suite import by_task, score_table, suite

SEEDS = range(120)


def thing(shape="circle", colour="red", x=64.0, y=64.0, radius=15.0, angle=0.0) -> Object:
    return Object(shape, colour, x, y, radius, angle)


def asking(task: str, *needs: Requirement, relation: str | None = None) -> Prompt:
    return Prompt("", task, needs, relation)


@pytest.mark.parametrize("task", TASKS)
def test_a_scene_satisfies_its_prompt_and_the_design(task):
    for seed in SEEDS:
        prompt = sample_prompt(seed, task)
        scene = sample_scene(seed, prompt)
        assert decide(prompt, scene.objects) == (True, "all requirements hold")
        assert len(scene.objects) == sum(need.count or 1 for need in prompt.objects) <= 4
        for item in scene.objects:
            assert item.shape in SHAPES and item.colour in COLOURS
            assert 12 <= item.radius <= 28 and abs(item.angle) <= 15
            assert item.radius <= min(item.x, item.y, 128 - item.x, 128 - item.y)
        for i, a in enumerate(scene.objects):
            assert all(math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius for b in scene.objects[:i])
        colours = {item.colour for item in scene.objects}
        assert not (scene.background.kind == "light" and "white" in colours)
        assert not (scene.background.kind == "dark" and "black" in colours)


def test_everything_follows_from_the_seed():
    prompt = sample_prompt(7, "counting")
    assert prompt == sample_prompt(7, "counting") != sample_prompt(8, "counting")
    scene = sample_scene(7, prompt)
    assert scene == sample_scene(7, prompt) != sample_scene(8, prompt)
    assert np.array_equal(draw(scene), draw(scene))
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    assert Prompt.from_dict(json.loads(json.dumps(prompt.to_dict()))) == prompt


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_fit_the_unit_circle_and_masks_their_area(shape):
    assert all(np.hypot(*points.T).max() <= 1.3 for points, fill in outlines(shape) if fill)
    _, _, alpha = object_mask(thing(shape, radius=24.0))
    assert alpha.min() >= 0.0 and alpha.max() == 1.0
    share = alpha.sum() / (math.pi * 24.0**2)
    expected = {"circle": 1.0, "square": 2 / math.pi, "triangle": 3 * math.sqrt(3) / 4 / math.pi, "ring": 1 - 0.55**2}
    if shape in expected:
        assert share == pytest.approx(expected[shape], abs=0.04)
    assert 0.2 < share <= 1.02


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_has_its_colour_on_a_plain_ground(colour):
    prompt = asking("colors", Requirement("circle", colour))
    scene = sample_scene(3, prompt)
    image = draw(scene)
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    item = scene.objects[0]
    assert np.abs(image[round(item.y), round(item.x)].astype(int) - COLOURS[colour]).max() <= 1
    ys, xs = np.mgrid[:128, :128]
    ground = image[np.hypot(xs - item.x, ys - item.y) > item.radius + 3]
    assert ground.std(0).max() < 12  # mild texture


def test_colours_can_be_told_apart():
    values = np.array(list(COLOURS.values()), float)
    gaps = np.linalg.norm(values[:, None] - values[None], axis=-1) + 1e9 * np.eye(len(values))
    assert gaps.min() > 70


def test_an_anticlockwise_turn_is_anticlockwise_on_the_screen():
    """A crescent opens to the right; turned by 15 degrees its opening moves up, that is to smaller rows."""
    _, _, straight = object_mask(thing("crescent", radius=28.0))
    _, _, turned = object_mask(thing("crescent", radius=28.0, angle=15.0))
    rows = np.arange(len(straight))[:, None]
    right = slice(len(straight) // 2 + 6, None)
    hollow = [((1 - m[:, right]) * (np.hypot(rows - len(m) / 2, np.arange(m.shape[1])[None, right] - len(m) / 2) < 24))
              for m in (straight, turned)]  # fmt: skip
    middle = [(rows * h).sum() / h.sum() for h in hollow]
    assert middle[1] < middle[0] - 0.5


@pytest.mark.parametrize("task", TASKS)
def test_captions_are_words_the_models_know_in_several_phrasings(task):
    texts = {sample_prompt(seed, task).text for seed in range(400)}
    assert all(vocabulary.known(text) for text in texts)
    assert max(len(vocabulary.words(text)) for text in texts) <= vocabulary.CONTEXT_LENGTH
    prompt = sample_prompt(5, task)
    assert len({caption(prompt, np.random.default_rng(seed)) for seed in range(60)}) >= 3


def test_compatible_prompts_are_true():
    for seed in SEEDS:
        scene = sample_scene(seed)
        for prompt in compatible_prompts(scene, np.random.default_rng(seed)):
            assert decide(prompt, scene.objects)[0], prompt


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_of_centres(relation):
    dx, dy = {"left of": (-40, 5), "right of": (40, -5), "above": (5, -40), "below": (-5, 40)}[relation]
    assert relations(thing(x=64 + dx, y=64 + dy), thing()) == (relation,)
    # y points down: a smaller y is above
    assert relations(thing(x=30, y=30), thing(x=90, y=90)) == ("left of", "above")
    assert relations(thing(), thing(x=66)) == ()  # closer than a tenth of their sizes
    assert relations(thing(), thing()) == ()


@pytest.mark.parametrize(
    ("prompt", "items", "correct"),
    [
        (asking("counting", Requirement("star", None, 2)), [thing("star")] * 2, True),
        (asking("counting", Requirement("star", None, 2)), [thing("star")] * 3, False),
        (asking("single_object", Requirement("star")), [thing("star"), thing("ring")], True),
        (asking("two_object", Requirement("star"), Requirement("ring")), [thing("star")], False),
        (asking("two_object", Requirement("star"), Requirement("star")), [thing("star")], False),
        (asking("colors", Requirement("star", "red")), [thing("star", "blue"), thing("ring", "red")], False),
        (
            asking("color_attr", Requirement("star", "red"), Requirement("ring", "blue")),
            [thing("star", "blue"), thing("ring", "red")],
            False,
        ),
        (
            asking("position", Requirement("star"), Requirement("ring"), relation="left of"),
            [thing("star", x=100), thing("ring", x=20)],
            False,
        ),
        (
            asking("position", Requirement("star"), Requirement("ring"), relation="left of"),
            [thing("star", x=100), thing("ring", x=60), thing("star", x=20)],
            True,
        ),
    ],
)
def test_rules(prompt, items, correct):
    assert decide(prompt, items)[0] is correct


def test_reasons_name_what_fails():
    reason = decide(asking("colors", Requirement("star", "red")), [thing("star", "blue")])[1]
    assert reason == "expected star in red, found blue"
    reason = decide(asking("counting", Requirement("star", None, 3)), [thing("star")])[1]
    assert reason == "expected exactly 3 of star, found 1"


def test_scenes_that_cannot_be_are_refused_by_name():
    with pytest.raises(ValueError, match="unknown shape 'hexagon'; known: circle, square"):
        sample_scene(0, asking("single_object", Requirement("hexagon")))
    with pytest.raises(ValueError, match="unknown colour 'mauve'"):
        sample_scene(0, asking("colors", Requirement("star", "mauve")))
    with pytest.raises(ValueError, match="1 to 4 objects, the prompt asks for 5"):
        sample_scene(0, asking("counting", Requirement("star", None, 5)))
    with pytest.raises(ValueError, match="relation 'inside'"):
        sample_scene(0, asking("position", Requirement("star"), Requirement("ring"), relation="inside"))


def test_suite_is_fixed_and_balanced():
    prompts = suite(40, 20240)
    assert prompts == suite(40, 20240)
    assert [p.task for p in prompts] == [task for task in TASKS for _ in range(40)]
    assert len({p.text for p in prompts}) == 240
    assert {p.text for p in suite(40, 1)} != {p.text for p in prompts}
    with pytest.raises(ValueError, match="prompts_per_task is 0"):
        suite(0)
    with pytest.raises(ValueError, match="seed is -1"):
        suite(1, -1)


def test_table_is_the_mean_of_the_tasks():
    prompts = suite(40, 0)
    rng = np.random.default_rng(0)
    verdicts = [bool(rng.random() < 0.5) for _ in prompts]
    table = score_table(prompts, verdicts)
    assert table["overall"] == pytest.approx(np.mean([table[task] for task in TASKS]))
    assert by_task(prompts, list(range(240)))["two_object"] == list(range(40, 80))
    with pytest.raises(ValueError, match="3 verdicts for 240 prompts"):
        score_table(prompts, [True] * 3)
