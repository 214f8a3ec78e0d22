"""``testtime recover``: what is left of searches whose process was killed."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from ..installation.errors import BadInput
from ..installation.files import replacing, write_text
from ..installation.locate import find_comfyui
from ..samplers.after.recovery import Recovered, recover, unfinished
from ..samplers.after.trace_file import TraceFileError, to_text
from ..samplers.run.journal import FOLDER, LATENTS, SUFFIX

SHOWN = 60
"""Characters of a prompt in the list."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``testtime recover``."""
    parser.add_argument(
        "where",
        type=Path,
        nargs="?",
        help=f"a journal ({SUFFIX}), or a folder of them, which is listed (default: output/{FOLDER} of the ComfyUI "
        f"that is found)",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=None, help="folder for trace and latents (default: the journal's own)"
    )


def main(options: argparse.Namespace) -> int:
    """List the runs whose results nobody got, or write what a journal holds; returns the exit status."""
    where: Path = options.where or _default_folder()
    if where.is_dir():
        _list(where)
        return 0
    try:
        found = recover(where)
        written = _write(found, options.out or where.parent)
    except OSError as error:
        raise BadInput(f"{error.filename or where}: {error.strerror or error}") from error
    except TraceFileError as error:
        raise BadInput(f"{where}: {error}") from error
    sys.stderr.write(_told(found) + "\n")
    for file in written:
        sys.stdout.write(f"{file}\n")
    if written:
        sys.stderr.write(
            "In ComfyUI: Load Trace with the .json, then Continue Search goes on from its best particle and Replay "
            "Particle makes it again; Load Latent with the .latent shows it as it was.\n"
        )
    return 0


def _default_folder() -> Path:
    installation = find_comfyui()
    if installation is None:
        raise BadInput(
            f"where is missing: give a journal ({SUFFIX}), or the folder {FOLDER} of ComfyUI's output folder"
        )
    folder = installation.root / "output" / FOLDER
    if not folder.is_dir():
        raise BadInput(f"there is no {folder}: give a journal ({SUFFIX}) or the folder that they are in")
    return folder


def _list(folder: Path) -> None:
    runs = unfinished(folder)
    for run in runs:
        sys.stdout.write(f"{run.path}\n  {_told(run)}\n")
    if not runs:
        sys.stdout.write(f"no search in {folder} was cut off or not delivered\n")


def _told(run: Recovered) -> str:
    """A run in a line: when, which search, how far it came, its best scores, its prompt."""
    meta = run.trace.meta
    prompt = " ".join(str((meta.get("prompts") or [""])[0]).split())
    prompt = prompt if len(prompt) <= SHOWN else prompt[: SHOWN - 3] + "..."
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started))
    reached = f"{run.status} at step {run.step} of {run.steps}" if run.steps else f"{run.status} before its first step"
    scores = [entry["score"] for entry in run.trace.winners()]
    best = ", ".join("not judged" if score is None else f"{score:.4g}" for score in scores)
    return f"{began}, {meta.get('title', 'search')}, {reached}" + (f", best {best}" if best else "") + f': "{prompt}"'


def _write(run: Recovered, folder: Path) -> list[Path]:
    """The trace, and the latents where there are some; paths of what was written."""
    if not run.trace.records:
        return []
    trace = folder / f"{run.path.stem}.json"
    write_text(trace, to_text(run.trace))
    source, latents = run.path.with_suffix(LATENTS), folder / f"{run.path.stem}{LATENTS}"
    if run.latents is None:
        return [trace]
    if source.resolve() != latents.resolve():
        with replacing(latents) as partial:
            shutil.copyfile(source, partial)
    return [trace, latents]
