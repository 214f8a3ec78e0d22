"""The embedded verifier networks: shapes, gradients, invariances, and how well the shipped weights judge drawings."""

import json

import numpy as np
import pytest
import torch

from testtime.models.tiny.clip import ShapesCLIP, load_clip
from testtime.models.tiny.loading import WEIGHTS, WeightsError
from testtime.models.tiny.preference import PreferenceModel, load_preference
from testtime.models.tiny.train.clip import distractors, truth
from testtime.models.tiny.train.degrade import blur, degrade
from testtime.models.tiny.train.verifier_data import corrupt, meaning, mutate, opposite, sample_pair, score
from testtime.models.tiny.vocabulary import encode_batch
from testtime.shapes_world.captions import Prompt, Requirement
from testtime.shapes_world.drawing import draw
from testtime.shapes_world.rules import decide
from testtime.shapes_world.sampling import sample_scene
from testtime.shapes_world.scene import RELATIONS

HELD_OUT = 3_100_000_000  # pairs of the trainings count from elsewhere
LOADERS = {"clip": load_clip, "preference": load_preference}


def fresh(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return (ShapesCLIP if kind == "clip" else PreferenceModel)().eval()


def relation(first: str, second: str, name: str) -> Prompt:
    return Prompt(f"a {first} {name} a {second}", "position", (Requirement(first), Requirement(second)), name)


@pytest.mark.parametrize("kind", LOADERS)
def test_shapes_sizes_and_gradients(kind):
    model = fresh(kind)
    images = torch.rand(3, 3, 128, 128, requires_grad=True)
    tokens = encode_batch(["a red star", "", "two rings"])
    scores = model(images, tokens)
    assert scores.shape == (3,) and scores.dtype == torch.float32
    scores.sum().backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0
    assert model(torch.rand(3, 3, 200, 90), tokens).shape == (3,)


@pytest.mark.parametrize("kind", LOADERS)
def test_an_image_is_judged_alone(kind):
    """No statistics over the batch: a particle's score does not depend on its neighbours."""
    model = fresh(kind)
    images, tokens = torch.rand(5, 3, 128, 128), encode_batch(["a star", "a ring", "two hearts", "a red cross", ""])
    with torch.no_grad():
        together = model(images, tokens)
        alone = torch.cat([model(images[i : i + 1], tokens[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    ("images", "tokens", "message"),
    [
        (torch.rand(1, 128, 128, 3), encode_batch(["a star"]), r"must have shape \[B, 3, H, W\]"),
        (torch.zeros(1, 3, 128, 128, dtype=torch.uint8), encode_batch(["a star"]), "floating point"),
        (torch.rand(1, 3, 128, 128), torch.zeros(1, 7, dtype=torch.long), r"integers \[B, 16\]"),
        (torch.rand(1, 3, 128, 128), torch.zeros(1, 16), r"integers \[B, 16\]"),
    ],
)
def test_bad_input_is_named(kind, images, tokens, message):
    with pytest.raises(ValueError, match=message):
        fresh(kind)(images, tokens)


@pytest.mark.parametrize(("kind", "load"), LOADERS.items())
def test_missing_and_foreign_weights(kind, load, tmp_path):
    with pytest.raises(WeightsError, match=f"{kind}.safetensors is missing in .*reinstall"):
        load(folder=tmp_path)
    (tmp_path / f"{kind}.safetensors").write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00{nope")
    with pytest.raises(WeightsError, match="damaged"):
        load(folder=tmp_path)


def test_pairs_differ_in_what_the_prompt_asks():
    for seed in range(60):
        pair, images = sample_pair(HELD_OUT + seed)
        right, wrong = pair.things
        assert images.shape == (2, 128, 128, 3) and images.dtype == np.uint8
        assert decide(pair.prompts[0], right)[0]
        assert score(pair.prompts[0], right) > score(pair.prompts[0], wrong)
        assert -1.0 <= score(pair.prompts[1], right) <= 1.0


def test_mutations_and_opposites_change_the_meaning():
    rng = np.random.default_rng(0)
    prompt = relation("star", "ring", "left of")
    turned = opposite(prompt, rng)
    assert turned.relation == "right of" and turned.objects == prompt.objects
    both = Prompt("", "color_attr", (Requirement("star", "red"), Requirement("ring", "blue")))
    assert [n.colour for n in opposite(both, rng).objects] == ["blue", "red"]
    assert opposite(Prompt("", "counting", (Requirement("star", None, 2),)), rng) is None
    for base in (prompt, both):
        assert all(meaning(mutate(base, rng)) != meaning(base) for _ in range(50))


def test_distractors_are_distinct_near_misses_and_false():
    rng = np.random.default_rng(1)
    prompt = relation("star", "ring", "above")
    things = sample_scene(4, prompt).objects
    others = distractors(prompt, things, rng)
    assert len(others) == 63 == len({meaning(p) for p in others})
    assert not any(decide(p, things)[0] for p in others)
    assert {p.relation for p in others if p.objects == prompt.objects} <= set(RELATIONS) - {"above"}


def test_truth_of_a_batch_is_the_rules():
    rng = np.random.default_rng(2)
    pairs = [sample_pair(HELD_OUT + 100 + i)[0] for i in range(12)]
    prompts = [mutate(p, rng) for pair in pairs for p in pair.prompts] + [p for pair in pairs for p in pair.prompts]
    pictures = [side for pair in pairs for side in pair.things]
    true, undecided = truth(prompts, pictures)
    for row, things in enumerate(pictures):
        formed = all(t.other_shape is None and t.other_colour is None for t in things)
        for column, prompt in enumerate(prompts):
            if formed and prompt.objects[:1] != prompt.objects[1:]:
                assert true[row, column] == decide(prompt, things)[0] and not undecided[row, column]
            assert not (true[row, column] and undecided[row, column])


def test_degradations_stay_in_range_and_follow_their_generator():
    images = torch.rand(20, 3, 128, 128)
    first, second = (degrade(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second) and first.min() >= 0 and first.max() <= 1
    assert blur(images, 16).shape == images.shape and blur(images, 16).std() < 0.5 * images.std()


def test_corruptions_break_often():
    rng = np.random.default_rng(5)
    pair, _ = sample_pair(HELD_OUT)
    broken = [corrupt(pair.things[0], pair.prompts[0], rng) for _ in range(100)]
    graded = [score(pair.prompts[0], things) for things in broken if things is not None]
    assert np.mean(np.array(graded) < score(pair.prompts[0], pair.things[0])) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "load", "least"), [("clip", load_clip, 0.8), ("preference", load_preference, 0.75)])
def test_shipped_weights_prefer_right_pictures(kind, load, least):
    model = load()
    pairs = [sample_pair(HELD_OUT + 1000 + i) for i in range(150)]
    images = torch.from_numpy(np.stack([drawn for _, drawn in pairs])).movedim(-1, 2).float() / 255
    tokens = encode_batch([pair.prompts[0].text for pair, _ in pairs])
    with torch.no_grad():
        right, wrong = model(images[:, 0], tokens), model(images[:, 1], tokens)
    assert float((right > wrong).float().mean()) > least


def test_shipped_clip_names_what_it_sees():
    model = load_clip()
    texts = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("star", "ring", "square")]
    needs = [Requirement(text.split()[2], text.split()[1]) for text in texts]
    drawn = [draw(sample_scene(i, Prompt("", "colors", (need,)))) for i, need in enumerate(needs)]
    images = torch.from_numpy(np.stack(drawn)).movedim(-1, 1).float() / 255
    with torch.no_grad():
        cosines = model.encode_image(images) @ model.encode_text(encode_batch(texts)).T
    assert cosines.argmax(1).tolist() == list(range(len(texts)))


def test_metrics_of_the_shipped_weights_are_recorded():
    clip = json.loads((WEIGHTS / "metrics_clip.json").read_text())
    preference = json.loads((WEIGHTS / "metrics_preference.json").read_text())
    assert clip["captions_per_picture"] == 64 and clip["steps"] > 0
    assert 0.5 < preference["pair_accuracy_drawn"] <= 1.0


def test_binding_labels_say_what_belongs_together():
    from testtime.models.tiny.train.clip import BindingHead, binding_of_picture, binding_of_prompt
    from testtime.models.tiny.train.verifier_data import Thing
    from testtime.shapes_world.scene import COLOURS, SHAPES

    def asked(labels):
        pairs = labels[: BindingHead.PAIRS].reshape(len(SHAPES), len(COLOURS))
        return pairs, labels[BindingHead.PAIRS :].reshape(len(SHAPES), len(RELATIONS))

    star, ring = Thing("star", "red", 30, 64, 14, 0), Thing("ring", "blue", 100, 64, 14, 0)
    pairs, sides = asked(binding_of_picture((star, ring)))
    assert {(SHAPES[s], list(COLOURS)[c]) for s, c in np.argwhere(pairs == 1)} == {("star", "red"), ("ring", "blue")}
    assert {(SHAPES[s], RELATIONS[r]) for s, r in np.argwhere(sides == 1)} == {
        ("star", "left of"),
        ("ring", "right of"),
    }
    assert asked(binding_of_prompt(relation("ring", "star", "right of")))[1].tolist() == sides.tolist()
    assert (asked(binding_of_prompt(relation("ring", "star", "right of")))[0] == -1).all()  # no colours asked
    assert (asked(binding_of_picture((star,)))[1] == -1).all()  # nothing beside it
    diagonal = Thing("ring", "blue", 100, 120, 14, 0)
    assert (asked(binding_of_picture((star, diagonal)))[1] == -1).all()  # left and above
    malformed = Thing("star", "red", 30, 64, 14, 0, other_colour="blue", tint="half")
    assert asked(binding_of_picture((malformed, ring)))[0][SHAPES.index("star")].min() == -1
