"""Tables and pictures of the benchmark results, kept up to date in README.md and docs/.

    python -m testtime.bench.tables [--check]

Every ``bench/results/NAME.json`` fills the blocks ``<!-- bench:NAME -->`` ... ``<!-- /bench -->`` of the pages, and
``docs/images/NAME.svg`` with its dark twin, where several budgets were measured. ``<!-- bench:NAME overview -->`` lists
correct images by budget only, ``<!-- bench:NAME full -->`` every row, ``<!-- bench:NAME picture -->`` shows the picture
alone. A file with "cases" instead of rows fills its block with one table. ``<!-- bench:NAME PART -->`` is the table of
another list in the file (an ablation), ``<!-- bench:NAME steps -->`` the picture of its scores over the steps,
``<!-- bench:NAME agreement -->`` the one of how well early scores predict the final ones.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

from ..installation.files import write_text
from .provenance import ROOT
from .results_files import Results, load_cases, load_folder
from .results_tables import by_task, case_tables, every_row, explanation, overview, part, provenance

log = logging.getLogger("testtime")
OPEN = "<!-- bench:"
BLOCK = re.compile(r"<!-- bench:(?P<name>[\w.-]+)(?P<kind> [a-z]+)? -->\n(?P<body>.*?)<!-- /bench -->", re.DOTALL)


def picture(results: Results, folder: str) -> str:
    """HTML that shows the plot in the reader's light or dark theme; ``folder`` is relative to the page."""
    what = "Reward" if results.about_reward else "Correct images"
    cost = "forward passes" if results.cost == "nfe_per_image" else "FLOPs"
    return themed(
        f"{what} against {cost}, and reward against held-out reward, for {results.name}", results.name, folder
    )


def step_picture(results: Results, folder: str) -> str:
    """As ``picture``, of the scores over the steps."""
    return themed(f"Scores of the chosen preview at every step, for {results.name}", f"{results.name}-steps", folder)


def agreement_picture(results: Results, folder: str) -> str:
    """As ``picture``, of the agreement between early and final scores, and between small and full previews."""
    return themed(f"Agreement of early with final scores, for {results.name}", f"{results.name}-agreement", folder)


def themed(alt: str, name: str, folder: str) -> str:
    """HTML that shows ``NAME.svg`` on light pages and its twin on dark ones."""
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.svg">\n'
        f'<img alt="{alt}" src="{folder}/{name}.svg">\n</picture>'
    )


def block(results: Results, kind: str, images: str) -> str:
    """Text between the markers; ``kind`` as the module's docstring says, or the name of a part of the file."""
    shown = [picture(results, images)] if results.curves else []
    if kind == "picture":
        parts = [*shown, provenance(results)]
    elif kind == "steps":
        parts = [step_picture(results, images)]
    elif kind == "agreement":
        parts = [agreement_picture(results, images)]
    elif kind == "overview":
        parts = [*shown, overview(results), f"{explanation(results, compared=False)} {provenance(results)}"]
    elif kind == "full":
        parts = [every_row(results), provenance(results)]
    elif kind:
        parts = [part(results, kind)]
    else:
        parts = [*shown, overview(results), by_task(results, results.fullest_budget)]
        parts += [f"{explanation(results)} {provenance(results)}"]
    return "\n\n".join(parts) + "\n"


def filled(text: str, found: dict[str, Results], images: str, cases: dict[str, dict[str, Any]] | None = None) -> str:
    """A page with its blocks written anew; blocks of benchmarks without results stay as they are.

    Raises:
        ValueError: an opening marker without a closing one before the next block.
    """

    def replacement(match: re.Match) -> str:
        if OPEN in match["body"]:
            raise ValueError(f"the block bench:{match['name']} is not closed: <!-- /bench --> is missing")
        kind = match["kind"] or ""
        if cases and match["name"] in cases:
            return f"<!-- bench:{match['name']}{kind} -->\n{case_tables(cases[match['name']])}<!-- /bench -->"
        if match["name"] not in found:
            return match[0]
        body = block(found[match["name"]], kind.strip(), images)
        return f"<!-- bench:{match['name']}{kind} -->\n{body}<!-- /bench -->"

    written = BLOCK.sub(replacement, text)
    if text.count(OPEN) != len(BLOCK.findall(text)):
        raise ValueError("a block <!-- bench:NAME --> is not closed: <!-- /bench --> is missing")
    return written


def update(root: Path, check: bool) -> list[str]:
    """Bring pages and pictures of a checkout up to date; returns what was (or, with ``check``, would be) changed."""
    found, cases = load_folder(root / "bench" / "results"), load_cases(root / "bench" / "results")
    images = root / "docs" / "images"
    changed = []
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        if not page.exists():
            continue
        before = page.read_text(encoding="utf-8")
        try:
            after = filled(before, found, Path(relpath(images, page.parent)).as_posix(), cases)
        except ValueError as error:
            raise ValueError(f"{page.name}: {error}") from error
        if after != before:
            changed.append(page.relative_to(root).as_posix())
            if not check:
                write_text(page, after)
    for results in found.values():
        kinds = results.pictures
        files = [images / f"{results.name}{kind}{ending}.svg" for kind in kinds for ending in ("", "-dark")]
        stale = [f for f in files if not f.exists() or results.digest() not in f.read_text(encoding="utf-8")]
        changed += [file.relative_to(root).as_posix() for file in stale]
        if stale and not check:
            from .plots import save_plots  # matplotlib is an optional dependency

            save_plots(results, images)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; exit code 1: something is out of date (with --check) or cannot be read."""
    parser = argparse.ArgumentParser(prog="testtime bench tables", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with README.md, docs/ and bench/results/")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        changed = update(options.root, options.check)
    except (ValueError, ImportError) as error:
        log.error("%s", error)
        return 1
    for name in changed:
        log.info("%s %s", name, "is out of date: run python -m testtime.bench.tables" if options.check else "written")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
