"""The overhead bench counts live tensors, and chunks are joined without holding everything twice."""

import pytest
import torch

from testtime.bench.overhead import DIFFUSION, LiveTensors, searches
from testtime.samplers.processes.chunking import Chunker

MEGABYTE = 2**20


@pytest.mark.slow
def test_live_tensors_are_counted_once_and_released():
    with LiveTensors() as live:
        first = torch.zeros(MEGABYTE // 4)
        view = first.view(2, -1)[1]
        assert live.now == MEGABYTE
        second = first + 1
        assert live.now == 2 * MEGABYTE
        del first, second
        assert live.now == MEGABYTE  # the view keeps its storage
        del view
    assert live.now == 0 and live.peak == 2 * MEGABYTE


def test_chunks_are_joined_in_place():
    with LiveTensors() as live:
        whole = Chunker(2).cat(lambda rows: torch.full((rows.stop - rows.start, MEGABYTE // 4), float(rows.start)), 8)
    assert whole.shape == (8, MEGABYTE // 4) and whole[:, 0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    assert live.peak <= 12.1 * MEGABYTE  # the whole, a piece, and the piece before it that is just being released


def test_joining_keeps_gradients():
    weight = torch.ones(3, requires_grad=True)
    Chunker(2).cat(lambda rows: weight.expand(rows.stop - rows.start, 3) * 2, 5).sum().backward()
    assert weight.grad.tolist() == [10.0, 10.0, 10.0]


def test_every_method_of_the_table_is_measured():
    found = searches(16)
    assert set(found) == {*DIFFUSION, "rbf", "beam"}
    assert {model for model, _ in found.values()} == {"diffusion", "flow"}
