"""Pictures of the example workflows for ComfyUI's template browser, made from what the workflows really give."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from testtime.cli.main import main as testtime
from testtime.reports.canvas import DARK, Canvas

SIDE, LARGEST = 512, 40_000
BACKGROUND = (24, 26, 31)
TREE = (24, 92, 24, 708)
"""Left, top, right margin and bottom of the charts in a search report, in pixels."""


def write(picture: Image.Image, target: Path) -> None:
    """Save as JPEG of at most ``LARGEST`` bytes."""
    for quality in (90, 85, 80, 70, 60):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= LARGEST:
            break
    target.write_bytes(buffer.getvalue())


def thumbnail(workflow: Path, url: str, target: Path) -> None:
    """Run an API-format workflow on the server at ``url`` and make its picture. Raises SystemExit when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        if testtime(["run", str(workflow), "--server", url, "--out", folder, "--quiet"]) != 0:
            raise SystemExit(f"{workflow} failed: no picture made")
        saved = {path.name: Image.open(path).convert("RGB") for path in sorted(Path(folder).glob("*.png"))}
    reports = [image for name, image in saved.items() if "report" in name]
    images = [image for name, image in saved.items() if "report" not in name and "temp" not in name]
    write(with_report(images[0], reports[0]) if reports else mosaic(images), target)


def with_report(best: Image.Image, report: Image.Image) -> Image.Image:
    """The best image over the charts of the search."""
    picture = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    left, top, right, bottom = TREE
    charts = report.crop((left, top, report.width - right, bottom))
    height = SIDE * charts.height // charts.width
    picture.paste(charts.resize((SIDE, height), Image.Resampling.LANCZOS), (0, SIDE - height))
    side = SIDE - height - 24
    picture.paste(best.resize((side, side), Image.Resampling.LANCZOS), ((SIDE - side) // 2, 12))
    return picture


def mosaic(images: list[Image.Image]) -> Image.Image:
    """One image, two side by side, or four of more."""
    picture = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    gap = 8
    if len(images) == 1:
        places = [(0, 0, SIDE)]
    else:
        side = (SIDE - gap) // 2
        tops = [(SIDE - side) // 2] if len(images) < 4 else [0, side + gap]
        places = [(left, top, side) for top in tops for left in (0, side + gap)]
    for image, (left, top, side) in zip(images, places, strict=False):
        picture.paste(image.resize((side, side), Image.Resampling.LANCZOS), (left, top))
    return picture


def card(name: str, target: Path) -> None:
    """A title card, for a workflow whose checkpoint is not at hand."""
    family, _, method = name.partition("_")
    canvas = Canvas(SIDE, SIDE, DARK)
    canvas.panel((24, 24, SIDE - 24, SIDE - 24), 16)
    canvas.text((SIDE // 2, 225), {"sd15": "SD 1.5", "sdxl": "SDXL"}.get(family, family), 64, DARK.accent, "mm")
    titles = {"best_of_n": "Best-of-N", "svdd": "SVDD", "fk_steering": "FK Steering"}
    canvas.text((SIDE // 2, 305), titles.get(method, method), 34, anchor="mm")
    write(Image.fromarray(canvas.finish()), target)
