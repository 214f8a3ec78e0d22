"""Fill the generated parts of README.md: the table of nodes, from the nodes' own schemas.

    .venv/bin/python tools/build_docs.py

Needs a ComfyUI (``COMFYUI_PATH``, or where ``installation/locate.py`` finds one). A test checks that no
node is missing in it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def node_table(schemas: list) -> str:
    """A Markdown table of nodes: name, purpose in one sentence; grouped by menu."""
    rows = ["| node | what it does |", "| --- | --- |"]
    for schema in sorted(schemas, key=lambda schema: schema.category.count("/")):
        mark = " (experimental)" if schema.is_experimental else ""
        rows.append(f"| {schema.display_name}{mark} | {first_sentence(schema.description)} |")
    return "\n".join(rows)


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
    """Rewrite README.md."""
    import_comfyui()
    README.write_text(fill(README.read_text(encoding="utf-8"), "nodes", node_table(schemas())), encoding="utf-8")


if __name__ == "__main__":
    main()
