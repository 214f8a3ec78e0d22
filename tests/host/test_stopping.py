"""Cancel, budgets and what is kept of a run that was cut short; progress and the live preview."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import DAS, SMC, SVDD, BestOfN
from testtime.samplers.smc.tempering import Alpha

from .conftest import Redness, judged, watched

pytestmark = pytest.mark.host

SEARCHES = [BestOfN(3), SVDD(3), SMC(3, start=0.0, end=1.0), DAS(3, alpha=Alpha(0.5))]


@pytest.fixture(autouse=True)
def _nothing_cancelled():
    import comfy.model_management as management

    yield
    management.interrupt_current_processing(False)


def cancelling(model, at: int):
    """The MODEL with a user who presses Cancel during forward pass number ``at``."""
    import comfy.model_management as management

    calls = []

    def press(rows: int) -> None:
        calls.append(rows)
        if len(calls) == at:
            management.interrupt_current_processing(True)

    return watched(model, before=press)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
def test_cancel_stops_at_once_and_keeps_the_best_so_far(setup, search_ksampler, search):
    import comfy.model_management as management

    from testtime.nodes.host.results import store
    from testtime.nodes.recover_node import LAST_STOPPED, RecoverSearchNode

    given = setup("eps", batch=2)
    given.model, rows = cancelling(given.model, at=3)
    before = store.revision
    with pytest.raises(management.InterruptProcessingException):
        search_ksampler(given, search, steps=8)
    # A checkpointed pass that was under way is run again by its backward pass; nothing else follows.
    assert len(rows) <= (4 if search.name == "das" else 3)
    assert store.revision == before + 1
    best, _finalists, scores, trace = RecoverSearchNode.execute(LAST_STOPPED).result
    assert best["samples"].shape == (2, 4, 8, 8) and torch.isfinite(best["samples"]).all()
    assert set(scores.group) == {0, 1} and trace.meta["status"] == "interrupted"


def test_cancel_may_finish_the_workflow_instead(setup, search_ksampler):
    import comfy.model_management as management

    given = setup("eps")
    given.model, rows = cancelling(given.model, at=3)
    out = search_ksampler(given, SEARCHES[2], steps=8, on_cancel="finish with best so far")
    assert len(rows) == 3 and torch.isfinite(out.best["samples"]).all()
    assert out.trace.meta["status"] == "interrupted"
    management.throw_exception_if_processing_interrupted()  # the request was used up: later nodes run


def test_cancel_before_the_first_result_keeps_nothing(setup, search_ksampler):
    import comfy.model_management as management

    from testtime.nodes.host.results import store

    given, before = setup("eps"), store.revision
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        search_ksampler(given, BestOfN(3))
    assert store.revision == before


def test_cancel_while_judging(setup, search_ksampler):
    """A verifier may take long: the next picture is not decoded, and the step before is what is kept."""
    import comfy.model_management as management

    class Slow(Redness):
        def score(self, images, prompts, context=None):
            if len(self.calls) == 1:
                management.interrupt_current_processing(True)
            return super().score(images, prompts)

    given = setup("eps")
    given.verifier = Slow()
    given.model, _rows = watched(given.model)
    with pytest.raises(management.InterruptProcessingException):
        search_ksampler(given, SVDD(3), steps=6)
    assert len(given.verifier.calls) == 2


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
@pytest.mark.parametrize("budget", [13, 20])
def test_budgets_are_kept(setup, search_ksampler, search, budget):
    given = setup("eps")
    given.model, rows = watched(given.model)
    out = search_ksampler(given, search, steps=8, max_nfe=budget)
    assert out.trace.meta["ledger"]["nfe"] <= budget and out.trace.meta["status"] == "budget"
    if search.name != "das":
        assert sum(rows) <= budget
    # Best-of-N had not judged anything yet: it is judged now, on what the particles are on the way to.
    assert out.scores.values[0] is not None
    assert out.scores.values[0] == pytest.approx(judged(given, out.best)[0].item(), abs=2e-5)


def test_progress_and_a_preview_of_the_best_particle(setup, search_ksampler, monkeypatch):
    import comfy.utils
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod

    shown, steps = [], []
    monkeypatch.setattr(latent_preview.args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, node_id=None: (
        steps.append((value, total)), shown.append(preview[1])))  # fmt: skip
    given = setup("eps", batch=2)
    out = search_ksampler(given, BestOfN(4), steps=5)
    assert [value for value, _ in steps] == sorted(value for value, _ in steps)
    assert steps[-1] == (5, 5)
    previewer = latent_preview.Latent2RGBPreviewer(
        given.model.model.latent_format.latent_rgb_factors, given.model.model.latent_format.latent_rgb_factors_bias
    )
    best = given.model.model.process_latent_in(out.best["samples"])
    assert shown[-1].tobytes() == previewer.decode_latent_to_preview(best[:1]).tobytes()


def test_finalists_carry_the_mask_and_the_place_of_their_image(setup, search_ksampler):
    given = setup("eps", batch=2)
    masks = torch.stack([torch.ones(64, 64), torch.tril(torch.ones(64, 64))])
    given.latent = {**given.latent, "batch_index": [7, 2], "noise_mask": masks}
    out = search_ksampler(given, BestOfN(3), steps=2)
    assert out.best["batch_index"] == [7, 2] and out.finalists["batch_index"] == [7, 7, 7, 2, 2, 2]
    assert torch.equal(out.finalists["noise_mask"], masks[[0, 0, 0, 1, 1, 1]])
