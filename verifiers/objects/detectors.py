"""Open-vocabulary detectors of transformers behind one call: pictures and names in, boxes per name out.

OWLv2 and OWL-ViT answer queries ("a photo of a dog"), Grounding DINO and its relatives read all names as one sentence.
Every box belongs to the name that it fits best, as in the models' own post-processing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base import VerifierError, freeze, module_device
from ..pictures import to_pictures
from .geneval import Found

QUERY = "a photo of a {}"
FLOOR = 0.02  # boxes below this are nothing to anybody
OWL = ("owlv2", "owlvit")
DINO = ("grounding-dino", "mm-grounding-dino")
_QUERY_TOKENS = 16


class Detector(nn.Module):
    """Model and processor behind a plain module, whose ``device`` a host may set.

    Args:
        model: of ``AutoModelForZeroShotObjectDetection``, of a kind in ``OWL`` or ``DINO``.
        processor: of ``AutoProcessor``.

    Raises:
        VerifierError: another kind.
    """

    def __init__(self, model: nn.Module, processor: Any):
        super().__init__()
        self.kind = getattr(model.config, "model_type", "")
        if self.kind not in OWL + DINO:
            raise VerifierError(f"the detector is a {self.kind!r}: choose one of {', '.join(OWL + DINO)}")
        self.model, self.processor = freeze(model), processor

    def forward(self, pixels: Tensor, names: Sequence[str]) -> list[dict[str, Found]]:
        """Boxes per name, in every one of ``pixels`` uint8 ``[n, H, W, 3]``, highest score first."""
        logits, boxes = self._owl(pixels, names) if self.kind in OWL else self._dino(pixels, names)
        best, label = logits.float().cpu().max(-1)  # [n, boxes]; probabilities of 1 could not tell names apart
        best, boxes = best.sigmoid(), boxes.float().cpu()
        results = []
        for row in range(len(pixels)):
            found = {}
            for index, name in enumerate(names):
                mine = (label[row] == index) & (best[row] > FLOOR)
                order = best[row][mine].argsort(descending=True, stable=True)
                found[name] = Found(boxes[row][mine][order], best[row][mine][order])
            results.append(found)
        return results

    def _owl(self, pixels: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(logits ``[n, patches, names]``, boxes ``[n, patches, 4]`` in pixels)."""
        words = self.processor.tokenizer(
            [QUERY.format(name) for name in names],
            padding="max_length", max_length=_QUERY_TOKENS, truncation=True, return_tensors="pt",
        )  # fmt: skip
        n, height, width = len(pixels), *pixels.shape[1:3]
        output = self.model(
            input_ids=self._here(words["input_ids"]).repeat(n, 1),
            attention_mask=self._here(words["attention_mask"]).repeat(n, 1),
            pixel_values=self._pixels(pixels)["pixel_values"],
        )
        # OWLv2 sees the picture in the corner of a square, OWL-ViT stretches it
        size = (max(height, width),) * 2 if self.kind == "owlv2" else (width, height)
        return output.logits, corners(output.pred_boxes, size)

    def _dino(self, pixels: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As ``_owl``; a name's score is that of its best token, phrases are never compared as strings."""
        caption, spans = sentence(names)
        words = self.processor.tokenizer(caption, return_offsets_mapping=True, truncation=True, return_tensors="pt")
        offsets = words.pop("offset_mapping")[0].tolist()
        n, height, width = len(pixels), *pixels.shape[1:3]
        text = {key: self._here(value).repeat(n, 1) for key, value in words.items()}
        seen = self._pixels(pixels)
        output = self.model(**text, **seen)
        columns = []
        for (start, end), name in zip(spans, names, strict=True):
            tokens = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
            if not tokens:
                raise VerifierError(f"there are too many objects for the detector to read: {name!r} is cut off")
            columns.append(output.logits[..., tokens].amax(-1))
        return torch.stack(columns, -1), corners(output.pred_boxes, (width, height))

    def _pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        dtype = next(self.model.parameters()).dtype
        made = self.processor.image_processor(images=to_pictures(pixels), return_tensors="pt")
        return {
            key: self._here(value).to(dtype) if value.is_floating_point() else self._here(value)
            for key, value in made.items()
        }

    def _here(self, value: Tensor) -> Tensor:
        return value.to(module_device(self.model))


def sentence(names: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """("dog. red car.", where each name begins and ends in it): how Grounding DINO is asked."""
    caption, spans = "", []
    for name in names:
        spans.append((len(caption), len(caption) + len(name)))
        caption += f"{name.lower()}. "
    return caption.strip(), spans


def corners(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(centre x, centre y, width, height) in 0..1 -> (left, top, right, bottom) in pixels of (width, height)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    scale = torch.tensor([*size, *size], dtype=torch.float32, device=boxes.device)
    return torch.cat([centre - half, centre + half], -1).float() * scale


def load_detector(folder: str | Path) -> Detector:
    """A detector from a local Hugging Face folder, in float32. Nothing is downloaded.

    Args:
        folder: e.g. of ``google/owlv2-base-patch16-ensemble`` or ``IDEA-Research/grounding-dino-base``.

    Raises:
        VerifierError: no detector there, or one of another kind.
    """
    folder = Path(folder)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    except (OSError, ValueError) as error:
        raise VerifierError(
            f"folder {folder} has no readable config.json ({error}): an open-vocabulary detector must be there, e.g. "
            f'`hf download google/owlv2-base-patch16-ensemble --local-dir "{folder}"`'
        ) from error
    if kind not in OWL + DINO:
        raise VerifierError(f"the model in {folder} is a {kind!r}: choose one of {', '.join(OWL + DINO)}")
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    try:
        with torch.no_grad():
            kind = AutoModelForZeroShotObjectDetection
            model = kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).float()
        processor = AutoProcessor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise VerifierError(f"the detector in {folder} cannot be loaded: {error}") from error
    return Detector(model, processor)
