"""Try *Search with this sampler* on every official template: ``python tools/upgrades.py --write``.

Every stock sampler of ComfyUI's template packages (``python tools/templates.py --fetch``) is upgraded, in UI and in API
format. A real server then validates the workflow before and after (``execution.validate_prompt``); both are converted
and compared, node by node; and *Back to KSampler* has to give the file back. The table goes to ``docs/upgrade.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from templates import CACHE, unknown_nodes, workflows

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "upgrade.md"
BEGIN, END = "<!-- upgrades: begin -->", "<!-- upgrades: end -->"
# A pack for the server of this tool alone: what the queue would say about a workflow, without queueing it.
VALIDATOR = """
import execution, inspect
from aiohttp import web
from server import PromptServer
NODE_CLASS_MAPPINGS = {}

@PromptServer.instance.routes.post("/upgrades/validate")
async def validate(request):
    prompt = await request.json()
    _, error, _, errors = await execution.validate_prompt("0", prompt, None)
    found = [[key, e["type"], (e.get("extra_info") or {}).get("input_name", ""), e["details"]]
             for key, node in errors.items() for e in node["errors"]]
    return web.json_response({"error": (error or {}).get("type", "") if not errors else "", "errors": found})
"""
NOT_IMAGES = ("a video", "sound", "a mesh", "a splat", "a map")


@dataclass
class Tried:
    """What became of the samplers of one package.

    Attributes:
        samplers: all. templates: file that makes images -> whether a sampler of it was upgraded.
        other: by what they make instead of images. upgraded: by class. refused: sentence -> where.
        wordless: samplers that no text steers, where. prompt_missing, new_errors, elsewhere, not_back: where.
        validated: workflows that the server knew all nodes of.
    """

    package: str
    samplers: int = 0
    templates: dict[str, bool] = field(default_factory=dict)
    other: Counter = field(default_factory=Counter)
    upgraded: Counter = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    wordless: list[str] = field(default_factory=list)
    prompt_missing: list[str] = field(default_factory=list)
    validated: int = 0
    new_errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    not_back: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Samplers that make images from a text."""
        return self.samplers - self.other.total() - len(self.wordless)

    @property
    def done(self) -> int:
        """Samplers that were upgraded without help."""
        return self.upgraded.total() - len(self.prompt_missing) - len(self.wordless)

    def row(self) -> str:
        """The line of the table."""
        share = f"{self.done} ({100 * self.done / max(self.images, 1):.0f} %)"
        other = ", ".join(f"{count} {kind}" for kind, count in self.other.most_common()) or "-"
        files = sum(self.templates.values())
        files = f"{files} of {len(self.templates)} ({100 * files / max(len(self.templates), 1):.0f} %)"
        cells = [
            self.package,
            self.samplers,
            other,
            len(self.wordless),
            self.images,
            share,
            files,
            len(self.prompt_missing),
            len(self.refused),
        ]
        cells += [self.validated, len(self.new_errors), len(self.elsewhere), len(self.not_back)]
        return "| " + " | ".join(map(str, cells)) + " |"


def last_part(key: str) -> str:
    """The id of a node inside of its sub-graph, or at the top."""
    return key.rpartition(":")[2]


def changed_elsewhere(before: dict, after: dict, node: str, added: list) -> list[str]:
    """Nodes of a conversion that differ and have nothing to do with the replaced sampler."""
    own = {str(key).rpartition(":")[2] for key in (node, *added)}
    keys = before.keys() | after.keys()
    return [key for key in sorted(keys) if before.get(key) != after.get(key) and last_part(key) not in own]


async def try_sampler(table: Tried, place: str, workflow: dict, key: str, object_info: dict, ask) -> None:
    """One sampler of one workflow (UI format), into the table."""
    from testtime.graph.convert import to_api
    from testtime.graph.dynamic_prompts import first_choice
    from testtime.graph.exchange import Wanted
    from testtime.graph.restore import back
    from testtime.graph.upgrade import upgrade
    from testtime.installation.errors import BadInput

    def converted(any_workflow: dict) -> dict:
        return to_api(any_workflow, object_info, choose=first_choice)

    table.samplers += 1
    wanted = Wanted("Best-of-N", "JPEG")
    try:
        done = upgrade(workflow, object_info, key, wanted)
    except BadInput as error:
        makes = next((kind for kind in NOT_IMAGES if f" makes {kind}" in str(error)), None)
        if makes:
            table.other[makes.removeprefix("a ")] += 1
        else:
            table.refused.append(f"{place}: {error}")
            table.templates.setdefault(place.split(" ", 1)[0], False)
        return
    before, after = converted(workflow), converted(done.workflow)
    table.upgraded[before[key]["class_type"]] += 1
    file = place.split(" ", 1)[0]
    if done.in_words or file in table.templates:
        table.templates[file] = done.prompt_found or table.templates.get(file, False)
    if not done.in_words:
        table.wordless.append(f"{place}: {done.notes[-1]}")
    elif not done.prompt_found:
        table.prompt_missing.append(f"{place}: {done.notes[-1]}")
    table.elsewhere += [f"{place}: {other}" for other in changed_elsewhere(before, after, key, added_by(done.workflow))]
    if back(done.workflow, object_info, key).workflow != workflow:
        table.not_back.append(place)
    in_api = upgrade(before, object_info, key, wanted)
    if back(in_api.workflow, object_info, key).workflow != before:
        table.not_back.append(f"{place} (API format)")
    if not unknown_nodes(workflow, object_info):
        compare_errors(table, place, [await ask(prompt) for prompt in (before, after)], not done.prompt_found)


def added_by(workflow: dict) -> list:
    """Ids of the nodes that an upgrade has added."""
    from testtime.graph.counters import levels_of
    from testtime.graph.record import RECORD

    nodes = (node for level in levels_of(workflow) for node in level["nodes"])
    return next(n["properties"][RECORD]["added"] for n in nodes if RECORD in (n.get("properties") or {}))


def compare_errors(table: Tried, place: str, errors: list[dict], no_prompt: bool) -> None:
    """What the server says about a workflow after an upgrade and did not say before, into the table."""
    if errors[0]["error"] == errors[1]["error"] == "prompt_no_outputs":
        return  # a sub-graph to be used in other workflows
    table.validated += 1
    known = [error[:3] for error in errors[0]["errors"]]
    new = [error for error in errors[1]["errors"] if error[:3] not in known]
    if no_prompt:  # it is marked, and the dialog says so
        new = [error for error in new if "prompt is empty" not in error[3]]
    if errors[0]["error"] != errors[1]["error"] and not errors[0]["errors"]:
        new.append([errors[1]["error"]])
    table.new_errors += [f"{place}: {error}" for error in new]


async def run(url: str, folders: list[Path]) -> list[Tried]:
    """All packages, on the server at ``url``."""
    import aiohttp

    from testtime.graph.upgrade import samplers_in

    tables = []
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/object_info") as response:
            object_info = await response.json()

        async def ask(prompt: dict) -> dict:
            async with session.post(f"{url}/upgrades/validate", json=prompt) as response:
                response.raise_for_status()
                return await response.json()

        for folder in folders:
            table = Tried(folder.name)
            for name, workflow in workflows(folder).items():
                for key, _ in samplers_in(workflow):
                    await try_sampler(table, f"{name} {key}", workflow, key, object_info, ask)
            tables.append(table)
            sys.stderr.write(f"{folder.name}: {table.done} of {table.images}\n")
    return tables


def text(tables: list[Tried], version: str) -> str:
    """What goes between the marks of docs/upgrade.md."""
    lines = [
        f"With the definitions and the validation of ComfyUI {version}:",
        "",
        "| package | samplers | not images | without a text | images from a text | upgraded without help | files | "
        "prompt to be typed | refused | validated | new errors | changed elsewhere | not the same after *Back* |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(table.row() for table in tables),
    ]
    total = Counter()
    for table in tables:
        total += table.upgraded
    lines += ["", "Upgraded by class: " + ", ".join(f"{kind} {count}" for kind, count in total.most_common()) + ".", ""]
    for title, entries in (
        ("Refused", [entry for table in tables for entry in table.refused]),
        ("Steered without a text", [entry for table in tables for entry in table.wordless]),
        ("The prompt has to be typed", [entry for table in tables for entry in table.prompt_missing]),
        ("New errors", [entry for table in tables for entry in table.new_errors]),
    ):
        lines += [f"{title}:", "", *(f"- `{e.split(': ', 1)[0]}`: {e.split(': ', 1)[1]}" for e in entries), ""] * bool(
            entries
        )
    return "\n".join(lines).rstrip()


def main() -> None:
    """Try all and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/upgrade.md")
    options = parser.parse_args()
    folders = sorted(path for path in CACHE.glob("*") if path.is_dir() and path.name != "wheels")
    if not folders:
        sys.exit("no templates: run tools/templates.py --fetch first")
    from testtime.installation.comfyui import PACK_LINK, HeadlessComfyUI, HeadlessOptions

    with tempfile.TemporaryDirectory() as name:
        pack = Path(name) / "packs" / "validator"
        pack.mkdir(parents=True)
        (pack / "__init__.py").write_text(VALIDATOR, encoding="utf-8")
        arguments = ("--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_LINK, "validator")
        settings = HeadlessOptions(arguments=arguments, start_timeout=1200, directory=Path(name))
        with HeadlessComfyUI(settings) as server:
            tables = asyncio.run(run(server.url, folders))
            shown = text(tables, server.installation.version)
    sys.stdout.write(shown + "\n")
    for table in tables:
        for entry in (*table.elsewhere, *table.not_back):
            sys.stdout.write(f"  {table.package}/{entry}\n")
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{shown}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
