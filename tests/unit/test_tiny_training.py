"""Training of the embedded generators: what it is told about captions and drawings, and that it resumes exactly."""

import numpy as np
import pytest
import torch

from testtime.models.tiny.denoiser import Denoiser
from testtime.models.tiny.loading import load_text_encoder
from testtime.models.tiny.text_encoder import TextEncoder
from testtime.models.tiny.train import common
from testtime.models.tiny.train.generator import CellNames
from testtime.models.tiny.train.quality import sheet
from testtime.models.tiny.train.shards import SHARDS, Batches, cells, shards_at
from testtime.models.tiny.train.words import NUMBERS, WordNames, said_of_nouns
from testtime.models.tiny.vocabulary import encode_batch
from testtime.shapes_world.captions import compatible_prompts, sample_prompt
from testtime.shapes_world.drawing import draw
from testtime.shapes_world.evaluator import detect
from testtime.shapes_world.sampling import sample_scene
from testtime.shapes_world.scene import COLOURS, RELATIONS, SHAPES, TASKS

REVERSED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@pytest.mark.parametrize("task", TASKS)
def test_what_is_said_of_each_noun_is_what_the_prompt_asks_for(task):
    for seed in range(60):
        plain = sample_prompt(seed, task)
        richer = compatible_prompts(sample_scene(seed, plain), np.random.default_rng(seed))
        for prompt in [plain, *richer]:
            nouns, said = said_of_nouns(encode_batch([prompt.text]))
            colours, numbers, sides = (kind[0][nouns[0]].tolist() for kind in said)
            needs = prompt.objects
            assert len(colours) == len(needs), prompt.text
            assert colours == [list(COLOURS).index(n.colour) + 1 if n.colour else 0 for n in needs], prompt.text
            words = {2: "two", 3: "three", 4: "four"}
            assert numbers == [NUMBERS.index(words[n.count]) + 1 if n.count > 1 else 0 for n in needs], prompt.text
            relations = [prompt.relation, REVERSED.get(prompt.relation)][: len(needs)]
            assert sides == [RELATIONS.index(r) + 1 if r else 0 for r in relations], prompt.text


def test_nothing_is_said_outside_nouns_and_in_empty_captions():
    nouns, said = said_of_nouns(encode_batch(["", "a photo of a red thing", "left of blue"]))
    assert not nouns.any() and not said.any()
    reader = WordNames(8)
    assert float(reader(torch.randn(1, 16, 8), encode_batch([""]))) == 0.0


def test_states_that_bind_can_be_read_and_a_bag_of_words_cannot():
    """States that hold the noun and its colour are named right after a few steps; their mean is not."""
    torch.manual_seed(0)
    prompts = [sample_prompt(seed, "color_attr") for seed in range(300)]
    tokens = encode_batch([p.text for p in prompts])
    _nouns, said = said_of_nouns(tokens)
    words = torch.randn(64, 64)
    bound = words[tokens] + torch.randn(11, 64)[said[0]]
    bag = words[tokens].mean(1, keepdim=True).expand(-1, 16, -1)
    accuracy = []
    for states in (bound, bag):
        reader = WordNames(64)
        optimizer = torch.optim.Adam(reader.parameters(), 3e-2)
        for _ in range(60):
            optimizer.zero_grad()
            reader(states, tokens).backward()
            optimizer.step()
        accuracy.append(reader.accuracy(states, tokens)["colour"])
    assert accuracy[0] > 0.95 and accuracy[1] < 0.7


def test_cells_name_what_is_drawn_there():
    for seed in range(20):
        scene = sample_scene(seed, sample_prompt(seed, TASKS[seed % 6]))
        shapes, colours = cells(scene)
        assert shapes.shape == colours.shape == (8, 8) and ((shapes > 0) == (colours > 0)).all()
        named = set(zip(shapes[shapes > 0].tolist(), colours[shapes > 0].tolist(), strict=True))
        drawn = {(SHAPES.index(o.shape) + 1, list(COLOURS).index(o.colour) + 1) for o in scene.objects}
        assert named <= drawn
        assert len(drawn) == 1 or len(named) > 1
        for item in detect(draw(scene)):  # a filled shape covers the cell of its centre
            if item.shape in ("circle", "square"):
                assert shapes[int(item.y // 16), int(item.x // 16)] == SHAPES.index(item.shape) + 1


def test_the_convolution_over_words_starts_as_nothing(tmp_path):
    torch.manual_seed(1)
    plain, near = TextEncoder(width=24, depth=1, heads=4), TextEncoder(width=24, depth=1, heads=4, reach=2)
    missing, unexpected = near.load_state_dict(plain.state_dict(), strict=False)
    assert sorted(missing) == ["near.bias", "near.weight"] and not unexpected
    tokens = encode_batch(["a star left of a ring"])
    torch.testing.assert_close(near(tokens)[0], plain(tokens)[0])


@pytest.mark.parametrize("reach", [0, 3])
def test_a_file_says_whether_its_text_encoder_has_the_convolution(tmp_path, reach):
    torch.manual_seed(2)
    model = TextEncoder(reach=reach)
    if reach:
        torch.nn.init.normal_(model.near.weight, std=0.05)
    common.export("text_encoder", model.state_dict(), folder=tmp_path)
    loaded = load_text_encoder(tmp_path)
    tokens = encode_batch(["two red stars"])
    torch.testing.assert_close(loaded(tokens)[0], model(tokens)[0], atol=2e-2, rtol=2e-2)


def test_cells_are_read_from_the_features_before_the_fine_grid():
    torch.manual_seed(3)
    model = Denoiser("v", width=48, middle=1, heads=4, channels=16, context=24).eval()
    x, phi, context = torch.randn(2, 4, 16, 16), torch.tensor([0.3, 1.2]), torch.randn(2, 16, 24)
    velocity, features = model.velocity_and_cells(x, phi, context)
    assert features.shape == (2, 48, 8, 8)
    torch.testing.assert_close(velocity, model.velocity(x, phi, context))
    labels = torch.zeros(2, 2, 8, 8, dtype=torch.long)
    loss = CellNames(48)(features, labels)
    loss.backward()
    assert torch.isfinite(loss) and any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_rate_that_stays_up_until_the_last_share():
    rate = [common.learning_rate(step, 1000, 2.0, 100, decay=0.2) for step in (0, 99, 100, 799, 900, 999)]
    assert rate == pytest.approx([0.02, 2.0, 2.0, 2.0, 1.0, 0.04])
    longer = [common.learning_rate(step, 2000, 2.0, 100, decay=0.2) for step in range(0, 800, 100)]
    assert longer == [common.learning_rate(step, 1000, 2.0, 100, decay=0.2) for step in range(0, 800, 100)]


def test_batches_are_a_function_of_the_step(tmp_path):
    first, second = (Batches(6, tmp_path, size=12) for _ in range(2))

    def draw_at(batches, step):
        return batches.draw(step, np.random.default_rng(step), torch.Generator().manual_seed(step))

    draw_at(first, 0)  # another history
    for a, b in zip(draw_at(first, 5), draw_at(second, 5), strict=True):
        assert torch.equal(a, b)
    x0, tokens, eps, names = draw_at(first, 5)
    assert x0.shape == eps.shape == (6, 4, 16, 16) and tokens.shape == (6, 16) and names.shape == (6, 2, 8, 8)
    assert 0.5 < float(x0.std()) < 1.5 and int(names[:, 0].max()) <= len(SHAPES)
    assert [shards_at(step) for step in (0, 399, 400, 10**9)] == [1, 1, 2, SHARDS]
    assert len(list((tmp_path / "shards").iterdir())) == 1


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RUNS", tmp_path)

    class Interruption(Exception):
        pass

    def run(name, break_at=None):
        torch.manual_seed(4)
        model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.LayerNorm(32))
        loop = common.Loop(name, model, 6, 1e-2, warmup=2, fall=0.5)
        loop.resume()

        def loss(rng, generator):
            if loop.step == break_at:
                raise Interruption
            return model(torch.randn(8, 32, generator=generator)).square().mean()

        loop.run(loss, every=0.0)
        return loop.averaged()

    with pytest.raises(Interruption):
        run("broken", break_at=3)
    unbroken, resumed = run("unbroken"), run("broken")
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)


def test_a_sheet_holds_its_images_row_by_row():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    picture = np.asarray(sheet(images, 2))
    assert picture.shape == (12, 8, 3)
    assert picture[0, 0, 0] == 0 and picture[0, 7, 0] == 1 and picture[11, 0, 0] == 4 and picture[11, 7, 0] == 0
