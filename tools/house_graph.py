"""The Python files of a checkout of this package and the imports between its folders, read from the text alone."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

OUTSIDE = {"tests", "tools", "out", "build", "runs", "work", "dist"}  # no part of the package


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """(path relative to ``root``, syntax tree) of every Python file of the package."""
    for folder, names, files in os.walk(root):
        here = Path(folder).relative_to(root)
        names[:] = sorted(n for n in names if not n.startswith((".", "__")) and not n.endswith(".egg-info"))
        if here == Path("."):
            names[:] = [name for name in names if name not in OUTSIDE]
        for name in sorted(files):
            if name.endswith(".py"):
                path = here / name
                yield path.as_posix(), ast.parse((root / path).read_text(encoding="utf-8"))


def room(path: str) -> str:
    """The folder that a file counts to: the first two levels of ``samplers`` and ``nodes``, the first of others."""
    parts = path.split("/")
    if len(parts) == 1:
        return "(root)"
    deep = parts[0] in ("samplers", "nodes") and len(parts) > 2
    return "/".join(parts[:2]) if deep else parts[0]


def folder(path: str) -> str:
    """The folder that a file lies in; a module that lies directly in a top folder is a room of its own."""
    parts = path.split("/")
    return path if len(parts) <= 2 else "/".join(parts[:-1])


def imports(path: str, tree: ast.Module, files: set[str]) -> Iterator[tuple[str, bool]]:
    """(file of the package that is imported, whether inside a function), without imports for type checkers only."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    late = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    here = path.split("/")[:-1]
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names: list[list[str]] = []
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
            if not node.level:
                names = [name[1:] for name in names if name[0] == "testtime"]
        elif isinstance(node, ast.Import):
            names = [a.name.split(".")[1:] for a in node.names if a.name.startswith("testtime.")]
        for name in names:
            for parts in (name, name[:-1]):  # a module, or a name inside one
                target = next(
                    (f for f in ("/".join(parts) + ".py", "/".join([*parts, "__init__.py"])) if f in files), ""
                )
                if target:
                    yield target, id(node) in late
                    break


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of folders that all reach each other, larger than one."""
    reach = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            for target in graph.get(waiting.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        reach[start] = seen
    groups = {tuple(sorted(b for b in graph if b in reach[a] and a in reach.get(b, ()))) for a in graph}
    return [list(group) for group in sorted(groups) if len(group) > 1]
