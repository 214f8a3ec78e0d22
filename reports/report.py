"""The report of a search in one picture: what it cost, how the scores rose, who descends from whom, what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..samplers.trace import Trace
from .canvas import DARK, THEMES, Canvas, Theme, shortened
from .curves import draw_curves
from .names import method_name
from .tree import draw_tree

WIDTH, MARGIN, GAP = 1180, 24, 16
CHART, TILE, CAPTION = 300, 148, 40


@dataclass(frozen=True)
class Finalists:
    """Finished images with what was said of them.

    Attributes:
        images: uint8 ``[n, H, W, 3]``, sorted by group, then score, best first.
        scores, held_out: one per image, None where there is none; ``held_out`` may be empty.
        group: which image of the batch each competed for; empty: one group.
        verifier, held_out_verifier: names.
    """

    images: np.ndarray
    scores: Sequence[float | None] = ()
    held_out: Sequence[float | None] = ()
    group: Sequence[int] = ()
    verifier: str = ""
    held_out_verifier: str = ""
    groups: list[int] = field(init=False)

    def __post_init__(self):
        for name in ("scores", "held_out", "group"):
            if len(getattr(self, name)) not in (0, len(self.images)):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.images)} images")
        object.__setattr__(self, "groups", list(self.group) or [0] * len(self.images))


def grid_places(count: int, columns: int) -> list[tuple[int, int]]:
    """(row, column) of each tile, filled line by line."""
    return [divmod(index, columns) for index in range(count)]


def cost_line(trace: Trace) -> str:
    """What the run has spent, in words."""
    ledger = trace.meta.get("ledger", {})
    seconds = ledger.get("total_seconds", trace.records[-1].seconds if trace.records else 0.0)
    nfe = ledger.get("nfe", trace.records[-1].nfe if trace.records else 0)
    parts = [f"{nfe:,} forward passes", f"{ledger.get('decodes', 0):,} decodes"]
    parts.append(f"{ledger.get('verifier_images', 0):,} images judged")
    parts.append(f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min")
    status = trace.meta.get("status", "complete")
    return "   ".join(parts) + ("" if status == "complete" else f"   (ended early: {status})")


def report(trace: Trace, finalists: Finalists, theme: str | Theme = DARK, limit: int = 21) -> np.ndarray:
    """Compose the report.

    Args:
        trace: of a run.
        finalists: finished images; the first ``limit`` are shown.
        theme: "dark", "light" or a ``Theme``.

    Returns:
        uint8 ``[H, 1180, 3]``.
    """
    if isinstance(theme, str):
        if theme not in THEMES:
            raise ValueError(f"theme is {theme!r}: choose one of {', '.join(THEMES)}")
        theme = THEMES[theme]
    shown = min(len(finalists.images), limit)
    columns = (WIDTH - 2 * MARGIN + GAP) // (TILE + GAP)
    rows = math.ceil(shown / columns)
    tile_height = TILE + CAPTION
    tree_height = CHART + (80 if max((len(r.particles) for r in trace.records), default=0) > 24 else 0)
    top = 92
    tree_top = top + CHART + GAP
    grid_top = tree_top + tree_height + GAP
    height = grid_top + (30 + rows * (tile_height + 6) if rows else 0) + MARGIN - 6
    canvas = Canvas(WIDTH, height, theme)

    _heading(canvas, trace, finalists)
    half = (MARGIN, top, WIDTH - MARGIN, top + CHART)
    canvas.panel(half)
    canvas.text((half[0] + 16, half[1] + 26), "Scores over compute", 14)
    _legend(canvas, half[2] - 16, half[1] + 26)
    draw_curves(canvas, trace, (half[0] + 16, half[1] + 44, half[2] - 20, half[3] - 14))

    box = (MARGIN, tree_top, WIDTH - MARGIN, tree_top + tree_height)
    canvas.panel(box)
    canvas.text((box[0] + 16, box[1] + 26), "Family tree", 14)
    canvas.text((box[2] - 16, box[1] + 26), "noise to image, left to right; colour: score; blue line: resampling", 11,
                theme.muted, "rs")  # fmt: skip
    draw_tree(canvas, trace, (box[0] + 26, box[1] + 52, box[2] - 26, box[3] - 26))
    if rows:
        _finalists(canvas, finalists, shown, columns, grid_top)
    return canvas.finish()


def _heading(canvas: Canvas, trace: Trace, finalists: Finalists) -> None:
    name = str(trace.meta.get("method", "search"))
    prompts = list(dict.fromkeys(trace.meta.get("prompts") or []))
    canvas.text((MARGIN, 40), method_name(name), 24)
    prompt = ",  ".join(f"\u201c{p}\u201d" for p in prompts)
    canvas.text((MARGIN, 66), shortened(prompt, 15, WIDTH - 2 * MARGIN), 15, canvas.theme.muted)
    canvas.text((WIDTH - MARGIN, 40), cost_line(trace), 13, canvas.theme.muted, "rs")


def _legend(canvas: Canvas, right: float, y: float) -> None:
    theme = canvas.theme
    for text, colour, width in (("winner's way", theme.accent, 92), ("best so far", theme.text, 84)):
        canvas.text((right, y), text, 11, theme.muted, "rs")
        canvas.line([(right - width, y - 4), (right - width + 18, y - 4)], colour, 2)
        right -= width + 16


def _finalists(canvas: Canvas, finalists: Finalists, shown: int, columns: int, top: float) -> None:
    theme = canvas.theme
    canvas.text((MARGIN, top + 16), "Finished images, best first", 14)
    names = finalists.verifier + (f"  |  held out: {finalists.held_out_verifier}" if len(finalists.held_out) else "")
    canvas.text((WIDTH - MARGIN, top + 16), names, 11, theme.muted, "rs")
    seen: set[int] = set()
    for index, (row, column) in enumerate(grid_places(shown, columns)):
        x = MARGIN + column * (TILE + GAP)
        y = top + 30 + row * (TILE + CAPTION + 6)
        canvas.picture((x, y), finalists.images[index], (TILE, TILE))
        first = finalists.groups[index] not in seen
        seen.add(finalists.groups[index])
        if first:
            canvas.frame((x - 2, y - 2, x + TILE + 2, y + TILE + 2), theme.accent, 2.5)
        canvas.text((x, y + TILE + 18), _number(finalists.scores, index), 13, theme.accent if first else theme.text)
        if len(finalists.held_out):
            canvas.text((x + TILE, y + TILE + 18), _number(finalists.held_out, index), 12, theme.muted, "rs")


def _number(values: Sequence[float | None], index: int) -> str:
    if not len(values):
        return ""
    value = values[index]
    return "no score" if value is None or not math.isfinite(value) else f"{value:.3f}"
