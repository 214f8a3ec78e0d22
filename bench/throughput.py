"""Images per second that a verifier judges, in batches and one by one.

    python -m testtime.bench.throughput [--verifier NAME[:KEY=VALUE,...]] [--batch 32] [--device cuda]

Without ``--verifier`` the two embedded ones are measured. Every image is different, so that nothing is found again.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..verifiers.named import make_verifiers
from ..verifiers.precision import set_precision
from .provenance import origin, write_json

log = logging.getLogger("testtime")
EMBEDDED = ("shapes_clip", "shapes_preference")
PROMPT = "a red circle"


def images_per_second(judge: Any, images: Tensor, batch: int, repeats: int) -> float:
    """Median over ``repeats`` rounds, after one that does not count; every round shows new images."""
    rates = []
    for turn in range(repeats + 1):
        shown = (images + 1e-3 * turn) % 1.0
        _wait(images)
        start = time.perf_counter()
        with torch.no_grad():
            for first in range(0, len(shown), batch):
                judge.score(shown[first : first + batch], [PROMPT] * len(shown[first : first + batch]))
        _wait(images)
        rates.append(len(shown) / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def measure(judge: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One row: images per second at both batch sizes, and their ratio."""
    device = torch.device(options.device)
    module = getattr(judge, "module", None)
    if isinstance(module, nn.Module):
        module.to(device)
    if options.precision:
        set_precision(judge, options.precision)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(options.images, options.size, options.size, 3, generator=generator).to(device)
    one = images_per_second(judge, images, 1, options.repeats)
    many = images_per_second(judge, images, options.batch, options.repeats)
    return {
        "verifier": judge.name,
        "batch": options.batch,
        "images_per_second": round(many, 2),
        "images_per_second_alone": round(one, 2),
        "speedup": round(many / one, 2),
        "precision": options.precision or "as stored",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="testtime bench throughput", description=__doc__.split("\n")[0])
    parser.add_argument("--verifier", action="append", metavar="NAME[:KEY=VALUE,...]")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=128, help="pixels per side of the images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = [measure(judge, options) for judge in make_verifiers(options.verifier or EMBEDDED).values()]
    for row in rows:
        log.info(
            "%s: %.1f images per second in batches of %d, %.1f one by one (x%.1f)",
            row["verifier"], row["images_per_second"], row["batch"], row["images_per_second_alone"], row["speedup"],
        )  # fmt: skip
    if options.out is not None:
        settings = {"device": options.device, "size": options.size, "images": options.images}
        write_json(options.out, origin(suite="throughput") | {"settings": settings, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
