"""Whatever goes wrong in whatever part of a search, at whatever moment: no image is lost, and it is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import killed
from .injected import FAULTS, injected

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
# What must be in the words that a user reads, for the part to be known.
NAMED = {
    "verifier": r"verifier|judge|finite score|budget spent|out of memory|Tried to allocate",
    "model": r"model|CUDA|budget|out of memory|Tried to allocate",
    "VAE": r"VAE|cuDNN|out of memory|Tried to allocate",
    "disk": r"journal .* cannot be written",
    "network": r"judge",
    "person": r"window|Cancel|finite score|",
    "process": r"Cancel|display|",
}
ENDINGS = {"complete", "failed", "budget", "interrupted"}
ERRORS = {
    "raises": {"RuntimeError"},
    "gives a wrong shape": {"SearchError"},
    "runs out of memory": {"OutOfMemoryError"},
    "loses the window": {"ConnectionResetError"},
    "gets Ctrl-C": {"KeyboardInterrupt"},
    "gives NaN": {"SearchError"},
    "gives infinity": {"SearchError"},
    "takes too long": {"SearchError"},
    "cancel": {"Interrupted"},
}


def test_there_are_at_least_120_of_every_part_moment_and_frequency():
    assert len(FAULTS) + len(killed.MOMENTS) >= 120 and len(set(map(str, FAULTS))) == len(FAULTS)
    assert {fault.part for fault in FAULTS} == set(NAMED)
    assert {(f.moment, f.often) for f in FAULTS} == {
        (m, o) for m in ("early", "mid", "late") for o in ("once", "always")
    }


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_nothing_is_lost_and_it_is_said(fault, tmp_path):
    outcome = injected(fault, tmp_path)
    assert outcome.lost == 0, outcome
    allowed = {e for word, errors in ERRORS.items() if word in fault.kind for e in errors}
    assert outcome.ended in ENDINGS | allowed, outcome
    if outcome.ended in ("complete", "failed", "budget"):
        assert outcome.got == 2, outcome
    if "too long" in fault.kind and outcome.ended == "complete":
        return  # it was the last call, and nothing came after it that could have been refused
    if fault.part == "network" and fault.often == "once":
        assert outcome.ended == "complete" and not outcome.said  # asked once more, and answered
        return
    assert re.search(NAMED[fault.part], " ".join(outcome.said)), outcome
    if fault.often == "always" and fault.part in ("model", "VAE") and fault.moment != "late":
        assert outcome.ended != "complete", outcome


@pytest.mark.docs
def test_the_table_is_the_one_of_these_faults():
    """The rows: words of messages are compared where they are made, by ``tools/build_reliability.py --check``."""
    text = DOCS.read_text(encoding="utf-8")
    table = text[text.index("<!-- faults: begin -->") : text.index("<!-- faults: end -->")]
    rows = [tuple(cell.strip() for cell in line.split("|")[1:8]) for line in table.splitlines() if line.startswith("|")]
    made = [row for row in rows[2:] if row[3] != "kill -9"]
    assert [row[:5] for row in made] == [(f.part, f.kind, f.moment, f.often, f.search) for f in FAULTS]
    assert len(rows) - 2 - len(made) == len(killed.MOMENTS) and {row[6] for row in rows[2:]} == {"0"}
