"""``testtime demo``: one prompt from each of the six Shapes World tasks, two models, every method, one page.

Runs through a headless ComfyUI where one is found and through the library where none is; both use the same embedded
models, seeds and settings, and the page says which one it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..installation.errors import CommandError
from ..installation.files import replacing, write_text
from ..installation.locate import MINIMUM_VERSION, explain_missing, find_comfyui

if TYPE_CHECKING:
    from ..shapes_world.captions import Prompt
    from .backends import Backend
    from .sections import About, Entry

logger = logging.getLogger("testtime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``testtime demo``."""
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the page (default: out/demo)")
    parser.add_argument("--library", action="store_true", help="do not use ComfyUI even if there is one")
    parser.add_argument("--server", metavar="URL", help="use this running ComfyUI")
    parser.add_argument("--budget", type=int, default=8, help="forward passes as a multiple of plain sampling")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and noise")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["diffusion", "var"],
        choices=["diffusion", "var"],
        help="models on the page; diffusion is always there (default: both)",
    )


def open_backend(options: argparse.Namespace) -> Backend:
    """The backend to use, as a context manager, by what is asked for and what is there."""
    from ..models.tiny.loading import WeightsError
    from .backends import LibraryBackend, Settings

    settings = Settings(budget=options.budget, steps=options.steps, seed=options.seed)
    reason = None if options.library or options.server else why_no_comfyui()
    if options.library or reason:
        if reason:
            logger.info("%s. The demo runs through the library instead.", reason.rstrip("."))
        try:
            return LibraryBackend(settings)
        except (WeightsError, FileNotFoundError) as error:
            raise CommandError(str(error)) from error
    from .comfy import ComfyBackend

    return ComfyBackend(settings, options.server)


def why_no_comfyui() -> str | None:
    """Why the demo cannot run through a ComfyUI, None if it can."""
    found = find_comfyui()
    if found is None:
        return explain_missing()
    if not found.supported:
        needed = ".".join(map(str, MINIMUM_VERSION))
        return f"ComfyUI {found.version or 'of unknown version'} in {found.root} is older than {needed}"
    return None


def machine() -> str:
    """The processor or graphics card in a few words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def main(options: argparse.Namespace) -> int:
    """Run everything, write ``index.html``, print its path; returns the exit status."""
    from ..shapes_world.captions import sample_prompt
    from ..shapes_world.scene import TASKS
    from .page import render
    from .sections import About

    if options.budget < 2 or options.steps < 2:
        raise CommandError(f"--budget {options.budget} --steps {options.steps}: both must be at least 2")
    started = time.perf_counter()
    prompts = [sample_prompt(options.seed, task) for task in TASKS]
    with open_backend(options) as backend:
        logger.info("Demo through %s", backend.where)
        entries = run_all(backend, prompts, options.models)
        about = About(
            where=backend.where,
            budget=options.budget,
            steps=options.steps,
            seed=options.seed,
            machine=machine(),
            seconds=time.perf_counter() - started,
            verifier=backend.verifier,
            held_out=backend.held_out,
        )
    save(entries, about, options.out)
    page = options.out / "index.html"
    write_text(page, render(entries, about))
    sys.stdout.write(f"{page.resolve()}\n")
    return 0


def run_all(backend: Backend, prompts: Sequence[Prompt], models: Sequence[str]) -> list[Entry]:
    """Every method of the page's parts about ``models`` on every prompt, judged, with one progress bar.

    The first part is always there: the page's headline is about it.
    """
    from ..reports.names import method_name
    from .backends import judge
    from .sections import SECTIONS

    parts = [part for part in SECTIONS if part is SECTIONS[0] or part.model in models]
    work = [(part.model, prompt, method) for part in parts for prompt in prompts for method in part.methods]
    entries = []
    with tqdm(work, unit="image", file=sys.stderr) as bar:
        for model, prompt, method in bar:
            bar.set_description(f"{method_name(method)}: {prompt.text}"[:60])
            entry = backend.run(method, prompt, model)
            entries.append(replace(entry, correct=judge(entry.image, prompt)))
    return entries


def save(entries: Sequence[Entry], about: About, folder: Path) -> None:
    """Everything that is on the page as files: ``results.json``, ``images/`` and ``traces/``."""
    from PIL import Image

    rows = []
    for entry in entries:
        image, trace = folder / "images" / f"{entry.name}.png", folder / "traces" / f"{entry.name}.json"
        for path in (image, trace):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(image) as partial:
            Image.fromarray(entry.image).save(partial)
        write_text(trace, entry.trace.to_json())
        rows.append(
            {
                "model": entry.model,
                "method": entry.method,
                "prompt": entry.prompt.to_dict(),
                "image": image.relative_to(folder).as_posix(),
                "trace": trace.relative_to(folder).as_posix(),
                **{
                    name: getattr(entry, name)
                    for name in ("score", "held_out", "correct", "nfe", "backward", "seconds")
                },
                "flops": entry.flops or None,  # null: not counted
            }
        )
    text = json.dumps({"about": asdict(about), "entries": rows}, indent=1)
    write_text(folder / "results.json", text + "\n")
