"""Rewards that are a CLIP fine-tuned on human choices: PickScore and HPSv2 / HPSv2.1.

Kirstain et al. 2023, arXiv 2305.01569 (PickScore); Wu et al. 2023, arXiv 2306.09341 (HPSv2). Both are a ViT-H/14 with
the cosine of image and prompt; they differ from CLIPScore in weights, scale and, for HPSv2, in the preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...samplers.protocols import ScoreContext
from ..base import VerifierError
from ..clip_weights import build_clip, read_weights
from ..image_text.clip_score import CLIPScoreVerifier, load_tokenizer
from ..preprocessing import Preprocessing

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

PICKSCORE_REPOSITORY = "yuvalkirstain/PickScore_v1"
HPS_REPOSITORY = "xswu/HPSv2"
HPS_FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
SCALES = ("cos", "logit")


class PickScoreVerifier(CLIPScoreVerifier):
    """PickScore.

    Args:
        clip, tokenizer, quantize: as in ``CLIPScoreVerifier``.
        scale: "cos" (about .17 to .24, as DAS uses it) or "logit" (times ``exp(logit_scale)``, about 100: the official
            score, whose softmax over candidates is the probability of being chosen).

    Raises:
        VerifierError: unknown scale.
    """

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: CLIPTokenizer,
        scale: str = "cos",
        quantize: bool = False,
        name: str = "pickscore",
    ):
        if scale not in SCALES:
            raise VerifierError(f"scale is {scale!r}: choose one of {', '.join(SCALES)}")
        super().__init__(clip, tokenizer, "cos", quantize, name)
        self.factor = float(clip.logit_scale.detach().exp()) if scale == "logit" else 1.0
        self.default_scale = (0.205 * self.factor, 0.013 * self.factor)

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Scores ``[n]``, see ``CLIPScoreVerifier.score``."""
        return self.factor * super().score(images, prompts)


class HPSVerifier(CLIPScoreVerifier):
    """Human Preference Score v2: the cosine, about .20 to .35. Versions 2.0 and 2.1 are not comparable.

    The official pipeline brings the longer side to 224, pads with black, resizes floating-point tensors and lets
    bicubic overshoot pass; its tokenizer cleans the prompt as OpenAI's does.

    Args:
        clip, tokenizer, quantize: as in ``CLIPScoreVerifier``.
    """

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer, quantize: bool = False, name: str = "hps_v2_1"):
        super().__init__(clip, tokenizer, "cos", quantize, name)
        self.prepare = Preprocessing(size=self.module.size, fit="pad", clamp=False, quantize=quantize)
        self._tokens.clean = True
        self.default_scale = (0.27, 0.03)


def load_pickscore(folder: str | Path, tokenizer: str | Path | None = None, **options) -> PickScoreVerifier:
    """PickScore of a local Hugging Face folder. Nothing is downloaded.

    Args:
        folder: with ``config.json`` and weights of ``yuvalkirstain/PickScore_v1``.
        tokenizer: folder with CLIP's ``vocab.json`` and ``merges.txt`` if they lie elsewhere.
        options: of ``PickScoreVerifier``.

    Raises:
        VerifierError: folder or files missing, or weights that are no CLIP.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise VerifierError(
            f"folder {folder} has no config.json: PickScore needs {PICKSCORE_REPOSITORY} (3.9 GB) there, e.g. "
            f'`hf download {PICKSCORE_REPOSITORY} --local-dir "{folder}"`'
        )
    from transformers import CLIPModel

    try:
        clip = CLIPModel.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise VerifierError(f"the PickScore model in {folder} cannot be loaded: {error}") from error
    return PickScoreVerifier(clip.float(), load_tokenizer(tokenizer or folder), **options)


def load_hps(file: str | Path, tokenizer: str | Path, **options) -> HPSVerifier:
    """HPSv2 or HPSv2.1 from its published file, in open_clip's layout (or from one in that of transformers).

    Args:
        file: ``HPS_v2.1_compressed.pt`` or ``HPS_v2_compressed.pt``.
        tokenizer: folder with CLIP's ``vocab.json`` and ``merges.txt``.
        options: of ``HPSVerifier``.

    Raises:
        VerifierError: the file is missing, damaged, or holds no CLIP.
    """
    path = Path(file)
    if not path.is_file():
        raise VerifierError(
            f"there is no file {path}: HPSv2 needs {HPS_FILES['2.1']} (2.0 GB, Apache-2.0) of {HPS_REPOSITORY} there, "
            f'e.g. `hf download {HPS_REPOSITORY} {HPS_FILES["2.1"]} --local-dir "{path.parent}"`'
        )
    clip = build_clip(read_weights([path]), path.name, "gelu")
    options.setdefault("name", "hps_v2" if "v2_" in path.name else "hps_v2_1")
    with torch.no_grad():
        return HPSVerifier(clip, load_tokenizer(tokenizer), **options)
