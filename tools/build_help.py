"""Write the help pages of the nodes (``web/docs``) and the translations (``locales``), from the nodes' own schemas.

    .venv/bin/python tools/build_help.py

What people wrote lies in ``tools/locales``: ``help.json`` (when to use a node, and an example), ``de.json`` (German for
every English text). Texts without a translation stay English and are listed. Needs a ComfyUI, as ``build_docs.py``.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from build_docs import import_comfyui, schemas  # noqa: E402

SOURCES = ROOT / "tools" / "locales"
LANGUAGES = ("en", "de")
# What vue-i18n reads as markup: in a text it must be quoted.
MARKUP = re.compile(r"[{}@|$]")
SETTING = "TestTime_Live"
FOLDERS, SECTION = ("ComfyUI-TestTimeScaling", "test-time-scaling"), "Test-Time Scaling"
"""Folders that the pack is cloned or installed into; what the template browser calls its section then."""
SETTING_TEXTS = {
    "name": "Show searches while they run",
    "tooltip": "Sends the steps of a search and small previews to the Search panel.",
}


def catalogue(language: str) -> dict[str, str]:
    """English text -> text of a language."""
    file = SOURCES / f"{language}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def help_texts() -> dict[str, dict[str, str]]:
    """Node id -> ``use`` and ``example``, hand-written."""
    return json.loads((SOURCES / "help.json").read_text(encoding="utf-8"))


def categories(found: list) -> list[str]:
    """The menus and sub-menus that nodes are in."""
    return list(dict.fromkeys(part for schema in found for part in schema.category.split("/")))


def texts_of(found: list) -> list[str]:
    """Every text that a user reads in the nodes, once, in menu order, with those of settings and menus."""
    texts: dict[str, None] = {}
    for schema in found:
        texts[schema.description] = None
        for slot in (*(schema.inputs or ()), *(schema.outputs or ())):
            texts[getattr(slot, "tooltip", None)] = None
    return [text for text in [*texts, *SETTING_TEXTS.values(), *categories(found)] if text]


def quoted(text: str) -> str:
    """A text as vue-i18n shows it unchanged."""
    return MARKUP.sub(lambda match: f"{{'{match.group()}'}}", text)


def node_definitions(found: list, words: dict[str, str]) -> dict[str, Any]:
    """``nodeDefs.json``: inputs by id, outputs by position. Names of inputs stay what workflows call them."""

    def said(text: str | None) -> str:
        return quoted(words.get(text, text) or "")

    def slot(name: str, tooltip: str | None) -> dict[str, str]:
        return {"name": name, **({"tooltip": said(tooltip)} if tooltip else {})}

    return {
        schema.node_id: {
            "display_name": quoted(schema.display_name),
            "description": said(schema.description),
            "inputs": {i.id: slot(i.id, getattr(i, "tooltip", None)) for i in schema.inputs or ()},
            "outputs": {str(k): slot(o.display_name or o.id, o.tooltip) for k, o in enumerate(schema.outputs or ())},
        }
        for schema in found
    }


def page(schema: Any, text: dict[str, str]) -> str:
    """The help page of a node, Markdown."""
    parts = [f"# {schema.display_name}", schema.description, "## When to use it", text["use"]]
    parts += ["## Example", text["example"]]
    if schema.inputs:
        rows = ["| input | what it does |", "| --- | --- |"]
        rows += [f"| `{i.id}`{' (optional)' if i.optional else ''} | {cell(i.tooltip)} |" for i in schema.inputs]
        parts += ["## Inputs", "\n".join(rows)]
    if schema.outputs:
        rows = ["| output | what it is |", "| --- | --- |"]
        rows += [f"| `{o.display_name or o.id}` | {cell(o.tooltip) or o.io_type} |" for o in schema.outputs]
        parts += ["## Outputs", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def cell(text: str | None) -> str:
    """A text inside a table of Markdown; braces of templates stay letters."""
    return (text or "").replace("|", "\\|").replace("\n", " ")


def files(found: list) -> dict[Path, str]:
    """Every generated file with its text, below the repository's root."""
    written: dict[Path, str] = {}
    help_of = help_texts()
    for schema in found:
        if schema.node_id in help_of:
            written[Path("web/docs") / f"{schema.node_id}.md"] = page(schema, help_of[schema.node_id])
    for language in LANGUAGES:
        words = catalogue(language)
        folder = Path("locales") / language
        settings = {SETTING: {part: words.get(text, text) for part, text in SETTING_TEXTS.items()}}
        main = {
            "nodeCategories": {category: words.get(category, category) for category in categories(found)},
            "templateWorkflows": {"category": dict.fromkeys(FOLDERS, SECTION)},
        }
        for file, body in (
            ("nodeDefs", node_definitions(found, words)),
            ("settings", settings),
            ("main", main),
        ):
            written[folder / f"{file}.json"] = json.dumps(body, ensure_ascii=False, indent=2) + "\n"
    return written


def abandoned(made: dict[Path, str]) -> list[Path]:
    """Help pages of nodes that are gone."""
    return sorted(path for path in (ROOT / "web" / "docs").glob("*.md") if path.relative_to(ROOT) not in made)


def unused(found: list, language: str) -> list[str]:
    """Texts of a language's catalogue that no node says any more."""
    return sorted(set(catalogue(language)) - set(texts_of(found)))


def main() -> int:
    """Write all files, remove those of nodes that are gone; returns 1 where a page or a translation is missing."""
    import_comfyui()
    from testtime.nodes import MODULES

    for module in MODULES:  # a node that does not load is not gone: its page and texts must not be removed
        importlib.import_module(f"testtime.nodes.{module}")
    found = schemas()
    made = files(found)
    for path in abandoned(made):
        path.unlink()
    for language in LANGUAGES:
        if words := catalogue(language):
            kept = {text: said for text, said in words.items() if text not in unused(found, language)}
            dumped = json.dumps(kept, ensure_ascii=False, indent=1) + "\n"
            (SOURCES / f"{language}.json").write_text(dumped, encoding="utf-8")
    for path, text in made.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
    missing = [f"help.json: {s.node_id}" for s in found if s.node_id not in help_texts()]
    missing += [f"de.json: {text!r}" for text in texts_of(found) if text not in catalogue("de")]
    sys.stdout.write("".join(f"missing in {line}\n" for line in missing))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
