"""``testtime score``: a real folder, real verifiers, the file it writes, going on where it stopped, and bad input."""

import csv

import numpy as np
import pytest
from PIL import Image

from testtime.cli.main import main
from testtime.cli.score import drop_half_a_line
from testtime.shapes_world.captions import sample_prompt
from testtime.shapes_world.drawing import draw
from testtime.shapes_world.sampling import sample_scene
from testtime.verifiers.named import parse_verifier

PROMPTS = [sample_prompt(seed, "colors") for seed in range(3)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "more").mkdir()
    for number, prompt in enumerate(PROMPTS):
        image = Image.fromarray(draw(sample_scene(number, prompt)))
        image.save(tmp_path / ("more" if number == 2 else ".") / f"{number}.png")
    Image.fromarray(np.full((40, 60), 128, np.uint8)).save(tmp_path / "grey.jpg")
    return tmp_path


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_every_image_with_its_prompt(folder):
    listed = "file,prompt\n" + "".join(
        f"{name},{text}\n"
        for name, text in [
            ("0.png", PROMPTS[0].text), ("1.png", PROMPTS[1].text), ("more/2.png", PROMPTS[2].text), ("grey.jpg", "x"),
        ]
    )  # fmt: skip
    (folder / "prompts.csv").write_text(listed)
    arguments = ["score", str(folder), "--verifier", "shapes_clip", "--verifier", "jpeg_compressibility"]
    assert main([*arguments, "--prompts", str(folder / "prompts.csv")]) == 0
    table = {row["file"]: row for row in rows(folder / "scores.csv")}
    assert set(table) == {"0.png", "1.png", "more/2.png", "grey.jpg"}
    assert all(float(table[name]["shapes_clip"]) > 0.3 for name in ("0.png", "1.png", "more/2.png"))
    assert float(table["grey.jpg"]["jpeg_compressibility"]) > float(table["0.png"]["jpeg_compressibility"])


def test_goes_on_where_it_stopped(folder, monkeypatch):
    arguments = ["score", str(folder), "--verifier", "jpeg_compressibility:per_megapixel=true", "--batch", "1"]
    from testtime.verifiers.aesthetic import jpeg

    calls, score = [], jpeg.JPEGVerifier.score

    def breaking(self, images, prompts):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, images, prompts)

    monkeypatch.setattr(jpeg.JPEGVerifier, "score", breaking)
    assert main(arguments) == 130
    assert len(rows(folder / "scores.csv")) == 2
    assert main(arguments) == 0
    assert calls == [1, 1, 1, 1, 1]  # two before, the interrupted one again, and the last
    assert [row["file"] for row in rows(folder / "scores.csv")] == ["0.png", "1.png", "grey.jpg", "more/2.png"]
    assert main(arguments) == 0 and len(calls) == 5


def test_an_unreadable_image_is_named_and_the_others_are_scored(folder, capsys):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    assert main(["score", str(folder), "--verifier", "jpeg_compressibility"]) == 1
    assert "broken.png cannot be read" in capsys.readouterr().err
    assert len(rows(folder / "scores.csv")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verifier", "shapes_clip"], "--prompt is empty"),
        (["--verifier", "taste", "--prompt", "x"], "there is no verifier 'taste'"),
        (["--verifier", "jpeg_compressibility:quality", "--prompt", "x"], "'quality' is no KEY=VALUE"),
        (["--verifier", "jpeg_compressibility", "--batch", "0"], "--batch is 0"),
        (["--verifier", "shapes_clip", "--prompts", "none.csv"], "--prompts none.csv"),
    ],
)
def test_bad_input_is_named(folder, capsys, arguments, message):
    assert main(["score", str(folder), *arguments]) != 0
    assert message in capsys.readouterr().err
    assert not (folder / "scores.csv").exists()


def test_folders_without_images_and_files_of_other_runs(folder, tmp_path, capsys):
    assert main(["score", str(folder / "none"), "--verifier", "jpeg_compressibility"]) == 2
    assert "is no folder" in capsys.readouterr().err
    (folder / "empty").mkdir()
    assert main(["score", str(folder / "empty"), "--verifier", "jpeg_compressibility"]) == 2
    assert "holds no image" in capsys.readouterr().err
    (folder / "scores.csv").write_text("file,prompt,other\n")
    assert main(["score", str(folder), "--verifier", "jpeg_compressibility"]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_options_of_a_verifier_are_typed():
    text = "clip_score:folder=a/b,quantize=true,mode=cos,size=3,scale=0.5"
    name, options = parse_verifier(text)
    assert name == "clip_score"
    assert options == {"folder": "a/b", "quantize": True, "mode": "cos", "size": 3, "scale": 0.5}


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"file,prompt\na,b\nhal", b"file,prompt\na,b\n"),
        (b"file,prompt\na,b\n", b"file,prompt\na,b\n"),
        (b'file,prompt\na,"two\nlines"\nc,"two\nli', b'file,prompt\na,"two\nlines"\n'),
        (b"fil", b""),
        (b"", b""),
    ],
)
def test_half_a_row_of_a_killed_run_is_dropped(tmp_path, content, kept):
    path = tmp_path / "scores.csv"
    path.write_bytes(content)
    drop_half_a_line(path)
    assert path.read_bytes() == kept
