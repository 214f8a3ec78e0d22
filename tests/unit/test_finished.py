"""A run that was cut short and is made again takes what was finished, and finds what a whole run finds."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.after.replay import replay_of
from testtime.samplers.methods import BestOfN, RandomSearch, ZeroOrderSearch
from testtime.samplers.run import finished as finished_module
from testtime.samplers.run.finished import SUFFIX, FinishedCandidates
from testtime.samplers.run.search import run_search

from .searches import TARGET
from .test_frames import dear

STEPS = 5


def files(folder):
    return sorted(folder.glob("*" + SUFFIX))


def search(folder, method=None, facts=None, process=None, **options):
    """(result, the candidates' keeper) of a run whose finished candidates lie in ``folder``."""
    kept = FinishedCandidates(folder, facts)
    return run_search(method or BestOfN(4), process or dear(groups=1), TARGET, ["a"], finished=kept, **options), kept


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_going_on_finds_what_a_whole_run_finds(tmp_path, eta):
    whole = run_search(BestOfN(4), dear(groups=1, eta=eta), TARGET, ["a"])
    cut, _ = search(tmp_path, process=dear(groups=1, eta=eta), max_nfe=12)
    assert cut.status == "budget" and len(files(tmp_path)) == 2
    again, kept = search(tmp_path, process=dear(groups=1, eta=eta))
    assert kept.taken == 2 and again.ledger.nfe == 1 + 2 * STEPS
    assert torch.equal(again.finalists, whole.finalists) and torch.equal(again.scores, whole.scores)
    assert not files(tmp_path)
    replayed = run_search(replay_of(again.trace, again.particles[0]), dear(groups=1, eta=eta), TARGET, ["a"])
    torch.testing.assert_close(replayed.latents, again.latents)


def test_more_candidates_take_what_fewer_had_finished(tmp_path):
    search(tmp_path, BestOfN(3), max_nfe=11)
    again, kept = search(tmp_path, BestOfN(5))
    assert kept.taken == 2 and again.ledger.nfe == 1 + 3 * STEPS
    assert torch.equal(again.finalists, run_search(BestOfN(5), dear(groups=1), TARGET, ["a"]).finalists)


@pytest.mark.parametrize("method", [RandomSearch(6, halvings=(0.4,)), ZeroOrderSearch(3, 2)], ids=lambda m: m.name)
def test_other_methods_go_on_too(tmp_path, method):
    whole = run_search(method, dear(groups=1), TARGET, ["a"])
    cut, _ = search(tmp_path, method, max_nfe=whole.ledger.nfe - 2)
    assert cut.status == "budget"
    again, kept = search(tmp_path, method)
    assert kept.taken > 0 and again.ledger.nfe < whole.ledger.nfe
    assert torch.equal(again.finalists, whole.finalists)


def test_a_candidate_of_one_move_is_kept_as_well(tmp_path):
    method = RandomSearch(6, halvings=(0.6,))
    whole = run_search(method, dear(groups=1), TARGET, ["a"])
    search(tmp_path, method, max_nfe=whole.ledger.nfe - 1)
    assert len(files(tmp_path)) == 2
    again, kept = search(tmp_path, method)
    assert kept.taken == 2 and torch.equal(again.finalists, whole.finalists)


def test_two_images_are_taken_together(tmp_path):
    whole = run_search(BestOfN(3), dear(), TARGET, ["a", "b"])
    kept = FinishedCandidates(tmp_path)
    run_search(BestOfN(3), dear(), TARGET, ["a", "b"], finished=kept, max_nfe=2 * STEPS + 3)
    assert len(files(tmp_path)) == 2
    files(tmp_path)[0].unlink()  # half of a pair is of no use
    kept = FinishedCandidates(tmp_path)
    again = run_search(BestOfN(3), dear(), TARGET, ["a", "b"], finished=kept)
    assert kept.taken == 0 and torch.equal(again.finalists, whole.finalists)


def test_another_model_is_noticed(tmp_path, caplog):
    search(tmp_path, max_nfe=12)
    changed = dear(groups=1)
    changed.denoise.means = changed.denoise.means + 0.05
    with caplog.at_level("INFO", logger="testtime"):
        again, kept = search(tmp_path, process=changed)
    assert kept.taken == 0 and "are not used: the model gives other estimates" in caplog.text
    expected = dear(groups=1)
    expected.denoise.means = expected.denoise.means + 0.05
    assert torch.equal(again.finalists, run_search(BestOfN(4), expected, TARGET, ["a"]).finalists)


@pytest.mark.parametrize("other", ["seed", "eta", "facts"])
def test_another_run_takes_nothing(tmp_path, other):
    search(tmp_path, facts={"cfg": 3.0}, max_nfe=12)
    process = dear(groups=1, **{"seed": {"seed": 9}, "eta": {"eta": 0.5}, "facts": {}}[other])
    _, kept = search(tmp_path, facts={"cfg": 4.0 if other == "facts" else 3.0}, process=process)
    assert kept.taken == 0 and len(files(tmp_path)) == 2


def test_damaged_files_and_full_disks_cost_the_reuse_only(tmp_path, monkeypatch, caplog):
    whole = run_search(BestOfN(4), dear(groups=1), TARGET, ["a"])
    search(tmp_path, max_nfe=12)
    files(tmp_path)[0].write_bytes(b"\x08")
    again, kept = search(tmp_path)
    assert kept.taken == 1 and torch.equal(again.finalists, whole.finalists) and "made again" in caplog.text

    def full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(finished_module, "write_bytes", full)
    again, _ = search(tmp_path)
    assert torch.equal(again.finalists, whole.finalists)
    assert caplog.text.count("no space left on device") == 1


def test_the_folder_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(finished_module, "KEPT", 3)
    search(tmp_path, BestOfN(8), max_nfe=8 * STEPS - 1)
    assert len(files(tmp_path)) == 3


def test_without_turns_nothing_is_kept(tmp_path):
    process = dear(groups=1)
    process.whole_first = False
    search(tmp_path, process=process, max_nfe=12)
    assert not files(tmp_path)
