"""Compare our conversion with the front end's on the official templates: ``python tools/templates.py``.

``testtime run`` turns what the front end saves into what the server takes. What is right is what the front end itself
makes of a file (``graphToPrompt``), so every workflow of ComfyUI's template packages is opened in Chromium, on a real
server, and both results are compared, input by input. Files with nodes that the server does not know cannot be
compared: the front end has no widgets for those.

    python tools/templates.py --fetch                       # the template packages, from PyPI, into .cache/templates
    python tools/templates.py                               # the ComfyUI that is found, its pinned front end
    python tools/templates.py --front-end-root DIR --write  # another front end; put the table into docs/conversion.md
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "templates"
PAGE = ROOT / "docs" / "conversion.md"
PACKAGES = ("comfyui-workflow-templates-json", "comfyui-subgraph-blueprints", "comfyui-workflow-templates==0.1.95")
# Dialogs about missing models must not wait for a person, and the choices of dynamic prompts are the first ones.
CONVERT = """(async (text) => {
  Math.random = () => 0;
  if (window.app.canvas) window.app.canvas.pause_rendering = true;
  await window.app.loadGraphData(JSON.parse(text), true, false);
  await new Promise((done) => setTimeout(done, 20));
  const { output } = await window.app.graphToPrompt();
  return JSON.stringify(output);
})"""


@dataclass
class Compared:
    """What became of the files of one package on one host and front end.

    Attributes:
        equal: files with the same nodes, values and links; renumbered: those of them whose nodes the front end gave
            other ids. nulls: files in which all that differs is that the front end sends null, which is no value.
    """

    package: str
    equal: int = 0
    renumbered: int = 0
    nulls: list[str] = field(default_factory=list)
    unknown: int = 0
    refused: list[str] = field(default_factory=list)
    different: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def comparable(self) -> int:
        """Files that both sides could be asked about."""
        return self.equal + len(self.nulls) + len(self.different) + len(self.refused)


def fetch() -> None:
    """Download the packages and unpack their workflows, a folder per package."""
    for requirement in PACKAGES:
        name = requirement.split("==")[0]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE / "wheels")]
        subprocess.run([*command, requirement], check=True)
        wheel = max((CACHE / "wheels").glob(f"{name.replace('-', '_')}-*.whl"), key=lambda path: path.stat().st_mtime)
        with zipfile.ZipFile(wheel) as archive:
            for inside in archive.namelist():
                if inside.endswith(".json") and ("/templates/" in inside or "/blueprints/" in inside):
                    target = CACHE / wheel.stem.rsplit("-py", 1)[0] / Path(inside).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(inside))


def workflows(folder: Path) -> dict[str, dict]:
    """The workflows of a folder by file name; lists of templates and the like are left out."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("nodes"), list):
            found[path.name] = content
    return found


def unknown_nodes(workflow: dict, object_info: dict) -> set[str]:
    """Classes of a workflow that the server does not know (nodes of the browser and sub-graphs are none)."""
    subgraphs = (workflow.get("definitions") or {}).get("subgraphs") or []
    own = {entry["id"] for entry in subgraphs} | {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
    used = {node["type"] for graph in (workflow, *subgraphs) for node in graph.get("nodes") or []}
    return used - own - set(object_info)


def unknown_choices(prompt: dict, object_info: dict) -> list[str]:
    """Dynamic combos with an option that the server does not have: the front end has no inputs for it."""
    from testtime.graph.check import specs_of
    from testtime.graph.widgets import DYNAMIC_COMBO, choices_of

    found = []
    for key, node in prompt.items():
        for name, spec in specs_of(object_info[node["class_type"]], node["inputs"]).items():
            if spec[0] == DYNAMIC_COMBO and name in node["inputs"] and node["inputs"][name] not in choices_of(spec):
                found.append(f"{key}.{name}")
    return found


def meant(node: dict, object_info: dict) -> dict:
    """The inputs of a node that the server reads: the front end also sends values of buttons and players."""
    from testtime.graph.check import specs_of
    from testtime.graph.workflow import is_link

    known = specs_of(object_info[node["class_type"]], node["inputs"])

    def read(name: str, value):
        """A number in a text input is its text to the server."""
        is_text = known.get(name, [""])[0] == "STRING" and isinstance(value, (int, float))
        return str(value) if is_text and not isinstance(value, bool) else value

    inputs = node["inputs"].items()
    return {name: read(name, v) for name, v in inputs if name in known or "." in name or is_link(v)}


def differences(theirs: dict, ours: dict, object_info: dict) -> list[str]:
    """What our conversion has otherwise than the front end's, a line each; empty when both are the same."""
    found = [f"node {key} ({theirs[key]['class_type']}) is missing" for key in theirs.keys() - ours.keys()]
    found += [f"node {key} ({ours[key]['class_type']}) is too much" for key in ours.keys() - theirs.keys()]
    for key in sorted(theirs.keys() & ours.keys()):
        one, other = meant(theirs[key], object_info), meant(ours[key], object_info)
        for name in sorted(one.keys() | other.keys()):
            if one.get(name, "(none)") != other.get(name, "(none)"):
                values = [json.dumps(side.get(name, "(none)"))[:60] for side in (one, other)]
                found.append(f"{key} {theirs[key]['class_type']}.{name}: {values[0]} there, {values[1]} here")
    return found


def same_but_for_ids(theirs: dict, ours: dict, object_info: dict) -> bool:
    """Whether two prompts are the same graph; the newest front ends give nodes whose ids come twice other ones."""
    return shapes_of(theirs, object_info) == shapes_of(ours, object_info)


def shapes_of(prompt: dict, object_info: dict) -> Counter:
    """Every node as a digest of its class, values, and of all that leads to it and comes from it; with how many."""
    from testtime.graph.workflow import is_link

    inputs = {key: meant(node, object_info) for key, node in prompt.items()}
    takers: dict[str, list] = {key: [] for key in prompt}
    for key, values in inputs.items():
        for name, value in values.items():
            if is_link(value) and value[0] in takers:
                takers[value[0]].append((key, name, value[1]))
    shapes = {key: node["class_type"] for key, node in prompt.items()}
    for _ in range(len(prompt)):  # as many rounds as the longest chain has nodes
        before, shapes = shapes, {}
        for key, values in inputs.items():
            fed = {n: [before.get(v[0]), v[1]] if is_link(v) else {"value": v} for n, v in values.items()}
            taken = sorted([before[other], name, slot] for other, name, slot in takers[key])
            text = json.dumps([before[key], fed, taken], sort_keys=True)
            shapes[key] = hashlib.sha256(text.encode()).hexdigest()
        if len(set(shapes.values())) == len(set(before.values())):
            break  # nothing is told apart any further
    return Counter(shapes.values())


def only_nulls(theirs: dict, ours: dict, object_info: dict) -> bool:
    """Whether all differences are nulls that the front end sends: the file holds null, and no node takes it."""
    names = {(n["class_type"], name) for n in theirs.values() for name, value in n["inputs"].items() if value is None}

    def rest(prompt: dict) -> dict:
        return {
            key: {**n, "inputs": {k: v for k, v in n["inputs"].items() if (n["class_type"], k) not in names}}
            for key, n in prompt.items()
        }

    return bool(names) and same_but_for_ids(rest(theirs), rest(ours), object_info)


async def compare(browser, object_info: dict, folder: Path, details: Path | None) -> Compared:
    """All workflows of a folder through both conversions; ``details`` gets every difference as soon as it is known."""
    from testtime.graph.convert import to_api
    from testtime.graph.dynamic_prompts import first_choice
    from testtime.installation.errors import BadInput

    table = Compared(folder.name)
    for name, workflow in workflows(folder).items():
        if unknown_nodes(workflow, object_info):
            table.unknown += 1
            continue
        try:
            theirs = json.loads(await browser.run(f"{CONVERT}({json.dumps(json.dumps(workflow))})"))
        except Exception as error:  # noqa: BLE001 - the front end's own failure, which is no difference
            table.failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        try:
            ours = to_api(workflow, object_info, choose=first_choice)
        except BadInput as error:
            table.refused.append(f"{name}: {error}")
            continue
        if unknown_choices(ours, object_info):
            table.unknown += 1
            continue
        found = differences(theirs, ours, object_info)
        renumbered = bool(found) and same_but_for_ids(theirs, ours, object_info)
        if found and not renumbered and only_nulls(theirs, ours, object_info):
            table.nulls.append(name)
        elif found and not renumbered:
            table.different[name] = found
            if details is not None:
                with open(details, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"package": folder.name, "file": name, "different": found}) + "\n")
        else:
            table.equal += 1
            table.renumbered += renumbered
    return table


async def run(url: str, folders: list[Path], details: Path | None = None) -> list[Compared]:
    """Every folder, in one page of the server at ``url``."""
    sys.path.insert(0, str(ROOT / "tests"))
    import aiohttp
    from browser import Browser

    async with aiohttp.ClientSession() as session, session.get(f"{url}/object_info") as response:
        object_info = await response.json()
    # What the page does at its first start is of no interest here, and gets in the way.
    async with aiohttp.ClientSession() as session:
        for setting in ("Comfy.TutorialCompleted", "Comfy.Workflow.ShowMissingNodesWarning"):
            value = "true" if setting == "Comfy.TutorialCompleted" else "false"
            await session.post(f"{url}/settings/{setting}", data=value)
        await session.post(f"{url}/settings/Comfy.Workflow.ShowMissingModelsWarning", data="false")
    tables = []
    async with Browser(400, 300) as browser:  # nobody looks
        for folder in folders:
            await browser.open(url)
            await browser.wait_for("window.app?.graph && window.app.extensionManager", 120)
            await asyncio.sleep(3)
            tables.append(await compare(browser, object_info, folder, details))
            browser.errors.clear()
            sys.stderr.write(f"{folder.name}: {tables[-1].equal} of {tables[-1].comparable} equal\n")
    return tables


def rows(tables: list[Compared], where: str) -> list[str]:
    """The lines of the table in docs/conversion.md for one host and front end."""
    lines = []
    for table in tables:
        total = table.comparable + table.unknown + len(table.failed)
        equal = f"{table.equal} ({table.renumbered} renumbered)" if table.renumbered else table.equal
        cells = [where, table.package, total, table.comparable, equal, len(table.nulls), len(table.refused)]
        cells.append(len(table.different))
        lines.append("| " + " | ".join(map(str, [*cells, table.unknown, len(table.failed)])) + " |")
    return lines


def write(lines: list[str], where: str) -> None:
    """Exchange the rows of one host and front end in docs/conversion.md."""
    text = PAGE.read_text(encoding="utf-8").splitlines()
    kept = [line for line in text if not line.startswith(f"| {where} |")]
    end = next(k for k, line in enumerate(kept) if line.startswith("| ---")) + 1
    while end < len(kept) and kept[end].startswith("|"):
        end += 1
    PAGE.write_text("\n".join([*kept[:end], *lines, *kept[end:]]) + "\n", encoding="utf-8")


def front_end_version(url: str) -> str:
    """What the server says about the front end it was asked for."""
    import urllib.request

    with urllib.request.urlopen(f"{url}/system_stats", timeout=10) as response:
        return json.load(response)["system"].get("installed_templates_version") or ""


def main() -> None:
    """Fetch, or compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fetch", action="store_true", help="download the template packages first")
    parser.add_argument("--front-end-root", type=Path, help="another front end than the one that ComfyUI pins")
    parser.add_argument("--front-end", default="pinned", help="what the table calls the front end")
    parser.add_argument("--folder", type=Path, action="append", help="folder of workflows (default: all in .cache)")
    parser.add_argument("--write", action="store_true", help="put the rows into docs/conversion.md")
    parser.add_argument("--details", type=Path, help="append every difference to this file, a JSON line each")
    options = parser.parse_args()
    if options.fetch:
        fetch()
    folders = options.folder or sorted(path for path in CACHE.glob("*") if path.is_dir() and path.name != "wheels")
    if not folders:
        sys.exit("no templates: run with --fetch first")
    from testtime.installation.comfyui import PACK_LINK, HeadlessComfyUI, HeadlessOptions

    arguments = ["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_LINK]
    if options.front_end_root:
        arguments += ["--front-end-root", str(options.front_end_root)]
    with HeadlessComfyUI(HeadlessOptions(arguments=tuple(arguments), start_timeout=1200)) as server:
        where = f"ComfyUI {server.installation.version}, front end {options.front_end}"
        tables = asyncio.run(run(server.url, folders, options.details))
    lines = rows(tables, where)
    sys.stdout.write("\n".join(lines) + "\n")
    kinds = Counter(line.split(":")[0].split(" ", 1)[-1] for t in tables for d in t.different.values() for line in d)
    for kind, count in kinds.most_common(15):
        sys.stdout.write(f"  {count} x {kind}\n")
    for table in tables:
        for name, why in [*table.failed.items(), *(line.split(": ", 1) for line in table.refused)]:
            sys.stdout.write(f"  {table.package}/{name}: {why}\n")
    if options.write:
        write(lines, where)


if __name__ == "__main__":
    main()
