"""CLIP score of a benchmark's pictures: the mean of what ``verifiers.image_text`` says of each with its prompt.

"x100" is what TTGen's and most tables mean (100 times the cosine, not below 0); "hessel" is CLIPScore as published,
2.5 max(cos, 0) of "A photo depicts PROMPT" under ViT-B/32.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...installation.errors import BadInput
from ...verifiers.base import VerifierError
from ...verifiers.image_text.clip_score import CLIPScoreVerifier, load_clip_score_folder

MODES = ("x100", "hessel")


def clip_scores(pictures: Sequence[tuple[Path, str]], judge: CLIPScoreVerifier) -> list[float]:
    """A score per (file, prompt), as saved: 8 bits are what the published pipelines read, too."""
    scores = []
    for path, prompt in pictures:
        with Image.open(path) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255
        scores.append(max(0.0, float(judge.score(pixels[None], [prompt])[0])))
    return scores


def clip_score(pictures: Sequence[tuple[Path, str]], folder: Path, mode: str) -> dict[str, float]:
    """The mean, under its name. Raises BadInput for a folder without a CLIP, or no pictures."""
    if not pictures:
        raise BadInput("--clip-score: there are no pictures yet")
    try:
        judge = load_clip_score_folder(folder, mode=mode, quantize=True)
    except VerifierError as error:
        raise BadInput(f"--clip-score: {error}") from error
    name = "CLIP score" if mode == "x100" else "CLIPScore (Hessel)"
    return {f"{name}, {folder.name}": statistics.fmean(clip_scores(pictures, judge))}
