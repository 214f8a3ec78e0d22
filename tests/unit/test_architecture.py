"""No arrow runs up: which folder of the package may import which, read from the code itself."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import testtime
from testtime.samplers import methods
from testtime.samplers.method import SearchMethod
from testtime.samplers.methods.registry import METHODS, ROWS

ROOT = Path(testtime.__file__).resolve().parent
# From the bottom to the top; a folder imports folders of lower lines only. Folders in one line do not know each other.
LAYERS = (
    ("installation",),
    ("graph", "samplers", "shapes_world"),
    ("chat", "pipelines", "reports"),
    ("models", "rewriters"),
    ("values", "verifiers"),
    ("scale",),
    ("nodes",),
    ("bench",),
    ("demo",),
    ("cli",),
)
NOT_PACKAGES = {"tests", "tools", "docs", "web", "workflows", "locales", "out", "build", "dist", "runs"}
LEVEL = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}


def modules() -> dict[str, ast.Module]:
    """Path in the package -> syntax tree of every module."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if len(parts) > 1 and parts[0] not in NOT_PACKAGES and not parts[0].startswith("."):
            found["/".join(parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def absolute(name: str, level: int, module: str) -> str:
    """The full name behind ``from ..x import y`` in ``module``; other names stay as they are."""
    if not level:
        return name
    package = ["testtime", *module.split("/")[:-1]]
    return ".".join([*package[: len(package) - level + 1], *([name] if name else [])])


def called_with(node: ast.Call) -> str:
    """The beginning of the name that ``import_module`` is called with, as far as it is written there."""
    first = node.args[0] if node.args else None
    if isinstance(first, ast.JoinedStr):
        first = first.values[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def imports(module: str, tree: ast.Module) -> set[str]:
    """Top folders of the package that a module imports, anywhere in it, also by ``import_module``."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = absolute(node.module or "", node.level, module)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names.append(called_with(node))
    # A module's name in a text, such as "..demo.main", is an import in waiting.
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(".."):
            text = node.value.lstrip(".")
            if text.replace(".", "").isidentifier():
                names.append(f"testtime.{text}")
    parts = (name.split(".") for name in names)
    return {found[1] for found in parts if found[0] == "testtime" and len(found) > 1 and (ROOT / found[1]).is_dir()}


MODULES = modules()


def test_every_folder_has_its_place():
    new = {module.split("/")[0] for module in MODULES} - set(LEVEL)
    assert not new, f"say in LAYERS what {new} may import"


@pytest.mark.parametrize("folder", [folder for folders in LAYERS for folder in folders])
def test_imports_run_down_only(folder):
    wrong = [
        f"{module} imports {other}"
        for module, tree in MODULES.items()
        if module.split("/")[0] == folder
        for other in sorted(imports(module, tree) - {folder})
        if LEVEL.get(other, -1) >= LEVEL[folder]
    ]
    assert not wrong


@pytest.fixture
def house(monkeypatch):
    """``tools/house_graph.py``."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import house_graph

    yield house_graph
    sys.modules.pop("house_graph", None)


def imported(house, root: Path) -> dict[str, set[str]]:
    """File -> files that it imports; imports inside functions count, those for types alone do not."""
    trees = dict(house.modules(root))
    trees.pop("__init__.py", None)  # the host's way in, and the version that everybody may read
    return {path: {target for target, _ in house.imports(path, tree, set(trees))} for path, tree in trees.items()}


def circles(house, files: dict[str, set[str]], key) -> list[list[str]]:
    """Groups of ``key(file)`` that import each other."""
    graph: dict[str, set[str]] = {key(path): set() for path in files}
    for path, targets in files.items():
        graph[key(path)] |= {key(target) for target in targets} - {key(path)}
    return house.cycles(graph)


def test_no_circles(house):
    """Neither between modules nor between the rooms inside a folder, such as ``samplers/run`` and ``samplers/smc``."""
    files = imported(house, ROOT)
    assert circles(house, files, lambda path: path) == []
    assert circles(house, files, house.folder) == []


def above(files: dict[str, set[str]]) -> list[str]:
    """Imports of a module of ``nodes`` in ``nodes/host``, which stands below it."""
    return [
        f"{path} imports {target}"
        for path, targets in sorted(files.items())
        if path.startswith("nodes/host/")
        for target in sorted(targets)
        if target.startswith("nodes/") and not target.startswith("nodes/host/")
    ]


def test_what_nodes_stand_on_knows_no_node(house):
    """``nodes/host`` runs searches inside ComfyUI, also where no node of ours asks for it."""
    assert above(imported(house, ROOT)) == []


def test_an_import_of_a_node_would_be_found(house, tmp_path):
    for path, text in {"nodes/types.py": "", "nodes/host/a.py": "from ..types import x", "nodes/b.py": ""}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert above(imported(house, tmp_path)) == ["nodes/host/a.py imports nodes/types.py"]


def test_a_circle_would_be_found(house, tmp_path):
    code = {
        "samplers/run/a.py": "from ..smc.b import x",
        "samplers/run/c.py": "",
        "samplers/smc/b.py": "",
        "samplers/smc/d.py": "def f():\n    from ..run import c",
        "samplers/plan.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .run.a import y",
    }
    for path, text in code.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    files = imported(house, tmp_path)
    assert circles(house, files, lambda path: path) == []
    assert circles(house, files, house.folder) == [["samplers/run", "samplers/smc"]]


def test_a_forbidden_import_would_be_found():
    for code in ("from ..cli.run import x", "from .. import cli", "import testtime.cli.run", "x = '..cli.main'",
                 "def f():\n importlib.import_module(f'testtime.cli.{name}')"):  # fmt: skip
        assert imports("graph/x.py", ast.parse(code)) == {"cli"}, code
    assert imports("graph/x.py", ast.parse("importlib.import_module()")) == set()


def test_only_nodes_import_the_host():
    hosts = {"comfy", "comfy_api", "folder_paths", "server", "nodes", "execution", "latent_preview", "node_helpers"}
    found = []
    for module, tree in MODULES.items():
        if module.startswith("nodes/"):
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []
            found += [f"{module}: {name}" for name in names if name.split(".")[0] in hosts]
    assert not found


def test_no_module_is_much_longer_than_agreed():
    """About 300 lines: a longer file is two things, or one that is said too long."""
    lengths = {module: len((ROOT / module).read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert {module: length for module, length in lengths.items() if length > 320} == {}


# --- names of methods

TITLES = {row.title for row in ROWS}
NODES = {row.node for row in ROWS}


def strings(tree: ast.Module) -> Iterator[str]:
    """All texts of a module but those of ``__all__``, which are names of classes."""
    exported = [
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets)
        for inner in ast.walk(node)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in exported:
            yield node.value


def lists_of_titles(tree: ast.Module) -> bool:
    """Whether a module spells out titles or nodes of several methods, or gives keys of methods a text each."""
    texts = set(strings(tree))
    keyed = [
        value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value in METHODS
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and not value.value.startswith("var(--")
    ]
    return len(texts & TITLES) > 1 or len(texts & NODES) > 1 or len(keyed) > 1


def test_methods_are_named_in_one_place():
    """A class has the title; the row in the registry has the rest; everything else asks them."""
    own = {f"samplers/methods/{Path(inspect.getfile(row.method)).name}" for row in ROWS}
    found = {module for module, tree in MODULES.items() if lists_of_titles(tree)}
    history = "graph/old_nodes.py"  # what nodes were called, and are called now: no list of methods
    assert found <= {*own, "samplers/methods/registry.py", history}
    for path in (ROOT / "web").rglob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert sum(f'"{title}"' in text for title in TITLES) < 2, path


def test_rows_are_complete_and_unlike():
    keys, titles, nodes = ([getattr(row, name) for row in ROWS] for name in ("key", "title", "node"))
    for names in (keys, titles, nodes):
        assert all(names) and len(set(names)) == len(ROWS) - (names is nodes)  # importance sampling: in FK's node
    assert all(row.summary.endswith(".") for row in ROWS)
    assert {row.method for row in ROWS} == {
        kind for kind in vars(methods).values() if isinstance(kind, type) and issubclass(kind, SearchMethod)
    } - {SearchMethod}


def test_a_second_list_would_be_found():
    assert lists_of_titles(ast.parse('NAMES = ("SVDD", "Best-of-N")'))
    assert lists_of_titles(ast.parse('NAMES = {"fk": "FK steering", "rbf": "Rollover"}'))
    assert not lists_of_titles(ast.parse('__all__ = ["SVDD", "SMC"]'))
    assert lists_of_titles(ast.parse('NODES = {"svdd": ("TestTimeSVDD", 1), "fk": ("TestTimeFKSteering", 2)}'))
    assert not lists_of_titles(ast.parse('COMPARED = ("svdd", "smc")'))
