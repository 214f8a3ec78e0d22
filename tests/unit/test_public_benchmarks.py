"""Public benchmarks: official prompts, layouts that the published evaluators read, anchors, cost; end to end."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from testtime.bench.public import anchors, geneval
from testtime.bench.public.command import with_budget
from testtime.bench.public.cost import KINDS, hours, in_words
from testtime.bench.public.layout import place, place_of
from testtime.bench.public.mask2former import Mask2Former, boxes_of, instances, prepared
from testtime.bench.public.prompts import BENCHMARKS, GENEVAL_TASKS, T2I_CATEGORIES, Prompt, first_per_task
from testtime.cli.main import main
from testtime.installation.errors import EXIT_BAD_INPUT, BadInput
from testtime.verifiers.objects.geneval import Found
from testtime.verifiers.objects.requirements import COLOURS

GENEVAL, T2I = BENCHMARKS["geneval"], BENCHMARKS["t2i-compbench"]
OFFICIAL = os.environ.get("TESTTIME_GENEVAL")
"""A clone of the official repository, for those who have one."""


# ---------------------------------------------------------------------------------------------- prompts and layouts


def test_the_official_prompts_are_all_there():
    prompts = GENEVAL.read(GENEVAL.shipped)
    counts = {task: sum(prompt.task == task for prompt in prompts) for task in GENEVAL_TASKS}
    assert counts == dict(zip(GENEVAL_TASKS, (80, 99, 80, 94, 100, 100), strict=True)) and len(prompts) == 553
    prompts = T2I.read(T2I.shipped)
    assert [sum(p.task == category for p in prompts) for category in T2I_CATEGORIES] == [300] * 8
    assert len(first_per_task(prompts, 3)) == 24


def test_places_are_those_of_the_evaluators():
    assert place_of(GENEVAL, Prompt(7, "x", "counting"), 2) == "00007/samples/00002.png"
    assert place_of(T2I, Prompt(12, "a red car", "color"), 3) == "color/samples/a red car_000123.png"
    assert place_of(BENCHMARKS["genai"], Prompt(5, "x"), 0) == "00005.jpeg"
    assert place_of(BENCHMARKS["coco"], Prompt(0, "x", "", {"image_id": 42}), 0) == "000000000042.png"
    assert place_of(BENCHMARKS["drawbench"], Prompt(3, "x"), 1) == "00003/samples/00001.png"
    # What T2I-CompBench's evaluators make of a name: the prompt up to the first "_", the number behind the last.
    for prompt in T2I.read(T2I.shipped):
        name = Path(place_of(T2I, prompt, 9)).stem
        assert name.split("_")[0] == prompt.text and int(name.rsplit("_", 1)[1]) == 10 * prompt.index + 9


def test_jpeg_of_genai_is_pillows_own(tmp_path):
    picture = Image.effect_noise((40, 40), 60).convert("RGB")
    picture.save(tmp_path / "in.png")
    placed = place(BENCHMARKS["genai"], Prompt(0, "x"), 0, tmp_path / "in.png", tmp_path / "out")
    picture.save(tmp_path / "own.jpeg")
    assert placed.read_bytes() == (tmp_path / "own.jpeg").read_bytes()


def test_other_prompt_files(tmp_path):
    (tmp_path / "genai.json").write_text(json.dumps({"1": {"prompt": "b"}, "0": {"prompt": "a"}}))
    assert [p.text for p in BENCHMARKS["genai"].read(tmp_path / "genai.json")] == ["a", "b"]
    captions = [(9, 3, "later"), (9, 1, " first\n"), (2, 8, "two")]
    told = {"annotations": [{"image_id": image, "id": key, "caption": text} for image, key, text in captions]}
    (tmp_path / "coco.json").write_text(json.dumps(told))
    read = BENCHMARKS["coco"].read(tmp_path / "coco.json")
    assert [(p.text, p.line["image_id"]) for p in read] == [("two", 2), ("first", 9)]
    (tmp_path / "draw.csv").write_text("Prompts,Category\nA cat.,Animals\n")
    assert BENCHMARKS["drawbench"].read(tmp_path / "draw.csv") == [Prompt(0, "A cat.", "Animals")]
    (tmp_path / "bad.json").write_text("[]")
    for name in ("genai", "coco"):
        with pytest.raises(BadInput, match=r"--prompts .*bad.json: expected"):
            BENCHMARKS[name].read(tmp_path / "bad.json")
    with pytest.raises(BadInput, match="line 1 is no line of GenEval's metadata"):
        GENEVAL.read(tmp_path / "bad.json")


def test_budgets_set_the_width_of_a_method():
    assert with_budget("best_of_n:particles=2", 8) == "best_of_n:particles=8"
    assert with_budget("fk:every=2", 4) == "fk:every=2,particles=4"
    with pytest.raises(BadInput, match="--budget 0"):
        with_budget("smc", 0)


# ---------------------------------------------------------------------------------------------- anchors


def test_the_data_file_is_its_text_form():
    tables = anchors.parse(anchors.TEXT.read_text(encoding="utf-8"))
    assert anchors.FILE.read_text(encoding="utf-8") == anchors.to_json(tables)
    assert anchors.load() == tables


def table(key):
    return next(found for found in anchors.load() if found.key == key)


def test_geneval_of_tts_var_is_arithmetic():
    """Overall is the mean of the tasks; shares are multiples of 1/(4 n), but for the figures that are marked."""
    counts, found = (80, 97, 84, 99, 99, 100), table("tts-var-geneval")
    right = {("importance sampling", "N = 2"): {"two_object": 0.8479}, ("TTS-VAR", "N = 2"): {"single_object": 0.9938},
             ("TTS-VAR", "N = 8"): {"two_object": 0.9510}}  # fmt: skip
    for row in found.rows:
        repaired = right.get((row.name, row.budget), {})
        assert set(repaired) == set(row.doubtful)
        tasks = {name: repaired.get(name, row.value(k)) for k, name in enumerate(found.columns[1:7], 1)}
        assert abs(sum(tasks.values()) / 6 - row.value(0)) < 1.1e-4, row
        for count, (name, share) in zip(counts, tasks.items(), strict=True):
            assert abs(round(share * 4 * count) / (4 * count) - share) <= 5.1e-5, (row, name)


def test_t2i_of_tts_var_is_arithmetic():
    found = table("tts-var-t2i")
    for row in found.rows:
        mean = sum(row.value(k) for k in range(1, 9)) / 8
        assert (abs(mean - row.value(0)) < 1e-4) != ("average" in row.doubtful), row


def test_methods_are_better_than_what_they_are_compared_with():
    """Digits that are swapped in copying show here."""
    svdd, aesthetic = table("svdd-compressibility"), table("svdd-aesthetic")
    for found in (svdd, aesthetic):
        best = max(found.rows, key=lambda row: row.value(0))
        assert best.name == "SVDD-PM"
        assert all((row.value(0) < row.value(1)) != bool(row.doubtful) for row in found.rows)
    assert max(table("rbf").rows, key=lambda row: row.value(0)).name == "RBF, VP SDE"
    ttgen = {row.name: row for row in table("ttgen").rows}
    assert ttgen["TTGen"].value(1) < ttgen["direct"].value(1) < ttgen["worst"].value(1)


def test_wrong_text_forms_are_refused():
    with pytest.raises(ValueError, match="is no row of 2 figures"):
        anchors.parse("table x\ntitle: a\nsource: b\nbenchmark: -\nsetting: c\nnote: -\ncolumns: p, q\nr | 1 | 2\n")
    with pytest.raises(ValueError, match="expected title, source"):
        anchors.parse("table x\ntitle: a\nbenchmark: -\nsource: b\nsetting: c\nnote: -\ncolumns: p\nr | 1 | 2\n")


def test_cost_is_that_of_the_plan():
    assert [round(hours(KINDS["sd15"], 2212, n), 1) for n in (1, 4, 8)] == [0.2, 0.8, 1.6]
    assert [round(hours(KINDS["sdxl"], 2212, n), 1) for n in (1, 4, 8)] == [1.1, 4.3, 8.6]
    assert [round(hours(KINDS["infinity-2b"], 2212, n), 1) for n in (1, 4, 8)] == [0.2, 0.9, 1.8]
    assert [in_words(value) for value in (0.01, 1.6, 60)] == ["1 min", "1.6 h", "2.5 d"]


# ---------------------------------------------------------------------------------------------- the own evaluator


def slow_instances(classes, masks, padded, inner, original):
    """mmdet's fusion head, row by row."""
    up = torch.nn.functional.interpolate
    share = classes.softmax(-1)[:, :-1]
    ranked = sorted(
        ((float(share[q, c]), q, c) for q in range(len(share)) for c in range(share.shape[1])), reverse=True
    )
    found = []
    for score, q, c in ranked[:100]:
        mask = up(masks[None, q : q + 1], size=padded, mode="bilinear", align_corners=False)[
            ..., : inner[0], : inner[1]
        ]
        mask = up(mask, size=original, mode="bilinear", align_corners=False)[0, 0]
        pixels = [(y, x) for y in range(original[0]) for x in range(original[1]) if mask[y, x] > 0]
        if pixels:
            ys, xs = zip(*pixels, strict=True)
            certain = sum(float(mask[y, x].sigmoid()) for y, x in pixels) / (len(pixels) + 1e-6)
            found.append((c, (min(xs), min(ys), max(xs) + 1, max(ys) + 1), score * certain))
        else:
            found.append((c, (0, 0, 0, 0), 0.0))
    return sorted(found, key=lambda each: -each[2])


def test_boxes_are_those_of_mmdets_fusion_head():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(5, 4, generator=generator) * 2
    masks = torch.randn(5, 8, 8, generator=generator) * 3
    kind, boxes, scores = instances(classes, masks, (32, 32), (24, 32), (12, 16))
    mine = sorted(zip(kind.tolist(), map(tuple, boxes.tolist()), scores.tolist(), strict=True), key=lambda e: -e[2])
    expected = slow_instances(classes, masks, (32, 32), (24, 32), (12, 16))
    for (c, box, score), (wanted, around, certain) in zip(mine, expected, strict=True):
        assert (c, box) == (wanted, around) and abs(score - certain) < 1e-5
    assert boxes_of(torch.zeros(1, 4, 4, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]


def test_pictures_are_prepared_as_the_config_says():
    image, inner = prepared(torch.zeros(512, 512, 3, dtype=torch.uint8))
    assert inner == (800, 800) and image.shape[-2:] == (800, 800)
    image, inner = prepared(torch.zeros(300, 900, 3, dtype=torch.uint8))
    assert inner == (444, 1333) and image.shape[-2:] == (448, 1344)


@pytest.mark.slow
def test_a_small_mask2former_of_transformers_runs():
    transformers = pytest.importorskip("transformers")
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
                                                window_size=2, out_features=["stage1", "stage2", "stage3", "stage4"]),
        hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        dim_feedforward=16, encoder_feedforward_dim=16, num_queries=5, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    detector = Mask2Former(transformers.Mask2FormerForUniversalSegmentation(config), ["dog", "teddy bear", "cat"])
    found = detector(torch.randint(0, 255, (48, 64, 3), dtype=torch.uint8), ["cat", "teddy bear"])
    assert set(found) == {"cat", "teddy bear"} and len(found["cat"].scores) == 5
    assert (found["cat"].scores[:-1] >= found["cat"].scores[1:]).all()
    with pytest.raises(BadInput, match="knows no 'horse'"):
        detector(torch.zeros(8, 8, 3, dtype=torch.uint8), ["horse"])


def random_detector(pixels, names):
    """Boxes at random, the same for the same picture and name."""
    found = {}
    for name in names:
        generator = torch.Generator().manual_seed(
            (int(pixels.long().sum()) * 31 + len(name) * 7 + ord(name[0])) % 2**31
        )
        count = int(torch.randint(0, 4, (1,), generator=generator))
        corner = torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat([corner, corner + 5 + 20 * torch.rand(count, 2, generator=generator)], 1)
        found[name] = Found(boxes, 0.2 + 0.8 * torch.rand(count, generator=generator))
    return found


def random_colours(pixels):
    return lambda name, boxes: torch.softmax(boxes @ torch.ones(4, 10).cumsum(1), -1)


# ---------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def geneval_run(tmp_path_factory):
    """Two prompts of each task by a tiny random SD pipeline, four images each, Best-of-2."""
    pytest.importorskip("diffusers")
    from .pipes import build

    folder = tmp_path_factory.mktemp("geneval")
    build("sd", folder).save_pretrained(folder / "model")
    command = ["bench", "geneval", str(folder / "model"), "--method", "best_of_n", "--budget", "2", "--limit", "2",
               "--verifier", "jpeg_compressibility", "--set", "steps=2", "--quiet"]  # fmt: skip
    assert main([*command, "--out", str(folder / "out")]) == 0
    return folder, command


@pytest.mark.slow
def test_geneval_end_to_end_on_a_tiny_pipeline(geneval_run):
    folder, _ = geneval_run
    images = folder / "out" / "images"
    pictures = sorted(images.rglob("*.png"))
    assert len(pictures) == 6 * 2 * 4
    assert {path.parent.parent.name for path in pictures} == {path.name for path in images.iterdir()}
    lines = {prompt.index: prompt.line for prompt in GENEVAL.read(GENEVAL.shipped)}
    for sub in images.iterdir():
        assert json.loads((sub / "metadata.jsonl").read_text()) == lines[int(sub.name)]
        assert sorted(path.name for path in (sub / "samples").iterdir()) == [f"{k:05d}.png" for k in range(4)]
        assert len({path.read_bytes() for path in (sub / "samples").iterdir()}) == 4
    report = (folder / "out" / "report.md").read_text()
    assert "# GenEval, partial" in report and "| TTS-VAR | N = 8 | .7530 |" in report and "8497*" in report
    assert "48 of 12 prompts (553 in all)" in report and "s per image" in report


@pytest.mark.slow
def test_the_same_command_goes_on_and_shards_are_the_whole(geneval_run, tmp_path):
    folder, command = geneval_run
    for shard in ("0/2", "1/2"):
        assert main([*command, "--limit", "1", "--shard", shard, "--out", str(tmp_path)]) == 0
    parts = {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "images").rglob("*.png")}
    assert len(parts) == 24
    assert all((folder / "out" / path).read_bytes() == content for path, content in parts.items())


@pytest.mark.slow
def test_our_evaluator_and_the_official_summary_agree(geneval_run, tmp_path):
    folder, _ = geneval_run
    results = geneval.evaluate_folder(folder / "out" / "images", random_detector, random_colours)
    assert len(results) == 48 and {line["tag"] for line in results} == set(GENEVAL_TASKS)
    geneval.write_results(tmp_path / "results.jsonl", results)
    told = geneval.summary(geneval.read_results(tmp_path / "results.jsonl"))
    assert 0 < sum(line["correct"] for line in results) < 48
    assert told["overall"] == pytest.approx(sum(told[task] for task in GENEVAL_TASKS) / 6)
    if not OFFICIAL:
        pytest.skip("TESTTIME_GENEVAL names no clone of the official repository, whose summary would be asked, too")
    script = Path(OFFICIAL) / "evaluation" / "summary_scores.py"
    asked = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "results.jsonl")], capture_output=True, text=True
    )
    assert f"Overall score (avg. over tasks): {told['overall']:.5f}" in asked.stdout, asked.stderr
    assert "Total images: 48" in asked.stdout and "Total prompts: 12" in asked.stdout


@pytest.mark.slow
@pytest.mark.skipif(not OFFICIAL, reason="TESTTIME_GENEVAL names no clone of the official repository")
def test_the_official_rules_agree_on_our_detections(geneval_run):
    """The official ``evaluate`` and its helpers, run as they are on the same boxes and colours."""
    folder, _ = geneval_run
    tree = ast.parse((Path(OFFICIAL) / "evaluation" / "evaluate_images.py").read_text())
    import numpy as np

    space = {"np": np, "THRESHOLD": 0.3, "COUNTING_THRESHOLD": 0.9, "MAX_OBJECTS": 16, "NMS_THRESHOLD": 1.0,
             "POSITION_THRESHOLD": 0.1, "COLORS": list(COLOURS)}  # fmt: skip
    wanted = {"compute_iou", "relative_position", "evaluate"}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    exec(compile(ast.Module(functions, []), "official", "exec"), space)  # noqa: S102 - the official code is the oracle
    verdicts = 0
    for line in geneval.evaluate_folder(folder / "out" / "images", random_detector, random_colours):
        metadata = json.loads(line["metadata"])
        detected = {}
        for name, boxes in json.loads(line["details"]).items():
            limit = 0.9 if metadata["tag"] == "counting" else 0.3
            kept = [np.array(box) for box in boxes if box[4] > limit]
            if kept:
                detected[name] = [(box, None) for box in kept]

        def color_classification(image, objects, name):
            told = random_colours(None)(
                name, torch.tensor(np.array([box[:4] for box, _ in objects]), dtype=torch.float32)
            )
            return [COLOURS[k] for k in told.argmax(1).tolist()]

        space["color_classification"] = color_classification
        correct, _ = space["evaluate"](None, detected, metadata)
        assert correct == line["correct"], line
        verdicts += 1
    assert verdicts == 48


def test_wrong_input_is_named(tmp_path, capsys):
    cases = [
        (["coco", "shapes", "--out", str(tmp_path)], "the prompts of COCO do not come with the pack"),
        (["geneval", "nowhere.json", "--out", str(tmp_path / "a")], "nowhere.json: no such file"),
        (["geneval", str(tmp_path), "--out", str(tmp_path / "a")], "has no setting 'verifierr'"),
        (["geneval", "shapes", "--method", "smcc", "--out", str(tmp_path / "a")], "--method smcc: choose one of"),
        (["geneval", "shapes", "--prompts", str(tmp_path / "no"), "--out", str(tmp_path / "a")], "cannot be read"),
    ]
    for arguments, words in cases:
        if "verifierr" in words:
            arguments = ["geneval", "shapes", "--set", "verifierr=x", "--out", str(tmp_path / "a")]
        assert main(["bench", *arguments]) == EXIT_BAD_INPUT
        assert words in capsys.readouterr().err
    (tmp_path / "images" / "00000" / "samples").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"no readable metadata.jsonl"):
        geneval.evaluate_folder(tmp_path / "images", random_detector)
    with pytest.raises(BadInput, match="no pictures in GenEval's layout"):
        geneval.evaluate_folder(tmp_path / "images" / "00000", random_detector)


def test_the_cost_is_told_before_anything_runs(tmp_path, capsys):
    assert main(["bench", "geneval", "shapes", "--plan", "sd15", "--budget", "8", "--out", str(tmp_path / "a")]) == 0
    assert "2212 images of SD 1.5, 512 pixels at N = 8: about 1.6 h of one H100" in capsys.readouterr().err
    assert main(["bench", "gpu", "models/infinity", "--kind", "infinity-2b"]) == 0
    told = capsys.readouterr().out
    assert "GenEval, tts_var, N = 8: 2,212 images" in told and "nothing was run" in told and "together" in told
    assert not (tmp_path / "a").exists()
