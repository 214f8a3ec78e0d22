"""axe-core, the checker of accessibility, inside a page of the tests' browser."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

from .browser import Browser

SERIOUS = ("serious", "critical")


def find_axe() -> Path | None:
    """The file ``axe.min.js``: what AXE_CORE names, else that of the package axe-core-python, else None."""
    if os.environ.get("AXE_CORE"):
        return Path(os.environ["AXE_CORE"]).expanduser()
    package = importlib.util.find_spec("axe_core_python")
    file = Path(package.origin).parent / "axe.min.js" if package and package.origin else None
    return file if file and file.is_file() else None


async def violations(browser: Browser, selector: str, impacts: tuple[str, ...] = SERIOUS) -> list[str]:
    """What axe finds inside ``selector``, one line per element: rule, impact, element."""
    if not await browser.run("Boolean(window.axe)"):
        await browser.run(find_axe().read_text(encoding="utf-8") + ";0")
    found = await browser.run(f"axe.run({json.dumps(selector)}).then((result) => result.violations)")
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]}: {node.get('failureSummary', '')[:300]}"
        for rule in found
        for node in rule["nodes"]
        if rule["impact"] in impacts
    ]
