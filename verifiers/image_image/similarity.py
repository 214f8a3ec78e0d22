"""Similarity to reference images: the cosine between unit embeddings of an image tower. The prompt is not read.

Towers: CLIP (what is shown), SigLIP, and DINOv2 with or without registers (how it looks; Oquab et al. 2023, arXiv
2304.07193). Any of them in a local Hugging Face folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...samplers.protocols import ScoreContext, Verifier
from ..base import VerifierError, check_images, freeze, image_side, module_device
from ..caching import ImageCache
from ..image_text.clip_score import _unit
from ..preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
COMBINATIONS = ("mean", "max")
TOWERS = {
    "clip": ("CLIPVisionModelWithProjection", CLIP_MEAN, CLIP_STD, "crop"),
    "clip_vision_model": ("CLIPVisionModelWithProjection", CLIP_MEAN, CLIP_STD, "crop"),
    "siglip": ("SiglipVisionModel", HALF, HALF, "stretch"),
    "siglip_vision_model": ("SiglipVisionModel", HALF, HALF, "stretch"),
    "dinov2": ("Dinov2Model", IMAGENET_MEAN, IMAGENET_STD, "crop"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", IMAGENET_MEAN, IMAGENET_STD, "crop"),
}
"""``model_type`` of config.json -> class, mean, std, how the picture becomes a square (``Preprocessing.fit``)."""

# DINOv2's configurations name the size of its position grid, 518; its processor cuts 224 out of a shorter side of 256
_DINO_SIZE, _DINO_EDGE = 224, 256


class ImageEmbedder(nn.Module):
    """An image tower that gives unit vectors, behind a plain module whose ``device`` a host may set."""

    half_safe = ("tower",)

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels ``[n, 3, s, s]`` -> unit vectors ``[n, d]``."""
        output = self.tower(pixel_values=pixels.to(next(self.tower.parameters()).dtype))
        embedding = getattr(output, "image_embeds", None)
        return _unit(output.pooler_output if embedding is None else embedding)


class SimilarityVerifier(Verifier):
    """Cosine to one or several reference images, in -1..1.

    Args:
        tower: an image tower of one of the kinds in ``TOWERS``, with weights.
        references: IMAGE ``[k, H, W, 3]`` in 0..1, at least one.
        combine: "mean" over the references, or "max" (the most similar one counts).
        quantize: round to 8 bit where the processors of transformers do, for parity with published numbers.
        name: for reports.

    Raises:
        VerifierError: unknown tower or combination, or no reference.
    """

    differentiable = True
    needs_prompt = False
    default_scale = (0.6, 0.15)

    def __init__(
        self,
        tower: Any,
        references: Tensor,
        combine: str = "mean",
        quantize: bool = False,
        name: str = "similarity",
    ):
        kind = getattr(tower.config, "model_type", "")
        if kind not in TOWERS:
            raise VerifierError(f"the image tower is a {kind!r}: choose one of {', '.join(TOWERS)}")
        if combine not in COMBINATIONS:
            raise VerifierError(f"combine is {combine!r}: choose one of {', '.join(COMBINATIONS)}")
        _, mean, std, fit = TOWERS[kind]
        size, edge = image_side(tower.config), None
        if kind.startswith("dino"):
            size = min(size, _DINO_SIZE)
            edge = round(size * _DINO_EDGE / _DINO_SIZE)
        self.prepare = Preprocessing(
            size=size, mean=mean, std=std, fit=fit, edge=edge, centre="floor", quantize=quantize
        )
        self.module, self.combine, self.name = freeze(ImageEmbedder(tower)), combine, name
        self.references = check_images(references).detach().float().cpu().clone()
        self._embedded: Tensor | None = None
        self._images = ImageCache()

    def score(self, images: Tensor, prompts: Sequence[str] | str = "", context: ScoreContext | None = None) -> Tensor:
        """Scores ``[n]`` of ``images [n, H, W, 3]`` in 0..1; ``prompts`` are not read."""
        device = module_device(self.module)
        pixels = self.prepare(images, device)
        seen = self._images(pixels, lambda rows: self.module(pixels[rows.to(device)]))
        cosines = seen @ self._references(device).T
        return cosines.mean(1) if self.combine == "mean" else cosines.amax(1)

    def _references(self, device: torch.device) -> Tensor:
        if self._embedded is None:
            with torch.no_grad():
                embedded = self.module(self.prepare(self.references, device)).cpu()
            # a copy, so that what was made under inference mode can take part in a backward pass outside of it
            with torch.inference_mode(False):
                self._embedded = embedded.clone()
        return self._embedded.to(device)


def load_similarity(folder: str | Path, references: Tensor, **options) -> SimilarityVerifier:
    """Similarity by an image tower in a local Hugging Face folder. Nothing is downloaded.

    Args:
        folder: with ``config.json`` and weights, e.g. of ``facebook/dinov2-base`` or ``openai/clip-vit-large-patch14``.
        references, options: of ``SimilarityVerifier``.

    Raises:
        VerifierError: no model there, one of an unknown kind, or one that cannot be loaded.
    """
    folder = Path(folder)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    except (OSError, ValueError) as error:
        raise VerifierError(
            f"folder {folder} has no readable config.json ({error}): an image tower must be there, e.g. "
            f'`hf download facebook/dinov2-base --local-dir "{folder}"`'
        ) from error
    if kind not in TOWERS:
        raise VerifierError(f"the model in {folder} is a {kind!r}: choose one of {', '.join(TOWERS)}")
    import transformers

    try:
        network = getattr(transformers, TOWERS[kind][0])
        tower = network.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).float()
    except (OSError, ValueError, RuntimeError) as error:
        raise VerifierError(f"the image tower in {folder} cannot be loaded: {error}") from error
    options.setdefault("name", f"similarity({folder.name})")
    return SimilarityVerifier(tower, references, **options)
