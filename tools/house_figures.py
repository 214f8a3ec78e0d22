"""Figures of the code itself: how true its contracts are, how much of a method is bookkeeping, who imports whom.

    .venv/bin/python tools/house_figures.py [--root CHECKOUT] [--no-mypy] [--edges]

Any checkout can be counted, an old one too (``git worktree add --detach FOLDER COMMIT``), so that a change of the code
can be compared before and after by the same rules. The rules are printed with the figures:

- undeclared members: attributes that ``samplers/methods`` and ``samplers/smc`` read of a ``Process`` (of a name
  ``process``, of ``....process``, of a parameter annotated ``Process``, and by ``getattr``/``hasattr`` with a constant
  name), without those that the protocol ``Process`` in ``samplers/protocols.py`` declares;
- getattr: calls of ``getattr`` and ``hasattr`` in Python files outside ``tests``;
- type errors: lines of mypy with ``--check-untyped-defs --ignore-missing-imports``, outside ``tests`` and ``tools``;
- bookkeeping: see ``is_bookkeeping``;
- endings: places in ``samplers`` that make a record of the phase "final" themselves;
- copies: functions of ``bench`` called ``measure`` or ``row``, and functions anywhere that draw a bootstrap by hand;
- folder graph: imports between folders. Cycles are groups of folders that all reach each other.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from house_graph import OUTSIDE, cycles, imports, modules, room

SMC_FILES = {"smc.py", "engine.py", "population.py", "potentials.py", "resampling.py", "tempering.py", "weights.py"}
BOOK_NAMES = {
    "ids", "parents", "new_ids", "entries", "entry", "particle_entries", "ParticleEntry", "record", "records",
    "StepRecord", "remember", "trace", "ledger", "meta", "hint", "selected", "survivors", "phase", "optimism",
    "selection_bias", "gap", "guess", "last_used", "result", "rewrites", "warn",
}  # fmt: skip
"""Names (variables, attributes, keywords, functions) that belong to ids, trace entries, records and results."""
BOOK_CALLS = {"step", "finish", "ending"}
"""Methods of a session that keep books, in a house where it has them: ``session.step(...)``."""


def is_method_file(path: str) -> bool:
    """Whether a file holds search methods or the engine that some of them are settings of."""
    parts = path.split("/")
    return parts[0] == "samplers" and (parts[1] in ("methods", "smc") or (len(parts) == 2 and parts[1] in SMC_FILES))


# Contracts.
def declared_members(protocols: ast.Module, name: str = "Process") -> set[str]:
    """Attributes and methods that a protocol class and its bases in the same file declare."""
    classes = {node.name: node for node in protocols.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        return set()
    found: set[str] = set()
    for base in classes[name].bases:
        found |= declared_members(protocols, base.id) if isinstance(base, ast.Name) else set()
    for node in classes[name].body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def process_members(tree: ast.Module) -> Counter[str]:
    """How often each member of a process is read, see the module docstring."""
    typed = {
        argument.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Process"
    } | {"process"}

    def is_process(node: ast.AST) -> bool:
        return (isinstance(node, ast.Name) and node.id in typed) or (
            isinstance(node, ast.Attribute) and node.attr == "process"
        )

    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_process(node.value):
            found[node.attr] += 1
        elif is_probe(node) and len(node.args) > 1 and is_process(node.args[0]):
            found.update(str(a.value) for a in node.args[1:2] if isinstance(a, ast.Constant))
    return found


def is_probe(node: ast.AST) -> bool:
    """A call of ``getattr`` or ``hasattr``."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")


# Bookkeeping.
def own_nodes(statement: ast.stmt) -> Iterator[ast.AST]:
    """The statement without the statements inside it: of an ``if`` or a loop its head."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [
            child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt | ast.ExceptHandler)
        ]


def is_bookkeeping(statement: ast.stmt) -> bool:
    """Whether a statement mentions the books: a name of ``BOOK_NAMES``, or a session's ``BOOK_CALLS``."""
    for node in own_nodes(statement):
        if isinstance(node, ast.Name) and node.id in BOOK_NAMES:
            return True
        if isinstance(node, ast.keyword) and node.arg in BOOK_NAMES:
            return True
        if isinstance(node, ast.Attribute):
            of_session = isinstance(node.value, ast.Name) and node.value.id in ("session", "run", "books")
            if node.attr in BOOK_NAMES or (of_session and node.attr in BOOK_CALLS):
                return True
    return False


def statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    """All statements of a function, nested ones too, without the docstring."""
    for node in ast.walk(function):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and node is not function and not text:
            yield node


def bookkeeping(tree: ast.Module) -> list[tuple[str, int, int, int, int]]:
    """(class, bookkeeping and all statements of ``run``, the same with the private functions that ``run`` reaches)."""
    found = []
    free = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for owner in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        own = {node.name: node for node in owner.body if isinstance(node, ast.FunctionDef)}
        if "run" not in own or len(list(statements(own["run"]))) < 2:
            continue
        reached, waiting = {"run": own["run"]}, [own["run"]]
        while waiting:
            for node in ast.walk(waiting.pop()):
                name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
                function = own.get(name) or free.get(name)
                if name.startswith("_") and function is not None and name not in reached:
                    reached[name] = function
                    waiting.append(function)
        alone = list(statements(own["run"]))
        whole = [statement for function in reached.values() for statement in statements(function)]
        counts = [(sum(map(is_bookkeeping, some)), len(some)) for some in (alone, whole)]
        found.append((owner.name, *counts[0], *counts[1]))
    return found


def endings(tree: ast.Module) -> int:
    """Places that give a record the phase "final", comparisons not counted."""
    count = 0
    for node in ast.walk(tree):
        value = None
        if (isinstance(node, ast.keyword) and node.arg == "phase") or (
            isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "phase" for t in node.targets)
        ):
            value = node.value
        if value is not None:
            count += any(isinstance(inner, ast.Constant) and inner.value == "final" for inner in ast.walk(value))
    return count


def copies(path: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(kind, where) of what should exist once: benchmark measuring, benchmark rows, bootstraps."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        if (
            path.startswith("bench/")
            and node.name in ("measure", "row")
            and [a.arg for a in node.args.args] != ["self"]
        ):
            yield f"bench {node.name}", f"{path}:{node.name}"
        called = {n.func.attr for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
        if "bootstrap" in called or ("quantile" in called and called & {"integers", "binomial", "multinomial"}):
            yield "bootstrap", f"{path}:{node.name}"


def type_errors(root: Path) -> str:
    """Number of mypy's errors, and of the files that have some."""
    packages = sorted(f.parent.name for f in root.glob("*/__init__.py") if f.parent.name not in OUTSIDE)
    command = [sys.executable, "-m", "mypy", "--check-untyped-defs", "--ignore-missing-imports", "--no-error-summary"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "testtime").symlink_to(root.resolve())
        for package in packages:
            command += ["-p", f"testtime.{package}"]
        environment = {**os.environ, "MYPYPATH": folder, "PYTHONPATH": ""}
        shown = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = [line for line in shown.stdout.splitlines() if ": error:" in line]
    if not lines and shown.returncode:
        return f"mypy did not run: {(shown.stdout + shown.stderr).strip()[:200]}"
    by_folder = Counter(line.split(":")[0].split("/")[1] for line in lines)
    return f"{len(lines)} in {len({line.split(':')[0] for line in lines})} files {dict(by_folder.most_common())}"


def percent(part: int, whole: int) -> str:
    """A share as text, "12 of 20 (60 %)"."""
    return f"{part} of {whole} ({100 * part / whole:.0f} %)"


def report(root: Path, with_types: bool = True, edges: bool = False) -> Iterator[str]:  # noqa: C901 - one figure after the other
    """The figures of a checkout, line by line."""
    trees = dict(modules(root))
    declared = declared_members(trees["samplers/protocols.py"])
    methods = {path: tree for path, tree in trees.items() if is_method_file(path)}

    read: Counter[str] = Counter()
    for tree in methods.values():
        read += process_members(tree)
    missing = {name: count for name, count in read.most_common() if name not in declared}
    yield f"members of Process: {len(declared)} declared, {len(read)} read by methods, {len(missing)} undeclared"
    yield "  " + (", ".join(f"{name} {count}" for name, count in missing.items()) or "none")

    probes = {path: sum(map(is_probe, ast.walk(tree))) for path, tree in trees.items()}
    by_room: Counter[str] = Counter()
    for path, count in probes.items():
        by_room[room(path)] += count
    yield f"getattr and hasattr outside tests: {sum(probes.values())}"
    yield "  " + ", ".join(f"{name} {count}" for name, count in by_room.most_common() if count)

    if with_types:
        yield f"type errors (mypy --check-untyped-defs, outside tests): {type_errors(root)}"

    yield "bookkeeping in run (a statement counts that mentions one of: " + ", ".join(sorted(BOOK_NAMES)) + ";"
    yield (
        "  session." + ", session.".join(sorted(BOOK_CALLS)) + "): of run alone / with the private functions it reaches"
    )
    sums = [0, 0, 0, 0]
    for path, tree in sorted(trees.items()):
        if path.startswith("samplers/"):
            for name, *counts in bookkeeping(tree):
                sums = [a + b for a, b in zip(sums, counts, strict=True)]
                yield f"  {name:20s} {percent(*counts[:2]):18s} / {percent(*counts[2:]):18s} {path}"
    yield f"  {'all':20s} {percent(*sums[:2]):18s} / {percent(*sums[2:])}"

    found = {path: endings(tree) for path, tree in trees.items() if path.startswith("samplers/")}
    yield f"records of the phase 'final' made by hand: {sum(found.values())}"
    yield "  " + ", ".join(f"{path} {count}" for path, count in sorted(found.items()) if count)

    places = defaultdict(list)
    for path, tree in trees.items():
        for kind, where in copies(path, tree):
            places[kind].append(where)
    for kind, where in sorted(places.items()):
        yield f"copies, {kind}: {len(where)} ({', '.join(where)})"

    lines: Counter[str] = Counter()
    for path in trees:
        lines[room(path)] += len((root / path).read_text(encoding="utf-8").splitlines())
    for path in sorted((root / "web").rglob("*.js")):
        lines["web (js)"] += len(path.read_text(encoding="utf-8").splitlines())
    longest = max(trees, key=lambda path: len((root / path).read_text(encoding="utf-8").splitlines()))
    size = len((root / longest).read_text(encoding="utf-8").splitlines())
    yield f"lines: {sum(lines.values())} in {len(trees)} Python files and web; the longest file is {longest} ({size})"
    yield "  " + ", ".join(f"{name} {count}" for name, count in sorted(lines.items()))

    graph: dict[str, set[str]] = defaultdict(set)
    examples: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, tree in trees.items():
        for target, late in imports(path, tree, set(trees)):
            a, b = room(path), room(target)
            if a != b and "(root)" not in (a, b):
                graph[a].add(b)
                examples[a, b].append(f"{path} -> {target}{' (in a function)' if late else ''}")
    yield f"folder graph: {len(examples)} arrows between {len(set(graph) | {b for _, b in examples})} folders"
    for name in sorted(graph):
        yield f"  {name} -> {', '.join(sorted(graph[name]))}"
    for group in cycles(graph):
        yield f"  cycle: {', '.join(group)}"
        for (a, b), where in sorted(examples.items()):
            if edges and a in group and b in group:
                yield from (f"    {line}" for line in sorted(set(where)))


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="checkout to be counted")
    parser.add_argument("--no-mypy", action="store_true", help="leave out the type errors, which take a minute")
    parser.add_argument("--edges", action="store_true", help="list the imports that make the cycles")
    options = parser.parse_args()
    for line in report(options.root, not options.no_mypy, options.edges):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
