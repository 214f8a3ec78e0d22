"""Moving Shapes: its network starts from single frames; its words, labels, and clips that run backwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from testtime.models.tiny.moving import FRAMES, MovingDenoiser, positions
from testtime.models.tiny.train import moving
from testtime.models.tiny.vocabulary import encode, known, words
from testtime.shapes_world.moving import Mover, MovingPrompt, draw_moving, moving_scenes, sample_moving
from testtime.shapes_world.scene import COLOURS, SHAPES


def network():
    torch.manual_seed(0)
    return MovingDenoiser().initialise().initialise_time().eval()


def test_it_starts_as_the_model_of_single_frames():
    """With the places of the frames at nothing: every frame as the flow model draws it alone."""
    made = network()
    torch.nn.init.normal_(made.out.weight, std=0.1)
    torch.nn.init.normal_(made.middle[0].convolutions.conv_out.weight, std=0.1)
    torch.nn.init.zeros_(made.frame)
    x, context = torch.randn(2, 4, 3, 12, 12), torch.randn(2, 16, 192)
    times = torch.tensor([300.0, 800.0])
    with torch.no_grad():
        clip = made(x, times, context)
        for frame in range(3):
            alone = super(MovingDenoiser, made).forward(x[:, :, frame], times, context)
            assert torch.allclose(clip[:, :, frame], alone, atol=1e-5)


def test_frames_see_each_other_once_trained():
    made = network()
    for module in (
        *(mixer.out for mixer in made.over_time),
        made.before.conv,
        made.out,
        made.middle[0].attention.out_self,
    ):
        torch.nn.init.normal_(module.weight, std=0.1)
    x, context, times = torch.randn(1, 4, FRAMES, 12, 12), torch.randn(1, 16, 192), torch.tensor([500.0])
    other = x.clone()
    other[:, :, -1] += 1
    with torch.no_grad():
        a, b = made(x, times, context), made(other, times, context)
    assert all(float((a - b)[:, :, frame].abs().max()) > 1e-6 for frame in range(FRAMES))


def test_clips_of_other_lengths_stretch_the_places():
    place = torch.arange(8.0).view(1, 8, 1).expand(1, 8, 5)
    assert torch.equal(positions(place, 8), place)
    assert positions(place, 15)[0, :, 0].tolist() == pytest.approx([k / 2 for k in range(15)])


@pytest.mark.parametrize("shape", [(1, 4, 12, 12), (1, 4, 8, 11, 12)])
def test_latents_that_are_no_clips_are_named(shape):
    with pytest.raises(ValueError, match=r"latent is \[1, 4.*frames"):
        network()(torch.zeros(shape), torch.zeros(1), torch.zeros(1, 16, 192))


def test_every_word_of_a_caption_is_known_and_none_is_cut():
    for seed in range(100):
        text = sample_moving(seed).text
        assert known(text) and len(words(text)) <= 16


def test_what_is_said_of_shapes():
    tokens = torch.tensor([encode("a red circle moves left and a blue square stays"), encode("")])
    nouns, said = moving.said_of_shapes(tokens)
    assert nouns.sum(1).tolist() == [2, 0]
    names = [[SHAPES[k - 1] for k in said[0][nouns]], [list(COLOURS)[k - 1] for k in said[1][nouns]]]
    names.append([moving.DOES[k - 1] for k in said[2][nouns]])
    assert names == [["circle", "square"], ["red", "blue"], ["left", "stays"]]


def test_cells_name_what_covers_them():
    prompt = MovingPrompt((Mover("circle", "red", "right"), Mover("square", "blue", "stays")))
    found, scenes = moving.cells(prompt, 5), moving_scenes(prompt, 5)
    for frame, scene in enumerate(scenes):
        for item in scene.objects:
            row, column = (int((value - 16) // 16) for value in (item.y, item.x))
            shape, colour, does = found[:, frame, row, column]
            if shape:  # a shape between cells covers none of them by more than its share
                assert (SHAPES[shape - 1], list(COLOURS)[colour - 1]) == (item.shape, item.colour)
                assert moving.DOES[does - 1] == ("right" if item.colour == "red" else "stays")
    assert (found[0] > 0).sum() > FRAMES


def test_half_of_the_clips_run_backwards_with_the_opposite_words(tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "SHARD", 4)
    monkeypatch.setattr(moving, "RUNS", tmp_path)
    monkeypatch.setattr(moving, "DROPOUT", 0.0)
    rows = np.zeros(4, moving._ROW)
    rows["latents"] = np.arange(FRAMES).reshape(1, 1, FRAMES, 1, 1)
    rows["tokens"] = encode("a red circle moves left and a blue square moves up")
    rows["cells"][:, 2] = 1 + moving.DOES.index("left")
    (tmp_path / "moving").mkdir()
    np.save(tmp_path / "moving" / "clips-00.npy", rows)
    clips = moving.Clips(64)
    x0, tokens, eps, cells = clips.draw(0, np.random.default_rng(0), torch.Generator().manual_seed(0))
    assert x0.shape == eps.shape == (64, 4, FRAMES, 12, 12)
    back = x0[:, 0, 0, 0, 0] == FRAMES - 1
    assert 20 < int(back.sum()) < 44
    for row, word, motion in zip(back.tolist(), tokens.tolist(), cells[:, 2, 0, 0, 0].tolist(), strict=True):
        first, second = ("right", "down") if row else ("left", "up")
        assert word == encode(f"a red circle moves {first} and a blue square moves {second}")
        assert moving.DOES[motion - 1] == ("right" if row else "left")


def test_drawing_shows_the_scenes():
    prompt = sample_moving(3)
    assert draw_moving(prompt, 3).shape == (len(moving_scenes(prompt, 3)), 96, 96, 3)


def test_the_loss_and_its_gradient_are_finite():
    model = torch.nn.ModuleDict({"text": moving.TextEncoder(reach=4), "denoiser": network(), "names": moving.Names()})
    x0 = torch.randn(2, 4, FRAMES, 12, 12)
    tokens = torch.tensor([encode(sample_moving(seed).text) for seed in range(2)])
    found = torch.from_numpy(np.stack([moving.cells(sample_moving(seed), seed) for seed in range(2)]).astype(np.int64))
    loss = moving.loss_of(model, (x0, tokens, torch.randn_like(x0), found), torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert float(model["denoiser"].out.weight.grad.abs().max()) > 0
