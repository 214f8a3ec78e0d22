"""Report pictures: where things go (as numbers) and that nothing breaks them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from testtime.reports.canvas import DARK, LIGHT, Canvas, font_for, s_curve, score_colour, shortened, text_width, ticks
from testtime.reports.curves import best_so_far, scored_points, staircase, winner_paths
from testtime.reports.messages import whole
from testtime.reports.names import method_name, method_order
from testtime.reports.report import MARGIN, WIDTH, Finalists, cost_line, grid_layout, report, settings_line
from testtime.reports.tree import columns_of, draw_tree, lanes, layout, numbered, score_range, winner_ids
from testtime.samplers.methods import METHODS, SMC, RandomSearch, ZeroOrderSearch
from testtime.samplers.processes.kernel import VE
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import StepRecord, Trace

from . import oracles

NO_IMAGES = np.zeros((0, 8, 8, 3), np.uint8)


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


def test_known_winners_take_the_place_of_those_in_the_last_record():
    """A run that was cut short hands out an earlier population than the last one of its trace."""
    trace = small_trace()
    trace.meta["winners"] = [3]
    plan = layout(trace, (0, 0, 100, 100))
    assert winner_ids(trace) == [3] and plan.winners == {3, 0} and {3, 0} <= plan.alive
    assert winner_paths(trace) == [[(60.0, 0.1)]]
    assert whole(trace)["winners"] == [3]


def test_lanes_leave_a_gap_between_groups():
    assert lanes([0]) == [0.5] and lanes([]) == []
    assert lanes([0, 0, 0]) == [0.0, 0.5, 1.0]
    first, second, third, fourth = lanes([0, 0, 1, 1])
    assert (first, fourth) == (0.0, 1.0) and third - second == pytest.approx(1.8 * (second - first))


def test_children_tried_one_at_a_time_share_a_column():
    trace = Trace()
    steps = [(0, [entry(0, None), entry(1, None)]), (1, [entry(2, 0)]), (1, [entry(3, 1)]), (2, [entry(4, 3)]),
             (1, [entry(5, 0)]), (3, [entry(0, None), entry(4, 3)])]  # fmt: skip
    trace.records = [StepRecord(step, 3, 1.0, found) for step, found in steps]
    assert [[e["id"] for e in found] for _, found in columns_of(trace)] == [[0, 1], [2, 3, 5], [4]]
    plan = layout(trace, (0, 0, 100, 40))
    assert plan.columns == [(0, 0), (50, 1), (100, 2)]
    # Children of the first parent come before those of the second, whenever they were tried.
    assert plan.places[2][1] < plan.places[5][1] < plan.places[3][1]


def test_a_search_that_goes_back_gets_a_column_per_record():
    trace = Trace()
    trace.records = [
        StepRecord(2, 4, 1.0, [entry(0, None)]), StepRecord(4, 4, 0.0, [entry(1, 0)]),
        StepRecord(2, 4, 1.0, [entry(2, 1)]), StepRecord(4, 4, 0.0, [entry(3, 2)]),
    ]  # fmt: skip
    plan = layout(trace, (0, 0, 90, 10))
    assert [plan.places[i][0] for i in range(4)] == [0, 30, 60, 90]
    assert [step for _, step in plan.columns] == [2, 4, 2, 4] and plan.winners == {0, 1, 2, 3}


@pytest.mark.parametrize(("columns", "stride"), [(11, 1), (21, 1), (51, 2), (201, 10)])
def test_step_numbers_do_not_touch(columns, stride):
    found = numbered([(1000 * i / (columns - 1), i) for i in range(columns)])
    assert [step for _, step in found] == list(range(0, columns, stride))
    assert numbered([(5.0, 3)]) == [(5.0, 3)]


def test_sixty_four_lanes_of_fifty_steps_stay_apart():
    plan = layout(crowd(64, 51), (0, 0, 1000, 448))
    assert plan.places[0] == (0, 0) and plan.places[64 * 51 - 1] == (1000, 448)
    heights = sorted({round(y, 6) for _, y in plan.places.values()})
    assert len(heights) == 64 and np.allclose(np.diff(heights), 448 / 63)
    assert len({x for x, _ in plan.places.values()}) == 51 and len(plan.edges) == 64 * 50


def test_scores_over_compute():
    trace = small_trace()
    assert best_so_far(trace) == {0: [(60.0, 0.9), (90.0, 0.9)]}
    assert winner_paths(trace) == [[(60.0, 0.9), (90.0, 0.8)]]
    assert scored_points(trace)[0] == (60, 0.1, True)
    assert score_range(trace) == (0.1, 0.9)
    assert staircase([(60.0, 0.2), (90.0, 0.5)], 100) == [(60.0, 0.2), (90.0, 0.2), (90.0, 0.5), (100, 0.5)]


def test_what_was_not_paid_for_again_is_one_point():
    trace = small_trace()
    trace.records.append(StepRecord(4, 4, 0.0, [entry(9, 7, 0.8), entry(10, 7, 0.7), entry(6, 4, 0.2)], nfe=90))
    before = scored_points(small_trace())
    assert scored_points(trace) == [*before, (90, 0.7, True)]


def test_every_group_has_its_own_line_and_winner():
    trace = small_trace()
    for record in trace.records:
        record.particles += [
            {**e, "id": e["id"] + 100, "parent": None if e["parent"] is None else e["parent"] + 100, "group": 1,
             "score": None if e["score"] is None else e["score"] - 1}
            for e in record.particles
        ]  # fmt: skip
    assert winner_ids(trace) == [7, 107]
    curves = best_so_far(trace)
    assert curves[0] == [(60.0, 0.9), (90.0, 0.9)] and curves[1][0] == (60.0, pytest.approx(-0.1))


def test_scores_that_are_not_numbers_are_left_out():
    trace = small_trace()
    trace.records[1].particles[1]["score"] = float("nan")
    trace.records[1].particles[2]["score"] = float("inf")
    assert score_range(trace) == (0.1, 0.8)
    assert best_so_far(trace) == {0: [(60.0, 0.1), (90.0, 0.8)]}
    assert len(scored_points(trace)) == 3
    assert report(trace, Finalists(np.zeros((2, 8, 8, 3), np.uint8), [0.8, float("nan")])).shape[1] == WIDTH


def test_axis_labels_are_round_and_inside():
    assert ticks(0.0, 1.0, 4) == [0.0, 0.5, 1.0]
    assert ticks(-1.3, 1.2, 5) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    for low, high in ((0, 7), (-3e-4, 5e-4), (1234, 56789)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7 and all(low - 1e-9 <= v <= high * (1 + 1e-9) for v in found)


def test_curves_leave_and_arrive_horizontally():
    points = s_curve((0, 0), (100, 50))
    assert points[0] == (0, 0) and points[-1] == (100, 50)
    slope = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(points)]
    assert slope[0] < 0.15 and slope[-1] < 0.15 < max(slope)


def test_colours_run_from_worst_to_best():
    assert score_colour(DARK, 0.0) == DARK.scores[0] and score_colour(DARK, 1.0) == DARK.scores[-1]
    assert score_colour(DARK, 7.0) == DARK.scores[-1]


def test_long_prompts_are_cut_at_the_last_letter_that_fits():
    text = "a red star\nand " * 40
    cut = shortened(text, 15, 300)
    assert cut.endswith("...") and text_width(cut, 15) <= 300 and "\n" not in cut
    longer = " ".join(text.split())[: len(cut) - 3 + 2]
    assert text_width(longer + "...", 15) > 300
    assert shortened("short\n text", 15, 300) == "short text"


def test_letters_that_no_font_has_do_not_stop_a_report():
    assert font_for("a red star", 12) is font_for("a red star", 12)
    trace = small_trace()
    trace.meta["prompts"] = ["\u4e00\u4e2a\u7ea2\u8272\u7684\u661f\nsecond line", "\U0010ffff", ""]
    assert report(trace, Finalists(NO_IMAGES)).shape[1] == WIDTH


def test_the_winners_path_is_drawn_in_the_accent_colour():
    canvas = Canvas(200, 100, DARK)
    plan = draw_tree(canvas, small_trace(), (20, 20, 180, 80))
    picture = canvas.finish().astype(int)
    (x0, y0), (x1, y1) = plan.places[1], plan.places[4]
    middle = picture[round((y0 + y1) / 2), round((x0 + x1) / 2)]
    assert np.abs(middle - DARK.accent).sum() < 60


@pytest.mark.parametrize(
    ("count", "lines"), [(1, [1]), (4, [4]), (8, [8]), (9, [5, 4]), (17, [6, 6, 5]), (24, [8] * 3)]
)
def test_the_grid_is_filled_line_by_line_best_first(count, lines):
    grid = grid_layout([0] * count, 1.0, 100.0)
    assert grid.rows == list(range(count)) and not grid.headings
    ys = [box[1] for box in grid.boxes]
    assert [ys.count(y) for y in sorted(set(ys))] == lines and ys == sorted(ys)
    check_boxes(grid)
    widths = {round(right - left, 6) for left, _, right, _ in grid.boxes}
    assert len(widths) == 1 and max(right for _, _, right, _ in grid.boxes) <= WIDTH - MARGIN + 1e-9
    if count >= 4:
        assert max(right for _, _, right, _ in grid.boxes) == pytest.approx(WIDTH - MARGIN)


def test_groups_begin_their_own_lines_and_share_the_limit():
    grid = grid_layout([0] * 3 + [1] * 10 + [2], 0.5, 0.0, limit=15)
    assert grid.rows == [0, 1, 2, 3, 4, 5, 6, 7, 13]  # five of each
    assert [group for group, _ in grid.headings] == [0, 1, 2]
    lefts = dict(zip(grid.rows, [box[0] for box in grid.boxes], strict=True))
    assert lefts[0] == lefts[3] == lefts[13] == MARGIN
    tops = dict(zip(grid.rows, [box[1] for box in grid.boxes], strict=True))
    assert tops[0] < tops[3] < tops[13] and all(
        y < tops[row] for (_, y), row in zip(grid.headings, (0, 3, 13), strict=True)
    )
    check_boxes(grid)


def test_images_of_a_batch_that_have_one_finalist_each_stand_side_by_side():
    grid = grid_layout(list(range(5)), 1.5, 0.0)
    assert not grid.headings and len({box[1] for box in grid.boxes}) == 1
    left, top, right, bottom = grid.boxes[0]
    assert (bottom - top) / (right - left) == pytest.approx(1.5)


def check_boxes(grid):
    """No two tiles touch, captions included."""
    for i, (l0, t0, r0, b0) in enumerate(grid.boxes):
        assert b0 + 18 < grid.bottom
        for l1, t1, r1, b1 in grid.boxes[i + 1 :]:
            assert r0 < l1 or r1 < l0 or b0 + 22 < t1 or b1 + 22 < t0


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_a_report_holds_the_images(theme):
    images = np.full((3, 32, 32, 3), 255, np.uint8) * np.array([[[[1, 0, 0]]], [[[0, 1, 0]]], [[[0, 0, 1]]]], np.uint8)
    drawn = report(small_trace(), Finalists(images, [0.8, 0.2, None], [0.5, 0.4, 0.3], [0, 0, 0], "one", "two"), theme)
    assert drawn.dtype == np.uint8 and drawn.shape[1:] == (1180, 3)
    for colour in ([255, 0, 0], [0, 255, 0], [0, 0, 255]):
        found = np.abs(drawn.astype(int) - colour).sum(2) < 30
        assert found.sum() > 250 * 250
    # The winner, and nothing else, stands in a frame.
    accent = DARK.accent if theme == "dark" else LIGHT.accent
    grid = drawn.astype(int)[92 + 2 * 300 + 16 :]
    framed = np.abs(grid - accent).sum(2) < 20
    assert 4 * 260 * 2 < framed[:, : MARGIN + 275].sum() < 4 * 275 * 4 and framed[:, MARGIN + 290 :].sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("particles", "steps"), [(1, 1), (1, 20), (64, 50), (512, 3)])
def test_any_size_can_be_drawn(particles, steps):
    drawn = report(crowd(particles, steps), Finalists(NO_IMAGES))
    assert drawn.shape[0] > 300 and drawn.std() > 5


def test_nothing_scored_and_nothing_at_all():
    trace = small_trace()
    for record in trace.records:
        for item in record.particles:
            item["score"] = None
    assert report(trace, Finalists(NO_IMAGES)).shape[1] == 1180
    assert report(Trace(), Finalists(NO_IMAGES)).shape[1] == 1180


def test_cost_is_said_in_words():
    trace = small_trace()
    trace.meta["ledger"]["total_seconds"] = 3.21
    assert cost_line(trace) == "120 forward passes   9 decodes   9 images scored   3.2 s"
    trace.meta["ledger"] = {"nfe": 4000, "decodes": 1, "verifier_images": 1, "total_seconds": 150}
    assert cost_line(trace) == "4,000 forward passes   1 decode   1 image scored   2.5 min"
    trace.meta["status"] = "budget"
    assert cost_line(trace).endswith("(ended early: budget)")


def test_settings_are_said_where_they_mean_something():
    assert settings_line(small_trace()) == "3 steps   seed 1"
    rounds = small_trace()
    rounds.meta["method"] = "zero_order_search"
    assert settings_line(rounds) == settings_line(Trace(seed=1)) == "seed 1"


def test_every_method_has_a_name():
    assert all(method_name(key) == row.title == row.method.title for key, row in METHODS.items())
    assert method_name("plain") == "Plain sampling" and method_name("of_my_own") == "of my own"
    assert method_name("rbf_vp") == "RBF, VP SDE" and method_name("ttgen_worst") == "TTGen, worst choice"
    keys = ["of_my_own", "svdd_vp", "svdd_reprompted", "rbf", "best_of_n", "plain"]
    assert sorted(keys, key=method_order) == ["plain", "best_of_n", "rbf", "svdd_reprompted", "svdd_vp", "of_my_own"]


@pytest.mark.slow
@pytest.mark.parametrize("search", [SMC(particles=6), RandomSearch(8), ZeroOrderSearch(3, 4)], ids=lambda s: s.name)
def test_reports_of_real_searches(search):
    """Trace and result agree on who won, every particle has a place inside the box, and lines only go forward."""
    means = np.array([[-1.0, -1.0], [1.0, 1.0]])
    denoiser = oracles.MixtureDenoiser(torch.tensor(means), torch.tensor([0.5, 0.5]), 0.2, VE())
    target = oracles.FunctionVerifier(lambda x: x[:, 0])
    result = run_search(search, oracles.process(denoiser, 8, 2, 5, dim=2), target, ["p", "q"])
    trace = Trace.from_json(result.trace.to_json())
    groups = result.group.tolist()
    finalists = Finalists(np.zeros((len(groups), 8, 8, 3), np.uint8), result.scores.tolist(), (), groups,
                          particles=result.particles)  # fmt: skip
    assert winner_ids(trace) == [result.particles[groups.index(g)] for g in (0, 1)]
    plan = layout(trace, (10, 20, 310, 220))
    assert set(plan.places) == {e["id"] for r in trace.records for e in r.particles}
    assert all(10 <= x <= 310 and 20 <= y <= 220 for x, y in plan.places.values())
    assert all(plan.places[parent][0] < plan.places[child][0] for parent, child in plan.edges)
    assert len(set(plan.places.values())) == len(plan.places)
    ends = [path[-1][1] for path in winner_paths(trace)]
    assert ends == pytest.approx([float(result.scores[groups.index(g)]) for g in (0, 1)])
    assert report(trace, finalists).shape[1] == WIDTH


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="scores has 1 entries for 2 images"):
        Finalists(np.zeros((2, 8, 8, 3), np.uint8), [0.1])
    with pytest.raises(ValueError, match="theme is 'pink'"):
        report(small_trace(), Finalists(NO_IMAGES), "pink")
