"""The pack's side of the parity table: one verifier per row, loaded from the files that the official side left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..verifiers.aesthetic import predictors as aesthetic
from ..verifiers.aesthetic.jpeg import JPEGVerifier
from ..verifiers.clip_weights import build_clip, read_weights
from ..verifiers.image_image import features, similarity
from ..verifiers.image_text import clip_score
from ..verifiers.preference import clip_rewards
from ..verifiers.preference.image_reward import ImageRewardModel, ImageRewardVerifier, fill, to_transformers
from . import parity_link as link
from .official.pictures import PROMPTS

REWARD_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "image_size": 224, "patch_size": 32}  # fmt: skip
REWARD_TEXT = {"hidden_size": 24, "encoder_hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
               "num_attention_heads": 3}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """One row.

    Attributes:
        verifier: its name in the registry, or what else it is.
        official: the function that it is compared with.
        load: ``(folder of the official side, quantize) -> verifier``.
        pixels: whether the preprocessings are compared, by rounding to 8 bit, too.
    """

    verifier: str
    official: str
    load: Callable[[Path, bool], Any]
    pixels: bool = True


@dataclass
class Row:
    """What was measured, per picture.

    Attributes:
        verifier, official: as in ``Subject``.
        pixels: picture -> mean and max of the differences of what the tower sees, in 255ths, and the share of values
            that differ by more than half of one.
        pixels_quantized: the same with ``quantize=True``.
        scores: picture -> difference of the scores.
        scores_quantized: the same with ``quantize=True``.
        tokens: picture -> number of token ids that differ, empty where the official side makes none.
        spread: standard deviation of the official scores over the pictures.
    """

    verifier: str
    official: str
    pixels: dict[str, dict[str, float]] = field(default_factory=dict)
    pixels_quantized: dict[str, dict[str, float]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    scores_quantized: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    spread: float = 0.0


def _openai_tower(folder: Path):
    """The image tower of a CLIP in OpenAI's layout, as a class of transformers."""
    from transformers import CLIPVisionModelWithProjection

    clip = build_clip(read_weights([folder / "clip.pt"]), "clip.pt", "quick_gelu")
    tower = CLIPVisionModelWithProjection(clip.config.vision_config).eval()
    own = {f"vision_model.{key}": value for key, value in clip.vision_model.state_dict().items()}
    tower.load_state_dict({**own, "visual_projection.weight": clip.visual_projection.weight})
    return tower


def _image_reward(folder: Path, quantize: bool) -> ImageRewardVerifier:
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    with torch.device("meta"):
        model = ImageRewardModel(REWARD_VISION, REWARD_TEXT | {"vocab_size": len(tokenizer)})
    fill(model, to_transformers(read_weights([folder / "ImageReward.pt"])), folder / "ImageReward.pt")
    return ImageRewardVerifier(model, tokenizer, quantize=quantize)


def _laion(folder: Path, quantize: bool) -> aesthetic.LAIONAestheticVerifier:
    head = aesthetic.load_head(aesthetic.laion_head(24), folder / "head.pth")
    return aesthetic.LAIONAestheticVerifier(_openai_tower(folder), head, quantize=quantize)


def _similar(folder: Path, quantize: bool) -> similarity.SimilarityVerifier:
    (first,) = link.pictures(folder.parent, list(PROMPTS)[:1]).values()
    return similarity.load_similarity(folder, first, quantize=quantize)


SUBJECTS: dict[str, Subject] = {
    "clip_score": Subject(
        "clip_score", "transformers: CLIPProcessor and CLIPModel",
        lambda folder, q: clip_score.load_clip_score_folder(folder, quantize=q),
    ),
    "hessel": Subject(
        "clip_score (hessel)", "image-reward: CLIPScore.score, on OpenAI's clip",
        lambda folder, q: clip_score.load_clip_score_files(
            [folder / "clip.pt"], folder, "quick_gelu", mode="hessel", quantize=q
        ),
    ),
    "pickscore": Subject(
        "pickscore", "t2v_metrics: PickScoreModel.forward",
        lambda folder, q: clip_rewards.load_pickscore(folder, quantize=q),
    ),
    "hps_v2_1": Subject(
        "hps_v2_1", "hpsv2: img_score.score",
        lambda folder, q: clip_rewards.load_hps(folder / "HPS_v2.1_compressed.pt", folder, quantize=q),
    ),
    "image_reward": Subject("image_reward", "image-reward: ImageReward.score", _image_reward),
    "laion_aesthetic": Subject("laion_aesthetic", "image-reward: AestheticScore.score, on OpenAI's clip", _laion),
    "simple_aesthetics": Subject(
        "laion_aesthetic (network)", "simple-aesthetics-predictor: AestheticsPredictorV2Linear",
        lambda folder, q: aesthetic.load_laion_aesthetic(folder, folder / "head.pth", quantize=q), pixels=False,
    ),
    "aesthetic_v25": Subject(
        "aesthetic_v25", "aesthetic-predictor-v2-5: convert_v2_5_from_siglip",
        lambda folder, q: aesthetic.load_aesthetic_v25(folder, folder / "head.pth", quantize=q),
    ),
    "similarity": Subject(
        "similarity (DINOv2)", "transformers: AutoImageProcessor and Dinov2WithRegistersModel", _similar
    ),
    "similarity_clip": Subject(
        "similarity (CLIP)", "transformers: AutoImageProcessor and CLIPVisionModelWithProjection", _similar
    ),
    "dinov2_features": Subject(
        "dinov2 (features)", "torchvision.transforms as TTS-VAR has them, transformers: Dinov2WithRegistersModel",
        lambda folder, q: features.load_dinov2(folder, quantize=q),
    ),
    "jpeg": Subject("jpeg_compressibility", "Pillow: Image.save", lambda _folder, _q: JPEGVerifier(), pixels=False),
}  # fmt: skip


def measure(key: str, folder: Path) -> Row:
    """Call the official function of a row on all photographs and compare.

    Raises:
        OfficialError: the official packages are not there, or their call failed.
    """
    subject, said = SUBJECTS[key], link.said(key, folder)
    row = Row(subject.verifier, subject.official, spread=float(said["tokens" if "tokens" in said else "scores"].std()))
    shown = link.pictures(folder, PROMPTS)
    for quantize in (False, True) if subject.pixels else (False,):
        verifier = subject.load(folder / key, quantize)
        pixels, scores = (row.pixels_quantized, row.scores_quantized) if quantize else (row.pixels, row.scores)
        for index, (name, image) in enumerate(shown.items()):
            with torch.no_grad():
                if subject.pixels:
                    seen = torch.from_numpy(said[f"pixels-{name}"])
                    pixels[name] = _gap(verifier.prepare(image)[0], seen, verifier.prepare.std)
                scores[name] = _score(key, verifier, image, name, said, index)
        if "ids" in said:
            row.tokens = _tokens(verifier, said["ids"])
    return row


def _gap(mine: Tensor, theirs: Tensor, std: tuple[float, float, float]) -> dict[str, float]:
    """How two normalised pictures differ, in 255ths."""
    gap = (mine - theirs).abs() * torch.tensor(std).view(3, 1, 1) * 255
    return {"mean": float(gap.mean()), "max": float(gap.max()), "share": float((gap > 0.5).float().mean())}


def _score(key: str, verifier: Any, image: Tensor, name: str, said: Mapping[str, np.ndarray], index: int) -> float:
    """Difference of one picture's score, for a feature extractor the largest of its tokens'."""
    if key == "dinov2_features":
        return float((verifier.tokens(image)[0] - torch.from_numpy(said["tokens"][index])).abs().max())
    if key == "simple_aesthetics":  # its instructions prepare pictures otherwise than the authors' script
        mine = verifier.module(torch.from_numpy(said[f"pixels-{name}"])[None])
    else:
        mine = verifier.score(image, PROMPTS[name])
    return abs(float(mine) - float(said["scores"][index]))


def _tokens(verifier: Any, theirs: np.ndarray) -> dict[str, int]:
    """Differing token ids per picture; what follows the end of the text is padding, of another kind there."""
    mine, ends = verifier.token_ids(list(PROMPTS.values())).numpy(), theirs.argmax(1)
    return {
        name: int((mine[row, : ends[row] + 1] != theirs[row, : ends[row] + 1]).sum())
        for row, name in enumerate(PROMPTS)
    }
