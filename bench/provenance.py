"""Where a result comes from (machine, commit), how its seconds are counted, and how its file is written."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import time
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..installation.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def clock() -> float:
    """Seconds: of processor time where one thread does all the work, so that other programs do not count."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def machine() -> str:
    """CPU or GPU, threads and torch version in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


@cache
def commit() -> str:
    """Short commit of the code, with "-dirty" where Python files differ from it; "unknown" outside a checkout.

    Asked once per process, because the code that runs is the one that was loaded.
    """
    git = ["git", "-C", str(ROOT)]
    try:
        shown = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], capture_output=True).returncode == 1
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return shown.stdout.strip() + ("-dirty" if changed else "")


def module_of_tests(path: str) -> ModuleType:
    """A module of ``tests/``, which is only there in a checkout. FileNotFoundError names it where it is not."""
    file = ROOT / "tests" / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not file.exists() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"{file} is missing: this benchmark runs from a checkout of the repository")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def origin(**about: Any) -> dict[str, Any]:
    """The head of every results file: ``about`` and then commit and machine."""
    return {**about, "commit": commit(), "machine": machine()}


def write_json(path: Path, body: Any) -> None:
    """Write a results file so that it is there whole or as it was before, never in part."""
    write_text(path, json.dumps(body, indent=1) + "\n")
