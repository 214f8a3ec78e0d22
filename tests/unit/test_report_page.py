"""The report page: complete, self-contained, and deaf to what a prompt says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from testtime.cli.main import main
from testtime.reports.page import render
from testtime.reports.thumbs import thumbnail
from testtime.samplers.after.trace_file import to_text
from testtime.samplers.methods import SMC, BestOfN, PathSearch
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import Trace
from testtime.samplers.smc.tempering import Alpha

from .oracles import keyed
from .searches import TARGET

HOSTILE = '</title><script>alert(1)</script><img src=x onerror="alert(2)"> \' " & star'
ALPHA = Alpha(0.3, "absolute")


class Reader(HTMLParser):
    """What a browser would see: tags with their attributes, and the text of everything but style and script."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self._hidden = "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("style", "script")

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        self.text += "" if self._hidden else data


@pytest.fixture(scope="module")
def searched():
    return run_search(SMC(5, alpha=ALPHA), keyed(), TARGET, [HOSTILE, "q"], held_out=TARGET)


@pytest.fixture(scope="module")
def page(searched):
    picture = thumbnail(torch.full((64, 64, 3), 90, dtype=torch.uint8).numpy())
    return render(searched.trace, dict.fromkeys(searched.particles[:3], picture), name='<x>&".json', version="0<1")


def data_of(page: str):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_the_page_holds_everything(searched, page):
    reader, data = Reader(page), data_of(page)
    entries = [e for r in searched.trace.records for e in r.particles]
    rows = [row for record in data["records"] for row in record["particles"]]
    assert [row[:3] for row in rows] == [[e["id"], e["parent"], e["group"]] for e in entries]
    assert [row[3] for row in rows if row[3] is not None] == pytest.approx(
        [e["score"] for e in entries if e["score"] is not None], rel=1e-5
    )
    assert data["winners"] == [searched.particles[0], searched.particles[5]]
    assert sum(t == "figure" for t, _ in reader.tags) == len(searched.particles)
    assert page.count("data:image/jpeg;base64,") == 3
    for text in (f"{float(searched.scores[0]):.3f}", str(searched.ledger.nfe), "SMC", "seed 3", "held-out"):
        assert text in reader.text


def test_a_title_names_the_whole_search(searched):
    trace = Trace.from_json(searched.trace.to_json())
    trace.meta["title"] = "SMC, re-prompted, within 500 passes"
    page = render(trace)
    assert page.count("SMC, re-prompted, within 500 passes") == 4  # window, heading, settings, data of the drawings


def test_numbers_that_are_none_stay_out_of_the_data(searched):
    trace = Trace.from_json(searched.trace.to_json())
    for value, entry in zip((float("nan"), float("inf")), trace.records[2].particles, strict=False):
        entry["score"] = value
    assert [row[3] for row in data_of(render(trace))["records"][2]["particles"][:2]] == [None, None]


def test_nothing_is_loaded_and_nothing_of_a_prompt_runs(page):
    reader = Reader(page)
    assert HOSTILE in reader.text and '<x>&".json' in reader.text
    assert [a.get("type") for t, a in reader.tags if t == "script"] == ["application/json", None]
    for tag, attributes in reader.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", page)
    policy = next(a["content"] for t, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "unsafe-eval" not in policy


def test_runs_cut_short_and_unscored_ones_have_a_page_too():
    cut = run_search(SMC(4, alpha=ALPHA), keyed(), TARGET, ["p", "q"], max_nfe=30)
    assert "Ended early: the budget was used up." in Reader(render(cut.trace)).text
    plain = run_search(BestOfN(1), keyed(groups=1), None, ["p"])
    assert "no score" in Reader(render(plain.trace)).text
    rounds = run_search(PathSearch(2, 2), keyed(groups=1), TARGET, ["p"])
    assert f"{float(rounds.scores[0]):.3f}" in Reader(render(rounds.trace)).text
    with pytest.raises(ValueError, match="empty"):
        render(Trace())


def test_prompts_of_a_rewriter_are_text(searched):
    trace = Trace.from_json(searched.trace.to_json())
    trace.records[1].rewrites = [{"prompts": [HOSTILE], "missing": "<i>star</i>"}]
    reader = Reader(render(trace))
    assert f"step {trace.records[1].step}: {HOSTILE}" in reader.text and "<i>star</i>" in reader.text


def test_prompts_that_competed_are_shown_with_their_previews_scores_and_the_winner(searched):
    trace = Trace.from_json(searched.trace.to_json())
    record = trace.records[1]
    first, second = [entry for entry in record.particles if entry["group"] == 0][:2]
    second.update(slot=first["slot"], prompt=HOSTILE, selected=True, score=0.75)
    first.update(selected=False, score=-0.125)
    record.rewrites = [{"group": 0, "slot": first["slot"], "missing": ["a ring", HOSTILE], "prompts": [HOSTILE]}]
    trace.records[2].rewrites = [{"group": 0, "slot": 0, "missing": [], "prompts": []}]
    trace.records[3].rewrites = [{"group": 1, "slot": 0, "failed": True, "note": "HTTP <500>", "prompts": []}]
    picture = thumbnail(torch.full((64, 64, 3), 90, dtype=torch.uint8).numpy())
    page = render(trace, {second["id"]: picture})
    reader = Reader(page)
    assert f"missing: a ring; {HOSTILE}" in reader.text and "original prompt" in reader.text
    assert "0.750" in reader.text and "-0.125" in reader.text and "prompt kept" in reader.text
    assert "no usable answer: HTTP <500>" in reader.text
    section = page[page.index("Rewritten prompts") :]
    kinds = re.findall(r'<figure class="(\w+)" title="particle (\d+)"', section)
    assert kinds == [("other", str(first["id"])), ("first", str(second["id"]))]
    assert page.count("data:image/jpeg;base64,") == 1  # shown here, so not kept aside a second time


def test_the_command_writes_a_page(searched, tmp_path, capsys):
    source = tmp_path / "trace.json"
    source.write_text(to_text(searched.trace), encoding="utf-8")
    assert main(["report", str(source)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "trace.html")
    assert main(["report", str(source), "-o", str(tmp_path / "deep" / "page.html")]) == 0
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ('{"schema": 1, "records": [{"particles": [', "ends in the middle"),
        ('{"schema": 99, "records": []}', "update the pack"),
        ('{"schema": 1, "records": []}', "empty"),
        ("\x00\xff", "not JSON"),
    ],
)
def test_bad_files_are_bad_input(tmp_path, capsys, text, message):
    source = tmp_path / "trace.json"
    if text is not None:
        source.write_text(text, encoding="utf-8")
    assert main(["report", str(source)]) == 2
    assert message in capsys.readouterr().err
    assert not source.with_suffix(".html").exists()


def test_the_trace_itself_is_never_overwritten(searched, tmp_path, capsys):
    source = tmp_path / "trace.json"
    source.write_text(to_text(searched.trace), encoding="utf-8")
    assert main(["report", str(source), "-o", str(source)]) == 2
    assert json.loads(source.read_text(encoding="utf-8"))["schema"] == 2
    assert "that is the trace itself" in capsys.readouterr().err
