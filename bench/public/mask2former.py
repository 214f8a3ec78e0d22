"""Boxes from transformers' Mask2Former, as mmdet's fusion head makes them for GenEval.

transformers' own post-processing is another one: it resizes masks to 384 x 384, drops overlaps and gives no boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...installation.errors import BadInput
from ...verifiers.objects.geneval import Found

MOST = 100
SHORTEST, LONGEST, DIVISOR = 800, 1333, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepared(pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """(``[1, 3, h, w]`` as the network takes it, (h, w) before padding) of uint8 ``[H, W, 3]``."""
    height, width = pixels.shape[:2]
    factor = min(SHORTEST / min(height, width), LONGEST / max(height, width))
    size = (int(height * factor + 0.5), int(width * factor + 0.5))
    image = pixels.movedim(-1, 0)[None].float() / 255
    image = torch.nn.functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
    image = (image - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    pad = [(-side) % DIVISOR for side in size]
    return torch.nn.functional.pad(image, (0, pad[1], 0, pad[0])), size


def instances(
    classes: Tensor, masks: Tensor, padded: tuple[int, int], inner: tuple[int, int], original: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """(class ``[m]``, boxes ``[m, 4]`` in pixels of the picture, scores ``[m]``) of one picture.

    Args:
        classes: logits ``[Q, C + 1]``, the last one for nothing. masks: logits ``[Q, h, w]``.
        padded, inner, original: (height, width) of the network's input, of the picture in it, and of the picture.
    """
    masks = torch.nn.functional.interpolate(masks[None], size=padded, mode="bilinear", align_corners=False)
    masks = masks[..., : inner[0], : inner[1]]
    masks = torch.nn.functional.interpolate(masks, size=original, mode="bilinear", align_corners=False)[0]
    share = classes.softmax(-1)[:, :-1]
    kinds = share.shape[1]
    scores, flat = share.flatten().topk(min(MOST, share.numel()), sorted=False)
    query, kind = flat // kinds, flat % kinds
    inside = masks[query] > 0
    certain = (masks[query].sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    return kind, boxes_of(inside), scores * certain


def boxes_of(masks: Tensor) -> Tensor:
    """Boxes ``[m, 4]`` around bool ``[m, H, W]``; zeros for an empty mask."""
    boxes = torch.zeros(len(masks), 4)
    for row, mask in enumerate(masks):
        ys, xs = torch.nonzero(mask.any(1)).flatten(), torch.nonzero(mask.any(0)).flatten()
        if len(xs):
            boxes[row] = torch.tensor([int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1])
    return boxes


class Mask2Former:
    """``geneval.Detect`` by a model of transformers.

    Args:
        model: ``Mask2FormerForUniversalSegmentation`` for COCO's instances. names: of its classes, in order.
    """

    def __init__(self, model: Any, names: Sequence[str]):
        self.model, self.names = model.eval(), [" ".join(name.split("_")) for name in names]

    @torch.no_grad()
    def __call__(self, pixels: Tensor, names: Sequence[str]) -> dict[str, Found]:
        """Boxes of the named classes, highest score first."""
        image, inner = prepared(pixels)
        device = next(self.model.parameters()).device
        seen = self.model(pixel_values=image.to(device))
        kind, boxes, scores = instances(
            seen.class_queries_logits[0].float().cpu(),
            seen.masks_queries_logits[0].float().cpu(),
            tuple(image.shape[-2:]),
            inner,
            tuple(pixels.shape[:2]),
        )
        found = {}
        for name in names:
            if name not in self.names:
                raise BadInput(f"the detector knows no {name!r}: it must be one of COCO's 80 classes")
            mine = kind == self.names.index(name)
            order = scores[mine].argsort(descending=True, stable=True)
            found[name] = Found(boxes[mine][order], scores[mine][order])
        return found


def load_mask2former(folder: Path) -> Mask2Former:
    """From a local Hugging Face folder, such as facebook/mask2former-swin-small-coco-instance. Raises BadInput."""
    from transformers import Mask2FormerForUniversalSegmentation as Network

    if not (folder / "config.json").is_file():
        raise BadInput(
            f"--detector {folder} has no config.json: a Mask2Former must be there, e.g. of "
            f"facebook/mask2former-swin-small-coco-instance"
        )
    try:
        model = Network.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"--detector {folder}: {error}") from error
    labels = model.config.id2label
    return Mask2Former(
        model.to("cuda" if torch.cuda.is_available() else "cpu"), [labels[k] for k in sorted(labels, key=int)]
    )
