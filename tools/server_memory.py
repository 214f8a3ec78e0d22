"""Resident memory of one ComfyUI after 5, 25 and 100 searches, into docs/reliability.md.

    .venv/bin/python tools/server_memory.py

Starts a ComfyUI of its own and queues the SVDD workflow on the included models with another seed each time, so that
every search runs. Linux only: the figure is read from ``/proc``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- memory: begin -->", "<!-- memory: end -->"
RUNS = (1, 5, 25, 100)
STEPS = 6


def resident(process: int) -> float:
    """MB of memory that a process holds."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"nothing is known of process {process}")


def workflow(seed: int) -> dict:
    """SVDD on the included models, saved."""
    nodes = json.loads((ROOT / "workflows" / "api" / "svdd.json").read_text(encoding="utf-8"))
    for node in nodes.values():
        if node["class_type"] == "TestTimeSearchKSampler":
            node["inputs"].update(seed=seed, steps=STEPS)
    return nodes


def measured() -> dict[int, float]:
    """Runs so far -> MB."""
    from testtime.cli.main import main
    from testtime.installation.comfyui import HeadlessComfyUI, HeadlessOptions

    found: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder, HeadlessComfyUI(HeadlessOptions(only_this_pack=True)) as server:
        path = Path(folder, "workflow.json")
        for run in range(1, RUNS[-1] + 1):
            path.write_text(json.dumps(workflow(run)), encoding="utf-8")
            status = main(["run", str(path), "--server", server.url, "--out", folder])
            if status:
                raise RuntimeError(f"run {run} ended with status {status}")
            if run in RUNS:
                found[run] = resident(server.process.pid)
    return found


def main() -> int:
    """Measure and write."""
    found = measured()
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    table = "| searches in one server | resident memory |\n| --- | --- |\n"
    table += "".join(f"| {runs} | {size:.0f} MB |\n" for runs, size in found.items())
    note = f"SVDD with 4 candidates, {STEPS} steps, on the included diffusion model, on the CPU, everything saved.\n"
    PAGE.write_text(f"{text[:before]}\n{note}\n{table}\n{text[after:]}", encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
