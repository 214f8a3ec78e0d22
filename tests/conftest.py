"""Shared fixtures, and the line that says aloud what happened to the tests that need a ComfyUI."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from testtime.installation.locate import MINIMUM_VERSION, explain_missing, find_comfyui

HOST_FOLDER = Path(__file__).parent / "host"
WITHOUT_HOST = [Path(__file__).parent / name for name in ("unit", "faults")]


def host_skip_reason() -> str | None:
    """Why tests that need a ComfyUI cannot run here, or None when they can."""
    comfyui = find_comfyui()
    if comfyui is None:
        return explain_missing()
    if not comfyui.supported:
        needed = ".".join(map(str, MINIMUM_VERSION))
        return f"ComfyUI {comfyui.version or 'of unknown version'} in {comfyui.root} is older than {needed}"
    return None


def is_host_item(item: pytest.Item) -> bool:
    """Whether a test lives in tests/host or carries the host marker."""
    return HOST_FOLDER in item.path.parents or item.get_closest_marker("host") is not None


def only_host_tests() -> bool:
    """Whether the host tests run once more, inside a further ComfyUI (``tools/run_tests.py``)."""
    return bool(os.environ.get("TESTTIME_ONLY_HOST_TESTS"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if only_host_tests() and any(f in collection_path.parents for f in WITHOUT_HOST) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reason = host_skip_reason()
    for item in items:
        if is_host_item(item):
            item.add_marker(pytest.mark.host)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
    if only_host_tests():  # files that the command line names are collected all the same
        others = [item for item in items if not is_host_item(item)]
        items[:] = [item for item in items if is_host_item(item)]
        config.hook.pytest_deselected(items=others)


def pytest_terminal_summary(terminalreporter, exitstatus, config) -> None:
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for outcome in ("passed", "failed", "xfailed", "xpassed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if "host" not in getattr(report, "keywords", {}):
                continue
            counts[outcome] += 1
            if outcome == "skipped" and isinstance(report.longrepr, tuple):
                reasons[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
    if not counts:
        return
    ran = counts.total() - counts["skipped"]
    words = {"failed": "failed", "error": "broke off", "xfailed": "failed as known", "skipped": "skipped"}
    numbers = ", ".join([f"{ran} ran", *(f"{counts[key]} {word}" for key, word in words.items() if counts[key])])
    comfyui = find_comfyui()
    where = f" against ComfyUI {comfyui.version} in {comfyui.root} ({comfyui.found_by})" if ran and comfyui else ""
    terminalreporter.section("host tests (inside a real ComfyUI)")
    terminalreporter.write_line(f"{numbers}{where}.")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count} skipped: {reason}")
    if os.environ.get("TESTTIME_HOST_SUMMARY"):
        told = numbers + (f": {reasons.most_common(1)[0][0]}" if reasons and not ran else "")
        Path(os.environ["TESTTIME_HOST_SUMMARY"]).write_text(json.dumps(told), encoding="utf-8")


def load_tool(name: str):
    """A file of ``tools/`` as a module; they are scripts, no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "tools" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def newest_server():
    """``comfy_server`` with the newest front end instead of the one that ComfyUI pins; skips where there is none."""
    from testtime.installation.comfyui import HeadlessComfyUI, HeadlessOptions

    tool = load_tool("front_end")
    root = find_comfyui().root
    front_end = tool.newest_front_end(root)
    if front_end is None:
        pytest.skip(tool.explain_missing(root))
    arguments = ("--front-end-root", str(front_end))
    with HeadlessComfyUI(HeadlessOptions(only_this_pack=True, arguments=arguments)) as server:
        yield server


@pytest.fixture(scope="session")
def comfy_server():
    """A real headless ComfyUI with this pack and no other custom nodes, one per session: ``HeadlessComfyUI``."""
    from testtime.installation.comfyui import HeadlessComfyUI, HeadlessOptions

    with HeadlessComfyUI(HeadlessOptions(only_this_pack=True)) as server:
        yield server


@pytest.fixture
def float64_masks():
    """Lets CLIP run in float64: transformers before 4.53 fills a mask of the default dtype with the least float64."""
    import torch
    import transformers

    before = torch.get_default_dtype()
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (4, 53):
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
