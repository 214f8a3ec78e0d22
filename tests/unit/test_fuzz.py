"""Damaged files of every kind: what comes out is an error of the pack's own, within a second, or a usable result.

Every case is a function of its number, so that a failure can be run again alone. ``TESTTIME_FUZZ=2000`` runs as many of
each kind; the default is a sample.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import testtime
from testtime.graph.check import check_known_nodes, check_links, check_values
from testtime.graph.convert import origins_in, to_api
from testtime.graph.workflow import apply_assignments, is_ui_format, read_workflow
from testtime.installation.errors import CommandError
from testtime.reports.page import render
from testtime.reports.report import Finalists, report
from testtime.samplers.after.origin import Origin
from testtime.samplers.after.replay import replay_of
from testtime.samplers.after.trace_file import (
    TraceFile,
    TraceFileError,
    essentials,
    from_text,
    read_trace_file,
    to_text,
)
from testtime.samplers.methods import SMC
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha

from .oracles import keyed
from .searches import TARGET

COUNT = int(os.environ.get("TESTTIME_FUZZ", "60"))
SLOWEST = 1.0  # seconds of the processor; a run that is slower is measured again
WORKFLOWS = sorted((Path(testtime.__file__).resolve().parent / "workflows").glob("**/*.json"))
ODD = [
    None, True, False, 0, -1, 1, 2**31, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, -1e308, float("nan"),
    float("inf"), "", "x", "0", "../../etc/passwd", "\x00", "\ud800", "<script>", "a" * 5000, [], {}, [[]], [None],
    {"a": {}}, [1, 2], ["1", 0], {"id": 1}, -10, -20, "workflow/x", [0] * 300,
]  # fmt: skip


def places(value, path=()) -> list[tuple]:
    """Paths of everything inside a JSON value."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def broken_value(body, dice: random.Random):
    """A copy of a JSON value with one to four places changed, removed, doubled, exchanged or nested."""
    body = copy.deepcopy(body)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        every = [path for path in places(body) if path]
        if not every:
            break
        *way, key = dice.choice(every)
        holder = body
        for step in way:
            holder = holder[step]
        kind = dice.randrange(6)
        if kind <= 2:
            holder[key] = copy.deepcopy(dice.choice(ODD))
        elif kind == 3:
            del holder[key]
        elif kind == 4 and isinstance(holder, list):
            holder.insert(dice.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        elif kind == 5:
            other = dice.choice(every)
            value = body
            for step in other:
                value = value[step] if step in (value if isinstance(value, dict) else range(len(value))) else None
                if not isinstance(value, dict | list):
                    break
            holder[key] = copy.deepcopy(value)
    return body


def broken_bytes(content: bytes, dice: random.Random) -> bytes:
    """Bytes with parts flipped, cut, doubled or replaced."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 3, 10))):
        at = dice.randrange(len(data) or 1)
        kind = dice.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del data[at : at + dice.choice((1, 2, 50, 5000))]
        elif kind == 2:
            data[at:at] = data[at : at + dice.choice((1, 10, 500))]
        elif kind == 3:
            data[at:at] = dice.choice(
                [b"[" * 100_000, b'{"a":' * 2000, b"9" * 5000, b"\xff\xfe", b"\x00", b"NaN", b"1e999"]
            )
        elif kind == 4:
            del data[at:]
        else:
            data[at:at] = dice.randbytes(dice.choice((1, 8, 64)))
    return bytes(data)


def within_a_second(work) -> None:
    """Run ``work``, again where it was slow: what counts is how fast it can be."""
    spent = []
    while not spent or (spent[-1] > SLOWEST and len(spent) < 3):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    assert min(spent) < SLOWEST, f"took {min(spent):.2f} s"


@pytest.fixture(scope="module")
def trace():
    result = run_search(SMC(4, alpha=Alpha(0.3, "absolute")), keyed(), TARGET, ["p", "q"])
    result.trace.meta.update({"sigmas": list(keyed().sigmas), "cfg": 2.0, "stream_ids": None})
    return result.trace


def read(load) -> None:
    """Read a trace and, where that succeeds, do with it what the nodes and ``testtime report`` do."""
    try:
        found: TraceFile = load()
    except TraceFileError as error:
        assert len(str(error)) < 500
        return
    report(found.trace, Finalists(np.zeros((0, 8, 8, 3), np.uint8)))
    to_text(found.trace, found.thumbs)
    essentials(found.trace)
    try:
        render(found.trace, found.thumbs)
    except ValueError as error:
        assert "the trace is empty" in str(error)
    for use in (replay_of, lambda trace: Origin.at(trace)):
        with contextlib.suppress(SearchError):
            use(found.trace)


@pytest.mark.parametrize("block", range(10))
def test_trace_files(trace, tmp_path, block):
    body = json.loads(to_text(trace, {3: "/9j/4AAQ", 4: "x"}))
    whole = json.dumps(body).encode()
    path = tmp_path / "trace.json"
    for number in range(block, COUNT, 10):
        dice = random.Random(f"trace {number}")
        if number % 3:
            path.write_text(json.dumps(broken_value(body, dice)), encoding="utf-8")
        else:
            path.write_bytes(broken_bytes(whole, dice))
        within_a_second(lambda: read(lambda: read_trace_file(path)))


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(text: bytes, width: int = 8, kind: bytes = b"tEXt") -> bytes:
    """A PNG of black pixels that says ``text`` under this pack's key, whatever that is."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 8, 8, 2, 0, 0, 0))
    if kind == b"zTXt":
        text = b"\x00" + zlib.compress(text)
    said = chunk(kind, b"testtime\x00" + text)
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * (1 + 3 * min(width, 64)))))
    return b"\x89PNG\r\n\x1a\n" + head + said + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("block", range(10))
def test_images(trace, tmp_path, block):
    few = essentials(trace)
    path = tmp_path / "image.png"
    for number in range(block, COUNT, 10):
        dice = random.Random(f"image {number}")
        if number % 3:
            text = json.dumps(broken_value(few, dice)).encode()
            width = dice.choice((8, 8, 8, 8, 0, 100_000, 2**31 - 1))
            path.write_bytes(png_with(text, width, dice.choice((b"tEXt", b"zTXt"))))
        else:
            path.write_bytes(broken_bytes(png_with(json.dumps(few).encode()), dice))
        within_a_second(lambda: read(lambda: read_trace_file(path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_with(b"{}", width=2**31 - 1), "no winners|larger than any image"),
        (png_with(b"{}", width=400_000_000), "no winners|larger than any image"),
        (png_with(b" " * (30 << 20), kind=b"zTXt"), "cannot|can be read|says nothing"),
        (png_with(b"[" * 100_000), "nested"),
        (png_with(b'{"schema": ' + b"9" * 5000), "ends in the middle|too long"),
        (b"GIF89a", "not an image"),
        (b"", "not an image"),
    ],
    ids=["bomb", "bomb within int32", "text of 30 MB", "deep", "long number", "gif", "empty"],
)
def test_bombs(tmp_path, content, message):
    path = tmp_path / "bomb.png"
    path.write_bytes(content)
    with pytest.raises(TraceFileError, match=message):
        read_trace_file(path)


@pytest.mark.parametrize("depth", [100_000, 900, 40])
def test_deep_json_is_refused(depth):
    with pytest.raises(TraceFileError, match="nested"):
        from_text('{"schema": 1, "records": [], "meta": ' + "[" * depth + "]" * depth + "}")


def test_a_ring_of_winners_is_no_trace(trace):
    """Negative numbers are given to ancestors: a winner that claims one would be its own ancestor."""
    few = essentials(trace)
    few["winners"][0]["particle"] = -len(few["winners"][0]["slots"])
    info = PngImagePlugin.PngInfo()
    info.add_text("testtime", json.dumps(few))
    with pytest.raises(TraceFileError, match="winner 0 has particle -"):
        from_image(info)


def from_image(info: PngImagePlugin.PngInfo) -> TraceFile:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        Image.new("RGB", (8, 8)).save(path, pnginfo=info)
        return read_trace_file(path)


def definitions_for(workflow: dict) -> dict:
    """``/object_info`` for a workflow of ours, from what its nodes have: enough to convert and check it."""
    kinds = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}
    info: dict = {}
    nodes = workflow["nodes"] if is_ui_format(workflow) else list(workflow.values())
    for node in nodes:
        inputs = node.get("inputs") or {}
        if isinstance(inputs, list):
            required = {entry["name"]: [entry["type"], {}] for entry in inputs}
            for place, value in enumerate(node.get("widgets_values") or []):
                required.setdefault(f"w{place}", [kinds.get(type(value), "STRING"), {"default": value}])
        else:
            required = {
                name: ["LINK", {}] if isinstance(value, list) else [kinds.get(type(value), "STRING"), {}]
                for name, value in inputs.items()
            }
        info[node.get("type") or node.get("class_type")] = {"input": {"required": required}, "display_name": "x"}
    info["KSampler"] = {"input": {"required": {"seed": ["INT", {}], "sampler": [["a", "b"], {}]}}}
    return info


def use(path: Path, info: dict) -> None:
    """What ``testtime run`` does with a file before anything is queued."""
    try:
        workflow = read_workflow(path)
        origins = {}
        if is_ui_format(workflow):
            origins = origins_in(workflow)
            workflow = to_api(workflow, info)
        check_known_nodes(workflow, info, origins)
        check_links(workflow, info)
        check_values(apply_assignments(workflow, [], info), info)
    except CommandError as error:
        assert str(error) and len(str(error)) < 20_000


@pytest.mark.parametrize("block", range(10))
def test_workflow_files(tmp_path, block):
    path = tmp_path / "workflow.json"
    whole = [json.loads(file.read_text(encoding="utf-8")) for file in WORKFLOWS]
    whole = [body for body in whole if isinstance(body, dict)]
    infos = [definitions_for(body) for body in whole]
    for number in range(block, COUNT, 10):
        dice = random.Random(f"workflow {number}")
        which = dice.randrange(len(whole))
        if number % 4:
            path.write_text(json.dumps(broken_value(whole[which], dice)), encoding="utf-8")
        else:
            path.write_bytes(broken_bytes(json.dumps(whole[which]).encode(), dice))
        within_a_second(lambda which=which: use(path, infos[which]))


def test_sub_graphs_that_double_are_refused(tmp_path):
    """Thirty sub-graphs, each with two of the next: a billion nodes from a small file."""
    subgraphs = [
        {"id": f"g{k}", "name": f"level {k}", "inputs": [], "outputs": [], "links": [],
         "nodes": [{"id": n, "type": f"g{k + 1}"} for n in (1, 2)]}
        for k in range(30)
    ]  # fmt: skip
    body = {"nodes": [{"id": 1, "type": "g0"}], "links": [], "definitions": {"subgraphs": subgraphs}}
    start = time.process_time()
    with pytest.raises(CommandError, match="more than"):
        to_api(body, {})
    assert time.process_time() - start < 2
