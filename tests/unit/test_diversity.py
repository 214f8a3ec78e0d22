"""Diversity: closed forms of the Vendi score and the mean distance; what a search writes down and warns of."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from testtime.samplers.after.trace_check import TraceFileError
from testtime.samplers.after.trace_file import from_text
from testtime.samplers.diversity import cosines, diversity_of, in_words, looks_alike, mean_distance, vendi_score
from testtime.samplers.methods import BestOfN
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import Trace

from . import oracles


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_equal_and_orthogonal_vectors(n):
    equal, apart = np.tile([0.3, -2.0, 1.0], (n, 1)), 7.0 * np.eye(n)
    assert vendi_score(equal) == pytest.approx(1.0, abs=1e-9) and mean_distance(equal) == pytest.approx(0.0, abs=1e-12)
    assert vendi_score(apart) == pytest.approx(n, rel=1e-12)
    assert mean_distance(apart) == pytest.approx(1.0 if n > 1 else 0.0, abs=1e-12)


@pytest.mark.parametrize("angle", [0.1, 0.7, 1.5, 2.5])
def test_two_vectors_at_an_angle(angle):
    """Eigenvalues of K / 2 are (1 +- cos) / 2."""
    low, high = (1 - math.cos(angle)) / 2, (1 + math.cos(angle)) / 2
    pair = [[1.0, 0.0], [3.0 * math.cos(angle), 3.0 * math.sin(angle)]]
    assert vendi_score(pair) == pytest.approx(math.exp(-low * math.log(low) - high * math.log(high)), rel=1e-9)
    assert mean_distance(pair) == pytest.approx(1 - math.cos(angle), abs=1e-12)


def test_groups_of_equal_vectors_count_by_their_share():
    """Three of one kind and one of another: exp of the entropy of (3/4, 1/4)."""
    rows = [[1.0, 0.0]] * 3 + [[0.0, 1.0]]
    assert vendi_score(rows) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), rel=1e-9)
    assert mean_distance(rows) == pytest.approx(0.5)


def test_vectors_of_length_zero_are_equal():
    assert cosines(np.zeros((3, 4))).tolist() == np.ones((3, 3)).tolist()
    assert vendi_score([[0.0, 0.0], [1.0, 0.0]]) == pytest.approx(2.0)


@pytest.mark.parametrize("rows", [[], [1.0, 2.0], [[math.nan, 1.0]], np.zeros((0, 3))])
def test_what_has_no_diversity_is_refused(rows):
    with pytest.raises(ValueError, match="finite numbers"):
        vendi_score(rows)


def test_images():
    halves = torch.zeros(4, 16, 16, 3)
    halves[0, :8], halves[1, 8:], halves[2, :, :8], halves[3, :, 8:] = 1.0, 1.0, 1.0, 1.0
    found = diversity_of(halves)
    # Cosines: 0 with the negative, 1/2 with the others; K / 4 has the eigenvalues 1/2, 1/4, 1/4, 0.
    vendi = math.exp(0.5 * math.log(2) + 0.5 * math.log(4))
    assert found == {"images": 4, "distance": pytest.approx(2 / 3, abs=1e-3), "vendi": pytest.approx(vendi, abs=1e-3)}
    assert not looks_alike(found)
    alike = diversity_of(halves[:1] + 0.01 * torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(0)))
    assert alike["vendi"] < 1.01 and looks_alike(alike)
    assert not looks_alike(diversity_of(halves[[0, 0, 0]]))  # three say nothing
    clips = halves[:, None].expand(4, 5, 16, 16, 3)
    assert diversity_of(clips) == found


def test_broken_images_are_left_out():
    images = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    images[1, 0, 0, 0] = math.nan
    assert diversity_of(images)["images"] == 2 and diversity_of(images[:2]) is None


class Pictures(oracles.KeyedProcess):
    """Previews as pictures: two coordinates are how bright the upper and the lower half are."""

    def preview(self, state):
        level = torch.sigmoid(state.x0.float()).view(len(state), 3)
        halves = level[:, :2, None, None, None].expand(-1, -1, 8, 16, 3)
        return halves.reshape(len(state), 16, 16, 3)


BRIGHT = oracles.FunctionVerifier(lambda images: images.flatten(1).mean(1), "bright")


def pictured(**options):
    made = oracles.keyed(**options)
    made.__class__ = Pictures
    return made


def test_a_search_writes_its_diversity_down():
    result = run_search(BestOfN(6), pictured(groups=2), BRIGHT, ["p", "q"])
    found = result.trace.meta["diversity"]
    assert [one["images"] for one in found] == [6, 6] and all(1 < one["vendi"] <= 6 for one in found)
    again = Trace.from_json(result.trace.to_json())
    assert again.meta["diversity"] == found
    assert in_words(found).count("different images of 6") == 2


def test_what_is_no_picture_or_alone_has_none():
    assert "diversity" not in run_search(BestOfN(1), pictured(groups=1), BRIGHT, ["p"]).trace.meta
    assert "diversity" not in run_search(BestOfN(4), oracles.keyed(groups=1), BRIGHT, ["p"]).trace.meta


@pytest.mark.parametrize("value", [[{"images": 4}], "much", [1.5], [{"images": 4, "distance": "far", "vendi": 1.0}]])
def test_a_damaged_record_is_named(value):
    body = json.loads(run_search(BestOfN(2), pictured(groups=1), BRIGHT, ["p"]).trace.to_json())
    body["meta"]["diversity"] = value
    with pytest.raises(TraceFileError, match="diversity"):
        from_text(json.dumps(body))
