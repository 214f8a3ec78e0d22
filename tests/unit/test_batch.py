"""Many runs: exactly one output per row, whatever dies; rows, manifest and loop one by one."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testtime.cli.main import main
from testtime.installation.errors import EXIT_BAD_INPUT, EXIT_SERVER, BadInput
from testtime.scale.batch.dispatch import Dispatcher, Job, Patience, RowError, WorkerLost
from testtime.scale.batch.manifest import NAME, ROW_FILE, Manifest
from testtime.scale.batch.rows import Row, keyed, mapped, read_rows, share
from testtime.scale.batch.run import run_batch

QUICK = Patience(attempts=3, backoff=0.01, rest=0.05)


# ---------------------------------------------------------------------------------------------- the promise


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_every_row_once_although_a_worker_and_the_driver_are_killed(tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text("".join(json.dumps({"prompt": "a red star", "seed": seed}) + "\n" for seed in range(200)))
    command = [sys.executable, "-m", "testtime", "batch", "--library", "shapes", "--method", "best_of_n:particles=1",
               "--set", "steps=1", "--set", "size=32", "--set", "held_out=shapes_clip", "--rows", str(rows),
               "--out", str(out), "--workers", "2", "--backoff", "0.1", "--quiet"]  # fmt: skip
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(lines(out, "done")) >= 20, driver)
    os.kill(worker_ids(out)[0], signal.SIGKILL)
    wait_for(lambda: lines(out, "retry") and len(lines(out, "done")) >= 60, driver)
    driver.kill()
    driver.wait()
    left = worker_ids(out)
    before = {line["key"] for line in lines(out, "done")}
    assert 60 <= len(before) < 200
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    keys = [line["key"] for line in lines(out, "done")]
    assert len(keys) == len(set(keys)) == 200
    folders = sorted(path.name for path in (out / "items").iterdir())
    assert folders == sorted(keys)
    assert all((out / "items" / key / "image.png").stat().st_size > 0 for key in keys)
    assert len({line["row"]["seed"] for line in lines(out, "done")}) == 200
    assert not (out / ".part").exists()
    again = {line["key"] for line in lines(out, "started")[-(200 - len(before)) :]}
    assert not again & before, "rows that were done ran again"
    assert not any(running(process) for process in left), "workers outlived their driver"
    with open(out / "index.csv", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 200
    assert "200 of 200" in (out / "index.html").read_text()


def lines(out: Path, status: str) -> list[dict]:
    path = out / NAME
    told = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    return [line for line in told if line.get("status") == status]


def worker_ids(out: Path) -> list[int]:
    """Process ids of the last start of each worker."""
    last = {}
    for line in lines(out, "started"):
        name, _, process = line["worker"].partition(" (process ")
        last[name] = int(process.rstrip(")"))
    return list(last.values())


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(condition, driver, seconds=90):
    ends = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------- the loop


class FakeSlot:
    """Writes the key into a file, unless ``script`` says what happens at that row."""

    def __init__(self, name, script=None, opens=()):
        self.name, self.script, self.ran, self.opened = name, script or {}, [], 0
        self.trouble = list(opens)

    async def open(self):
        self.opened += 1
        if self.trouble:
            raise WorkerLost(self.trouble.pop())

    async def run(self, job, folder):
        self.ran.append(job.key)
        await asyncio.sleep(0.001)
        (folder / "out.txt").write_text(job.key)
        trouble = self.script.get(job.key) or self.script.get("*")
        if trouble is not None:
            raise trouble
        return {"score": 1.0}

    async def close(self):
        pass


def a_batch(tmp_path, slots, count=12, patience=QUICK, what="w"):
    rows = [Row(f"k{n}", n + 1, {"n": n}) for n in range(count)]
    jobs = [Job(row.key, None, dict(row.values)) for row in rows]
    manifest = Manifest(tmp_path, what, "test")
    return run_batch(manifest, rows, jobs, slots, title="test", patience=patience, quiet=True)


def statuses(tmp_path, what="w"):
    manifest = Manifest(tmp_path, what, "test")
    found = {key: (entry.status, entry.attempts) for key, entry in manifest.entries.items()}
    manifest.close()
    return found


def test_a_row_that_ends_every_worker_is_set_aside_and_the_others_are_done(tmp_path):
    slots = [FakeSlot(name, {"k3": WorkerLost("it died")}) for name in "ab"]
    assert a_batch(tmp_path, slots) == EXIT_BAD_INPUT
    found = statuses(tmp_path)
    assert found.pop("k3") == ("failed", 3)
    assert set(found.values()) == {("done", 0)} and len(found) == 11
    assert sum(slot.ran.count("k3") for slot in slots) == 3
    assert "k3,4,3,it died" in (tmp_path / "failed.csv").read_text()
    assert "it died" in (tmp_path / "index.html").read_text()
    # Attempts are read back: another run leaves the row alone, unless it is told to try again.
    assert a_batch(tmp_path, slots) == EXIT_BAD_INPUT
    assert sum(slot.ran.count("k3") for slot in slots) == 3
    manifest = Manifest(tmp_path, "w", "test")
    manifest.forget_failures()
    manifest.close()
    assert a_batch(tmp_path, [FakeSlot("c")]) == 0
    assert not (tmp_path / "failed.csv").exists()


def test_attempts_are_counted_over_runs(tmp_path):
    manifest = Manifest(tmp_path, "w", "test")
    for _ in range(2):
        manifest.failed_attempt("k0", "a", "died", final=False)
    manifest.close()
    slot = FakeSlot("a", {"k0": WorkerLost("died")})
    a_batch(tmp_path, [slot])
    assert slot.ran.count("k0") == 1 and statuses(tmp_path)["k0"] == ("failed", 3)


def test_what_the_row_causes_fails_at_once(tmp_path):
    slot = FakeSlot("a", {"k1": RowError("width is 0", final=True)})
    assert a_batch(tmp_path, [slot]) == EXIT_BAD_INPUT
    assert slot.ran.count("k1") == 1


def test_a_failed_row_is_tried_elsewhere(tmp_path):
    bad, good = FakeSlot("bad", {"k0": RowError("no memory")}), FakeSlot("good")
    assert a_batch(tmp_path, [bad, good]) == 0
    assert bad.ran.count("k0") <= 1 and good.ran.count("k0") == 1


def test_a_sick_worker_rests_and_is_given_up_and_costs_no_row(tmp_path):
    sick, good = FakeSlot("sick", {"*": RowError("broken")}), FakeSlot("good")
    assert a_batch(tmp_path, [sick, good], count=40) == 0
    assert len(sick.ran) <= QUICK.sick_after + 1
    assert all(status == "done" for status, _ in statuses(tmp_path).values())


def test_no_worker_left_ends_with_a_status_of_its_own_and_goes_on_later(tmp_path):
    assert a_batch(tmp_path, [FakeSlot("a", opens=["no"] * 9)]) == EXIT_SERVER
    assert a_batch(tmp_path, [FakeSlot("a", opens=["no"])]) == 0


def test_stopped_finishes_what_runs(tmp_path):
    manifest = Manifest(tmp_path, "w", "test")
    slot = FakeSlot("a")
    dispatcher = Dispatcher(manifest, [slot], QUICK, lambda kind: dispatcher.stop())
    assert asyncio.run(dispatcher.run([Job(f"k{n}", None, {}) for n in range(5)])) is False
    assert slot.ran == ["k0"] and manifest.entry("k0").status == "done"
    manifest.close()


# ---------------------------------------------------------------------------------------------- the books


def finish(manifest, key, text="x"):
    part = manifest.started(key, "a")
    (part / "out.txt").write_text(text)
    manifest.done(key, part, {}, {})


def test_the_first_output_stays(tmp_path):
    manifest = Manifest(tmp_path, "w", "t")
    first, second = manifest.started("k", "a"), manifest.started("k", "b")
    for part, text in ((first, "first"), (second, "second")):
        (part / "out.txt").write_text(text)
    manifest.done("k", second, {}, {})
    manifest.done("k", first, {}, {})
    assert (tmp_path / "items" / "k" / "out.txt").read_text() == "second"
    assert not first.exists()
    manifest.close()


def test_a_torn_line_an_output_without_a_line_and_a_line_without_output(tmp_path):
    manifest = Manifest(tmp_path, "w", "t")
    for key in ("noted", "unnoted", "lost", "damaged"):
        finish(manifest, key)
    manifest.close()
    path = tmp_path / NAME
    kept = [line for line in path.read_text().splitlines() if '"unnoted"' not in line]
    path.write_text("\n".join(kept) + '\n{"key": "noted", "sta')
    (tmp_path / "items" / "lost" / "out.txt").unlink()
    (tmp_path / "items" / "damaged" / "out.txt").write_text("longer")
    manifest = Manifest(tmp_path, "w", "t")
    assert {key: entry.status for key, entry in manifest.entries.items()} == {
        "noted": "done", "unnoted": "done", "lost": "new", "damaged": "new",
    }  # fmt: skip
    finish(manifest, "lost", "again")
    manifest.close()
    assert all(json.loads(line) for line in path.read_text().splitlines() if not line.endswith('"sta'))
    manifest = Manifest(tmp_path, "w", "t")
    assert manifest.entry("lost").status == "done"
    manifest.close()
    assert json.loads((tmp_path / "items" / "lost" / ROW_FILE).read_text())["files"][0]["bytes"] == 5


def test_another_batch_and_another_driver_are_refused_and_nothing_is_lost(tmp_path):
    manifest = Manifest(tmp_path, "w", "mine")
    finish(manifest, "k")
    with pytest.raises(BadInput, match="another testtime is at work"):
        Manifest(tmp_path, "w", "mine")
    manifest.close()
    with pytest.raises(BadInput, match=r"holds another batch .mine; this is yours"):
        Manifest(tmp_path, "v", "yours")
    assert (tmp_path / "items" / "k" / "out.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / NAME).write_text('{"x": 1}\n')
    with pytest.raises(BadInput, match="no manifest of a batch"):
        Manifest(tmp_path / "other", "w", "mine")


# ---------------------------------------------------------------------------------------------- rows


def test_rows_of_both_formats_are_the_same(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "x", "6.text": "a, b"}\n\n{"id": "y", "6.text": "ä"}\n', encoding="utf-8")
    (tmp_path / "a.csv").write_text('id,6.text,7.seed\nx,"a, b",\ny,ä,\n', encoding="utf-8-sig")
    assert [(r.key, r.values) for r in read_rows(tmp_path / "a.jsonl")] == [
        (r.key, r.values) for r in read_rows(tmp_path / "a.csv")
    ]


def test_a_changed_row_is_a_new_one_and_others_keep_their_keys():
    one, two = (keyed([(1, {"p": "a"}), (2, {"p": b})]) for b in "bc")
    assert one[0].key == two[0].key and one[1].key != two[1].key
    assert keyed([(7, {"id": "../../etc/passwd", "p": "a"})])[0].key.startswith("_etc_passwd-")


def test_shards_are_the_whole():
    rows = keyed([(n, {"p": n}) for n in range(1, 101)])
    shares = [share(rows, f"{part}/3") for part in range(3)]
    assert sorted(row.line for part in shares for row in part) == list(range(1, 101))
    assert all(len(part) > 15 for part in shares)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"p": 1}\n{"p": 1', "line 2 is not JSON"),
        ("a.jsonl", '{"p": 1}\n[1]', "line 2 is not a JSON object"),
        ("a.jsonl", '{"p": [1]}', "line 1: p must be a text"),
        ("a.jsonl", '{"id": 1, "p": 1}\n{"p": 1}', "line 2 has no id, line 1 has one"),
        ("a.jsonl", '{"id": "a", "p": 1}\n{"id": "b", "p": 1}\n{"id": "a", "p": 2}', "1 and 3 have the same id 'a'"),
        ("a.jsonl", '{"id": " ", "p": 1}', "the id of line 1 is empty"),
        ("a.jsonl", '{"id": "a"}', "line 1 sets nothing"),
        ("a.jsonl", "\n\n", "no rows"),
        ("a.csv", "p,p\n1,2", "each once"),
        ("a.csv", "p,q\n1,2\n1", "line 3 has 1 cells, the header 2"),
        ("a.txt", "p", "expected a .jsonl or .csv file"),
        ("a.jsonl", b"\xff\xfe\x00", "cannot be read as a text file"),
    ],
)  # fmt: skip
def test_wrong_rows_name_their_line(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=words.replace("(", r"\(")):
        read_rows(path)


@pytest.mark.parametrize(
    ("row", "arguments", "words"),
    [
        ({"seed": 1}, [], "line 1 has no prompt"),
        ({"prompt": "a", "sede": 1}, [], "line 1: shapes has no setting 'sede'"),
        ({"prompt": "a", "seed": -1}, [], "seed is -1"),
        ({"prompt": "a", "method": "svd"}, [], "--method svd: choose one of"),
        ({"prompt": "a", "method": "svdd:candidate=2"}, [], "has no setting 'candidate'"),
        ({"prompt": "a"}, ["--method", "smc:particles=0"], "particles is 0"),
        ({"prompt": "a"}, ["--library", "sd15"], "factory is 'sd15'"),
        ({"prompt": "a"}, ["--library", "no.such:thing"], "cannot be imported"),
        ({"prompt": "a"}, ["--map", "p=prompt"], "no row has a column 'p'"),
        ({"prompt": "a"}, ["--map", "prompt"], "expected COLUMN=NODE.INPUT"),
        ({"prompt": "a"}, ["--shard", "2/2"], "expected I/N"),
        ({"prompt": "a"}, ["--servers", "localhost:1"], "use --workers N"),
    ],
)
def test_wrong_library_rows_stop_the_start(tmp_path, capsys, row, arguments, words):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"prompt": "fine"}))
    command = ["batch", "--rows", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]
    library = [] if "--library" in arguments else ["--library", "shapes"]
    assert main([*command, *library, *arguments]) == EXIT_BAD_INPUT
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_neither_and_both_of_workflow_and_library(tmp_path, capsys):
    for words in ([], ["workflow.json", "--library", "shapes"]):
        assert main(["batch", *words, "--rows", "x.csv", "--out", str(tmp_path / "out")]) == EXIT_BAD_INPUT
        assert "not both" in capsys.readouterr().err


def test_columns_are_renamed_and_keys_stay():
    rows = keyed([(1, {"prompt": "a"})])
    assert mapped(rows, ["prompt=6.text"]) == [Row(rows[0].key, 1, {"6.text": "a"})]
