"""The report of a search in one picture: what it cost, how the scores rose, who descends from whom, what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..samplers.methods.registry import METHODS
from ..samplers.run.trace import Trace
from .canvas import DARK, THEMES, Box, Canvas, Theme, one_line, shortened, text_width
from .curves import draw_curves
from .names import title_of
from .tree import columns_of, draw_tree, score_range

WIDTH, MARGIN, GAP = 1180, 24, 16
TOP, CHART, CAPTION, HEADING = 92, 300, 32, 34
COLUMNS = (4, 8)  # tiles side by side: at least (so that few are not huge), at most


@dataclass(frozen=True)
class Finalists:
    """Finished images with what was said of them.

    Attributes:
        images: uint8 ``[n, H, W, 3]``, sorted by group, then score, best first.
        scores, held_out: one per image, None where there is none; ``held_out`` may be empty.
        group: which image of the batch each competed for; empty: one group.
        verifier, held_out_verifier: names.
        particles: ids of the images in the trace; empty: unknown.
    """

    images: np.ndarray
    scores: Sequence[float | None] = ()
    held_out: Sequence[float | None] = ()
    group: Sequence[int] = ()
    verifier: str = ""
    held_out_verifier: str = ""
    particles: Sequence[int] = ()
    groups: list[int] = field(init=False)

    def __post_init__(self):
        for name in ("scores", "held_out", "group", "particles"):
            if len(getattr(self, name)) not in (0, len(self.images)):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.images)} images")
        object.__setattr__(self, "groups", list(self.group) or [0] * len(self.images))


@dataclass(frozen=True)
class GridLayout:
    """Where the finalists go.

    Attributes:
        rows: which finalists are shown.
        boxes: frame of each of them.
        headings: (group, y of the base line) of the lines above each group; empty where there is one group.
        bottom: end of the grid.
    """

    rows: list[int]
    boxes: list[Box]
    headings: list[tuple[int, float]]
    bottom: float


def grid_layout(groups: Sequence[int], aspect: float, top: float, limit: int = 24) -> GridLayout:
    """Tiles line by line, best first; every group begins a line of its own unless it has one image only.

    Args:
        groups: group of every finalist, sorted.
        aspect: height over width of the images; tiles are at most 1.6 times as high as wide, and at least half.
        top: y of the first line.
        limit: images shown; with several groups about as many of each, never fewer than its winner.
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    share = max(1, limit // max(len(members), 1))
    lines = {group: rows[:share] for group, rows in members.items()}
    headed = len(members) > 1 and any(len(rows) > 1 for rows in lines.values())
    widest = max((len(rows) for rows in lines.values()), default=0) if headed else sum(map(len, lines.values()))
    columns = max(math.ceil(widest / math.ceil(max(widest, 1) / COLUMNS[1])), COLUMNS[0])  # lines about equally full
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns
    height = width * min(max(aspect, 0.5), 1.6)
    plan, y, column = GridLayout([], [], [], top), top, 0
    for group, rows in lines.items():
        if headed:
            if column:
                y, column = y + height + CAPTION, 0
            plan.headings.append((group, y + 12))
            y += 24
        for row in rows:
            if column == columns:
                y, column = y + height + CAPTION, 0
            x = MARGIN + column * (width + GAP)
            plan.rows.append(row)
            plan.boxes.append((x, y, x + width, y + height))
            column += 1
    return GridLayout(plan.rows, plan.boxes, plan.headings, y + height + CAPTION if plan.rows else top)


def cost_line(trace: Trace) -> str:
    """What the run has spent, in words."""
    ledger = trace.meta.get("ledger") or {}
    seconds = ledger.get("total_seconds", trace.records[-1].seconds if trace.records else 0.0)
    nfe = ledger.get("nfe", trace.records[-1].nfe if trace.records else 0)
    parts = [_counted(nfe, "forward pass", "es"), _counted(ledger.get("decodes", 0), "decode", "s")]
    parts.append(_counted(ledger.get("verifier_images", 0), "image", "s") + " scored")
    parts.append(f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min")
    status = trace.meta.get("status", "complete")
    return "   ".join(parts) + ("" if status == "complete" else f"   (ended early: {status})")


def _counted(count: int, noun: str, ending: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def counts_rounds(trace: Trace) -> bool:
    """Whether the steps of a trace are rounds over finished images rather than steps of the sampler."""
    row = METHODS.get(trace.meta.get("method", ""))
    return row is not None and row.method.unit == "round"


def settings_line(trace: Trace) -> str:
    """Steps, where they are steps, and the seed."""
    first = trace.records[0] if trace.records else None
    parts = [] if first is None or counts_rounds(trace) else [f"{first.steps} steps"]
    return "   ".join([*parts, f"seed {trace.seed}"])


def report(trace: Trace, finalists: Finalists, theme: str | Theme = DARK, limit: int = 24) -> np.ndarray:
    """Compose the report.

    Args:
        trace: of a run.
        finalists: finished images; the best ``limit`` are shown.
        theme: "dark", "light" or a ``Theme``.

    Returns:
        uint8 ``[H, 1180, 3]``.
    """
    if isinstance(theme, str):
        if theme not in THEMES:
            raise ValueError(f"theme is {theme!r}: choose one of {', '.join(THEMES)}")
        theme = THEMES[theme]
    crowd = max((len(found) for _, found in columns_of(trace)), default=0)
    tree_top = TOP + CHART + GAP
    tree_bottom = tree_top + CHART + min(max(crowd - 24, 0) * 7, 280)
    aspect = finalists.images.shape[1] / finalists.images.shape[2]
    grid = grid_layout(finalists.groups, aspect, tree_bottom + GAP + HEADING, limit)
    height = math.ceil(grid.bottom + MARGIN / 2) if grid.rows else tree_bottom + MARGIN
    canvas = Canvas(WIDTH, height, theme)
    _heading(canvas, trace)
    _curves_panel(canvas, trace, finalists, (MARGIN, TOP, WIDTH - MARGIN, TOP + CHART))
    _tree_panel(canvas, trace, (MARGIN, tree_top, WIDTH - MARGIN, tree_bottom))
    if grid.rows:
        _finalists(canvas, trace, finalists, grid, tree_bottom + GAP + 18)
    return canvas.finish()


def _heading(canvas: Canvas, trace: Trace) -> None:
    muted, right = canvas.theme.muted, WIDTH - MARGIN
    canvas.text((MARGIN, 40), title_of(trace), 24)
    canvas.text((right, 40), cost_line(trace), 13, muted, "rs")
    settings = settings_line(trace)
    canvas.text((right, 66), settings, 13, muted, "rs")
    prompts = dict.fromkeys(one_line(prompt) for prompt in trace.meta.get("prompts") or [])
    prompt = ",  ".join(f"\u201c{text}\u201d" for text in prompts if text)
    canvas.text((MARGIN, 66), shortened(prompt, 15, right - MARGIN - text_width(settings, 13) - 24), 15, muted)


def _curves_panel(canvas: Canvas, trace: Trace, finalists: Finalists, box: Box) -> None:
    theme = canvas.theme
    canvas.panel(box)
    judge = finalists.verifier or trace.meta.get("verifier")
    canvas.text((box[0] + 16, box[1] + 26), "Scores over compute", 14)
    if judge:
        canvas.text((box[0] + 26 + text_width("Scores over compute", 14), box[1] + 26), str(judge), 11, theme.muted)
    items = [("line", theme.text, "best so far"), ("line", theme.accent, "path of the winner")]
    if any(any(record.resampled) for record in trace.records):
        items.append(("event", theme.event, "resampling"))
    canvas.legend(box[2] - 16, box[1] + 26, items)
    draw_curves(canvas, trace, (box[0] + 16, box[1] + 48, box[2] - 24, box[3] - 14))


def _tree_panel(canvas: Canvas, trace: Trace, box: Box) -> None:
    theme, y = canvas.theme, box[1] + 26
    canvas.panel(box)
    rounds = counts_rounds(trace)
    canvas.text((box[0] + 16, y), "Family tree", 14)
    text = "from round to round" if rounds else "step by step, from noise to image"
    canvas.text((box[0] + 26 + text_width("Family tree", 14), y), text, 11, theme.muted)
    low, high = score_range(trace)
    canvas.text((box[2] - 16, y), f"{high:.2f}", 11, theme.muted, "rs")
    right = box[2] - 24 - text_width(f"{high:.2f}", 11)
    canvas.score_bar((right - 90, y - 8, right, y))
    left = canvas.legend(right - 98, y, [("", theme.muted, f"score  {low:.2f}")])
    canvas.legend(left, y, [("dot", theme.muted, "not scored")])
    draw_tree(canvas, trace, (box[0] + 30, box[1] + 58, box[2] - 30, box[3] - 14))


def _finalists(canvas: Canvas, trace: Trace, finalists: Finalists, grid: GridLayout, y: float) -> None:
    theme = canvas.theme
    left_out = len(finalists.images) - len(grid.rows)
    title = "Finished images, best first" + (f" ({left_out} more are not shown)" if left_out else "")
    canvas.text((MARGIN, y), title, 14)
    names = [f"left: {finalists.verifier}"] if finalists.verifier and len(finalists.scores) else []
    names += [f"right: {finalists.held_out_verifier or 'held out'} (held out)"] if len(finalists.held_out) else []
    canvas.text((WIDTH - MARGIN, y), "   ".join(names), 11, theme.muted, "rs")
    prompts = trace.meta.get("prompts") or []
    for group, base in grid.headings:
        name = f"Image {group + 1}" + (f": {one_line(prompts[group])}" if group < len(prompts) else "")
        canvas.text((MARGIN, base), shortened(name, 12, WIDTH - 2 * MARGIN), 12, theme.muted)
    seen: set[int] = set()
    for row, (left, top, right, bottom) in zip(grid.rows, grid.boxes, strict=True):
        canvas.picture((left, top), finalists.images[row], (right - left, bottom - top))
        first = finalists.groups[row] not in seen
        seen.add(finalists.groups[row])
        if first:
            canvas.frame((left - 2.5, top - 2.5, right + 2.5, bottom + 2.5), theme.accent, 2.5)
        canvas.text((left, bottom + 18), _number(finalists.scores, row), 13, theme.accent if first else theme.text)
        if len(finalists.held_out):
            canvas.text((right, bottom + 18), _number(finalists.held_out, row), 12, theme.muted, "rs")


def _number(values: Sequence[float | None], index: int) -> str:
    if not len(values):
        return ""
    value = values[index]
    return "no score" if value is None or not math.isfinite(value) else f"{value:.3f}"
