"""Write docs/models.md: which image models were searched, in which ComfyUI, with which methods.

    .venv/bin/python tools/build_models.py              # runs tests/host/test_zoo.py in every ComfyUI that is found
    .venv/bin/python tools/build_models.py FILE...      # of what runs with TESTTIME_ZOO=FILE have written down

Nothing is written unless every model that a ComfyUI knows was found as it should be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"

INTRODUCTION = """# Image models

<!-- written by tools/build_models.py from what tests/host/test_zoo.py found -->

Every image model that ComfyUI {hosts} has a class for was built small, with random weights, and searched
inside that ComfyUI. With one particle and eta 0 a search is the stock euler sampler: the numbers under the versions are
the largest difference between the two latents, as a share of their standard deviation. "-" means that this version does
not know the model.

For each of them also holds: the image of one particle is found again among two; one particle per model call gives what
all at once give; the scores that are told are those of the stock VAE's picture. Nothing is said here of what real
weights do.

"12" under methods stands for all but TTGen, which has tests of its own, and "3" for Best-of-N, SVDD and DAS: these
models differ from one with 12 in their network, not in what a search sees of it. *Gradient* is what DAS needs: without
one it searches without guidance and says so.

"""


FEATURES = """

## With what people put on them

One particle is the stock sampler, and the stock sampler's image is one of those that several particles end with:

{features}

Also

- areas and masks of prompts, a prompt per image, ControlNet with an image per image
- image to image and inpainting: {families}
- one and two reference images: {editors}
- split schedules, images picked from a batch, Differential Diffusion, and the guiders of SamplerCustomAdvanced
"""


def read(files: Iterable[Path]) -> tuple[dict[str, dict[str, Any]], dict[str, set[str]], list[str]]:
    """(what was found of each model by host, names of methods that ran by model, versions of hosts in order)."""
    found: dict[str, dict[str, Any]] = {}
    methods: dict[str, set[str]] = {}
    hosts: set[str] = set()
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            model, host = entry.pop("model"), entry.pop("host")
            hosts.add(host)
            if "given" in entry:
                continue
            if "method" in entry:
                methods.setdefault(model, set()).add(entry["method"])
            else:
                found.setdefault(model, {})[host] = entry
    return found, methods, sorted(hosts, key=lambda host: [int(part) for part in host.split(".")])


def page(
    found: dict[str, dict[str, Any]],
    methods: dict[str, set[str]],
    hosts: list[str],
    zoo: dict[str, Any],
    features: Iterable[str],
    editors: Iterable[str],
) -> str:
    """The Markdown of docs/models.md.

    Args:
        found, methods, hosts: see ``read``. zoo: all models by their short names.
        features: names of what was put on models. editors: short names of models that look at reference images.
    """
    head = ["model", "class in ComfyUI", *hosts, "methods", "gradient", "remarks"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    refused = []
    for kind, model in zoo.items():
        results = found.get(kind, {})
        if model.refusal:
            refused.append(f"| {model.title} | `{model.family}` | {model.refusal} |")
            continue
        gaps = [f"{results[host]['gap']:.0e}" if host in results else "-" for host in hosts]
        ran = str(len(methods.get(kind, "123")))  # the three of the first test
        gradient = "yes" if all(result["gradient"] for result in results.values()) else "no"
        remark = model.remark if gradient == "yes" else "; ".join(filter(None, [model.remark, _why(results)]))
        lines.append(f"| {model.title} | `{model.family}` | {' | '.join(gaps)} | {ran} | {gradient} | {remark} |")
    named = " and ".join(hosts)
    return (
        INTRODUCTION.format(hosts=named)
        + "\n".join(lines)
        + "\n\n## Refused\n\nBefore the first step, in these words:\n\n| model | class in ComfyUI | sentence |\n"
        + "| --- | --- | --- |\n"
        + "\n".join(refused)
        + FEATURES.format(
            features="\n".join(f"- {name}" for name in features),
            families="; ".join(model.title for kind, model in zoo.items() if kind in methods),
            editors="; ".join(zoo[kind].title for kind in editors),
        )
    )


def _why(results: dict[str, Any]) -> str:
    """The reason for a missing gradient, as the search told it."""
    told = next(result["warnings"][0] for result in results.values() if not result["gradient"])
    inside = told.partition("(")[2].partition(", but one")[0]
    return inside.partition(": ")[2].rstrip(" .") or told


def missing(found: dict[str, dict[str, Any]], hosts: list[str], zoo: dict[str, Any]) -> list[str]:
    """Models of the zoo that no host's run has written down."""
    return [kind for kind in zoo if not any(host in found.get(kind, {}) for host in hosts)]


def run_everywhere(folder: Path) -> list[Path]:
    """Run the zoo in every ComfyUI that can be tested; the files that were written."""
    from environment import PYTHON, host_environment, load_locate, python_of

    files = []
    for number, host in enumerate(load_locate().find_hosts()):
        python = python_of(host_environment(host)) if number else PYTHON
        files.append(folder / f"{number}.jsonl")
        environment = {**os.environ, "COMFYUI_PATH": str(host.root), "TESTTIME_ZOO": str(files[-1])}
        command = [str(python), "-m", "pytest", "-q", "tests/host/test_zoo.py"]
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            raise SystemExit(f"tests/host/test_zoo.py fails in ComfyUI {host.version}: docs/models.md stays as it is")
    return files


def main(arguments: list[str]) -> int:
    """Write the page; returns 0, or 1 where a model is missing."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
    from tests.host.test_features import FEATURES as ON_MODELS
    from tests.host.test_zoo import EDITORS
    from tests.host.zoo_models import ZOO

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(name) for name in arguments] or run_everywhere(Path(folder))
        found, methods, hosts = read(files)
    lost = missing(found, hosts, ZOO)
    if lost:
        print(f"no ComfyUI that was run knows {', '.join(lost)}: docs/models.md stays as it is")
        return 1
    PAGE.write_text(page(found, methods, hosts, ZOO, ON_MODELS, EDITORS), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
