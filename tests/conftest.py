"""Shared fixtures, and the line that says aloud what happened to the tests that need a ComfyUI."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from testtime.cli.locate import MINIMUM_VERSION, explain_missing, find_comfyui

HOST_FOLDER = Path(__file__).parent / "host"


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reason = host_skip_reason()
    for item in items:
        if is_host_item(item):
            item.add_marker(pytest.mark.host)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter, exitstatus, config) -> None:
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if "host" not in getattr(report, "keywords", {}):
                continue
            counts[outcome] += 1
            if outcome == "skipped" and isinstance(report.longrepr, tuple):
                reasons[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
    if not counts:
        return
    ran = counts["passed"] + counts["failed"] + counts["error"]
    comfyui = find_comfyui()
    where = f" against ComfyUI {comfyui.version} in {comfyui.root} ({comfyui.found_by})" if ran and comfyui else ""
    terminalreporter.section("host tests (inside a real ComfyUI)")
    terminalreporter.write_line(f"{ran} ran{where}, {counts['skipped']} skipped.")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count} skipped: {reason}")


@pytest.fixture(scope="session")
def comfy_server():
    """A real headless ComfyUI with this pack and no other custom nodes, one per session: ``HeadlessComfyUI``."""
    from testtime.cli.comfyui import HeadlessComfyUI, HeadlessOptions

    with HeadlessComfyUI(HeadlessOptions(only_this_pack=True)) as server:
        yield server
