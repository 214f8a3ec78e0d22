"""The editing benchmark: what it asks for, what it counts, and that its page shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from testtime.bench.editing import FILE, Checklist, cases, shown, table
from testtime.shapes_world.drawing import draw
from testtime.shapes_world.scene import Scene

ROOT = Path(__file__).parents[2]


def picture(scene):
    return torch.from_numpy(draw(scene)).float() / 255


def test_the_wanted_picture_is_done_and_kept_and_the_source_is_only_kept():
    for case in cases(8):
        assert shown(case, case.picture()) == (False, True)
        wanted = Scene(case.wanted, case.source.background, case.source.seed)
        assert shown(case, picture(wanted)) == (True, True)
        alone = Scene(case.wanted[:1], case.source.background, case.source.seed)
        assert shown(case, picture(alone)) == (True, False)
        assert case.colour in case.caption and case.colour in case.instruction


def test_a_checklist_misreads_as_often_as_it_says():
    case = cases(1)[0]
    exact, erring = (Checklist(case, errs, 0) for errs in (0.0, 0.5))
    image = case.picture()[None]
    assert exact.chances(image, ["", ""]).tolist() == [[0.1, 0.9]]
    assert len({tuple(erring.chances(image, ["", ""])[0].tolist()) for _ in range(20)}) > 1


def test_the_page_shows_the_results():
    body = json.loads(FILE.read_text(encoding="utf-8"))
    assert table(body) in (ROOT / "docs" / "editing.md").read_text(encoding="utf-8")
