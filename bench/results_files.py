"""Result files of the benchmarks: reading, order of the methods, paired comparison of two rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..reports.names import method_name, method_order
from ..shapes_world.intervals import LEVEL, RESAMPLES, Interval, paired_interval, per_prompt

PLAIN, REFERENCE = "plain", "best_of_n"
BROUGHT = ("overall", "reward", "held_out")  # what a cost buys
NEEDED = ("method", "budget", "nfe_per_image", "overall", "overall_ci")


@dataclass(frozen=True)
class Results:
    """One results file.

    Attributes:
        name: of the file, without its ending; pages and pictures are addressed by it.
        settings, machine, commit: what was measured, where, with which code.
        rows: one dict per method and budget, sorted: methods as in ``method_order``, then by budget.
        parts: further tables of the file (ablations and the like): name -> rows, in the order of the file.
        steps: sampling -> judge -> mean score at every step, where the file has such curves.
        figure, compared_by: what the suite compares, and the key of the rows that budgets are compared by; "" in files
            of format 1, which tell by their columns.
    """

    name: str
    settings: dict[str, Any]
    machine: str
    commit: str
    rows: list[dict[str, Any]]
    parts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    steps: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    figure: str = ""
    compared_by: str = ""

    @property
    def cost(self) -> str:
        """Key of the rows that budgets are compared by: FLOPs where forward passes differ in size, else NFE."""
        if self.compared_by:
            return self.compared_by
        return "gflop_per_image" if all("gflop_per_image" in row for row in self.rows) else "nfe_per_image"

    @property
    def budgets(self) -> list[int]:
        """Budgets that were measured, ascending."""
        return sorted({row["budget"] for row in self.rows})

    @property
    def fullest_budget(self) -> int:
        """The largest of the budgets at which most methods were measured."""
        return max(self.budgets, key=lambda budget: (sum(row["budget"] == budget for row in self.rows), budget))

    @property
    def curves(self) -> bool:
        """Whether searches were measured at several budgets, so that there is something to draw."""
        return len({row["budget"] for row in self.rows if row["method"] != PLAIN}) > 1

    @property
    def about_reward(self) -> bool:
        """Whether the suite compares rewards, with intervals, rather than correct images."""
        return self.figure == "reward" if self.figure else all("reward_ci" in row for row in self.rows)

    @property
    def methods(self) -> list[str]:
        """Methods that were measured, in order."""
        return list(dict.fromkeys(row["method"] for row in self.rows))

    @property
    def agreement(self) -> bool:
        """Whether the file says how well scores of unfinished images foretell the final ones."""
        return {"consistency", "previews"} <= self.parts.keys()

    @property
    def pictures(self) -> list[str]:
        """Endings of the names of the pictures that can be drawn: of the rows, the steps, the agreement."""
        kinds = (("", self.curves), ("-steps", bool(self.steps)), ("-agreement", self.agreement))
        return [kind for kind, there in kinds if there]

    def row(self, method: str, budget: int) -> dict[str, Any] | None:
        """The row of a method at a budget, or None."""
        return next((r for r in self.rows if (r["method"], r["budget"]) == (method, budget)), None)

    def of(self, method: str) -> list[dict[str, Any]]:
        """Rows of a method, by budget."""
        return [row for row in self.rows if row["method"] == method]

    def digest(self) -> str:
        """16 hexadecimal digits that change with anything measured; pictures carry it."""
        drawn = [self.settings, self.rows, *([self.steps] if self.steps else [])]
        if self.agreement:
            drawn += [self.parts["consistency"], self.parts["previews"]]
        text = json.dumps(drawn, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_results(path: Path) -> Results:
    """Read a results file. ValueError names the file and what is wrong with it."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get("rows"), list):
        raise ValueError(f"{path.name} has no list 'rows': it was not written by a benchmark")
    for number, row in enumerate(body["rows"]):
        missing = [key for key in NEEDED if key not in row]
        if missing:
            raise ValueError(f"{path.name}, row {number} lacks {', '.join(missing)}")
    rows = sorted(body["rows"], key=lambda r: (*method_order(r["method"]), r["method"], r["budget"]))
    parts = {key: value for key, value in body.items() if key != "rows" and value and isinstance(value, list)}
    steps = body.get("curves", {}).get("by_step", {})
    return Results(
        name=path.stem,
        settings=body.get("settings", {}),
        machine=str(body.get("machine", "unknown")),
        commit=str(body.get("commit", "unknown")),
        rows=rows,
        parts=parts,
        steps=steps,
        figure=str(body.get("figure", "")),
        compared_by=str(body.get("cost", "")),
    )


def load_folder(folder: Path) -> dict[str, Results]:
    """All results files of a folder with at least one row, by name; empty where there is no such folder.

    Files with "cases" are no suites of search methods, see ``load_cases``.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if '"cases"' not in path.read_text(encoding="utf-8")]
    found = [load_results(path) for path in paths]
    return {results.name: results for results in found if results.rows}


def load_cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Files of a folder that hold "cases" (name -> figures): costs, and comparisons with other implementations."""
    bodies = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: body for name, body in bodies.items() if isinstance(body, dict) and "cases" in body}


def paired_gain(
    row: dict[str, Any], reference: dict[str, Any] | None, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval | None:
    """Difference of two rows' ``overall`` on the same prompts, see ``intervals.paired_interval``; None where the
    verdicts of both rows are not there.
    """
    if reference is None or reference is row:
        return None
    tasks = len(row.get("tasks", ()))
    mine, theirs = _by_task(row.get("verdicts", ""), tasks), _by_task(reference.get("verdicts", ""), tasks)
    if mine is None or theirs is None or mine.shape != theirs.shape:
        return None
    images = int(row.get("images_per_prompt", 1))
    first, second = ([per_prompt(task, images) for task in side] for side in (mine, theirs))
    return paired_interval(first, second, level, resamples)


def at_equal_cost(
    rows: Sequence[dict[str, Any]], method: str, others: Sequence[str], costs: dict[str, str], label: str
) -> list[dict[str, Any]]:
    """What ``others`` bring for the cost of each row of ``method``.

    Read off their own rows, which begin with plain sampling: straight lines over the logarithm of the cost. Costs
    beyond those measured are left out, and rows of ``method`` with nothing to compare.

    Args:
        rows: of one suite.
        method, others: names as in the rows.
        costs: key of the rows -> its name in the table.
        label: how a budget is written, e.g. "{}x".

    Returns:
        rows of a table: against, equal, cost, method, and ``BROUGHT``.
    """
    found = []
    for own in sorted((row for row in rows if row["method"] == method), key=lambda row: row["budget"]):
        against = f"{method_name(method)}, {label.format(own['budget'])}"
        for cost, name in costs.items():
            entry = {"against": against, "equal": name, "cost": own[cost]}
            compared = []
            for other in others:
                line = sorted((row for row in rows if row["method"] in (PLAIN, other)), key=lambda row: row[cost])
                x = [np.log(row[cost]) for row in line]
                if len(x) < 2 or not x[0] <= np.log(own[cost]) <= x[-1]:
                    continue
                values = {
                    key: round(float(np.interp(np.log(own[cost]), x, [row[key] for row in line])), 4) for key in BROUGHT
                }
                compared.append({**entry, "method": method_name(other), **values})
            if compared:
                found += [{**entry, "method": method_name(method), **{key: own[key] for key in BROUGHT}}, *compared]
    return found


def _by_task(verdicts: Sequence[str], tasks: int) -> np.ndarray | None:
    """``[tasks, prompts]`` of 0 and 1; None where the tasks do not have equally many."""
    if not verdicts or not tasks or len(verdicts) % tasks:
        return None
    return np.array([float(verdict) for verdict in verdicts]).reshape(tasks, -1)
