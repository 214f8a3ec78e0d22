"""Devices without float64 (Apple's MPS): scores move to the CPU first and are cast there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from testtime.samplers.clustering import representatives
from testtime.samplers.heredity import neighbour
from testtime.samplers.processes.kernel import Transition, as_float64_cpu
from testtime.verifiers import pillow
from testtime.verifiers.aesthetic.jpeg import JPEGVerifier
from testtime.verifiers.ensemble import EnsembleVerifier, Voice
from testtime.verifiers.human import Answer, HumanVerifier


class OnDevice(Tensor):
    """A tensor that behaves as if it lay on a device without float64: a cast there, or on the way, is refused.

    ``cpu()`` and ``to("cpu")`` bring it home; a copy that moves and casts at once is what MPS writes nothing into.
    """

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        asked = [*args[1:], *kwargs.values()] if args else []
        doubles = function is Tensor.double or torch.float64 in asked
        if doubles and any(isinstance(value, OnDevice) for value in args):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        home = function is Tensor.cpu or (function is Tensor.to and any(str(value) == "cpu" for value in asked))
        result = super().__torch_function__(function, types, args, kwargs)
        return result.as_subclass(Tensor) if home and isinstance(result, Tensor) else result


def on_device(values) -> OnDevice:
    return torch.as_tensor(values, dtype=torch.float32).as_subclass(OnDevice)


class Judge(JPEGVerifier):
    """Scores that lie on the device."""

    def __init__(self, name, scores):
        super().__init__()
        self.name, self.scores, self.default_scale = name, scores, (0.0, 1.0)

    def score(self, images, prompts="", context=None):
        return on_device(self.scores[: len(images)])


def test_the_pretend_device_refuses():
    """The test can fail: each of these is what must not happen."""
    for cast in (lambda x: x.double(), lambda x: x.to(torch.float64), lambda x: x.to("cpu", torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            cast(on_device([1.0]))
    assert on_device([1.0]).cpu().double().dtype == torch.float64


@pytest.mark.parametrize("combine", ["zscore", "zscore_set", "rank", "softmax", "sum"])
def test_ensembles(combine):
    members = [Voice(Judge("a", [1.0, 2.0, 3.0])), Voice(Judge("b", [3.0, 2.0, 0.0]))]
    scores = EnsembleVerifier(members, combine).score(torch.rand(3, 8, 8, 3), "a cat")
    assert scores.dtype == torch.float64 and scores.shape == (3,) and torch.isfinite(scores).all()


def test_a_persons_ranking_and_the_kernels_cast():
    assert as_float64_cpu(on_device([0.5])).tolist() == [0.5]
    human = HumanVerifier(Judge("a", [1.0, 2.0]), lambda question: Answer((1, 0)))
    assert human.score(torch.rand(2, 8, 8, 3), ["a cat", "a cat"]).tolist() == [
        1.0,
        2.0,
    ]  # outside a search: no question


def test_exact_resizing():
    image = (torch.rand(1, 3, 20, 20) * 255).round() / 255
    there = pillow.resized(image.as_subclass(OnDevice), (8, 8), "bicubic")
    torch.testing.assert_close(there.as_subclass(Tensor), pillow.resized(image, (8, 8), "bicubic"), atol=0, rtol=0)


def test_noise_that_is_searched_and_clusters():
    pivot, direction = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    cosine = torch.full((4,), 0.5)
    there = neighbour(on_device(pivot), on_device(direction), on_device(cosine))
    torch.testing.assert_close(there.as_subclass(Tensor), neighbour(pivot, direction, cosine), atol=0, rtol=0)
    points = torch.tensor([[0.0], [0.1], [5.0]])
    assert representatives(on_device(points), 2, torch.tensor([0.0, 0.5]))[0].tolist() in ([0, 2], [1, 2])


def test_guided_moves():
    mean, noise, gradient = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    there = Transition(on_device(mean), 0.3).sample(on_device(noise), on_device(gradient))
    here = Transition(mean, 0.3).sample(noise, gradient)
    for mine, reference in zip(there, here, strict=True):
        torch.testing.assert_close(mine.as_subclass(Tensor), reference, atol=0, rtol=0)
