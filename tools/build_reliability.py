"""Write the fault table of docs/reliability.md, by injecting every fault of ``tests/faults`` once.

.venv/bin/python tools/build_reliability.py            # takes about a minute
.venv/bin/python tools/build_reliability.py --check    # compare only; exit status 1 where something was lost
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
SAID = 150  # characters of a message in the table
HEAD = "| part | what it does | when | how often | search | ended | images lost | what is said |"


def rows() -> list[tuple]:
    """(fault's columns, how it ended, images lost, what was said) of every fault."""
    from tests.faults.injected import FAULTS, injected

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, fault in enumerate(FAULTS):
            outcome = injected(fault, Path(folder, str(number)))
            columns = (fault.part, fault.kind, fault.moment, fault.often, fault.search)
            found.append((*columns, outcome.ended, outcome.lost, outcome.headline))
        found += killed_rows(Path(folder, "killed"))
    return found


def killed_rows(folder: Path) -> list[tuple]:
    """The same of real processes that were killed with -9."""
    from tests.faults import killed
    from testtime.samplers.after.recovery import recover
    from testtime.samplers.run.journal import journals

    subprocess.run([sys.executable, killed.__file__, str(folder)], check=True)
    found = []
    for moment, steps in killed.MOMENTS.items():
        run = recover(journals(folder / moment)[0])
        had = len(killed.PROMPTS) if steps else 0
        lost = had - (0 if run.latents is None else len(run.latents))
        told = f"`testtime recover`: {run.status} at step {run.step} of {run.steps}"
        if not run.steps:
            told = f"`testtime recover`: {run.status} before its first step"
        found.append(("process", "is killed", moment, "kill -9", "SVDD", run.status, lost, told))
    return found


def table(found: list[tuple]) -> str:
    """The rows as Markdown, with a sentence that counts them."""
    parts = Counter(row[0] for row in found)
    counted = ", ".join(f"{part} {number}" for part, number in parts.items())
    lines = [
        f"{len(found)} faults ({counted}); images lost in all of them together: {sum(row[6] for row in found)}.",
        "",
    ]
    lines += [HEAD, "|" + " --- |" * 8]
    for row in found:
        told = str(row[7]).replace("|", "\\|").replace("<", "&lt;")
        told = told if len(told) <= SAID else told[: SAID - 2].rsplit(" ", 1)[0] + " .."
        lines.append("| " + " | ".join([*map(str, row[:7]), told]) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the faults and write the table; returns the exit status."""
    sys.path.insert(0, str(ROOT))
    found = rows()
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    made = f"{text[:before]}\n{table(found)}\n{text[after:]}"
    lost = sum(row[6] for row in found)
    if "--check" in arguments:
        return int(made != text or lost > 0)
    PAGE.write_text(made, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(found)} faults, {lost} images lost")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
