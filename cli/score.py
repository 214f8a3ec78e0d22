"""``testtime score DIR``: score the images of a folder with one or more verifiers, into a CSV file."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..installation.errors import EXIT_FAILED, BadInput
from ..verifiers.named import make_verifiers

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
FIXED = ("file", "prompt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``testtime score``."""
    parser.add_argument("folder", type=Path, help="folder of images; sub-folders are searched too")
    parser.add_argument(
        "--verifier",
        action="append",
        required=True,
        metavar="NAME[:KEY=VALUE,...]",
        help="a verifier and its options, e.g. clip_score:folder=models/verifiers/my-clip; may be repeated",
    )
    parser.add_argument("--prompt", default="", help="what all images should show")
    parser.add_argument("--prompts", type=Path, help="CSV file with columns 'file' and 'prompt' instead")
    parser.add_argument("--out", type=Path, help="CSV file to write and to resume from (DIR/scores.csv)")
    parser.add_argument("--batch", type=int, default=16, help="images per call, all of one size")


def find_images(folder: Path) -> list[Path]:
    """Image files below ``folder``, by name."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder: name one that holds images")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise BadInput(f"{folder} holds no image ({', '.join(sorted(ENDINGS))})")
    return found


def prompts_of(names: Sequence[str], options: argparse.Namespace, needed: bool) -> dict[str, str]:
    """Prompt of every image."""
    if options.prompts is None:
        if needed and not options.prompt.strip():
            raise BadInput("--prompt is empty: a verifier compares the images with their prompt")
        return dict.fromkeys(names, options.prompt)
    try:
        with open(options.prompts, newline="", encoding="utf-8") as file:
            listed = {row["file"]: row["prompt"] for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError) as error:
        raise BadInput(f"--prompts {options.prompts}: columns 'file' and 'prompt' are needed ({error})") from error
    missing = [name for name in names if not listed.get(name, "").strip()]
    if missing and needed:
        raise BadInput(f"--prompts {options.prompts} has no prompt for {missing[0]} ({len(missing)} such files)")
    return {name: listed.get(name, "") for name in names}


def finished(path: Path, columns: Sequence[str], prompts: dict[str, str]) -> set[str]:
    """Files that the CSV holds already, with these prompts. BadInput if it was made with other verifiers."""
    if not path.exists():
        return set()
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or []) != [*FIXED, *columns]:
            raise BadInput(
                f"{path} has the columns {', '.join(reader.fieldnames or ['none'])}, this run would write "
                f"{', '.join([*FIXED, *columns])}: choose another --out, or delete the file",
            )
        return {row["file"] for row in reader if prompts.get(row["file"]) == row["prompt"]}


def drop_half_a_line(path: Path) -> None:
    """Take off the row that a killed run did not finish: rows are appended, and every whole one ends with a newline."""
    try:
        with open(path, "rb+") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            while content.count(b'"', 0, end) % 2:  # that newline is part of a prompt
                end = content.rfind(b"\n", 0, end - 1) + 1
            file.truncate(end)
    except FileNotFoundError:
        pass


def batches(paths: Sequence[Path], size: int) -> Iterator[tuple[list[Path], Any]]:
    """Consecutive images of one size -> (paths, float ``[n, H, W, 3]``); unreadable ones alone, with their error."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    kept: list[Path] = []
    arrays: list[Any] = []

    def flush():
        if kept:
            yield list(kept), torch.from_numpy(np.stack(arrays)).float() / 255
            kept.clear()
            arrays.clear()

    for path in paths:
        try:
            with Image.open(path) as image:
                array = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            yield from flush()
            yield [path], error
            continue
        if arrays and (arrays[0].shape != array.shape or len(arrays) == size):
            yield from flush()
        kept.append(path)
        arrays.append(array)
    yield from flush()


def main(options: argparse.Namespace) -> int:
    """Score what is not in the file yet; every batch is written as soon as it is known."""
    import torch
    from tqdm import tqdm

    if options.batch < 1:
        raise BadInput(f"--batch is {options.batch}: at least 1 is needed")
    paths = {path.relative_to(options.folder).as_posix(): path for path in find_images(options.folder)}
    verifiers = make_verifiers(options.verifier)
    needed = any(getattr(verifier, "needs_prompt", True) for verifier in verifiers.values())
    prompts = prompts_of(list(paths), options, needed)
    out = options.out or options.folder / "scores.csv"
    done = finished(out, list(verifiers), prompts)
    names = {path: name for name, path in paths.items() if name not in done}
    drop_half_a_line(out)
    new, failed = not out.exists() or not out.stat().st_size, 0
    with open(out, "a", newline="", encoding="utf-8") as file, tqdm(total=len(paths), initial=len(done)) as bar:
        writer = csv.writer(file)
        if new:
            writer.writerow([*FIXED, *verifiers])
        for chosen, images in batches(list(names), options.batch):
            if isinstance(images, Exception):
                tqdm.write(f"{names[chosen[0]]} cannot be read: {images}", file=sys.stderr)
                failed += 1
            else:
                texts = [prompts[names[path]] for path in chosen]
                with torch.no_grad():
                    table = [verifier.score(images, texts).tolist() for verifier in verifiers.values()]
                for path, text, *scores in zip(chosen, texts, *table, strict=True):
                    writer.writerow([names[path], text, *(f"{score:.6g}" for score in scores)])
                file.flush()
            bar.update(len(chosen))
    sys.stdout.write(f"{len(paths) - failed} of {len(paths)} images scored in {out}\n")
    return EXIT_FAILED if failed else 0
