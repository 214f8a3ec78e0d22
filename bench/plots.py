"""Pictures of the benchmark results: correct images (or reward) over compute, and reward against held-out reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..reports.names import VARIANTS, method_name
from ..samplers.methods.registry import METHODS
from .results_files import PLAIN, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (10.6, 4.5)  # inches
Panels = dict[str, dict[str, Sequence[Any]]]
STEP_NAMES = {"ttgen": "TTGen", "direct": "plain", "worst": "worst choice"}
MARKERS = "oDPX^sv*hpH"
PATHS = {"ode": "<", "linear": ">", "vp": "8"}  # a method on a path has the method's colour and the path's marker
AGREEMENT = (
    ("rank correlation", "rank_correlation"),
    ("same best", "best_is_the_same"),
    ("spread of copies", "spread_of_copies"),
)
# Okabe and Ito's colours, which people with any colour vision tell apart, toned for white and for black pages. They are
# fewer than the methods: those that are usually compared come first, and no two share both colour and marker.
COLOURED = ("best_of_n", "svdd", "das", "fk", "smc", "importance_sampling", "rbf", "beam_search")
ON_WHITE = ("#0072b2", "#009e73", "#d55e00", "#c08400", "#b65c92", "#3d9bd1", "#7a7a1f")
ON_BLACK = ("#5aaef0", "#2cc295", "#ff7f3a", "#f2b632", "#e08fc0", "#9ad4f5", "#d3cf5a")


@dataclass(frozen=True)
class Theme:
    """Colours of text, lesser text, background lines and methods; the page itself shows through."""

    text: str
    muted: str
    grid: str
    methods: tuple[str, ...]


THEMES = {
    "light": Theme("#1c1f24", "#636975", "#dfe2e7", ON_WHITE),
    "dark": Theme("#e8eaee", "#9aa0ac", "#343943", ON_BLACK),
}


def look(method: str, theme: Theme) -> tuple[str, str]:
    """(colour, marker) of a method, the same in every picture."""
    base, _, path = method.rpartition("_")
    if path in PATHS:
        return look(base, theme)[0], PATHS[path]
    known = [*COLOURED, *[name for name in METHODS if name not in COLOURED]]
    changed = [variant for variant in VARIANTS if variant not in PATHS]
    if method in known:
        place = known.index(method)
    else:
        place = len(known) + (changed.index(path) if path in changed else len(changed))
    return theme.methods[place % len(theme.methods)], MARKERS[place % len(MARKERS)]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels that want to stand at ``wanted``: at least ``gap`` apart, in the same order, inside
    ``[low, high]`` as far as they fit, and moved as little as that allows."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    clusters: list[tuple[float, list[int]]] = []  # (centre, members); overlapping neighbours are merged until none are
    for index in order:
        clusters.append((min(max(wanted[index], low), high), [index]))
        while len(clusters) > 1:
            (first, below), (second, above) = clusters[-2:]
            if second - first >= gap * (len(below) + len(above)) / 2 - 1e-12:
                break
            members = below + above
            half = gap * (len(members) - 1) / 2
            centre = sum(wanted[i] for i in members) / len(members)
            centre = max(low + half, min(centre, high - half))
            clusters[-2:] = [(centre, members)]
    places = [0.0] * len(wanted)
    for centre, members in clusters:
        for place, index in enumerate(members):
            places[index] = centre + gap * (place - (len(members) - 1) / 2)
    return places


def apart(budgets: Sequence[int], ratio: float = 1.4) -> list[int]:
    """Those of ascending budgets that have room for a label each on a logarithmic axis, the largest always."""
    kept: list[int] = []
    for budget in reversed(budgets):
        if not kept or kept[-1] >= ratio * budget:
            kept.append(budget)
    return kept[::-1]


def styled(results: Results, theme: str) -> dict:
    """matplotlib's settings of a theme. ImportError says what to install where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ImportError("matplotlib is missing: pip install 'test-time-scaling[bench]'") from error
    colours = THEMES[theme]
    return {
        "font.size": 10,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": colours.grid,
        "axes.labelcolor": colours.muted,
        "text.color": colours.text,
        "xtick.color": colours.muted,
        "ytick.color": colours.muted,
        "grid.color": colours.grid,
        "svg.hashsalt": results.name,
    }


def draw(results: Results, theme: str = "light") -> Figure:
    """The picture of a results file. ImportError says what to install where matplotlib is missing."""
    style, colours = styled(results, theme), THEMES[theme]
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE)
        rewards = any(row.get("reward") is not None and row.get("held_out") is not None for row in results.rows)
        left = figure.add_axes((0.065, 0.135, 0.40 if rewards else 0.72, 0.74))
        _over_compute(left, results, colours)
        if rewards:
            _rewards(figure.add_axes((0.69, 0.135, 0.285, 0.74)), results, colours)
    return figure


def draw_steps(results: Results, theme: str = "light") -> Figure:
    """Mean score of the chosen preview at every step: a panel per judge, a line per sampling."""
    panels: Panels = {}
    for judge in next(iter(results.steps.values())):
        title = f"Reward that {'only watches' if judge == results.settings.get('held_out') else 'steers'} ({judge})"
        panels[title] = {
            STEP_NAMES.get(sampling, sampling): list(enumerate(scores[judge]))
            for sampling, scores in results.steps.items()
        }
    return _side_by_side(results, theme, panels, lambda axes: axes.set_xlabel("step"))


def draw_agreement(results: Results, theme: str = "light") -> Figure:
    """How well scores after each scale foretell the final ones, and those of small previews the full ones."""
    consistency, previews = results.parts["consistency"], results.parts["previews"]
    sides = {row["scale"]: str(row["side"]) for row in consistency}
    panels: Panels = {
        "Scores after a scale, against the final ones": {
            name: [(row["scale"], row[key]) for row in consistency] for name, key in AGREEMENT
        },
        "Rank correlation of small with full previews": {
            f"{side} codes a side": [
                (row["scale"], row["rank_correlation"]) for row in previews if row["preview_side"] == side
            ]
            for side in dict.fromkeys(row["preview_side"] for row in previews)
        },
    }

    def scales_across(axes: Axes) -> None:
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.04)
        axes.set_xlim(-0.3, len(sides) - 0.7)
        axes.set_xticks(list(sides), list(sides.values()))
        axes.set_xlabel("after the scale with this side")

    return _side_by_side(results, theme, panels, scales_across, marker="o", markersize=5)


def _side_by_side(
    results: Results, theme: str, panels: Panels, prepare: Callable[[Axes], object], **line: Any
) -> Figure:
    """Two panels (title -> name of a line -> points); ``prepare`` sets the axes before the lines get their names."""
    style, colours = styled(results, theme), THEMES[theme]
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE)
        for place, (title, lines) in enumerate(panels.items()):
            axes = figure.add_axes((0.06 + 0.49 * place, 0.135, 0.33, 0.74))
            _frame(axes, title, "y")
            ends = []
            for number, (name, points) in enumerate(lines.items()):
                colour = colours.methods[number % len(colours.methods)]
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, **line)
                ends.append((*points[-1], name, colour))
            prepare(axes)
            _labels(axes, ends)
    return figure


DRAWINGS = {"": draw, "-steps": draw_steps, "-agreement": draw_agreement}


def save_plots(results: Results, folder: Path) -> list[Path]:
    """Write the pictures that the results have, ``NAME.svg``, ``NAME-steps.svg`` and so on, and their dark twins.

    All carry the digest of the results. Returns the paths.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kind, (theme, ending) in product(results.pictures, (("light", ""), ("dark", "-dark"))):
        figure = DRAWINGS[kind](results, theme)
        file = folder / f"{results.name}{kind}{ending}.svg"
        # Without the date and with a fixed salt the same results give the same file.
        about = {"Date": None, "Title": results.name, "Description": f"results {results.digest()}"}
        with matplotlib.rc_context({"svg.hashsalt": results.name}):
            figure.savefig(file, format="svg", transparent=True, metadata=about)
        files.append(file)
    return files


def _frame(axes: Axes, title: str, grid: Literal["both", "x", "y"] = "both") -> None:
    axes.set_title(title, loc="left", fontsize=11.5, pad=10, fontweight="bold")
    axes.grid(True, axis=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _over_compute(axes: Axes, results: Results, colours: Theme) -> None:
    """Score with its interval; methods stand a little apart so that their intervals do not hide each other."""
    key, factor = ("reward", 1) if results.about_reward else ("overall", 100)
    name = "Reward" if results.about_reward else "Correct images in %"
    _frame(axes, f"{name}, with 95 % intervals", "y")
    axes.set_xscale("log", base=2)
    searches = [method for method in results.methods if method != PLAIN]
    ends = []
    for place, method in enumerate(searches):
        rows, (colour, marker) = results.of(method), look(method, colours)
        aside = 2.0 ** (0.44 * ((place + 0.5) / len(searches) - 0.5))
        x = [row[results.cost] * aside for row in rows]
        y = [factor * row[key] for row in rows]
        low = [factor * (row[key] - row[f"{key}_ci"][0]) for row in rows]
        high = [factor * (row[f"{key}_ci"][1] - row[key]) for row in rows]
        axes.errorbar(x, y, (low, high), fmt="none", ecolor=colour, elinewidth=1.4, alpha=0.5)
        axes.plot(x, y, color=colour, marker=marker, markersize=6.5, linewidth=1.8, markeredgewidth=0)
        ends.append((x[-1], y[-1], method_name(method), colour))
    for row in results.of(PLAIN):
        low, high = (factor * value for value in row[f"{key}_ci"])
        axes.axhspan(low, high, color=colours.muted, alpha=0.13, linewidth=0)
        axes.axhline(factor * row[key], color=colours.muted, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.plot([row[results.cost]], [factor * row[key]], "o", color=colours.muted, markersize=5.5)
        ends.append((None, factor * row[key], method_name(PLAIN), colours.muted))
    _compute_ticks(axes, results)
    _labels(axes, ends)


def _compute_ticks(axes: Axes, results: Results) -> None:
    """Ticks at the budgets' multiples of plain sampling."""
    by_flops = results.cost == "gflop_per_image"
    axes.set_xlabel("GFLOP per image, decoding included" if by_flops else "forward passes per image (NFE)")
    once = [row[results.cost] / row["budget"] for row in results.of(PLAIN)]
    if once and once[0]:
        budgets = apart(results.budgets)
        while by_flops and 2 * budgets[-1] * once[0] <= max(row[results.cost] for row in results.rows):
            budgets.append(2 * budgets[-1])  # at equal N some methods cost more than others
        axes.set_xticks([once[0] * b for b in budgets], [f"{once[0] * b:.3g}\n{b}x" for b in budgets])
        axes.minorticks_off()


def _labels(axes: Axes, ends: Sequence[tuple[float | None, float, str, str]]) -> None:
    """Names to the right of the lines' ends, each with a thin lead; None for a line across the whole width."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    places = spread([y for _, y, _, _ in ends], 0.062 * (high - low), low, high)
    right = axes.get_xlim()[1]
    axes.set_xlim(axes.get_xlim()[0], right)
    across = axes.get_yaxis_transform()  # x in shares of the width, y in data
    for (x, y, name, colour), place in zip(ends, places, strict=True):
        edge = 1.0
        if x is not None:
            edge = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0] + 0.015
        axes.plot([edge, 1.0, 1.035], [y, y, place], transform=across, color=colour, linewidth=0.8, alpha=0.8,
                  clip_on=False)  # fmt: skip
        axes.text(1.045, place, name, transform=across, color=colour, va="center", fontsize=10)


def _rewards(axes: Axes, results: Results, colours: Theme) -> None:
    """Where a search raises its own reward more than the watcher's, it has learned to please its judge."""
    from matplotlib.ticker import MaxNLocator

    _frame(axes, "Reward against held-out reward")
    biggest = max(results.budgets)
    for method in [*[m for m in results.methods if m != PLAIN], PLAIN]:
        rows = [r for r in results.of(method) if r.get("reward") is not None and r.get("held_out") is not None]
        colour, marker = look(method, colours) if method != PLAIN else (colours.muted, "o")
        x, y = [row["reward"] for row in rows], [row["held_out"] for row in rows]
        axes.plot(x, y, color=colour, linewidth=1.2, alpha=0.6)
        sizes = [26 + 64 * row["budget"] / biggest for row in rows]
        axes.scatter(x, y, sizes, color=colour, marker=marker, linewidths=0)
    axes.set_xlabel("reward that the search steers by")
    axes.set_ylabel("reward that only watches")
    axes.margins(0.1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.text(0.98, 0.03, "larger marks: more compute", transform=axes.transAxes, ha="right", color=colours.muted,
              fontsize=9)  # fmt: skip
