"""kill -9 in the middle of a search: a real process, the embedded model, and what the next makes of what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from testtime.cli.main import main
from testtime.samplers.after.origin import Origin
from testtime.samplers.after.recovery import KILLED, recover, unfinished
from testtime.samplers.after.trace_file import read_trace_file
from testtime.samplers.plan import Plan
from testtime.samplers.run.journal import KEPT, Journal, journals
from testtime.samplers.run.search import run_search

from . import killed

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="this system has no fork, by which the processes are made"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def dead(tmp_path_factory) -> Path:
    """Folders of runs that were killed, one per moment."""
    folder = tmp_path_factory.mktemp("killed")
    child = subprocess.run([sys.executable, killed.__file__, str(folder)], capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def whole():
    """The same search, undisturbed."""
    return run_search(killed.SEARCH, killed.process(), killed.judge(), killed.PROMPTS)


@pytest.mark.parametrize("moment", killed.MOMENTS)
def test_what_was_there_when_it_was_killed_is_there_now(dead, whole, moment):
    steps = killed.MOMENTS[moment]
    (path,) = journals(dead / moment)
    found = recover(path)
    assert found.trace.seed == 7 and found.trace.meta["prompts"] == killed.PROMPTS
    assert found.plan["method"]["candidates"] == 3 and found.status == found.trace.meta["status"]
    if moment == "after the last step":  # it was not saved, but had come to its end
        assert found.status == "complete" and len(unfinished(dead / moment)) == 1
        assert torch.equal(found.latents, whole.latents)
        return
    assert found.status == KILLED and [run.path for run in unfinished(dead / moment)] == [path]
    made = [record.particles for record in found.trace.records]
    expected = [record.particles for record in whole.trace.records[: len(made)]]
    assert [[e["slot"] for e in r] for r in made] == [[e["slot"] for e in r] for r in expected]
    for ours, theirs in zip(made, expected, strict=True):
        assert [e["score"] for e in ours] == pytest.approx([e["score"] for e in theirs], abs=1e-5)
    if not steps:
        assert not made and found.latents is None
        return
    assert found.step + 1 >= steps and len(found.latents) == len(killed.PROMPTS)
    assert torch.isfinite(found.latents).all()
    # The latents are of a particle in the journal, and its score is what the verifier says of them.
    known = found.trace.table()
    judged = killed.judge().score(killed.process().decode(found.latents).clamp(0, 1), killed.PROMPTS)
    for particle, score in zip(found.particles, judged.tolist(), strict=True):
        assert known[particle]["score"] is None or known[particle]["score"] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("moment", [moment for moment, steps in killed.MOMENTS.items() if 0 < steps < killed.STEPS])
def test_the_search_goes_on_and_comes_to_the_same_end(dead, whole, moment):
    found = recover(journals(dead / moment)[0])
    plan = Plan(killed.SEARCH, origin=Origin.at(found.trace))
    result = run_search(plan, killed.process(), killed.judge(), killed.PROMPTS)
    assert result.status == "complete"
    assert torch.allclose(result.latents, whole.latents, atol=1e-4)


def test_the_command_lists_them_and_writes_the_trace(dead, tmp_path, capsys):
    moment = dead / "in a model call"
    assert main(["recover", str(moment)]) == 0
    said = capsys.readouterr().out
    assert "SVDD" in said and "a red circle" in said and "step 2 of 8" in said
    (path,) = journals(moment)
    assert main(["recover", str(path), "--out", str(tmp_path)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {file.suffix for file in written} == {".json", ".latent"} and all(file.exists() for file in written)
    trace = read_trace_file(next(file for file in written if file.suffix == ".json")).trace
    assert trace.seed == 7 and len(trace.winners()) == 2
    assert main(["recover", str(dead / "before the first step")]) == 0
    assert "before its first step" in capsys.readouterr().out
    assert main(["recover", str(tmp_path / "nowhere")]) == 2


def test_a_journal_that_is_none_is_called_so(tmp_path, capsys):
    for number, text in enumerate(["", "{}\n", '{"format": "testtime-journal"}\n', "no json\n", "[1]\n", '{"a": 1']):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(text)
        assert main(["recover", str(path)]) == 2
        assert "journal" in capsys.readouterr().err or number in (2, 3)
    assert unfinished(tmp_path) == []


def test_a_full_disk_costs_the_journal_and_not_the_run(tmp_path, whole, caplog):
    class Full(Journal):
        def _line(self, body):
            if "record" in body:
                raise OSError(28, "No space left on device")
            super()._line(body)

    result = run_search(killed.SEARCH, killed.process(), killed.judge(), killed.PROMPTS, journal=Full(tmp_path))
    assert result.status == "complete" and torch.equal(result.latents, whole.latents)
    left = recover(journals(tmp_path)[0])
    assert left.trace.seed == 7 and not left.trace.records
    assert sum("cannot be written (OSError: [Errno 28]" in message for message in caplog.messages) == 1


def test_what_was_delivered_is_nothing_to_recover(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    run_search(killed.SEARCH, killed.process(), killed.judge(), killed.PROMPTS, journal=journal)
    assert unfinished(tmp_path) == []  # whoever ran it has it
    monkeypatch.setattr("testtime.samplers.after.recovery.PROCESS", "the next process")
    assert [run.status for run in unfinished(tmp_path)] == ["complete"]
    journal.deliver()
    assert unfinished(tmp_path) == [] and recover(journal.path).delivered


def test_a_folder_holds_a_bounded_number_of_journals(tmp_path):
    for number in range(KEPT + 5):
        journal = Journal(tmp_path)
        journal.begin(number, {"method": "svdd"}, {})
        journal.path.with_suffix(".latent").write_bytes(b"x")
        os.utime(journal.path, (number, number))
        journal.close()
    assert len(journals(tmp_path)) == KEPT and len(list(tmp_path.iterdir())) == 2 * KEPT
    assert next(json.loads(path.read_text())["seed"] for path in journals(tmp_path)) == KEPT + 4
