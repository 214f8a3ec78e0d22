"""Detectors against transformers' own post-processing, colours against CLIP, and the verifier made of both."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from testtime.bench.small_detectors import grounding_dino, owl
from testtime.verifiers import registry
from testtime.verifiers.base import VerifierError
from testtime.verifiers.image_text.clip_score import CLIPScoreVerifier, load_tokenizer
from testtime.verifiers.objects.detectors import Detector, corners, load_detector, sentence
from testtime.verifiers.objects.geneval import OFFICIAL, Found, Rules
from testtime.verifiers.objects.requirements import COLOURS, parse
from testtime.verifiers.objects.verifier import ColourReader, ObjectsVerifier, crops
from testtime.verifiers.pictures import to_bytes, to_pictures

from .test_verifiers_clip_score import clip, pictures, tokenizer_folder  # noqa: F401 - fixtures

transformers = pytest.importorskip("transformers")
NAMES = ["dog", "teddy bear", "cat"]
SHORT = ["dog", "owl", "cat"]  # the small tokenizer knows letters only


@pytest.fixture(scope="module")
def folders(tokenizer_folder, tmp_path_factory):  # noqa: F811
    root = tmp_path_factory.mktemp("detectors")
    owl(root / "owlv2", tokenizer_folder, 2)
    owl(root / "owlvit", tokenizer_folder, 1)
    grounding_dino(root / "dino")
    return root


def official(folder, images, names):
    """transformers' own pipeline: processor, forward, post-processing at a threshold of 0."""
    kind = transformers.AutoModelForZeroShotObjectDetection
    model = kind.from_pretrained(str(folder), trust_remote_code=False).eval()
    processor = transformers.AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)
    shown = to_pictures(to_bytes(images))
    sizes = [picture.size[::-1] for picture in shown]
    if model.config.model_type == "grounding-dino":
        inputs = processor(images=shown, text=[sentence(names)[0]] * len(shown), return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        return processor.image_processor.post_process_object_detection, output, sizes
    queries = [[f"a photo of a {name}" for name in names]] * len(shown)
    inputs = processor(text=queries, images=shown, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    return processor.post_process_grounded_object_detection(output, threshold=0.02, target_sizes=sizes)


@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
@pytest.mark.parametrize("shape", [(32, 32), (40, 64), (70, 30)])
def test_owl_boxes_are_those_of_its_own_post_processing(folders, kind, shape):
    images = pictures(*shape, 2)
    detector = load_detector(folders / kind)
    found = detector(to_bytes(images), SHORT)
    for mine, theirs in zip(found, official(folders / kind, images, SHORT), strict=True):
        for index, name in enumerate(SHORT):
            chosen = theirs["labels"] == index
            order = theirs["scores"][chosen].argsort(descending=True, stable=True)
            torch.testing.assert_close(mine[name].scores, theirs["scores"][chosen][order], atol=1e-5, rtol=0)
            torch.testing.assert_close(mine[name].boxes, theirs["boxes"][chosen][order], atol=1e-2, rtol=1e-4)
    assert 10 < sum(len(objects.scores) for objects in found[0].values()) <= 16  # a box per patch, each with one name


def test_grounding_dino_boxes_and_scores_per_name(folders):
    images = pictures(48, 64, 2)
    detector = load_detector(folders / "dino")
    found = detector(to_bytes(images), NAMES)
    _, output, sizes = official(folders / "dino", images, NAMES)
    # [CLS] dog . teddy bear . cat . [SEP]
    columns = [[1], [3, 4], [6]]
    chances = output.logits.sigmoid()
    for row, (height, width) in enumerate(sizes):
        best, label = torch.stack([chances[row][:, ids].amax(-1) for ids in columns], -1).max(-1)
        where = corners(output.pred_boxes[row], (width, height))
        for index, name in enumerate(NAMES):
            mine = (label == index) & (best > 0.02)
            order = best[mine].argsort(descending=True, stable=True)
            torch.testing.assert_close(found[row][name].scores, best[mine][order], atol=1e-5, rtol=0)
            torch.testing.assert_close(found[row][name].boxes, where[mine][order], atol=1e-2, rtol=1e-4)
    assert sum(len(objects.scores) for objects in found[0].values()) > 3


def test_boxes_in_pixels():
    box = torch.tensor([[0.5, 0.25, 0.2, 0.5]])
    assert corners(box, (100, 40)).tolist()[0] == pytest.approx([40, 0, 60, 20])
    assert sentence(["dog", "Teddy bear"]) == ("dog. teddy bear.", [(0, 3), (5, 15)])


@pytest.fixture(scope="module")
def reader(clip, tokenizer_folder):  # noqa: F811
    return ColourReader(CLIPScoreVerifier(clip, load_tokenizer(tokenizer_folder)))


def test_colours_are_clips_zero_shot_classes(clip, tokenizer_folder, reader):  # noqa: F811
    """Three descriptions averaged as unit vectors, brought back to length 1, at a logit scale of 100."""
    words = transformers.CLIPTokenizer.from_pretrained(str(tokenizer_folder), trust_remote_code=False)
    image = to_bytes(pictures(56, 56, 1))[0]
    box = torch.tensor([[14.0, 14.0, 42.0, 42.0]])  # 28 pixels: nothing to resize

    def unit(features):
        return F.normalize(getattr(features, "pooler_output", features), dim=-1)

    with torch.no_grad():
        crop = image[None, 14:42, 14:42].float() / 255
        seen = unit(clip.get_image_features(pixel_values=reader.prepare(crop)))
        classes = []
        for colour in COLOURS:
            said = [f"a photo of a {colour} cat", f"a photo of a {colour}-colored cat", f"a photo of a {colour} object"]
            tokens = words(said, padding="max_length", max_length=20, truncation=True, return_tensors="pt")
            classes.append(F.normalize(unit(clip.get_text_features(**tokens)).mean(0), dim=-1))
        expected = torch.softmax(100 * seen @ torch.stack(classes).T, -1)
    torch.testing.assert_close(reader(image, "cat", box), expected, atol=1e-4, rtol=0)


def test_crops_stay_in_the_picture():
    image = torch.arange(20, dtype=torch.uint8).view(4, 5, 1).expand(4, 5, 3)
    cut = crops(image, torch.tensor([[-3.0, -3.0, 2.4, 1.6], [4.9, 3.9, 4.9, 3.9], [0.0, 0.0, 99.0, 99.0]]))
    assert [tuple(part.shape[1:3]) for part in cut] == [(2, 2), (1, 1), (4, 5)]


class Looking(torch.nn.Module):
    """A detector that finds what is bright: one box per column of 8 pixels above a half, named by its redness."""

    kind = "owlv2"

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, pixels, names):
        self.calls.append((len(pixels), tuple(names)))
        results = []
        for image in pixels.float() / 255:
            found = {name: [] for name in names}
            for left in range(0, image.shape[1], 8):
                column = image[:, left : left + 8].mean((0, 1))
                if float(column.max()) > 0.5:
                    name = "dog" if column[0] >= column[2] else "cat"
                    if name in found:
                        found[name].append((left, 0, left + 8, 8, float(column.max())))
            results.append({name: _found(rows) for name, rows in found.items()})
        return results


def _found(rows):
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 5)
    return Found(table[:, :4], table[:, 4])


def scene(*columns):
    """A row of 8 pixel columns: "d" bright red, "c" bright blue, "." black."""
    colour = {"d": (0.95, 0.0, 0.1), "c": (0.1, 0.0, 0.95), ".": (0.0, 0.0, 0.0)}
    row = torch.tensor([colour[letter] for letter in "".join(columns)])
    return row.repeat_interleave(8, 0)[None, None].expand(1, 8, -1, 3).contiguous()


class TestVerifier:
    def test_strict_and_graded(self):
        images = torch.cat([scene("d..c"), scene("c..d"), scene("...d"), scene("....")])
        strict = ObjectsVerifier(Looking(), mode="strict")
        assert strict.score(images, "a dog left of a cat").tolist() == [1.0, 0.0, 0.0, 0.0]
        graded = ObjectsVerifier(Looking()).score(images, "a dog left of a cat").tolist()
        assert graded[0] > 0.95 and graded[0] > graded[1] > graded[2] > graded[3]
        count = ObjectsVerifier(Looking(), mode="count").score(torch.cat([scene("d.d.."), scene("d.d.d")]), "two dogs")
        assert count[0] > -0.1 and count[1] == pytest.approx(-1, abs=0.01)

    def test_every_image_is_held_to_its_own_prompt_and_looked_at_once(self):
        detector = Looking()
        judge = ObjectsVerifier(detector, mode="strict", batch=8)
        images = torch.cat([scene("d..."), scene("c..."), scene("d.d.")])
        prompts = ["a dog", "a cat", "two dogs"]
        assert judge.score(images, prompts).tolist() == [1.0, 1.0, 1.0]
        assert detector.calls == [(2, ("dog",)), (1, ("cat",))]
        judge.score(images.flip(0), prompts[::-1])
        assert len(detector.calls) == 2

    def test_objects_stand_for_the_prompt(self):
        judge = ObjectsVerifier(Looking(), mode="strict", objects="two dogs, a cat")
        assert not judge.needs_prompt
        assert judge.score(torch.cat([scene("ddc."), scene("dcc.")])).tolist() == [1.0, 0.0]
        assert judge.explain(scene("dcc.")) == ["1 x dog instead of 2"]

    def test_colours_without_clip(self):
        with pytest.raises(VerifierError, match="needs a CLIP model for prompts that name colours"):
            ObjectsVerifier(Looking()).score(scene("d..."), "a red dog")

    def test_a_broken_image_spoils_only_itself(self):
        images = torch.cat([scene("d..."), scene("d...")])
        images[0, 0, 0, 0] = math.nan
        scores = ObjectsVerifier(Looking(), mode="strict").score(images, "a dog")
        assert torch.isnan(scores[0]) and scores[1] == 1.0

    def test_with_real_networks_and_colours(self, folders, clip, tokenizer_folder, tmp_path):  # noqa: F811
        clip.save_pretrained(tmp_path / "clip")
        load_tokenizer(tokenizer_folder).save_pretrained(str(tmp_path / "clip"))
        judge = registry.create("objects", folder=folders / "owlv2", clip=tmp_path / "clip", rules=Rules(threshold=0.3))
        images = pictures(40, 56)
        scores = judge.score(images, ["a red dog", "two cats and a blue dog", "a cat above a dog"])
        assert scores.shape == (3,) and ((scores > 0) & (scores < 1)).all()
        alone = judge.score(images[1:2], "two cats and a blue dog")
        assert float(alone) == pytest.approx(float(scores[1]), abs=1e-5)
        strict = ObjectsVerifier(judge.module.detector, judge.module.colours, "strict", rules=OFFICIAL)
        assert set(strict.score(images, "a red dog").tolist()) <= {0.0, 1.0}
        assert judge.name == "objects(owlv2)"

    def test_bad_settings_and_folders_are_named(self, tmp_path):
        with pytest.raises(VerifierError, match="mode is 'soft': choose one of graded, strict, count"):
            ObjectsVerifier(Looking(), mode="soft")
        with pytest.raises(VerifierError, match="write what to look for"):
            ObjectsVerifier(Looking()).score(scene("d..."), "a dog with a hat")
        with pytest.raises(VerifierError, match="hf download google/owlv2-base-patch16-ensemble"):
            load_detector(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "detr"}')
        with pytest.raises(VerifierError, match="is a 'detr': choose one of owlv2"):
            load_detector(tmp_path)

    def test_another_architecture(self, clip):  # noqa: F811
        with pytest.raises(VerifierError, match="the detector is a 'clip'"):
            Detector(clip, None)


@pytest.mark.parametrize("prompt", ["\u00b2 cats", "\u2460 cat", "9" * 5000 + " cats", "1234567 cats", "\u00bd dog"])
def test_numbers_that_are_none_are_the_packs_own_error(prompt):
    """A superscript is a digit to Python and no number, and thousands of digits are refused by it."""
    with pytest.raises(VerifierError, match="not clear at") as failed:
        parse(prompt)
    assert len(str(failed.value)) < 500
    assert parse("\u0663 cats") == parse("3 cats")  # a decimal of another script is one
