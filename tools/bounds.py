"""Are the bounds in pyproject.toml true? ``python tools/bounds.py`` runs the fast tests at both ends of them.

Two environments are made in ``.cache/bounds``, with uv: the lowest versions that pyproject.toml allows of what it names
itself, and the newest of everything. In each the fast lane runs (no ComfyUI, no browser, nothing slow); the table in
CONTRIBUTING.md says what came out.

    python tools/bounds.py                 # both ends, and the table
    python tools/bounds.py --end lowest -- -k verifiers -x
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bounds"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- bounds: begin -->", "<!-- bounds: end -->"
ENDS = {"lowest": "lowest-direct", "newest": "highest"}
SHOWN = ("torch", "transformers", "numpy", "pillow", "safetensors", "scipy", "aiohttp", "diffusers")
FAST = "not slow and not docs and not host and not browser"


def python_of(venv: Path) -> Path:
    """The interpreter of an environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def uv() -> Path:
    """uv, in an environment of its own."""
    home = CACHE / "uv"
    if not python_of(home).exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(python_of(home)), "-m", "pip", "install", "--quiet", "uv"], check=True)
    return python_of(home).with_name("uv.exe" if os.name == "nt" else "uv")


def environment(end: str) -> tuple[Path, dict[str, str]]:
    """(interpreter, package -> version) of the environment at one end of the bounds, made or brought up to date."""
    venv, wanted = CACHE / end, CACHE / f"{end}.txt"
    if not python_of(venv).exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    compile_ = [
        str(uv()),
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--extra",
        "test",
        "--python",
        str(python_of(venv)),
    ]
    project = str(ROOT / "pyproject.toml")
    subprocess.run([*compile_, "--resolution", ENDS[end], project, "--output-file", str(wanted)], check=True)
    subprocess.run([str(uv()), "pip", "sync", "--quiet", "--python", str(python_of(venv)), str(wanted)], check=True)
    lines = wanted.read_text(encoding="utf-8").splitlines()
    return python_of(venv), dict(line.split("==") for line in lines if re.match(r"^[\w.-]+==\S+$", line))


def run_tests(python: Path, arguments: list[str]) -> str:
    """pytest's last line, such as "900 passed, 12 skipped"."""
    link = CACHE / "path" / "testtime"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    settings = {**os.environ, "PYTHONPATH": str(link.parent), "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", "pytest", "tests/unit", "-q", "-m", FAST, "-n", "2", "--dist", "loadfile", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, text=True)
    sys.stdout.write(done.stdout)
    summary = [line for line in done.stdout.splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    return (
        re.sub(r"\s+in [\d.]+s.*", "", summary[-1].strip("= ")) if summary else f"no result (status {done.returncode})"
    )


def table(rows: list[tuple[str, str, dict[str, str], str]]) -> str:
    """The table in CONTRIBUTING.md: an environment a line."""
    lines = ["| | Python | " + " | ".join(SHOWN) + " | fast tests |", "| --- " * (len(SHOWN) + 3) + "|"]
    for end, python, versions, result in rows:
        lines.append(
            f"| {end} | {python} | " + " | ".join(versions.get(name, "-") for name in SHOWN) + f" | {result} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Make the environments, run the tests, write the table; the exit status says whether all of them passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--end", choices=[*ENDS], action="append", help="one end only; the table is not written")
    parser.add_argument("arguments", nargs="*", help="for pytest, after --")
    options = parser.parse_args()
    rows = []
    for end in options.end or ENDS:
        python, versions = environment(end)
        version = subprocess.run([str(python), "-c", "import platform; print(platform.python_version())"],
                                 stdout=subprocess.PIPE, text=True, check=True).stdout.strip()  # fmt: skip
        rows.append((end, version, versions, run_tests(python, options.arguments)))
    sys.stdout.write(table(rows) + "\n")
    if not options.end and not options.arguments:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return int(any("failed" in result or "passed" not in result for *_, result in rows))


if __name__ == "__main__":
    sys.exit(main())
