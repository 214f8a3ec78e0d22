"""docs/nodes.md lists every node, and every node module loads."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

import testtime
from testtime.nodes import MODULES, collect_nodes

pytestmark = pytest.mark.docs

ROOT = Path(testtime.__file__).resolve().parent


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_of_nodes_lists_those_that_there_are():
    tool = load_tool("build_docs")
    text = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    listed = text.split("<!-- nodes -->\n")[1].split("\n<!-- /nodes -->")[0]
    assert listed == tool.node_tables(tool.schemas()), "run tools/build_docs.py"


def test_no_node_module_failed_to_load():
    loaded = {node.__module__.rpartition(".")[2] for node in collect_nodes()}
    for name in MODULES:
        module = importlib.import_module(f"testtime.nodes.{name}")
        assert not module.NODES or name in loaded
