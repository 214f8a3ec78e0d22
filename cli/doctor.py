"""``testtime doctor``: what this installation consists of, and what is missing."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from .. import __version__
from ..installation.errors import EXIT_SERVER
from ..installation.locate import MINIMUM_VERSION, PACK_ROOT, explain_missing, find_comfyui, find_python


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``testtime doctor`` has no options."""


def library_lines() -> Iterator[tuple[bool, str]]:
    """(fine, text) for the library's own needs."""
    yield True, f"testtime {__version__} in {PACK_ROOT}"
    yield True, f"Python {platform.python_version()} ({sys.executable})"
    for name in ("torch", "transformers", "safetensors", "scipy", "PIL", "aiohttp"):
        if importlib.util.find_spec(name) is None:
            yield False, f"{name} is not installed"
    if importlib.util.find_spec("torch") is not None:
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
        yield True, f"PyTorch {torch.__version__}, {device}"
    weights = sorted((PACK_ROOT / "models" / "tiny").rglob("*.safetensors"))
    size = sum(path.stat().st_size for path in weights) / 2**20
    yield bool(weights), f"embedded models: {len(weights)} weight files, {size:.1f} MiB"


def comfyui_lines() -> Iterator[tuple[bool, str]]:
    """(fine, text) for ComfyUI."""
    installation = find_comfyui()
    if installation is None:
        yield False, explain_missing()
        return
    needed = ".".join(map(str, MINIMUM_VERSION))
    version = installation.version or "of unknown version"
    too_old = "" if installation.supported else f", older than {needed}"
    yield installation.supported, f"ComfyUI {version} in {installation.root} (by {installation.found_by}){too_old}"
    yield True, f"started with {find_python(installation.root)} (COMFYUI_PYTHON overrides)"


def weights_lines(comfyui: Path | None) -> Iterator[str]:
    """What is there of the weights that verifiers run on, and how to get the rest: none of them is needed."""
    from ..verifiers.weights import RELEASED, folders_of

    roots = folders_of(comfyui) if comfyui is not None else []
    yield f"weights of verifiers, looked for in {', '.join(map(str, [*roots, 'the Hugging Face cache']))}:"
    told: set[str] = set()
    for weights in RELEASED.values():
        if weights.entry in told:
            continue
        told.add(weights.entry)
        names = " and ".join(dict.fromkeys(w.name for w in RELEASED.values() if w.entry == weights.entry))
        place = weights.found(roots)
        if place is not None:
            yield f"  found    {names}: {place}"
        else:
            folder = roots[0] if roots else Path("models", "verifiers")
            yield f"  not here {names} ({weights.size}, {weights.licence}): {weights.how_to_get(folder)}"
    others = sorted({path.name for root in roots for path in _entries(root)} - told)
    if others:
        yield f"  also there, under names of your own: {', '.join(others[:20])}"


def _entries(folder: Path) -> list[Path]:
    """Folders with a model and weights files directly inside ``folder``."""
    endings = (".safetensors", ".pt", ".pth", ".bin")
    try:
        return [path for path in folder.iterdir() if path.suffix in endings or (path / "config.json").is_file()]
    except OSError:
        return []


def main(_: argparse.Namespace) -> int:
    """Print one line per finding; the exit status tells whether ComfyUI and everything that is needed is there."""
    fine = True
    for good, text in [*library_lines(), *comfyui_lines()]:
        sys.stdout.write(f"{'ok     ' if good else 'MISSING'} {text}\n")
        fine = fine and good
    installation = find_comfyui()
    for text in weights_lines(None if installation is None else installation.root):
        sys.stdout.write(f"{text}\n")
    return 0 if fine else EXIT_SERVER
