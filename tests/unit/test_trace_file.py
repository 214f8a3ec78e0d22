"""Trace files: what is written is read again, and everything else is refused with a sentence."""

from __future__ import annotations

import base64
import json

import pytest
import torch
from PIL import Image, PngImagePlugin

from testtime.reports.thumbs import thumbnail
from testtime.samplers.after.replay import replay_of
from testtime.samplers.after.trace_file import (
    FORMAT,
    TraceFileError,
    essentials,
    from_essentials,
    from_text,
    read_trace_file,
    to_text,
)
from testtime.samplers.methods import SMC, SVDD
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import SCHEMA_VERSION
from testtime.samplers.smc.tempering import Alpha

from .oracles import keyed
from .searches import ABSOLUTE, OTHER, TARGET, every_method

PICTURE = thumbnail(torch.zeros(40, 20, 3, dtype=torch.uint8).numpy())


@pytest.fixture(scope="module")
def result():
    return run_search(SMC(4, alpha=Alpha(0.3, "absolute")), keyed(), TARGET, ["p", "q"])


def body(result, **changes) -> dict:
    return {**json.loads(to_text(result.trace)), **changes}


def test_a_file_is_read_as_it_was_written(result, tmp_path):
    winner = result.particles[0]
    path = tmp_path / "trace.json"
    path.write_text(to_text(result.trace, {winner: PICTURE}), encoding="utf-8")
    found = read_trace_file(path)
    assert json.loads(found.trace.to_json()) == json.loads(result.trace.to_json())
    assert found.thumbs == {winner: PICTURE} and found.version
    assert json.loads(path.read_text())["format"] == FORMAT


@every_method
def test_traces_of_every_method_are_read(name):
    """The checks of a reader must not be stricter than what is written."""
    trace = run_search(ABSOLUTE[name], keyed(), TARGET, ["p", "q"], held_out=OTHER).trace
    trace.meta.update({"sigmas": keyed().sigmas, "cfg": 2.0, "run": "7", "stream_ids": [0, 5]})
    assert json.loads(from_text(to_text(trace)).trace.to_json()) == json.loads(trace.to_json())
    few = from_essentials(essentials(trace)).trace
    assert len(few.records[-1].particles) == 2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_called_truncated(result, share):
    text = to_text(result.trace)
    with pytest.raises(TraceFileError, match="ends in the middle"):
        from_text(text[: int(len(text) * share)])


def test_a_newer_file_names_both_versions(result):
    newer = json.dumps(body(result, schema=SCHEMA_VERSION + 1, version="9.9.9"))
    with pytest.raises(
        TraceFileError, match=rf"schema {SCHEMA_VERSION + 1}, written by version 9.9.9.*update the pack"
    ):
        from_text(newer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("hello", "not JSON"),
        ("[1, 2]", "no list of records"),
        ('{"3": {"class_type": "KSampler"}}', "no list of records"),
        ('{"records": [], "schema": "1"}', "schema is '1'"),
        ('{"records": [], "schema": 1, "meta": 3}', "meta is not an object"),
        ('{"records": [], "schema": 1, "seed": "x"}', "damaged"),
        ("[" * 200_000, "nested|not JSON"),
    ],
)
def test_other_files_are_refused(text, message):
    with pytest.raises(TraceFileError, match=message):
        from_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parent": 10**6}, "not an earlier particle"),
        ({"id": "<script>"}, "id '<script>'"),
        ({"score": "<b>"}, "score '<b>'"),
        ({"group": None}, "group None"),
        ({"parent": "x"}, "parent 'x'"),
    ],
)
def test_damaged_particles_are_refused(result, change, message):
    broken = body(result)
    broken["records"][2]["particles"][1].update(change)
    with pytest.raises(TraceFileError, match=f"record 2 .*{message}"):
        from_text(json.dumps(broken))


def test_unknown_fields_of_a_record_and_missing_ones_are_damage(result):
    broken = body(result)
    broken["records"][0]["surprise"] = 1
    with pytest.raises(TraceFileError, match="surprise"):
        from_text(json.dumps(broken))
    broken = body(result)
    del broken["records"][1]["particles"][0]["gradient_scale"]
    with pytest.raises(TraceFileError, match="without gradient_scale"):
        from_text(json.dumps(broken))


def test_thumbs_that_are_no_pictures_are_left_out(result):
    evil = base64.b64encode(b"<svg onload=alert(1)>").decode()
    found = from_text(json.dumps(body(result, thumbs={"1": evil, "2": "not base64!", "3": PICTURE, "x": PICTURE})))
    assert found.thumbs == {3: PICTURE}


@pytest.mark.parametrize("search", [SVDD(3), SMC(4, alpha=Alpha(0.3, "absolute"))])
def test_the_essentials_make_the_winners_again(search):
    result = run_search(search, keyed(), TARGET, ["p", "q"])
    few = essentials(result.trace)
    assert len(json.dumps(few)) < 4000
    trace = from_essentials(json.loads(json.dumps(few))).trace
    for group in range(2):
        again = run_search(replay_of(trace, group=group), keyed(), TARGET, ["p", "q"])
        assert torch.allclose(again.latents[0], result.latents[group], atol=1e-9)
    assert from_text(to_text(trace)).trace.seed == result.trace.seed


def test_an_image_carries_the_essentials(result, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("testtime", json.dumps(essentials(result.trace)))
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    assert [e["id"] for e in read_trace_file(path).trace.records[-1].particles] == [
        w["particle"] for w in essentials(result.trace)["winners"]
    ]
    plain = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(plain)
    with pytest.raises(TraceFileError, match="says nothing about a search"):
        read_trace_file(plain)
    plain.write_bytes(b"no image")
    with pytest.raises(TraceFileError, match="not an image"):
        read_trace_file(plain)


def test_damaged_essentials_are_refused(result):
    few = essentials(result.trace)
    with pytest.raises(TraceFileError, match=r"newer|update the pack"):
        from_essentials({**few, "schema": SCHEMA_VERSION + 1})
    with pytest.raises(TraceFileError, match="no winners"):
        from_essentials({"schema": 1})
    with pytest.raises(TraceFileError, match="damaged"):
        from_essentials({**few, "winners": [{"slots": [1]}]})
