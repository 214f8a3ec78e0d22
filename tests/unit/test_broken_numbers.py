"""NaN and infinities of model, VAE and verifier: who gave them is said, and what was good before is handed out."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.methods import SVDD, BestOfN
from testtime.samplers.protocols import SearchError

from . import oracles, scale_world
from .searches import ABSOLUTE, SHARP, TARGET, CountingDenoiser, every_method, run, searches


class Breaking(CountingDenoiser):
    """The denoiser of a process, which gives ``bad`` in call number ``broken_at`` (all rows, or one)."""

    def __init__(self, inner, broken_at, bad=math.nan, row=None):
        super().__init__(inner)
        self.broken_at, self.bad, self.row = broken_at, bad, row

    def __call__(self, x, sigma, group, prompts=None):
        said = super().__call__(x, sigma, group, prompts)
        if self.calls != self.broken_at:
            return said
        x0 = said.x0.clone()
        x0[slice(None) if self.row is None else slice(self.row, self.row + 1)] = self.bad
        return said._replace(x0=x0)


def broken_model(at, bad=math.nan, row=None, **settings):
    process = oracles.keyed(**settings)
    process.denoise = Breaking(process.denoise, at, bad, row)
    return process


def broken_decoder(at, **settings):
    """A decoder that gives NaN from its call number ``at`` on."""
    process, calls = oracles.keyed(**settings), []

    def decode(x0):
        calls.append(len(x0))
        return x0 * math.nan if len(calls) >= at else x0

    process.decode = decode
    return process


@every_method
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_call_of_nan_gives_back_the_best_of_before(name, bad):
    """The earlier best is handed out with its score, the model is blamed and not the verifier, and it is no whole run.

    Methods that go on from elsewhere than the latest particles may come to a good end all the same.
    """
    search, plain = ABSOLUTE[name], oracles.keyed()
    plain.denoise = CountingDenoiser(plain.denoise)
    run(search, process=plain)
    for at in sorted({plain.denoise.calls // 2, plain.denoise.calls}):
        result = run(search, process=broken_model(at, bad))
        assert torch.isfinite(result.latents).all()
        first = [float(result.scores[result.group == g][0]) for g in range(2)]
        assert all(math.isfinite(score) for score in first)
        for g in range(2):  # and it is the score of what is handed out
            assert first[g] == pytest.approx(float(TARGET.score(result.latents[g][None], [])), abs=1e-9)
        # a checkpoint's second pass is not looked at; who never takes the first candidate has another one
        if not name.startswith(("das", "zero_order", "rbf_stopping")):
            assert result.status == "failed" == result.trace.meta["status"]
        if result.status == "failed":
            assert any("the model gave NaN or infinite numbers at step" in text for text in result.warnings)
        assert not any("verifier" in text for text in result.warnings)


def test_nothing_from_before_is_an_error_that_names_the_model():
    for name, search in ABSOLUTE.items():
        if name != "das":
            with pytest.raises(SearchError, match=r"the model gave NaN .* there is nothing from before"):
                run(search, process=broken_model(1))


def test_one_particle_of_nan_is_out_and_the_run_goes_on():
    result = run(BestOfN(4), process=broken_model(3, row=1))
    assert result.status == "complete" and torch.isfinite(result.latents).all()
    assert torch.isnan(result.scores[result.group == 0]).sum() == 1
    assert "the model gave NaN or infinite numbers at step 3 of 9" in result.warnings[0]


def test_an_image_that_is_nan_from_the_start_leaves_the_other_alone_and_is_said():
    sound = run(SVDD(4))
    result = run(SVDD(4), process=broken_model(1, row=0))
    assert result.status == "failed" and torch.equal(result.latents[1], sound.latents[1])
    assert "image 0 came out as NaN in the end: nothing is there from before" in result.warnings


@every_method
def test_a_decoder_of_nan_is_named_and_its_pictures_never_win(name):
    """The verifier is shown something that it can bear, and its word on it does not count."""
    seen = []

    def function(x):
        seen.append(bool(torch.isfinite(x).all()))
        return TARGET.score(x, [])

    result = run(ABSOLUTE[name], oracles.FunctionVerifier(function), broken_decoder(2))
    if name != "das":  # there the picture has a graph, and goes to the verifier as it is
        assert all(seen)
    assert torch.isfinite(result.latents).all()
    if len(seen) > 1:
        assert any("the VAE gave NaN or infinite pixels" in text for text in result.warnings)
        assert not any("the model gave" in text or "verifier" in text for text in result.warnings)
    scored = [e for r in result.trace.records for e in r.particles if e["score"] is not None]
    if scored and len(seen) > 1 and not name.startswith("zero_order"):
        assert result.status == "failed" and torch.isfinite(result.scores[0])


def test_a_next_scale_model_of_nan_is_seen():
    """A comparison with NaN is false: without a look every bit of such an image would be the same, without a word."""
    networks = scale_world.networks()
    process = scale_world.process(networks, groups=1, seed=5)
    inner, calls = process.model.step, []

    def step(*arguments):
        calls.append(1)
        logits = inner(*arguments)
        return logits * math.nan if len(calls) == 4 else logits

    process.model.step = step
    try:
        result = run(searches(SHARP)["smc"], scale_world.Brightness(), process)
    finally:
        del process.model.step
    assert result.status == "failed" and torch.isfinite(result.latents).all()
    assert any("the model gave NaN" in text for text in result.warnings)
