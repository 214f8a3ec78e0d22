"""Picture of ``bench.flow``: the reward that steers, and correct images, over forward passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"plain": "#636975", "best_of_n": "#0072b2", "svdd": "#009e73", "smc": "#d55e00", "rbf": "#b65c92"}
LINES = {"ode": ":", "linear": "--", "vp": "-"}
NAMES = {"plain": "Plain", "best_of_n": "Best-of-N", "svdd": "SVDD", "smc": "SMC", "rbf": "RBF"}
PATHS = {"ode": "ODE", "linear": "linear SDE", "vp": "VP SDE"}


def save_curve(results: dict[str, Any], path: Path) -> None:
    """Draw the rows of a results file. ImportError says what to install where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, title in zip(panels, ("reward", "overall"), ("Reward that steers", "Correct images"), strict=True):
        for method in dict.fromkeys(row["method"] for row in results["rows"]):
            rows = [row for row in results["rows"] if row["method"] == method]
            base, _, kind = method.rpartition("_") if method.rpartition("_")[2] in LINES else (method, "", "")
            x = [row["nfe_per_image"] for row in rows]
            y = [row[key] for row in rows]
            label = f"{NAMES[base]}, {PATHS[kind]}" if kind else NAMES[base]
            line = axes.plot(x, y, LINES.get(kind, "-"), marker="o", ms=3, color=COLOURS[base], label=label)[0]
            if f"{key}_ci" in rows[0] and len(rows) > 1:
                low, high = zip(*(row[f"{key}_ci"] for row in rows), strict=True)
                axes.fill_between(x, low, high, color=line.get_color(), alpha=0.08, lw=0)
        axes.set_xlabel("forward passes per image")
        axes.set_title(title, loc="left")
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=7, ncol=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
