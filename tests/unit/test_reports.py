"""Report pictures: where things go (as numbers) and that nothing breaks them."""

from __future__ import annotations

import numpy as np
import pytest

from testtime.reports.canvas import DARK, Canvas, s_curve, score_colour, shortened, text_width, ticks
from testtime.reports.curves import best_so_far, scored_points, winner_path
from testtime.reports.report import Finalists, cost_line, grid_places, report
from testtime.reports.tree import draw_tree, layout, score_range, winner_ids
from testtime.samplers.trace import StepRecord, Trace


def entry(particle, parent, score=None, group=0, selected=True):
    return {"id": particle, "parent": parent, "group": group, "slot": 0, "score": score, "log_weight": None,
            "gradient_scale": 0.0, "selected": selected}  # fmt: skip


def small_trace() -> Trace:
    """Three particles; after step 1 two of them descend from particle 1, the winner is 7."""
    trace = Trace(seed=1)
    trace.meta = {"method": "fk", "prompts": ["a red star"], "ledger": {"nfe": 120, "decodes": 9, "verifier_images": 9}}
    trace.records = [
        StepRecord(0, 3, 9.0, [entry(0, None), entry(1, None), entry(2, None)], nfe=30),
        StepRecord(1, 3, 4.0, [entry(3, 0, 0.1), entry(4, 1, 0.9), entry(5, 2, None)], resampled=[True], nfe=60),
        StepRecord(3, 3, 0.0, [entry(6, 4, 0.2, selected=False), entry(7, 4, 0.8), entry(8, 5, None, selected=False)],
                   nfe=90, phase="final"),
    ]  # fmt: skip
    return trace


def crowd(particles: int, steps: int) -> Trace:
    """A large trace: every particle has one child."""
    trace = Trace()
    for step in range(steps):
        first = step * particles
        entries = [
            entry(first + i, None if step == 0 else first + i - particles, (i * 37 % particles) / particles)
            for i in range(particles)
        ]
        trace.records.append(StepRecord(step, steps, 1.0, entries, nfe=step * particles))
    return trace


def test_places_fill_the_box_from_left_to_right():
    plan = layout(small_trace(), (10, 20, 110, 220))
    assert plan.places[0] == (10, 20) and plan.places[2] == (10, 220)
    assert plan.places[4] == (60, 120)
    assert {plan.places[i][0] for i in (6, 7, 8)} == {110}
    assert plan.resampled == [60]


def test_children_keep_the_order_of_their_parents():
    trace = small_trace()
    trace.records[2].particles[0]["parent"] = 5
    trace.records[2].particles[2]["parent"] = 3
    plan = layout(trace, (0, 0, 100, 100))
    assert plan.places[8][1] < plan.places[7][1] < plan.places[6][1]


def test_the_winner_and_the_living_are_known():
    plan = layout(small_trace(), (0, 0, 100, 100))
    assert winner_ids(small_trace()) == [7]
    assert plan.winners == {7, 4, 1}
    assert plan.alive == {6, 7, 8, 4, 5, 1, 2}
    assert (1, 4) in plan.edges and (4, 7) in plan.edges


def test_scores_over_compute():
    trace = small_trace()
    assert best_so_far(trace) == [(60.0, 0.9), (90.0, 0.9)]
    assert winner_path(trace) == [[(60.0, 0.9), (90.0, 0.8)]]
    assert scored_points(trace)[0] == (60, 0.1, True)
    assert score_range(trace) == (0.1, 0.9)


def test_two_groups_are_averaged_and_each_has_a_winner():
    trace = small_trace()
    for record in trace.records:
        record.particles += [
            {**e, "id": e["id"] + 100, "parent": None if e["parent"] is None else e["parent"] + 100, "group": 1,
             "score": None if e["score"] is None else e["score"] - 1}
            for e in record.particles
        ]  # fmt: skip
    assert winner_ids(trace) == [7, 107]
    assert best_so_far(trace)[0][1] == pytest.approx(0.4)


def test_axis_labels_are_round_and_inside():
    assert ticks(0.0, 1.0, 4) == [0.0, 0.5, 1.0]
    assert ticks(-1.3, 1.2, 5) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    for low, high in ((0, 7), (-3e-4, 5e-4), (1234, 56789)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7 and all(low - 1e-9 <= v <= high * (1 + 1e-9) for v in found)


def test_curves_leave_and_arrive_horizontally():
    points = s_curve((0, 0), (100, 50))
    assert points[0] == (0, 0) and points[-1] == (100, 50)
    slope = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(points, points[1:], strict=False)]
    assert slope[0] < 0.15 and slope[-1] < 0.15 < max(slope)


def test_colours_run_from_worst_to_best():
    assert score_colour(DARK, 0.0) == DARK.scores[0] and score_colour(DARK, 1.0) == DARK.scores[-1]
    assert score_colour(DARK, 7.0) == DARK.scores[-1]


def test_long_prompts_are_cut():
    text = "a red star and " * 40
    cut = shortened(text, 15, 300)
    assert cut.endswith("...") and text_width(cut, 15) <= 300


def test_the_winners_path_is_drawn_in_the_accent_colour():
    canvas = Canvas(200, 100, DARK)
    plan = draw_tree(canvas, small_trace(), (20, 20, 180, 80))
    picture = canvas.finish().astype(int)
    (x0, y0), (x1, y1) = plan.places[1], plan.places[4]
    middle = picture[round((y0 + y1) / 2), round((x0 + x1) / 2)]
    assert np.abs(middle - DARK.accent).sum() < 60


def test_grid_order():
    assert grid_places(5, 2) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_a_report_holds_the_images(theme):
    images = np.full((3, 32, 32, 3), 255, np.uint8) * np.array([[[[1, 0, 0]]], [[[0, 1, 0]]], [[[0, 0, 1]]]], np.uint8)
    drawn = report(small_trace(), Finalists(images, [0.8, 0.2, None], [0.5, 0.4, 0.3], [0, 0, 0], "one", "two"), theme)
    assert drawn.dtype == np.uint8 and drawn.shape[1:] == (1180, 3)
    for colour in ([255, 0, 0], [0, 255, 0], [0, 0, 255]):
        assert (np.abs(drawn.astype(int) - colour).sum(2) < 30).sum() > 148 * 148 * 0.9


@pytest.mark.parametrize(("particles", "steps"), [(1, 1), (1, 20), (64, 50), (512, 3)])
def test_any_size_can_be_drawn(particles, steps):
    drawn = report(crowd(particles, steps), Finalists(np.zeros((0, 8, 8, 3), np.uint8)))
    assert drawn.shape[0] > 300 and drawn.std() > 5


def test_nothing_scored_and_nothing_at_all():
    trace = small_trace()
    for record in trace.records:
        for item in record.particles:
            item["score"] = None
    assert report(trace, Finalists(np.zeros((0, 8, 8, 3), np.uint8))).shape[1] == 1180
    assert report(Trace(), Finalists(np.zeros((0, 8, 8, 3), np.uint8))).shape[1] == 1180


def test_cost_is_said_in_words():
    trace = small_trace()
    trace.meta["ledger"]["total_seconds"] = 3.21
    assert cost_line(trace) == "120 forward passes   9 decodes   9 images judged   3.2 s"
    trace.meta["status"] = "budget"
    assert cost_line(trace).endswith("(ended early: budget)")


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="scores has 1 entries for 2 images"):
        Finalists(np.zeros((2, 8, 8, 3), np.uint8), [0.1])
    with pytest.raises(ValueError, match="theme is 'pink'"):
        report(small_trace(), Finalists(np.zeros((0, 8, 8, 3), np.uint8)), "pink")
