"""``Scores``: what TESTTIME_SCORES carries."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scores:
    """Scores of a batch of images, row by row.

    Attributes:
        verifier: name of the verifier.
        values: one score per image, higher is better; None where no finite score could be had.
        held_out: scores of a verifier that did not steer, or empty.
        held_out_verifier: its name, or "".
        group: which image of the batch each row competed for (all 0 for a plain batch).
        particles: ids of the rows in the trace, or empty.
    """

    verifier: str
    values: list[float | None]
    held_out: list[float | None] = field(default_factory=list)
    held_out_verifier: str = ""
    group: list[int] = field(default_factory=list)
    particles: list[int] = field(default_factory=list)

    def as_text(self) -> str:
        """One line per row, best effort alignment, for a text preview."""
        lines = []
        for row, value in enumerate(self.values):
            cells = [f"{row:3d}", "   n/a  " if value is None else f"{value:8.4f}"]
            if self.held_out:
                other = self.held_out[row]
                cells.append("   n/a  " if other is None else f"{other:8.4f}")
            lines.append("  ".join(cells))
        head = f"{self.verifier}" + (f", held out: {self.held_out_verifier}" if self.held_out else "")
        return "\n".join([head, *lines])
