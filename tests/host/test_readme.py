"""README lists every node, and every node module loads."""

from __future__ import annotations

import importlib
import importlib.util
import re
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


def test_table_lists_the_nodes_that_there_are():
    tool = load_tool("build_docs")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- nodes -->")[1].split("<!-- /nodes -->")[0]
    listed = re.findall(r"^\| ([^|]+?)(?: \(experimental\))? \|", table, re.MULTILINE)[2:]
    assert sorted(listed) == sorted(schema.display_name for schema in tool.schemas()), "run tools/build_docs.py"


def test_no_node_module_failed_to_load():
    loaded = {node.__module__.rpartition(".")[2] for node in collect_nodes()}
    for name in MODULES:
        module = importlib.import_module(f"testtime.nodes.{name}")
        assert not module.NODES or name in loaded
