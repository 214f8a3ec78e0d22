"""GenEval: reading of prompts, the rules on boxes made by hand, and all lines of the benchmark."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from testtime.verifiers.base import VerifierError
from testtime.verifiers.objects.geneval import (
    OFFICIAL,
    Found,
    Rules,
    count_error,
    direction,
    graded,
    relations,
    strict,
    thin_out,
)
from testtime.verifiers.objects.requirements import COLOURS, Item, Requirement, from_geneval, parse, singular

LINES = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "bench" / "public" / "data" / "geneval_metadata.jsonl")
    .read_text()
    .splitlines()
    if line
]


def boxes(*rows):
    """(left, top, right, bottom, score) each."""
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 5)
    return Found(table[:, :4], table[:, 4])


def colours_of(table):
    """A colour teller that knows boxes by their left edge."""

    def tell(name, where):
        rows = torch.full((len(where), len(COLOURS)), 0.02)
        for row, box in enumerate(where):
            rows[row, COLOURS.index(table[float(box[0])])] = 0.82
        return rows

    return tell


def perfect(wanted: Requirement):
    """Boxes and colours that fulfil a requirement: 100 pixels apart, everything where it should be."""
    places = {"left of": (-300, 0), "right of": (300, 0), "above": (0, -300), "below": (0, 300)}
    found: dict[str, list] = {}
    colours, corners = {}, []
    for number, item in enumerate(wanted.include):
        x, y = 1000.0 + 450 * number, 1000.0
        if item.relation:
            (dx, dy), (tx, ty) = places[item.relation[0]], corners[item.relation[1]]
            x, y = tx + dx, ty + dy
        corners.append((x, y))
        for copy in range(item.count):
            left = x + 70.0 * copy
            found.setdefault(item.name, []).append((left, y, left + 50, y + 50, 0.99 - 0.001 * copy))
            if item.colour:
                colours[left] = item.colour
    return {name: boxes(*rows) for name, rows in found.items()}, colours_of(colours)


class TestPrompts:
    def test_every_line_of_the_benchmark_is_read_from_its_prompt_alone(self):
        assert len(LINES) == 553
        for line in LINES:
            assert parse(line["prompt"]) == from_geneval(line), line["prompt"]

    @pytest.mark.parametrize(
        ("prompt", "include", "exclude"),
        [
            ("two dogs", [Item("dog", 2)], [("dog", 3)]),
            ("3 Red Apples.", [Item("apple", 3, "red")], [("apple", 4)]),
            ("one cat and no dogs", [Item("cat")], [("cat", 2), ("dog", 1)]),
            ("an orange", [Item("orange")], []),
            ("a picture of an orange orange", [Item("orange", 1, "orange")], []),
            ("a lamp on top of the table", [Item("table"), Item("lamp", 1, None, ("above", 0))], []),
            ("a cat is to the left of a dog, a tree",
             [Item("dog"), Item("cat", 1, None, ("left of", 0)), Item("tree")], []),
            ("a bus, two teddy bears, and a wine glass",
             [Item("bus"), Item("teddy bear", 2), Item("wine glass")], [("teddy bear", 3)]),
        ],
    )  # fmt: skip
    def test_free_prompts(self, prompt, include, exclude):
        assert parse(prompt) == Requirement(tuple(include), tuple(exclude))

    @pytest.mark.parametrize(
        "prompt",
        [
            "",
            "a dog with a hat",
            "a beautiful sunset over the old harbour at night",
            "a dog above a cat above a bird",
            "two",
        ],
    )
    def test_others_are_refused_with_an_example(self, prompt):
        with pytest.raises(VerifierError, match=r"write what to look for in `objects`, e.g."):
            parse(prompt)

    def test_singulars(self):
        plain = {"benches": "bench", "boxes": "box", "cherries": "cherry", "glasses": "glass", "people": "person",
                 "knives": "knife", "grass": "grass", "horses": "horse", "toothbrushes": "toothbrush"}  # fmt: skip
        assert {word: singular(word) for word in plain} == plain

    def test_broken_metadata(self):
        with pytest.raises(VerifierError, match="no line of GenEval's metadata"):
            from_geneval({"include": [{"class": "dog"}]})
        ahead = {"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}
        with pytest.raises(VerifierError, match="not before it"):
            from_geneval(ahead)


class TestStrict:
    def test_perfect_pictures_of_all_lines_are_right_and_empty_ones_wrong(self):
        for line in LINES:
            wanted = from_geneval(line)
            found, colours = perfect(wanted)
            assert strict(wanted, found, colours) == (True, []), line
            assert graded(wanted, found, colours) > 0.9, line
            right, reasons = strict(wanted, {}, colours)
            assert not right and reasons
            assert graded(wanted, {}, colours) < 0.2, line

    @pytest.mark.parametrize(
        ("prompt", "found", "verdict"),
        [
            ("a dog", {"dog": boxes((0, 0, 9, 9, 0.31))}, True),
            ("a dog", {"dog": boxes((0, 0, 9, 9, 0.30))}, False),  # above, not at
            ("a dog", {"cat": boxes((0, 0, 9, 9, 0.99))}, False),
            ("a dog and a cat", {"dog": boxes((0, 0, 9, 9, 0.9))}, False),
            # counts ask for 0.9
            ("two dogs", {"dog": boxes((0, 0, 9, 9, 0.95), (20, 0, 29, 9, 0.91))}, True),
            ("two dogs", {"dog": boxes((0, 0, 9, 9, 0.95), (20, 0, 29, 9, 0.89))}, False),
            ("two dogs", {"dog": boxes((0, 0, 9, 9, 0.95), (20, 0, 29, 9, 0.95), (40, 0, 49, 9, 0.89))}, True),
            ("two dogs", {"dog": boxes((0, 0, 9, 9, 0.95), (20, 0, 29, 9, 0.95), (40, 0, 49, 9, 0.95))}, False),
            # the most certain ones decide about the place
            ("a dog left of a cat",
             {"dog": boxes((0, 0, 9, 9, 0.9), (90, 0, 99, 9, 0.8)), "cat": boxes((50, 0, 59, 9, 0.9))}, True),
            ("a dog left of a cat",
             {"dog": boxes((90, 0, 99, 9, 0.9), (0, 0, 9, 9, 0.8)), "cat": boxes((50, 0, 59, 9, 0.9))}, False),
            ("a dog left of a cat", {"dog": boxes((0, 0, 9, 9, 0.9))}, False),  # nothing to be left of
        ],
    )  # fmt: skip
    def test_table(self, prompt, found, verdict):
        assert strict(parse(prompt), found)[0] is verdict

    def test_every_counted_object_must_have_the_colour(self):
        wanted = Requirement((Item("car", 2, "red"),))
        found = {"car": boxes((0, 0, 9, 9, 0.9), (20, 0, 29, 9, 0.8), (40, 0, 49, 9, 0.7))}
        assert strict(wanted, found, colours_of({0.0: "red", 20.0: "red", 40.0: "blue"}))[0]
        right, reasons = strict(wanted, found, colours_of({0.0: "red", 20.0: "blue", 40.0: "red"}))
        assert not right and reasons == ["car is red, blue instead of red"]

    def test_a_wrong_colour_leaves_nothing_to_stand_beside(self):
        wanted = Requirement((Item("cat", 1, "red"), Item("dog", 1, None, ("left of", 0))))
        found = {"cat": boxes((50, 0, 59, 9, 0.9)), "dog": boxes((0, 0, 9, 9, 0.9))}
        assert strict(wanted, found, colours_of({50.0: "blue"}))[1] == [
            "cat is blue instead of red",
            "nothing to be left of",
        ]

    def test_colours_need_a_teller(self):
        with pytest.raises(VerifierError, match="asks for a red car: a CLIP model is needed"):
            strict(parse("a red car"), {"car": boxes((0, 0, 9, 9, 0.9))})


class TestPlace:
    @pytest.mark.parametrize(
        ("box", "names"),
        [
            ((-100, 0, -90, 10), {"left of"}),
            ((100, 0, 110, 10), {"right of"}),
            ((0, -100, 10, -90), {"above"}),
            ((0, 100, 10, 110), {"below"}),
            ((100, 100, 110, 110), {"right of", "below"}),
            ((1, 1, 11, 11), set()),  # nearly the same place
            ((0, 0, 10, 10), set()),
            ((40, 100, 50, 110), {"below"}),  # 0.37 of the way to the right
        ],
    )
    def test_both_axes(self, box, names):
        other = torch.tensor([0.0, 0.0, 10.0, 10.0])
        assert relations(torch.tensor(box, dtype=torch.float32), other) == names

    def test_the_sizes_are_taken_off_the_distance(self):
        """Centres 10 apart, 8 of it needed for the sizes: (10 - 8) / 10 = 0.2, too little to be right of."""
        big, bigger = torch.tensor([10.0, 0.0, 50.0, 40.0]), torch.tensor([0.0, 0.0, 40.0, 40.0])
        assert direction(big, bigger, 0.1) == pytest.approx((0.2, 0.0))
        assert relations(big, bigger) == set() and relations(big, bigger, 0.0) == {"right of"}


class TestGraded:
    def test_every_clause_counts_the_same(self):
        wanted = parse("two red dogs")
        found = {"dog": boxes((0, 0, 9, 9, 0.45), (20, 0, 29, 9, 0.225))}
        told = colours_of({0.0: "red", 20.0: "blue"})
        # presence min(1, .225 / .9), colour mean of .82 and .02, number exp(-|0 - 2|)
        expected = (0.25 + 0.42 + math.exp(-2)) / 3
        assert graded(wanted, found, told) == pytest.approx(expected, abs=1e-6)

    def test_it_rises_on_the_way_to_being_right(self):
        wanted = parse("a dog left of a cat")
        cat = boxes((50, 0, 59, 9, 0.9))
        values = [graded(wanted, {"dog": boxes((x, 0, x + 9, 9, 0.9)), "cat": cat}) for x in (95.0, 52.0, 40.0, 0.0)]
        assert values[0] < values[1] < values[2] <= values[3]
        scores = [graded(wanted, {"dog": boxes((0, 0, 9, 9, s)), "cat": cat}) for s in (0.05, 0.1, 0.3, 0.6)]
        assert scores[0] < scores[1] < scores[2] == scores[3]

    def test_count_error(self):
        found = {"dog": boxes((0, 0, 9, 9, 0.95), (20, 0, 29, 9, 0.91)), "cat": boxes((50, 0, 59, 9, 0.95))}
        assert count_error(parse("four dogs"), found) == pytest.approx(-4 + 1e-3 * 0.93, abs=1e-6)
        assert count_error(parse("two dogs and no cats"), found) == pytest.approx(-1, abs=1e-2)


class TestThinning:
    def test_doubles_and_parts_go_as_far_as_the_rules_say(self):
        found = boxes((0, 0, 10, 10, 0.5), (1, 0, 11, 10, 0.9), (2, 2, 6, 6, 0.7), (40, 0, 50, 10, 0.6))
        kept = thin_out(found, Rules())
        assert kept.boxes[:, 0].tolist() == [1, 40]  # the double is the lower one, the part lies inside
        assert thin_out(found, Rules(inside=1.0)).boxes[:, 0].tolist() == [1, 2, 40]
        assert thin_out(found, OFFICIAL).scores.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.5])

    def test_at_most_sixteen(self):
        many = boxes(*[(20 * i, 0, 20 * i + 9, 9, 0.5 + i / 100) for i in range(20)])
        assert len(thin_out(many, OFFICIAL).scores) == 16

    def test_rules_are_checked(self):
        with pytest.raises(VerifierError, match="threshold is 0: it must lie between 0 and 1"):
            Rules(threshold=0)
        with pytest.raises(VerifierError, match="most is 0"):
            Rules(most=0)
