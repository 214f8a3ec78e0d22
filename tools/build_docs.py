"""Fill the generated parts of the docs: all nodes (docs/nodes.md) and all methods (docs/methods.md).

    .venv/bin/python tools/build_docs.py

Nodes come from their own schemas, methods from ``samplers/methods/registry.py``. Needs a ComfyUI (``COMFYUI_PATH``, or
where ``installation/locate.py`` finds one). Tests check that both are up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
NODES = ROOT / "docs" / "nodes.md"
METHODS = ROOT / "docs" / "methods.md"


def node_tables(schemas: list) -> str:
    """Markdown tables of nodes, one per sub-menu in menu order: name, purpose in one sentence."""
    menus: dict[str, list] = {}
    for schema in schemas:
        menus.setdefault(schema.category, []).append(schema)
    parts = []
    for menu, members in menus.items():
        rows = [f"## {menu.replace('/', ' > ')}", "", "| node | what it does |", "| --- | --- |"]
        for schema in members:
            mark = " (experimental)" if schema.is_experimental else ""
            rows.append(f"| {schema.display_name}{mark} | {first_sentence(schema.description)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def method_table() -> str:
    """A Markdown table of the methods: name with a link to its section, purpose, paper."""
    from testtime.samplers.methods.registry import ROWS

    rows = ["| method | what it does | paper |", "| --- | --- | --- |"]
    rows += [f"| [{row.title}](#{anchor(row.title)}) | {row.summary} | {row.paper or '-'} |" for row in ROWS]
    return "\n".join(rows)


def anchor(title: str) -> str:
    """The fragment that Markdown gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    flat = " ".join(text.split())
    # "et al. 2024" ends no sentence: the next word must start with a capital letter.
    match = re.match(r"(.*?\.)(?=\s+[A-Z]|$)", flat)
    return (match.group(1) if match else flat).replace("|", "\\|")


def fill(text: str, name: str, content: str) -> str:
    """``text`` with everything between ``<!-- name -->`` and ``<!-- /name -->`` replaced; ValueError if absent."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there are no <!-- {name} --> and <!-- /{name} --> lines")
    return pattern.sub(lambda match: f"{match.group(1)}{content}\n{match.group(2)}", text)


def schemas() -> list:
    """Schemas of all nodes, in menu order; imports ComfyUI."""
    from testtime.nodes import collect_nodes

    return [node.define_schema() for node in collect_nodes()]


def import_comfyui() -> None:
    """Make ComfyUI importable in this process, as a CPU host."""
    from testtime.installation.comfyui import require_comfyui

    sys.path.insert(0, str(require_comfyui().root))
    sys.argv = sys.argv[:1]
    from comfy.cli_args import args

    args.cpu = True


def main() -> None:
    """Rewrite the pages."""
    import_comfyui()
    for page, name, content in ((NODES, "nodes", node_tables(schemas())), (METHODS, "methods", method_table())):
        page.write_text(fill(page.read_text(encoding="utf-8"), name, content), encoding="utf-8")


if __name__ == "__main__":
    main()
