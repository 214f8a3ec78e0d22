"""Looks through a quick decoder: trusted while they rank as the full one does, and never what is handed out."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr

from testtime.samplers.methods import SMC, SVDD, BestOfN, FKSteering, RandomSearch
from testtime.samplers.processes.previews import CheapLooks, TwoDecoders, in_full
from testtime.samplers.run.agreement import ENOUGH, Agreement
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha

from . import oracles
from .searches import ABSOLUTE, TARGET, run
from .test_oracles import ALPHA, LINEAR, exact, gaussian


class Recording:
    """A decoder of the closed form (the image is x0) that counts its pictures."""

    def __init__(self, change=lambda x0: x0):
        self.change, self.images = change, 0

    def __call__(self, x0):
        self.images += len(x0)
        return self.change(x0)


def with_quick(process, change=lambda x0: x0):
    """(the process with a quick decoder beside its own, the full decoder, the quick one)."""
    full, quick = Recording(), Recording(change)
    process.decode, process.cheap_looks = TwoDecoders(full, quick), CheapLooks()
    return process, full, quick


# --- rank correlation ------------------------------------------------------------------------------------------------


def test_one_look_at_one_image_is_spearmans_coefficient():
    generator = torch.Generator().manual_seed(1)
    quick, full = torch.randn(2, 8, generator=generator).round(decimals=0)  # with ties
    agreement = Agreement()
    agreement.add(quick, full, torch.zeros(8, dtype=torch.int64))
    assert agreement.known and not agreement.asks
    assert agreement.correlation() == pytest.approx(float(spearmanr(quick, full).statistic), abs=1e-12)


def test_an_easy_prompt_or_a_later_step_is_no_agreement():
    agreement = Agreement()
    group = torch.tensor([0, 0, 1, 1])
    full = torch.tensor([1.0, 2.0, 101.0, 102.0])
    agreement.add(full.flip(0).reshape(2, 2).flip(0).flatten(), full, group)  # each image's order is turned round
    agreement.add(full.reshape(2, 2).flip(1).flatten() + 1000, full + 1000, group)
    assert agreement.known and agreement.correlation() == -1.0


def test_scores_that_tell_nothing_apart():
    agreement, group = Agreement(), torch.zeros(8, dtype=torch.int64)
    agreement.add(torch.arange(8.0), torch.ones(8), group)
    assert agreement.correlation() is None
    agreement = Agreement()
    agreement.add(torch.ones(8), torch.arange(8.0), group)
    assert agreement.correlation() == 0.0
    agreement = Agreement()
    agreement.add(torch.tensor([1.0, math.nan, 3.0, -math.inf]), torch.arange(4.0), group[:4])
    assert agreement.candidates == 2 and agreement.correlation() == 1.0


def test_candidates_that_stand_alone_are_not_decoded_twice():
    agreement = Agreement()
    assert agreement.rows(torch.tensor([0, 1, 2])).tolist() == []
    assert agreement.rows(torch.arange(3).repeat_interleave(6)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert len(agreement.rows(torch.zeros(40, dtype=torch.int64))) == ENOUGH


# --- searches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["svdd", "smc", "fk", "random_search", "beam_search", "path_search", "best_of_n"])
def test_a_quick_decoder_that_is_as_good_changes_nothing_but_who_decodes(name):
    process, full, quick = with_quick(oracles.keyed())
    expected, found = run(ABSOLUTE[name]), run(ABSOLUTE[name], process=process)
    assert torch.equal(found.latents, expected.latents) and torch.equal(found.scores, expected.scores)
    assert not found.warnings and process.cheap_looks.trusted
    ledger = found.ledger
    assert ledger.quick_decodes == quick.images and ledger.decodes == quick.images + full.images
    assert ledger.nfe == expected.ledger.nfe
    if name == "best_of_n":
        assert quick.images == 0 and full.images == len(found.finalists)
    else:
        assert quick.images > 0 and {"quick_decode", "decode"} <= set(ledger.seconds)


def test_one_that_ranks_otherwise_is_given_up_at_once_and_named():
    process, _, quick = with_quick(oracles.keyed(), lambda x0: 2 - x0.flip(1) * 3)
    search = SVDD(8)
    found = run(search, process=process)
    assert not process.cheap_looks.trusted
    (warning,) = found.warnings
    assert "preview_vae ranks candidates otherwise than vae (rank correlation -" in warning and "0.7" in warning
    assert torch.equal(found.latents, run(search).latents)  # the very look that told was repeated in full
    assert quick.images == 2 * 8
    assert found.trace.meta["preview_agreement"] < 0.7


def test_finished_images_are_judged_in_full_by_every_method_that_keeps_a_noisy_decoder():
    for search in (SVDD(4), RandomSearch(8), FKSteering(8, alpha=Alpha(0.3, "absolute"), every=2)):
        process, _, quick = with_quick(oracles.keyed(), lambda x0: x0 + 0.02 * torch.sin(50 * x0))
        found = run(search, process=process)
        assert process.cheap_looks.trusted and quick.images
        assert torch.allclose(found.scores, TARGET.score(found.finalists, []), atol=1e-12)


def test_what_is_handed_out_of_a_run_cut_short_is_judged_in_full():
    process, _, quick = with_quick(oracles.keyed(), lambda x0: x0 + 0.02 * torch.sin(50 * x0))
    found = run(SVDD(4), process=process, max_nfe=30)
    assert found.status == "budget" and quick.images
    assert torch.allclose(found.scores, TARGET.score(found.finalists, []), atol=1e-12)


def test_pause_is_for_a_block_and_variants_share_what_was_learned():
    process, full, quick = with_quick(oracles.keyed())
    state = process.predict(process.start(2))
    with in_full(process):
        process.preview(state)
    assert (full.images, quick.images) == (4, 0)
    process.variant(eta=0.5).preview(state)
    assert quick.images == 4
    process.variant(eta=0.5).cheap_looks.trusted = False
    process.preview(state)
    assert quick.images == 4
    assert run(BestOfN(2)).trace.meta.get("preview_agreement", "none") == "none"


# --- weights ---------------------------------------------------------------------------------------------------------

METHODS = {
    "smc": SMC(16, alpha=Alpha(ALPHA, "absolute"), end=1.0),
    "fk_diff": FKSteering(16, alpha=Alpha(ALPHA, "absolute"), potential="diff"),
    "fk_max": FKSteering(16, alpha=Alpha(ALPHA, "absolute"), potential="max"),
    "fk_rt": FKSteering(16, alpha=Alpha(ALPHA, "absolute"), potential="rt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_noise_on_the_previews_leaves_the_normalising_constant_unbiased(name):
    """Twists may be anything: the weights end at the full score over alpha, so that E[Z_hat] = Z for any N."""
    runs, steps = 1000, 20
    process, _, quick = with_quick(gaussian(steps, runs, 77), lambda x0: x0 + 0.15 * torch.sin(9 * x0) + 0.3)
    result = run_search(METHODS[name], process, LINEAR, ["p"] * runs)
    assert process.cheap_looks.trusted and quick.images
    ratio = torch.exp(result.log_z - exact(steps)[1])
    error = float(ratio.std()) / math.sqrt(runs)
    assert abs(float(ratio.mean()) - 1) < 4 * error
