"""Pictures of the example workflows for ComfyUI's template browser, made from what the workflows really give."""

from __future__ import annotations

import io
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from PIL import Image

from testtime.cli.main import main as testtime
from testtime.reports.canvas import DARK, Canvas
from testtime.reports.tree import draw_tree
from testtime.samplers.run.trace import Trace

SIDE, LARGEST = 512, 40_000
BEST, EDGE = 300, 14
REPORT, SAVE_SEARCH = "Search Report", "TestTimeSaveSearch"


def write(picture: Image.Image, target: Path) -> None:
    """Save as JPEG of at most ``LARGEST`` bytes."""
    for quality in (92, 85, 80, 70, 60):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= LARGEST:
            break
    target.write_bytes(buffer.getvalue())


def thumbnail(workflow: Path, url: str, target: Path) -> None:
    """Run an API-format workflow on the server at ``url`` and make its picture. Raises SystemExit when it fails."""
    text = workflow.read_text(encoding="utf-8")
    reported = f'"{REPORT}"' in text
    changes = ["--set", f"{REPORT}.save=picture and trace"] if reported else []
    with tempfile.TemporaryDirectory() as folder:
        command = ["run", str(workflow), "--server", url, "--out", folder, "--quiet", *changes]
        if testtime(command) != 0:
            raise SystemExit(f"{workflow} failed: no picture made")
        saved = {path.name: Image.open(path).convert("RGB") for path in sorted(Path(folder).glob("*.png"))}
    images = [image for name, image in saved.items() if "report" not in name and "temp" not in name]
    if reported or (f'"{SAVE_SEARCH}"' in text and len(images) == 1):
        traced = next(name for name in saved if not reported or "report" in name)  # the trace lies beside it
        query = urllib.parse.urlencode({"filename": Path(traced).with_suffix(".json").name, "type": "output"})
        with urllib.request.urlopen(f"{url}/view?{query}", timeout=60) as response:
            trace = Trace.from_json(response.read().decode())
        write(with_tree(images[0], trace), target)
    else:
        write(mosaic(images), target)


def with_tree(best: Image.Image, trace: Trace) -> Image.Image:
    """The best image over the family tree of the search."""
    canvas = Canvas(SIDE, SIDE, DARK)
    top = BEST + 2 * EDGE
    canvas.panel((EDGE, top, SIDE - EDGE, SIDE - EDGE))
    draw_tree(canvas, trace, (2 * EDGE, top + 22, SIDE - 2 * EDGE, SIDE - EDGE - 8))
    picture = Image.fromarray(canvas.finish())
    picture.paste(best.resize((BEST, BEST), Image.Resampling.LANCZOS), ((SIDE - BEST) // 2, EDGE))
    return picture


def mosaic(images: list[Image.Image]) -> Image.Image:
    """One image, two side by side, or four of more."""
    picture = Image.new("RGB", (SIDE, SIDE), DARK.background)
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


def card(model: str, method: str, target: Path) -> None:
    """A title card, for a workflow whose checkpoint is not at hand."""
    canvas = Canvas(SIDE, SIDE, DARK)
    canvas.panel((24, 24, SIDE - 24, SIDE - 24), 16)
    canvas.text((SIDE // 2, 225), model, 64 if len(model) < 12 else 50, DARK.accent, "mm")
    canvas.text((SIDE // 2, 305), method, 34 if len(method) < 24 else 28, anchor="mm")
    write(Image.fromarray(canvas.finish()), target)
