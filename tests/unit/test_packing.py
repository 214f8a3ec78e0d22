"""Weights at a byte per number: what is stored comes back within half a step."""

import torch

from testtime.models.tiny.packing import SCALE, pack, unpack


def test_numbers_move_by_at_most_half_a_step():
    torch.manual_seed(0)
    state = {"conv.weight": torch.randn(96, 8, 3, 3) * torch.logspace(-4, 2, 96)[:, None, None, None]}
    packed = pack(state)
    assert packed["conv.weight"].dtype == torch.int8 and packed["conv.weight" + SCALE].shape == (96,)
    back = unpack(packed)["conv.weight"]
    largest = state["conv.weight"].flatten(1).abs().amax(1)
    error = (back - state["conv.weight"]).flatten(1).abs().amax(1)
    assert (error <= largest / 254 * 1.01 + 2**-25).all() and error.max() > 0


def test_rows_of_zeros_stay_zeros():
    state = {"linear.weight": torch.zeros(64, 64)}
    assert torch.equal(unpack(pack(state))["linear.weight"], state["linear.weight"])


def test_small_tensors_and_vectors_keep_half_precision():
    state = {"bias": torch.randn(9000), "norm.weight": torch.randn(4, 4)}
    packed = pack(state)
    assert packed.keys() == state.keys() and all(value.dtype == torch.float16 for value in packed.values())
    assert torch.equal(unpack(packed)["bias"], state["bias"].half())


def test_files_that_were_not_packed_pass_through():
    state = {"weight": torch.randn(80, 80).half()}
    assert unpack(state)["weight"] is state["weight"]
