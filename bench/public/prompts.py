"""The prompts of the public benchmarks, and how many images each asks for."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...installation.errors import BadInput

DATA = Path(__file__).with_name("data")
T2I_CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
GENEVAL_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
FORBIDDEN = '<>:"/\\|?*'


@dataclass(frozen=True)
class Prompt:
    """A prompt of a benchmark.

    Attributes:
        index: number within its benchmark (T2I-CompBench: within its category). text: as the file has it.
        task: group that scores are told for, "" where there are none. line: what else the file says of it.
    """

    index: int
    text: str
    task: str = ""
    line: Any = None


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark.

    Attributes:
        name: on the command line. title: as people call it. images: of each prompt.
        read: file or folder -> prompts. shipped: prompts that come with the pack, or None.
        official: address of the published evaluator. note: what to know before numbers are compared.
    """

    name: str
    title: str
    images: int
    read: Callable[[Path], list[Prompt]]
    shipped: Path | None
    official: str
    note: str


def read_geneval(path: Path) -> list[Prompt]:
    """GenEval's ``evaluation_metadata.jsonl``."""
    prompts = []
    for index, line in enumerate(_lines(path)):
        try:
            told = json.loads(line)
            prompts.append(Prompt(index, told["prompt"], told["tag"], told))
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"--prompts {path}: line {index + 1} is no line of GenEval's metadata") from None
    return prompts


def read_t2i(path: Path) -> list[Prompt]:
    """T2I-CompBench's folder of ``CATEGORY_val.txt``. The evaluators read the prompt from the file name."""
    prompts = []
    for category in T2I_CATEGORIES:
        for index, text in enumerate(_lines(path / f"{category}_val.txt")):
            if "_" in text or "/" in text or len(f"{text}_000000.png".encode()) > 255:
                raise BadInput(f"{path}: prompt {text[:60]!r} of {category} cannot be a file name of T2I-CompBench")
            prompts.append(Prompt(index, text, category))
    return prompts


def read_lines(path: Path) -> list[Prompt]:
    """A text file, a prompt per line."""
    return [Prompt(index, text) for index, text in enumerate(_lines(path))]


def read_genai(path: Path) -> list[Prompt]:
    """GenAI-Bench's ``genai_image.json`` (id -> {"id", "prompt"}), or a prompt per line."""
    if path.suffix.lower() != ".json":
        return read_lines(path)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        items = sorted(told.items(), key=lambda item: int(item[0]))
        return [Prompt(index, str(entry["prompt"])) for index, (_, entry) in enumerate(items)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"--prompts {path}: expected GenAI-Bench's genai_image.json ({error})") from None


def read_coco(path: Path) -> list[Prompt]:
    """COCO's ``captions_val2014.json``, the first caption of every image in the order of its id; or a line each."""
    if path.suffix.lower() != ".json":
        return read_lines(path)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        first: dict[int, tuple[int, str]] = {}
        for entry in told:
            image, key = int(entry["image_id"]), int(entry["id"])
            if image not in first or key < first[image][0]:
                first[image] = (key, " ".join(str(entry["caption"]).split()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"--prompts {path}: expected COCO's captions_val2014.json ({error})") from None
    return [Prompt(k, first[image][1], "", {"image_id": image}) for k, image in enumerate(sorted(first))]


def read_drawbench(path: Path) -> list[Prompt]:
    """DrawBench's CSV (columns Prompts, Category), or a prompt per line."""
    if path.suffix.lower() != ".csv":
        return read_lines(path)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [Prompt(k, row["Prompts"].strip(), row.get("Category", "")) for k, row in enumerate(rows)]
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise BadInput(f"--prompts {path}: expected DrawBench's CSV with a column Prompts ({error})") from None


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--prompts {path}: cannot be read ({error})") from None
    return [line for line in lines if line]


def first_per_task(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """The first ``limit`` prompts of each task, all where it is None."""
    seen: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        seen[prompt.task] = seen.get(prompt.task, 0) + 1
        if limit is None or seen[prompt.task] <= limit:
            kept.append(prompt)
    return kept


BENCHMARKS = {
    made.name: made
    for made in (
        Benchmark(
            "geneval", "GenEval", 4, read_geneval, DATA / "geneval_metadata.jsonl",
            "https://github.com/djghosh13/geneval",
            "Overall is the mean of the six tasks. TTS-VAR scored another prompt file: 559 prompts, not these 553.",
        ),
        Benchmark(
            "t2i-compbench", "T2I-CompBench", 10, read_t2i, DATA / "t2i_compbench",
            "https://github.com/Karine-Huang/T2I-CompBench",
            "3-in-1 also needs complex_val_spatial.txt and complex_val_action.txt of the official repository.",
        ),
        Benchmark(
            "coco", "COCO", 1, read_coco, None, "https://github.com/GaParmar/clean-fid",
            "The reference set and its crop decide more than the method; below 10,000 images report KID as well.",
        ),
        Benchmark(
            "genai", "GenAI-Bench", 1, read_genai, None, "https://github.com/linzhiqiu/t2v_metrics",
            "Pictures are JPEGs of Pillow's quality 75, as published ones were.",
        ),
        Benchmark(
            "drawbench", "DrawBench", 4, read_drawbench, None, "https://imagen.research.google/",
            "Judged by ImageReward and HPSv2.1, for example with testtime score.",
        ),
    )
}  # fmt: skip
