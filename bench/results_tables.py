"""Results of the benchmarks as Markdown tables and sentences; ``tables`` puts them into the pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..reports.names import method_name, task_name
from .results_files import PLAIN, REFERENCE, Results, paired_gain

Row = dict[str, Any]
NOTHING = "-"
EXTRA = (
    ("diversity", "diversity", 3),
    ("frechet", "Frechet distance", 3),
    ("rewriter_calls_per_image", "rewriter calls", 1),
    ("gflop_per_image", "GFLOP", 1),
    ("drawing_gflop_per_image", "without decoding", 1),
)
"""Columns that only some suites have: key of the rows, heading, digits."""


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


@dataclass(frozen=True)
class Column:
    """Of a table: its heading, the text of a row's cell, and the figure whose highest is in bold, None for no bold."""

    name: str
    text: Callable[[Row], str]
    figure: Callable[[Row], float | None] | None = None


def task_column(task: str) -> Column:
    """Share of correct images of a task."""

    def share(row: Row) -> float | None:
        return row.get("tasks", {}).get(task)

    def text(row: Row) -> str:
        value = share(row)
        return NOTHING if value is None else percent(value)

    return Column(task_name(task), text, share)


def score_column(key: str, name: str) -> Column:
    """A mean score, with its interval where there is one."""
    return Column(name, lambda row: rewarded(row, key), lambda row: row.get(key))


def number_column(key: str, name: str, digits: int) -> Column:
    """A cost or the like: nothing in bold."""
    return Column(name, lambda row: number(row, key, digits))


def by_task(results: Results, budget: int) -> str:
    """Tasks, rewards and time of every method at ``budget``, with plain sampling for comparison."""
    rows = [row for row in results.rows if row["budget"] == budget or row["method"] == PLAIN]
    reference = results.row(REFERENCE, budget)
    columns = [task_column(task) for task in dict.fromkeys(task for row in rows for task in row.get("tasks", {}))]
    if any(paired_gain(row, reference) for row in rows):
        columns.append(Column(f"overall, against {method_name(REFERENCE)}", lambda row: gain(row, reference)))
    columns += [score_column("reward", "reward"), score_column("held_out", "held-out reward")]
    columns += [number_column(*entry) for entry in EXTRA if any(entry[0] in row for row in rows)]
    columns.append(number_column("seconds_per_image", "seconds", 2))
    texts = []
    for column in columns:
        cells = [column.text(row) for row in rows]
        texts.append(cells if column.figure is None else emphasised(cells, [column.figure(row) for row in rows]))
    return markdown(
        [f"at {budget_name(results, budget)}", *[column.name for column in columns]],
        [[method_name(row["method"]), *line] for row, line in zip(rows, zip(*texts, strict=True), strict=True)],
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
        known = ", ".join(["full", "overview", "picture", "steps", "agreement", *results.parts])
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


def explanation(results: Results, compared: bool = True) -> str:
    """How to read the tables; ``compared``: differences from the reference are among the columns."""
    several = len([m for m in results.methods if m != PLAIN]) > 1
    paired = any(paired_gain(row, results.row(REFERENCE, row["budget"])) for row in results.rows)
    text = "In brackets: 95 % bootstrap intervals over the prompts."
    if paired and compared:
        text += (
            f" Differences from {method_name(REFERENCE)} are paired by prompt; an interval that excludes 0 is unlikely "
            f"to be due to the choice of prompts."
        )
    return text + (" Bold: the highest in its column, significant or not." if several else "")


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
