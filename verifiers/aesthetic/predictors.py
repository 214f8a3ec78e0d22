"""Aesthetic predictors: a small head on the unit embedding of an image tower. They never read the prompt.

LAION aesthetic v2 (Schuhmann 2022, "sac+logos+ava1-l14-linearMSE") on CLIP ViT-L/14, and Aesthetic Predictor V2.5 on
SigLIP so400m. Both heads are linear layers with nothing but dropout between them, that is one affine map in evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...samplers.protocols import ScoreContext, Verifier
from ..base import VerifierError, freeze, image_side, module_device
from ..caching import ImageCache
from ..clip_weights import read_weights
from ..image_text.clip_score import _unit
from ..preprocessing import Preprocessing

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection, SiglipVisionModel

HALF = (0.5, 0.5, 0.5)


class AffineHead(nn.Module):
    """Linear layers at the released indices of a Sequential; the places between them were dropout.

    Args:
        widths: sizes from the embedding to 1.
        indices: of the linear layers in the released ``nn.Sequential``.
    """

    def __init__(self, widths: Sequence[int], indices: Sequence[int]):
        super().__init__()
        layers = zip(indices, widths, widths[1:], strict=False)
        self.layers = nn.ModuleDict({str(index): nn.Linear(a, b) for index, a, b in layers})

    def forward(self, embedding: Tensor) -> Tensor:
        """Unit embeddings ``[n, d]`` -> scores ``[n]``."""
        for layer in self.layers.values():
            embedding = layer(embedding)
        return embedding.squeeze(-1)


def laion_head(width: int = 768) -> AffineHead:
    """Head of LAION aesthetic v2; its file has keys ``layers.{0,2,4,6,7}``."""
    return AffineHead((width, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7))


def v25_head(width: int = 1152) -> AffineHead:
    """Head of Aesthetic Predictor V2.5; its file has keys ``scoring_head.{0,2,4,6,8}``."""
    return AffineHead((width, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 8))


def load_head(head: AffineHead, file: str | Path) -> AffineHead:
    """Fill a head from its released file, strictly, in float32.

    Raises:
        VerifierError: the file is missing, damaged, or of another predictor.
    """
    path = Path(file)
    state = {key.replace("scoring_head.", "layers."): value.float() for key, value in read_weights([path]).items()}
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise VerifierError(f"{path} is not the head that was expected: {error}") from error
    return head


class _ImageTower(nn.Module):
    """A tower and its head behind a plain module, whose ``device`` a host may set."""

    half_safe = ("tower",)

    def __init__(self, tower: nn.Module, head: AffineHead):
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.tower(pixel_values=pixels.to(next(self.tower.parameters()).dtype))
        embedding = getattr(output, "image_embeds", None)
        return self.head(_unit(output.pooler_output if embedding is None else embedding))


class _AestheticVerifier(Verifier):
    """Common part of both predictors."""

    differentiable = True
    needs_prompt = False

    def __init__(self, tower: nn.Module, head: AffineHead, prepare: Preprocessing, name: str):
        self.module, self.prepare, self.name = freeze(_ImageTower(tower, head)), prepare, name
        self._images = ImageCache()

    def score(self, images: Tensor, prompts: Sequence[str] | str = "", context: ScoreContext | None = None) -> Tensor:
        """Scores ``[n]`` of ``images [n, H, W, 3]`` in 0..1; ``prompts`` are not read."""
        pixels = self.prepare(images, module_device(self.module))
        return self._images(pixels, lambda rows: self.module(pixels[rows.to(pixels.device)]))


class LAIONAestheticVerifier(_AestheticVerifier):
    """LAION aesthetic v2: about 3.5 to 7.5, higher is prettier.

    Args:
        tower: image tower of CLIP ViT-L/14 with its projection.
        head: ``laion_head()`` with weights.
        quantize: round to 8 bit where the published pipeline does, for parity with published numbers.
    """

    default_scale = (5.5, 0.7)

    def __init__(
        self,
        tower: CLIPVisionModelWithProjection,
        head: AffineHead,
        quantize: bool = False,
        name: str = "laion_aesthetic",
    ):
        size = image_side(tower.config)
        super().__init__(tower, head, Preprocessing(size=size, quantize=quantize, weigh_alpha=True), name)


class AestheticV25Verifier(_AestheticVerifier):
    """Aesthetic Predictor V2.5: 1 to 10, from 5.5 on good. Its head is under AGPL-3.0.

    Args:
        tower: image tower of SigLIP so400m-patch14-384.
        head: ``v25_head()`` with weights.
        quantize: round to 8 bit where the published pipeline does, for parity with published numbers.
    """

    default_scale = (5.0, 1.0)

    def __init__(self, tower: SiglipVisionModel, head: AffineHead, quantize: bool = False, name: str = "aesthetic_v25"):
        size = image_side(tower.config)
        prepare = Preprocessing(size=size, mean=HALF, std=HALF, fit="stretch", quantize=quantize)
        super().__init__(tower, head, prepare, name)


def load_laion_aesthetic(clip: str | Path, head: str | Path, **options) -> LAIONAestheticVerifier:
    """LAION aesthetic v2 from local files. Nothing is downloaded.

    Args:
        clip: Hugging Face folder of ``openai/clip-vit-large-patch14`` (whole, or its image tower).
        head: ``sac+logos+ava1-l14-linearMSE.pth``.
        options: of ``LAIONAestheticVerifier``.

    Raises:
        VerifierError: something is missing, or does not fit together.
    """
    from transformers import CLIPVisionModelWithProjection

    tower = _tower(CLIPVisionModelWithProjection, clip, "openai/clip-vit-large-patch14")
    filled = load_head(laion_head(int(tower.config.projection_dim)), head)
    return LAIONAestheticVerifier(tower, filled, **options)


def load_aesthetic_v25(siglip: str | Path, head: str | Path, **options) -> AestheticV25Verifier:
    """Aesthetic Predictor V2.5 from local files. Nothing is downloaded.

    Args:
        siglip: Hugging Face folder of ``google/siglip-so400m-patch14-384``.
        head: ``aesthetic_predictor_v2_5.pth``.
        options: of ``AestheticV25Verifier``.

    Raises:
        VerifierError: something is missing, or does not fit together.
    """
    from transformers import SiglipVisionModel

    tower = _tower(SiglipVisionModel, siglip, "google/siglip-so400m-patch14-384")
    return AestheticV25Verifier(tower, load_head(v25_head(int(tower.config.hidden_size)), head), **options)


def load_aesthetic(tower: str | Path, head: str | Path, **options) -> LAIONAestheticVerifier | AestheticV25Verifier:
    """The predictor that an image tower belongs to: LAION's on CLIP, V2.5 on SigLIP. Nothing is downloaded.

    Args:
        tower: Hugging Face folder of the image tower. head: the predictor's file.
        options: of the verifier.

    Raises:
        VerifierError: something is missing, or does not fit together.
    """
    try:
        kind = json.loads((Path(tower) / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    except (OSError, ValueError, AttributeError):
        kind = ""  # what is wrong with the folder is told by the loader
    return (load_aesthetic_v25 if "siglip" in str(kind) else load_laion_aesthetic)(tower, head, **options)


def _tower(kind: Any, folder: str | Path, repository: str) -> Any:
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise VerifierError(
            f"folder {folder} has no config.json: the image tower {repository} must be there, e.g. "
            f'`hf download {repository} --local-dir "{folder}"`'
        )
    try:
        with torch.no_grad():
            return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).float()
    except (OSError, ValueError, RuntimeError) as error:
        raise VerifierError(f"the image tower in {folder} cannot be loaded: {error}") from error
