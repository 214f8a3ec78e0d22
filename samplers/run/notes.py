"""Warnings as people read them: one line in panel, page and trace; everything else belongs into the log."""

from __future__ import annotations

LIMIT = 200
"""Characters of a warning that is shown."""
CUT = " ... (more in the log)"


def brief(text: str, limit: int = LIMIT) -> str:
    """``text`` on one line of at most ``limit`` characters, cut between words where it is longer."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    kept = line[: limit - len(CUT) + 1]
    return (kept.rsplit(" ", 1)[0] if " " in kept[limit // 2 :] else kept[:-1]) + CUT
