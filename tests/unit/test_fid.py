"""FID, KID and CLIP score of folders: closed forms, clean-fid's and Hessel's own code where they are there, a run."""

from __future__ import annotations

import ast
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg

from testtime.bench.public import fid
from testtime.bench.public.clip import clip_score, clip_scores
from testtime.bench.public.fid import Statistics, fid_scores, frechet_distance, kernel_distance
from testtime.cli.main import main
from testtime.installation.errors import EXIT_BAD_INPUT, BadInput
from testtime.verifiers.image_text.clip_score import CLIPScoreVerifier, load_tokenizer

from .test_verifiers_clip_score import clip, tokenizer_folder  # noqa: F401 - fixtures

HESSEL = os.environ.get("TESTTIME_CLIPSCORE")
"""A clone of jmhessel/clipscore, for those who have one."""
PROMPTS = ["a red cat", "two dogs", "a cat"]


def sample(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    mixed = np.random.default_rng(9).normal(size=(d, d)) / d**0.5
    return np.random.default_rng(seed).normal(size=(n, d)) @ mixed * scale + shift


# ---------------------------------------------------------------------------------------------- distances


def test_gaussians_of_known_distance():
    one, two = Statistics(np.zeros(3), np.diag([1.0, 4.0, 9.0])), Statistics(np.ones(3), np.diag([4.0, 1.0, 0.0]))
    assert frechet_distance(one, two) == pytest.approx(3 + 1 + 1 + 9)  # |m|^2 + sum (s1 - s2)^2
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(400, 500, 32), (300, 2000, 64)])
def test_fid_is_that_of_the_formula(n, m, d):
    one, two = Statistics.of(sample(n, d, 1)), Statistics.of(sample(m, d, 2, 1.2, 0.3))
    root = linalg.sqrtm(one.covariance @ two.covariance)
    expected = ((one.mean - two.mean) ** 2).sum() + np.trace(one.covariance + two.covariance - 2 * np.real(root))
    assert frechet_distance(one, two) == pytest.approx(expected, abs=1e-6)


def test_a_singular_covariance_gives_a_real_number():
    """Fewer pictures than features, as with ``--limit``; the published code then has to nudge the covariances."""
    one, two = Statistics.of(sample(20, 64, 1)), Statistics.of(sample(30, 64, 2))
    found = frechet_distance(one, two)
    assert np.isfinite(found) and found > 0 and found == pytest.approx(frechet_distance(two, one), rel=1e-6)


def test_kid_is_unbiased():
    """Of two samples of the same law the mean is 0, of different ones it is not."""
    same = [kernel_distance(sample(60, 8, k), sample(60, 8, 100 + k), subsets=1) for k in range(60)]
    apart = [kernel_distance(sample(60, 8, k), sample(60, 8, 100 + k, shift=0.5), subsets=1) for k in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 60**0.5
    assert np.mean(apart) > 10 * np.std(same) / 60**0.5


def test_clean_fids_own_distances():
    """In an environment of its own: it is no part of the test extras."""
    official = pytest.importorskip("cleanfid.fid", reason="clean-fid is not installed: pip install clean-fid")
    one, two = sample(500, 64, 1), sample(400, 64, 2, 1.1, 0.2)
    a, b = Statistics.of(one), Statistics.of(two)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = official.frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(float(expected), abs=1e-6)
    small = sample(400, 64, 3)  # equal sizes below a subset's: nothing is left to chance
    assert kernel_distance(two, small, 2) == pytest.approx(official.kernel_distance(two, small, 2), rel=1e-9)


# ---------------------------------------------------------------------------------------------- folders


def pictures(folder: Path, count: int, seed: int) -> Path:
    numbers = np.random.default_rng(seed)
    for k in range(count):
        path = folder / f"{k // 2:05d}" / "samples" / f"{k % 2:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    return folder


def colours(folder: Path) -> np.ndarray:
    """Mean colour and spread of every picture: features that need no network."""
    found = [np.array(Image.open(path), np.float64) for path in sorted(folder.rglob("*.png"))]
    return np.array([[*p.mean((0, 1)), *p.std((0, 1))] for p in found])


def test_scores_of_folders(tmp_path):
    mine, other = pictures(tmp_path / "mine", 12, 1), pictures(tmp_path / "other", 16, 2)
    told = fid_scores(mine, other, "clean", colours)
    expected = frechet_distance(Statistics.of(colours(mine)), Statistics.of(colours(other)))
    assert told["FID (clean, 12 pictures, 16 references)"] == expected and "KID (clean)" in told
    stats = Statistics.of(colours(other))
    np.savez(tmp_path / "other.npz", mu=stats.mean, sigma=stats.covariance)
    assert fid_scores(mine, tmp_path / "other.npz", "clean", colours) == {"FID (clean, 12 pictures)": expected}


def test_wrong_references_are_named(tmp_path):
    mine = pictures(tmp_path / "mine", 4, 1)
    (tmp_path / "bad.npz").write_bytes(b"no numbers")
    np.savez(tmp_path / "short.npz", mu=np.zeros(3), sigma=np.eye(3))
    cases = [(tmp_path / "none", "no such folder of reference pictures"), (tmp_path / "bad.npz", "mu and sigma"),
             (tmp_path / "short.npz", "features have 6 numbers and the reference's 3"),
             (pictures(tmp_path / "one", 1, 1), "FID of 1 pictures: at least two")]  # fmt: skip
    for reference, words in cases:
        with pytest.raises(BadInput, match=words):
            fid_scores(mine, reference, "clean", colours)


def test_clean_fids_features_of_a_folder(tmp_path, monkeypatch):
    """With a small network in the place of Inception, whose weights are a download: the calls fit its functions."""
    features = pytest.importorskip("cleanfid.features", reason="clean-fid is not installed: pip install clean-fid")
    asked = []

    def network(pixels):
        asked.append(tuple(pixels.shape[1:]))
        return torch.nn.functional.avg_pool2d(pixels.float(), 150).flatten(1)

    monkeypatch.setattr(features, "build_feature_extractor", lambda mode, device, parallel: network)
    found = fid.inception("clean", "cpu")(pictures(tmp_path / "mine", 6, 1))
    assert found.shape == (6, 3) and found.dtype == np.float64 and asked[0] == (3, 299, 299)
    assert found == pytest.approx(colours(tmp_path / "mine")[:, :3], abs=20)


# ---------------------------------------------------------------------------------------------- CLIP score


def test_clip_score_is_the_mean_of_the_verifiers(clip, tokenizer_folder, tmp_path):  # noqa: F811
    files = sorted(pictures(tmp_path / "mine", 3, 1).rglob("*.png"))
    clip.save_pretrained(tmp_path / "clip")
    load_tokenizer(tokenizer_folder).save_pretrained(str(tmp_path / "clip"))
    judge = CLIPScoreVerifier(clip, load_tokenizer(tokenizer_folder), "x100", quantize=True)
    images = [torch.from_numpy(np.array(Image.open(path))).float()[None] / 255 for path in files]
    each = [max(0.0, float(judge.score(image, [prompt])[0])) for image, prompt in zip(images, PROMPTS, strict=True)]
    told = clip_score(list(zip(files, PROMPTS, strict=True)), tmp_path / "clip", "x100")
    assert told == {"CLIP score, clip": pytest.approx(sum(each) / 3, abs=1e-4)}
    with pytest.raises(BadInput, match=r"--clip-score: folder .*none has no config.json"):
        clip_score(list(zip(files, PROMPTS, strict=True)), tmp_path / "none", "x100")
    with pytest.raises(BadInput, match="no pictures yet"):
        clip_score([], tmp_path / "clip", "x100")


@pytest.mark.skipif(not HESSEL, reason="TESTTIME_CLIPSCORE names no clone of jmhessel/clipscore")
def test_clipscore_is_hessels(clip, tokenizer_folder, tmp_path, monkeypatch):  # noqa: F811
    """The official functions as they are, over the same small CLIP."""
    torchvision = pytest.importorskip("torchvision.transforms")
    import sklearn.preprocessing
    import tqdm
    from packaging import version

    files = sorted(pictures(tmp_path / "mine", 3, 1).rglob("*.png"))
    tokenizer = load_tokenizer(tokenizer_folder)
    length, size = clip.config.text_config.max_position_embeddings, clip.config.vision_config.image_size

    def tokenize(text, truncate):
        return tokenizer(
            [text], padding="max_length", truncation=truncate, max_length=length, return_tensors="pt"
        ).input_ids

    tree = ast.parse((Path(HESSEL) / "clipscore.py").read_text())
    names = {"CLIPCapDataset", "CLIPImageDataset", "extract_all_captions", "extract_all_images", "get_clip_score"}
    parts = [node for node in tree.body if getattr(node, "name", "") in names]
    space = {"torch": torch, "np": np, "tqdm": tqdm, "version": version, "sklearn": sklearn, "warnings": warnings,
             "Image": Image, "clip": SimpleNamespace(tokenize=tokenize), "T": torchvision,
             **{name: getattr(torchvision, name) for name in
                ("Compose", "Resize", "CenterCrop", "ToTensor", "Normalize")}}  # fmt: skip
    exec(compile(ast.Module(parts, []), "official", "exec"), space)  # noqa: S102 - the official code is the oracle
    dataset = space["CLIPImageDataset"]
    monkeypatch.setattr(dataset, "_transform_test", lambda self, _, own=dataset._transform_test: own(self, size))
    features = lambda found: getattr(found, "pooler_output", found)  # noqa: E731 - transformers 5 wraps what 4 returned
    model = SimpleNamespace(encode_image=lambda p: features(clip.get_image_features(pixel_values=p)),
                            encode_text=lambda i: features(clip.get_text_features(
                                input_ids=i, attention_mask=torch.ones_like(i))))  # fmt: skip
    for name in ("extract_all_captions", "extract_all_images"):
        monkeypatch.setitem(space, name, lambda *a, own=space[name], **k: own(*a, num_workers=0, **k))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean, each, _ = space["get_clip_score"](model, [str(path) for path in files], PROMPTS, "cpu")
    judge = CLIPScoreVerifier(clip, tokenizer, "hessel", quantize=True)
    assert clip_scores(list(zip(files, PROMPTS, strict=True)), judge) == pytest.approx(each.tolist(), abs=2e-5)
    assert mean == pytest.approx(each.mean())


# ---------------------------------------------------------------------------------------------- a run


@pytest.mark.slow
def test_a_benchmark_reports_fid_and_clip_score(clip, tokenizer_folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    (tmp_path / "captions.txt").write_text("a red star\ntwo blue rings\na green cross\n")
    clip.save_pretrained(tmp_path / "clip")
    load_tokenizer(tokenizer_folder).save_pretrained(str(tmp_path / "clip"))
    monkeypatch.setattr(fid, "inception", lambda mode, device: colours)
    command = ["bench", "coco", "shapes", "--prompts", str(tmp_path / "captions.txt"), "--set", "steps=2", "--set",
               "size=32", "--quiet", "--out", str(tmp_path / "out"),
               "--clip-score", str(tmp_path / "clip")]  # fmt: skip
    assert main([*command, "--fid", str(pictures(tmp_path / "other", 8, 3))]) == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| FID (clean, 3 pictures, 8 references) |" in report and "| KID (clean) |" in report
    assert "| CLIP score, clip |" in report and "TTGen" in report
    assert main([*command, "--evaluate", "own"]) == EXIT_BAD_INPUT
    assert "take --fid or --clip-score" in capsys.readouterr().err
