"""Build ``build/official``: the packages that published the verifiers, in an environment of their own.

    python tools/official_environment.py

``testtime bench parity`` calls their functions there. Their pins contradict each other and every current installation,
so they are installed without them, on one set of versions that all of them run on. Needs about 6 GB, no GPU and no
weights; a second call checks and does nothing. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "official"
PYTHON = PLACE / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = PLACE / "installed"

PUBLISHED = [
    "hpsv2==1.2.0", "image-reward==1.5", "t2v-metrics==3.0", "simple-aesthetics-predictor==0.1.2",
    "aesthetic-predictor-v2-5==2024.12.18.1", "open_clip_torch==3.3.0", "clip-anytorch==2.6.0", "fairscale==0.4.13",
]  # fmt: skip
"""Without their dependencies."""
BASE = ["torch", "torchvision"]
NEEDED = [
    "transformers==4.49.0", "timm==1.0.31", "setuptools<81", "scikit-image", "scikit-learn", "ftfy", "regex", "clint",
    "pandas", "requests", "tqdm", "sentencepiece", "safetensors", "einops",
]  # fmt: skip
"""What they import. The last transformers that all of them run on, and a setuptools that still has pkg_resources."""


def pip(*arguments: str) -> None:
    """Install into the environment; ends the program where that fails."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command).returncode:
        sys.exit(f"pip could not install {' '.join(arguments)}")


def repair() -> None:
    """Put CLIP's vocabulary where hpsv2 looks for it: its wheel was built without the file."""
    code = "import importlib.util as u; print(*u.find_spec('{}').submodule_search_locations)"
    places = [
        Path(subprocess.check_output([str(PYTHON), "-c", code.format(name)], text=True).strip())
        for name in ("open_clip", "hpsv2")
    ]
    name = "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(places[0] / name, places[1] / "src" / "open_clip" / name)


def main() -> None:
    """Build what is missing and say which interpreter it is."""
    wanted = "\n".join([*BASE, *PUBLISHED, *NEEDED])
    if not (STAMP.is_file() and STAMP.read_text() == wanted):
        venv.create(PLACE, with_pip=True)
        pip(*BASE)
        pip("--no-deps", *PUBLISHED)
        pip(*NEEDED)
        repair()
        STAMP.write_text(wanted)
    print(PYTHON)


if __name__ == "__main__":
    main()
