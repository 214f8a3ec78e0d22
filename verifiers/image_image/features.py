"""Image features for clustering: patch tokens of DINOv2, last layer of Inception, for ``samplers.clustering``.

TTS-VAR (Chen et al. 2025, arXiv 2507.18537) takes DINOv2 ViT-L/14 with registers at 224 pixels and reduces the 256
patch tokens of an image to one vector (``clustering.reduce_tokens``); Inception gives one vector straight away.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base import VerifierError, freeze, image_side, module_device
from ..caching import ImageCache
from ..clip_weights import read_weights
from ..preprocessing import Preprocessing
from ..weights import DINO_REPOSITORY, INCEPTION_FILE
from .similarity import IMAGENET_MEAN, IMAGENET_STD

DINO_KINDS = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
DINO_SIZE = 224
INCEPTION_SIZE = 299


def stretching(size: int, quantize: bool = False) -> Preprocessing:
    """To a square of ``size``, bilinear, normalised for ImageNet, as TTS-VAR's own code has torchvision do it.

    No crop: what lies at the border counts for the composition, too.
    """
    return Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD, fit="stretch", interpolation="bilinear", quantize=quantize)


class DINOv2Features:
    """Patch tokens after the last normalisation, without class and register tokens.

    Args:
        tower: a DINOv2 of transformers, with or without registers.
        quantize: round to 8 bit where torchvision does, for parity with published numbers.
        name: for reports.

    Raises:
        VerifierError: another kind of model.
    """

    def __init__(self, tower: Any, quantize: bool = False, name: str = "dinov2"):
        kind = getattr(tower.config, "model_type", "")
        if kind not in DINO_KINDS:
            raise VerifierError(f"the image tower is a {kind!r}: choose one of {', '.join(DINO_KINDS)}")
        self.module, self.name = freeze(_Tokens(tower)), name
        patch = int(tower.config.patch_size)
        self.prepare = stretching(min(DINO_SIZE, image_side(tower.config)) // patch * patch, quantize)
        self._images = ImageCache(size=128)

    def tokens(self, images: Tensor) -> Tensor:
        """Float32 ``[n, patches, width]`` of ``images [n, H, W, 3]`` in 0..1."""
        pixels = self.prepare(images, module_device(self.module))
        return self._images(pixels, lambda rows: self.module(pixels[rows.to(pixels.device)]))


class _Tokens(nn.Module):
    """The tower behind a plain module, whose ``device`` a host may set."""

    half_safe = ("tower",)

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower
        self.skip = 1 + int(getattr(tower.config, "num_register_tokens", 0) or 0)

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.tower(pixel_values=pixels.to(next(self.tower.parameters()).dtype)).last_hidden_state
        return states[:, self.skip :].float()


class InceptionFeatures:
    """The 2,048 numbers before Inception v3's classifier, as one token.

    Args:
        network: torchvision's ``inception_v3``; its classifier is taken off.
        name: for reports.
    """

    def __init__(self, network: nn.Module, name: str = "inception"):
        network.fc = nn.Identity()
        self.module, self.name, self.prepare = freeze(_Pooled(network)), name, stretching(INCEPTION_SIZE)
        self._images = ImageCache()

    def tokens(self, images: Tensor) -> Tensor:
        """Float32 ``[n, 1, 2048]`` of ``images [n, H, W, 3]`` in 0..1."""
        pixels = self.prepare(images, module_device(self.module))
        return self._images(pixels, lambda rows: self.module(pixels[rows.to(pixels.device)]))[:, None]


class _Pooled(nn.Module):
    """The network behind a plain module, whose ``device`` a host may set."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels)


def load_dinov2(folder: str | Path, **options) -> DINOv2Features:
    """DINOv2 from a local Hugging Face folder. Nothing is downloaded.

    Args:
        folder: e.g. of ``facebook/dinov2-with-registers-large``, or of any other size.
        options: of ``DINOv2Features``.

    Raises:
        VerifierError: no DINOv2 there.
    """
    folder = Path(folder)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    except (OSError, ValueError) as error:
        raise VerifierError(
            f"folder {folder} has no readable config.json ({error}): DINOv2 must be there, e.g. "
            f'`hf download {DINO_REPOSITORY} --local-dir "{folder}"`'
        ) from error
    if kind not in DINO_KINDS:
        raise VerifierError(f"the model in {folder} is a {kind!r}: choose one of {', '.join(DINO_KINDS)}")
    import transformers

    try:
        with torch.no_grad():
            network = getattr(transformers, DINO_KINDS[kind])
            tower = network.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).float()
    except (OSError, ValueError, RuntimeError) as error:
        raise VerifierError(f"the DINOv2 in {folder} cannot be loaded: {error}") from error
    options.setdefault("name", f"dinov2({folder.name})")
    return DINOv2Features(tower, **options)


def load_inception(file: str | Path, **options) -> InceptionFeatures:
    """Inception v3 from torchvision's file. Nothing is downloaded.

    Args:
        file: ``inception_v3_google-0cc3c7bd.pth``.
        options: of ``InceptionFeatures``.

    Raises:
        VerifierError: the file is missing or another one, or torchvision is not there.
    """
    path = Path(file)
    if not path.is_file():
        raise VerifierError(
            f"there is no file {path}: Inception features need {INCEPTION_FILE} (109 MB, BSD-3-Clause) there, from "
            f"https://download.pytorch.org/models/{INCEPTION_FILE}"
        )
    try:
        from torchvision.models import inception_v3
    except (ImportError, RuntimeError) as error:
        raise VerifierError(f"Inception features need torchvision, which cannot be imported: {error}") from error
    # the file's network expects pictures in -1..1 and brings those normalised for ImageNet there itself
    network = inception_v3(weights=None, transform_input=True, init_weights=False, aux_logits=True)
    try:
        network.load_state_dict(read_weights([path]))
    except RuntimeError as error:
        raise VerifierError(f"{path} is not the released {INCEPTION_FILE}: {error}") from error
    return InceptionFeatures(network, **options)
