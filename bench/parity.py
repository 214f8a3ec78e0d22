"""How far the verifiers are from the official implementations, on small random models of the true architectures.

    python -m testtime.bench.parity [--check]

Writes ``bench/results/verifiers/verifier-parity.json`` and the table in ``docs/verifiers.md``. Three differences:

- preprocessing against the same algorithm on tensors (torchvision's antialiased resize), the largest of all pixels;
- preprocessing against the published Pillow pipeline, mean and largest in 255ths, at the published size;
- scores of the whole pipelines, on images that need no resizing and on images that do (where the other side rounds to
  8 bit and small random towers amplify it: trained ones are far smoother).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..installation.files import write_text
from . import parity_rows as rows_of
from . import reference_models as models
from .parity_rows import Row
from .tables import BLOCK, ROOT, markdown

log = logging.getLogger("testtime")
OUT = ROOT / "bench" / "results" / "verifiers" / "verifier-parity.json"
PAGE = ROOT / "docs" / "verifiers.md"
NAME = "verifier-parity"


def measure() -> list[Row]:
    """All rows. Takes about a minute on one core."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = models.clip_tokenizer(root / "clip")
        rows = [*rows_of.clip_rows(folder), rows_of.hps_row(folder), rows_of.image_reward_row(folder)]
        rows += [rows_of.v25_row(), rows_of.dino_row(), rows_of.vqa_row(root / "vlm")]
        return [*rows, rows_of.objects_row(root / "owl", folder), rows_of.jpeg_row()]


def table(rows: Sequence[dict]) -> str:
    """The rows as Markdown."""

    def cell(row: dict, key: str, form: str = ".0e") -> str:
        value = row.get(key)
        return "-" if value is None else "0" if value == 0 else format(value, form)

    head = ["verifier", "compared with", "preprocessing, same algorithm", "against Pillow, mean and max of 255"]
    head += ["score", "score after resizing", "spread of the scores"]
    lines = []
    for row in rows:
        pillow = "-" if row["pillow_max"] is None else f"{row['pillow_mean']:.2f} / {row['pillow_max']:.1f}"
        lines.append([f"`{row['verifier']}`", row["reference"], cell(row, "same"), pillow, cell(row, "score")])
        lines[-1] += [cell(row, "resized"), cell(row, "spread", ".2g")]
    return markdown(head, lines)


def filled(page: str, body: dict) -> str:
    """The page with the table written anew. ValueError: it has no block for it."""
    block = next((match for match in BLOCK.finditer(page) if match["name"] == NAME), None)
    if block is None:
        raise ValueError(f"there is no block <!-- bench:{NAME} --> in the page")
    versions = ", ".join(f"{name} {version}" for name, version in body["versions"].items())
    text = f"{table(body['rows'])}\n\nSmall random models in float32 on the CPU; {versions}.\n"
    return page[: block.start("body")] + text + page[block.end("body") :]


def versions() -> dict[str, str]:
    """Of the packages that the figures depend on."""
    return {name: importlib.metadata.version(name).split("+")[0]
            for name in ("torch", "torchvision", "transformers", "open_clip_torch", "pillow")}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; exit code 1: the table in the docs is not that of the results (with --check)."""
    parser = argparse.ArgumentParser(prog="testtime bench parity", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="measure nothing, compare the docs with the results")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.check:
        page = PAGE.read_text(encoding="utf-8")
        return int(filled(page, json.loads(options.out.read_text(encoding="utf-8"))) != page)
    body = {"versions": versions(), "rows": [asdict(row) for row in measure()]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(body, indent=1) + "\n")
    log.info("%s", table(body["rows"]))
    if options.out == OUT:
        write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), body))
    return 0


if __name__ == "__main__":
    sys.exit(main())
