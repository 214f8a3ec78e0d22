"""Tables and pictures of the benchmark results, kept up to date in README.md and docs/.

    python -m testtime.bench.tables [--check]

Every ``bench/results/NAME.json`` fills the blocks ``<!-- bench:NAME -->`` ... ``<!-- /bench -->`` of the pages, and
``docs/images/NAME.svg`` with its dark twin, where several budgets were measured. ``<!-- bench:NAME full -->`` lists
every row instead of the overview, ``<!-- bench:NAME picture -->`` shows the picture alone. A file with "cases" in the
place of rows fills its block with one table. ``<!-- bench:NAME PART -->`` is the table of another list in the file (an
ablation), ``<!-- bench:NAME steps -->`` the picture of its scores over the steps, ``<!-- bench:NAME agreement -->`` the
one of how well early scores foretell the final ones.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

from ..installation.files import write_text
from ..reports.names import method_name, task_name
from .results_files import PLAIN, REFERENCE, Results, load_cases, load_folder, paired_gain

log = logging.getLogger("testtime")
ROOT = Path(__file__).resolve().parent.parent
OPEN = "<!-- bench:"
BLOCK = re.compile(r"<!-- bench:(?P<name>[\w.-]+)(?P<kind> [a-z]+)? -->\n(?P<body>.*?)<!-- /bench -->", re.DOTALL)
NOTHING = "-"
EXTRA = (
    ("diversity", "diversity", 3),
    ("frechet", "Frechet distance", 3),
    ("rewriter_calls_per_image", "rewriter calls", 1),
    ("gflop_per_image", "GFLOP", 1),
    ("drawing_gflop_per_image", "without decoding", 1),
)
"""Columns that only some suites have: key of the rows, heading, digits."""

Row = dict[str, Any]


def percent(value: float) -> str:
    """A share as a percentage with one digit."""
    return f"{100 * value:.1f}"


def with_interval(row: Row) -> str:
    """``overall`` of a row with its interval, in percent."""
    low, high = row["overall_ci"]
    return f"{percent(row['overall'])} ({percent(low)} to {percent(high)})"


def gain(row: Row, reference: Row | None) -> str:
    """Paired difference to ``reference`` with its interval, in percentage points."""
    found = paired_gain(row, reference)
    return NOTHING if found is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in found))


def number(row: Row, key: str, digits: int = 3) -> str:
    """A figure of a row, or a dash."""
    value = row.get(key)
    return NOTHING if value is None else f"{value:.{digits}f}"


def rewarded(row: Row, key: str) -> str:
    """A mean score of a row, with its interval where there is one."""
    low, high = row.get(f"{key}_ci") or (None, None)
    return number(row, key) + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def emphasised(texts: Sequence[str], values: Sequence[float | None]) -> list[str]:
    """``texts``, those of the highest value in bold (all of them where several are equal)."""
    known = [value for value in values if value is not None]
    best = max(known, default=None)
    return [f"**{t}**" if len(known) > 1 and v == best else t for t, v in zip(texts, values, strict=True)]


def overview(results: Results) -> str:
    """Methods down, budgets across: overall score with its interval, the best of every budget in bold."""
    columns = []
    for budget in results.budgets:
        rows = [results.row(method, budget) for method in results.methods]
        texts = ["" if row is None else with_interval(row) for row in rows]
        columns.append(emphasised(texts, [None if row is None else row["overall"] for row in rows]))
    cells = zip(*columns, strict=True)
    head = ["correct images in %", *[budget_name(results, budget) for budget in results.budgets]]
    return markdown(head, [[method_name(m), *row] for m, row in zip(results.methods, cells, strict=True)])


def budget_name(results: Results, budget: int) -> str:
    """A budget in words: "8x" plain sampling in forward passes, or N = 8 finished images."""
    return f"{budget}x" if results.cost == "nfe_per_image" else f"N = {budget}"


def by_task(results: Results, budget: int) -> str:
    """Tasks, rewards and time of every method at ``budget``, with plain sampling for comparison."""
    rows = [row for row in results.rows if row["budget"] == budget or row["method"] == PLAIN]
    tasks = list(dict.fromkeys(task for row in rows for task in row.get("tasks", {})))
    reference = results.row(REFERENCE, budget)
    fields: list[tuple[str, Callable[[Row], str], Callable[[Row], float | None] | None]] = []
    for task in tasks:
        share = lambda row, task=task: row.get("tasks", {}).get(task)  # noqa: E731 - one accessor per column
        text = lambda row, share=share: NOTHING if share(row) is None else percent(share(row))  # noqa: E731
        fields.append((task_name(task), text, share))
    if any(paired_gain(row, reference) for row in rows):
        fields.append((f"overall, against {method_name(REFERENCE)}", lambda row: gain(row, reference), None))
    fields.append(("reward", lambda row: rewarded(row, "reward"), lambda row: row.get("reward")))
    fields.append(("held-out reward", lambda row: rewarded(row, "held_out"), lambda row: row.get("held_out")))
    for key, name, digits in EXTRA:
        if any(key in row for row in rows):
            fields.append((name, lambda row, key=key, digits=digits: number(row, key, digits), None))
    fields.append(("seconds", lambda row: number(row, "seconds_per_image", 2), None))
    columns = []
    for _, text, value in fields:
        texts = [text(row) for row in rows]
        columns.append(texts if value is None else emphasised(texts, [value(row) for row in rows]))
    cells = zip(*columns, strict=True)
    return markdown(
        [f"at {budget_name(results, budget)}", *[name for name, _, _ in fields]],
        [[method_name(row["method"]), *line] for row, line in zip(rows, cells, strict=True)],
    )


def every_row(results: Results) -> str:
    """All that was measured, one line per method and budget."""
    tasks = list(dict.fromkeys(task for row in results.rows for task in row.get("tasks", {})))
    head = ["method", "budget", "NFE", "of these with gradient", "overall in %", f"against {method_name(REFERENCE)}"]
    head += [*[task_name(task) for task in tasks], "reward", "held-out", "optimism", "seconds", "overhead"]
    lines = []
    for row in results.rows:
        shares = [row.get("tasks", {}).get(task) for task in tasks]
        lines.append(
            [method_name(row["method"]), f"{row['budget']}x", number(row, "nfe_per_image", 0)]
            + [number(row, "backward_nfe_per_image", 0), with_interval(row)]
            + [gain(row, results.row(REFERENCE, row["budget"]))]
            + [NOTHING if share is None else percent(share) for share in shares]
            + [number(row, "reward"), number(row, "held_out")]
            # Files of format 1 call it optimism.
            + [number(row, "selection_bias" if "selection_bias" in row else "optimism")]
            + [number(row, "seconds_per_image", 2), number(row, "overhead", 2)]
        )
    return markdown(head, lines)


def part(results: Results, name: str) -> str:
    """Another list of the file: its searches with what they cost and bring, or its figures as they are.

    Raises:
        ValueError: there is no such list in the file.
    """
    rows = results.parts.get(name)
    if rows is None:
        known = ", ".join(["full", "picture", "steps", "agreement", *results.parts])
        raise ValueError(f"the block bench:{results.name} {name}: there is no such part, choose one of {known}")
    if "overall_ci" not in rows[0]:
        titles = [key.replace("_", " ") for key in rows[0]]
        return markdown(titles, [[cell(row.get(key)) for key in rows[0]] for row in rows])
    head = [name, "correct images in %", "reward", "held-out reward"]
    shared = (("nfe_per_image", "NFE", 0), *EXTRA, ("seconds_per_image", "seconds", 2))
    extra = [entry for entry in shared if all(entry[0] in row for row in rows)]
    lines = [
        [method_name(row["method"]), with_interval(row), number(row, "reward"), number(row, "held_out")]
        + [number(row, key, digits) for key, _, digits in extra]
        for row in rows
    ]
    return markdown([*head, *[title for _, title, _ in extra]], lines)


def provenance(results: Results) -> str:
    """One sentence: how, where and with which code."""
    settings = results.settings
    parts = [
        f"{settings[key]} {word}"
        for key, word in (("prompts_per_task", "prompts per task"), ("steps", "steps"))
        if key in settings
    ]
    parts += [f"{key} {settings[key]:g}" for key in ("cfg", "eta", "seed") if key in settings]
    judges = [
        f"{word} `{settings[key]}`"
        for key, word in (("verifier", "reward"), ("held_out", "held out"))
        if settings.get(key)
    ]
    return f"{', '.join(parts + judges)}. Measured on {results.machine}, commit `{results.commit}`."


def explanation(results: Results) -> str:
    """How to read the tables."""
    several = len([m for m in results.methods if m != PLAIN]) > 1
    paired = any(paired_gain(row, results.row(REFERENCE, row["budget"])) for row in results.rows)
    text = "In brackets: 95 % bootstrap intervals over the prompts."
    if paired:
        text += (
            f" Differences to {method_name(REFERENCE)} are taken on the same prompts; an interval without 0 is a "
            f"difference that other prompts would show, too."
        )
    return text + (" Bold: the highest of a column, whether or not the gap means anything." if several else "")


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
    """Text between the markers; ``kind`` is "", "full", "picture", "steps", "agreement" or a part of the file."""
    shown = [picture(results, images)] if results.curves else []
    if kind == "picture":
        parts = [*shown, provenance(results)]
    elif kind == "steps":
        parts = [step_picture(results, images)]
    elif kind == "agreement":
        parts = [agreement_picture(results, images)]
    elif kind == "full":
        parts = [every_row(results), provenance(results)]
    elif kind:
        parts = [part(results, kind)]
    else:
        parts = [*shown, overview(results), by_task(results, results.fullest_budget)]
        parts += [f"{explanation(results)} {provenance(results)}"]
    return "\n\n".join(parts) + "\n"


def case_tables(body: dict[str, Any]) -> str:
    """A line per case, a column per figure; cases that have no figure in common get tables of their own."""
    groups: list[dict[str, dict[str, Any]]] = []
    for name, case in body["cases"].items():
        flat = flattened(case)
        home = next((g for g in groups if any(flat.keys() & known.keys() for known in g.values())), None)
        if home is None:
            groups.append(home := {})
        home[name] = flat
    settings = [f"{key.replace('_', ' ')} {value}" for key, value in body.get("settings", {}).items()]
    about = "; ".join(settings + ([f"against {body['reference']}"] if "reference" in body else []))
    where = f"Measured on {body['machine']}, commit `{body['commit']}`." if "machine" in body else ""
    text = " ".join(filter(None, [f"{about[:1].upper()}{about[1:]}." if about else "", where]))
    return "\n\n".join([*map(_cases, groups), text]) + "\n"


def _cases(cases: dict[str, dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for case in cases.values() for key in case))

    lines = [[method_name(name), *[cell(case.get(key)) for key in columns]] for name, case in cases.items()]
    return markdown(["", *[key.replace("_", " ") for key in columns]], lines)


def cell(value: Any) -> str:
    """A figure of unknown kind, short."""
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 1e-2 else f"{value:.3f}".rstrip("0").rstrip(".")
    return NOTHING if value is None else str(value)


def flattened(case: dict[str, Any]) -> dict[str, Any]:
    """Numbers and texts of a case, those of a nested one under both names; lists are left to the file."""
    found: dict[str, Any] = {}
    for key, value in case.items():
        if isinstance(value, dict):
            found |= {f"{key}: {inner}": v for inner, v in flattened(value).items()}
        elif isinstance(value, int | float | str):
            found[key] = value
    return found


def filled(text: str, found: dict[str, Results], images: str, cases: dict[str, dict[str, Any]] | None = None) -> str:
    """A page with its blocks written anew; blocks of benchmarks without results stay as they are.

    Raises:
        ValueError: an opening marker without a closing one before the next block.
    """

    def replacement(match: re.Match) -> str:
        if OPEN in match["body"]:
            raise ValueError(f"the block bench:{match['name']} is not closed: <!-- /bench --> is missing")
        kind = match["kind"] or ""
        if match["name"] in (cases or {}):
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
