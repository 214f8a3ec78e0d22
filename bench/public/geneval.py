"""Our own evaluator of GenEval: the official rules over a Mask2Former of transformers, and the official results file.

Detections differ a little from those of the official mmdet checkpoint, so its numbers are called "own evaluator" and do
not stand beside published ones. The file of results is that of the official script, so its summary reads it, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...installation.errors import BadInput
from ...installation.files import write_text
from ...verifiers.objects.geneval import OFFICIAL, Colours, Found, strict, thin_out
from ...verifiers.objects.requirements import from_geneval

Detect = Callable[[Tensor, Sequence[str]], dict[str, Found]]
"""``(pixels uint8 [H, W, 3], names) -> boxes per name``."""
TellColours = Callable[[Tensor], Colours]
"""``pixels -> (name, boxes [m, 4]) -> probabilities [m, 10]``."""
_PICTURE = re.compile(r"\d+\.png")


def evaluate_folder(folder: Path, detect: Detect, colours: TellColours | None = None) -> list[dict[str, Any]]:
    """Verdicts of all pictures of a GenEval folder, as lines of the official results.

    Raises:
        BadInput: a folder without pictures, or one that lacks its metadata.
    """
    results = []
    for sub in sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()):
        try:
            metadata = json.loads((sub / "metadata.jsonl").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"{sub} has no readable metadata.jsonl ({error})") from None
        pictures = sorted(path for path in (sub / "samples").iterdir() if _PICTURE.match(path.name))
        results.extend(evaluate_picture(path, metadata, detect, colours) for path in pictures)
    if not results:
        raise BadInput(f"{folder} has no pictures in GenEval's layout (00000/samples/00000.png)")
    return results


def evaluate_picture(
    path: Path, metadata: dict[str, Any], detect: Detect, colours: TellColours | None = None
) -> dict[str, Any]:
    """One line of the results."""
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    wanted = from_geneval(metadata)
    found = {name: thin_out(boxes, OFFICIAL) for name, boxes in detect(pixels, wanted.names).items()}
    told = None if colours is None else colours(pixels)
    correct, reasons = strict(wanted, found, told, OFFICIAL)
    boxes = {
        name: torch.cat([each.boxes, each.scores[:, None]], 1).tolist()
        for name, each in found.items()
        if len(each.scores)
    }
    return {
        "filename": str(path),
        "tag": metadata["tag"],
        "prompt": metadata["prompt"],
        "correct": correct,
        "reason": "\n".join(reasons),
        "metadata": json.dumps(metadata),
        "details": json.dumps(boxes),
    }


def write_results(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """The official ``results.jsonl``."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in results))


def read_results(path: Path) -> list[dict[str, Any]]:
    """Lines of a ``results.jsonl``, ours or the official script's. Raises BadInput."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [{**line, "correct": bool(line["correct"]), "tag": str(line["tag"])} for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no results.jsonl of GenEval ({error})") from None


def summary(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of correct images per task, and their mean as "overall"."""
    tasks: dict[str, list[bool]] = {}
    for line in results:
        tasks.setdefault(line["tag"], []).append(line["correct"])
    shares = {tag: sum(verdicts) / len(verdicts) for tag, verdicts in tasks.items()}
    return {**shares, "overall": sum(shares.values()) / len(shares)}
