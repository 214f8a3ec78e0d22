"""The modules of ``web/draw`` under Node: they put everything where the Python drawing puts it, and fit into a page."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest

from testtime.reports import pages
from testtime.reports.canvas import ticks
from testtime.reports.curves import best_so_far, scored_points, staircase
from testtime.reports.messages import whole
from testtime.reports.tree import layout, numbered, winner_ids
from testtime.samplers.after.trace_file import to_text
from testtime.samplers.methods import RBF, SMC, BeamSearch, BestOfN, PathSearch, ZeroOrderSearch
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import StepRecord, Trace

from ..conftest import load_tool
from .oracles import keyed
from .searches import TARGET

SCHEMA_FILE = pages.WEB.parent / "samplers" / "run" / "trace.schema.json"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no Node.js on the path")
DRAW = """
import { layout, stride, ticks } from "%(web)s/draw/layout.js";
import { chartOf, staircase } from "%(web)s/draw/curves.js";
import { Run } from "%(web)s/draw/run.js";
import { RECORD, RUN } from "%(web)s/draw/schema.js";

// Records and runs that throw at every name that they do not have: else a wrong one would only be "undefined".
const OURS = ["index", "particles", "prompts", "thumbs", "clips", "rows", "fresh", "ledger", "run", "records", "node"];
const strict = (object, names) => new Proxy(object, {
  get: (target, name) => {
    if (typeof name === "symbol" || [...names, ...OURS].includes(name)) return target[name];
    throw new Error(`there is no ${name}`);
  },
});
const { searches, ranges, distances } = JSON.parse(await new Response(process.stdin).text());
const told = searches.map((search) => {
  const records = search.records.map((record) => strict(record, RECORD));
  const run = Run.from(strict({ ...search, records }, RUN));
  const plan = layout(run);
  return {
    places: [...plan.places], edges: plan.edges, won: [...plan.won], alive: [...plan.alive],
    columns: plan.columns, scored: run.scored(), best: [...run.bestSoFar()], heads: run.heads().map((p) => p.id),
    stairs: [...run.bestSoFar().values()].map((curve) => staircase(curve, 1e4)), dots: chartOf(run).dots.length,
  };
});
console.log(JSON.stringify({
  told,
  ticks: ranges.map(([low, high, count]) => ticks(low, high, count)),
  strides: distances.map((d) => stride(d, 34)),
}));
"""


def in_node(tmp_path, values):
    """What ``DRAW`` prints for ``values``."""
    script = tmp_path / "draw.mjs"
    script.write_text(DRAW % {"web": pages.WEB.as_posix()}, encoding="utf-8")
    command = [NODE, "--experimental-default-type=module", str(script)]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def relisted() -> Trace:
    """Children tried one at a time, then a record that lists known particles again."""
    trace = Trace()
    entry = {"group": 0, "slot": 0, "log_weight": None, "gradient_scale": 0.0}
    steps = [(0, [(0, None, None), (1, None, 0.2)]), (1, [(2, 0, 0.1)]), (1, [(3, 1, 0.7)]), (2, [(4, 3, 0.7)]),
             (1, [(5, 0, None)]), (3, [(0, None, 0.3), (4, 3, 0.9)])]  # fmt: skip
    for number, (step, rows) in enumerate(steps):
        found = [{**entry, "id": i, "parent": p, "score": s, "selected": i != 0} for i, p, s in rows]
        trace.records.append(StepRecord(step, 3, 1.0, found, nfe=10 * number, resampled=[number == 3]))
    return trace


@pytest.fixture(scope="module")
def traces():
    searches = [SMC(6), BeamSearch(4, 2), RBF(), ZeroOrderSearch(3, 4), PathSearch(2, 2), BestOfN(3)]
    found = [run_search(search, keyed(), TARGET, ["p", "q"]).trace for search in searches]
    return [relisted(), *found, run_search(BestOfN(1), keyed(groups=1), None, ["p"]).trace]


@pytest.mark.slow
@needs_node
def test_both_drawings_agree(traces, tmp_path):
    ranges = [(0, 7, 4), (-3e-4, 5e-4, 6), (1234, 56789, 4), (0.991, 0.992, 4), (-1.3, 1.2, 6)]
    distances = [40, 20, 7, 1.3, 0.3]
    searches = [whole(trace) for trace in traces]
    given = in_node(tmp_path, {"searches": searches, "ranges": ranges, "distances": distances})
    assert given["ticks"] == [pytest.approx(ticks(*span), abs=1e-9) for span in ranges]
    columns = [[(distance * k, k) for k in range(400)] for distance in distances]
    assert given["strides"] == [numbered(column, 34.0)[1][1] for column in columns]
    for trace, told in zip(traces, given["told"], strict=True):
        plan = layout(trace, (0.0, 0.0, 1.0, 1.0))
        assert dict(told["places"]) == {key: pytest.approx(list(place), abs=1e-9) for key, place in plan.places.items()}
        assert sorted(map(tuple, told["edges"])) == sorted(plan.edges)
        assert set(told["won"]) == plan.winners and set(told["alive"]) == plan.alive
        assert [(c["time"], c["step"]) for c in told["columns"]] == [pytest.approx(c) for c in plan.columns]
        assert [c["time"] for c in told["columns"] if c["resampled"]] == pytest.approx(plan.resampled)
        assert told["heads"] == winner_ids(trace)
        points = scored_points(trace)
        assert [(p["nfe"], p["selected"]) for p in told["scored"]] == [(nfe, chosen) for nfe, _, chosen in points]
        assert [p["score"] for p in told["scored"]] == pytest.approx([score for _, score, _ in points], rel=1e-5)
        assert told["dots"] == len(points)
        best = best_so_far(trace)
        assert [group for group, _ in told["best"]] == list(best)
        corners = [staircase(curve, 1e4) for curve in best.values()]
        assert told["stairs"] == [[pytest.approx(list(p), rel=1e-5) for p in curve] for curve in corners]


def test_field_names_are_those_of_the_schema():
    tool = load_tool("build_schema")
    assert tool.TARGET.read_text(encoding="utf-8") == tool.text()


def test_traces_are_what_their_schema_says(traces):
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    validator.check_schema(validator.schema)
    for trace in traces:
        text = json.loads(to_text(trace, {0: "/9j/"}))
        assert not list(validator.iter_errors(text))
        wrong = json.loads(json.dumps(text))
        wrong["records"][0]["particles"][0]["color"] = "red"
        assert [error.validator for error in validator.iter_errors(wrong)] == ["additionalProperties"]


@pytest.mark.parametrize("call", [("pages/report.js", "showReport"), ("pages/demo.js", "showDemo")])
def test_a_bundle_holds_every_module_once_and_is_one_script(call, tmp_path):
    script = pages.bundle(*call)
    modules = pages.modules_of(call[0])
    assert {"draw/tree.js", "draw/curves.js", "draw/run.js"} < set(modules) and list(modules)[-1] == call[0]
    for name in modules:
        assert script.count(f'modules["{name}"] = ') == 1
    assert not [line for line in script.splitlines() if line.startswith(("import ", "export "))]
    if NODE:
        (tmp_path / "page.js").write_text(script, encoding="utf-8")
        done = subprocess.run([NODE, "--check", str(tmp_path / "page.js")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.js": 'import { b } from "./b.js";\n', "b.js": 'import { a } from "./a.js";\n'}, "imports itself"),
        ({"a.js": 'import * as b from "./b.js";\n', "b.js": ""}, "import \\* as b"),
        ({"a.js": "export default 3;\n"}, "export default"),
        ({"a.js": 'const a = "</script>";\n'}, "</script"),
    ],
)
def test_what_cannot_be_inlined_is_named(files, message, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "WEB", tmp_path)
    for name, text in files.items():
        Path(tmp_path, name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        pages.modules_of("a.js")
