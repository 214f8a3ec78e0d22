"""Pictures of a batch in the folders that the published evaluators read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...installation.errors import BadInput
from ...installation.files import replacing, write_text
from .prompts import FORBIDDEN, Benchmark, Prompt

JPEG_QUALITY = 75
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def place_of(benchmark: Benchmark, prompt: Prompt, image: int) -> str:
    """Where a picture goes, below the folder that the evaluator is given."""
    if benchmark.name == "t2i-compbench":
        name = f"{prompt.text}_{benchmark.images * prompt.index + image:06d}.png"
        if os.name == "nt" and any(sign in name for sign in FORBIDDEN):
            raise BadInput(f"{name!r} cannot be a file name on Windows: run this benchmark elsewhere")
        return f"{prompt.task}/samples/{name}"
    if benchmark.name == "genai":
        return f"{prompt.index:05d}.jpeg"
    if benchmark.name == "coco":
        return f"{prompt.line['image_id'] if prompt.line else prompt.index:012d}.png"
    return f"{prompt.index:05d}/samples/{image:05d}.png"


def place(benchmark: Benchmark, prompt: Prompt, image: int, source: Path, folder: Path) -> Path:
    """Put a picture where it belongs, unless it is there already; its path."""
    target = folder / place_of(benchmark, prompt, image)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        if target.suffix == source.suffix:
            _link(source, target)
        else:
            with Image.open(source) as picture, replacing(target) as partial:
                options = {"quality": JPEG_QUALITY} if target.suffix == ".jpeg" else {}
                picture.convert("RGB").save(partial, **options)
    if benchmark.name == "geneval":
        metadata = target.parents[1] / "metadata.jsonl"
        if not metadata.exists():
            write_text(metadata, json.dumps(prompt.line))
    return target


def picture_in(item: Path) -> Path | None:
    """The first picture of a row's folder."""
    found = sorted(path for path in item.rglob("*") if path.suffix.lower() in PICTURES)
    return found[0] if found else None


def check_complete(benchmark: Benchmark, prompts: Sequence[Prompt], folder: Path) -> int:
    """How many pictures are missing."""
    return sum(
        not (folder / place_of(benchmark, prompt, image)).is_file()
        for prompt in prompts
        for image in range(benchmark.images)
    )


def _link(source: Path, target: Path) -> None:
    """A second name for a file where the disk allows it, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as partial:
            shutil.copyfile(source, partial)
