"""axe-core finds nothing serious in the panel, in both themes, with a question open and with a finished run."""

from __future__ import annotations

import asyncio

import pytest

from ..axe import find_axe, violations
from ..browser import Browser, find_chromium
from .test_panel import THEME, ready
from .test_panel_hands import ASK, CLIENT, OPEN, STATUS, queue

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path"),
    pytest.mark.skipif(find_axe() is None, reason="no axe-core: install the test extra, or set AXE_CORE"),
]
PANEL = ".testtime-panel"
DARK = f"document.querySelector('{PANEL}').classList.contains('testtime-dark')"


async def in_both_themes(browser: Browser) -> list[str]:
    """What axe finds in the light and in the dark theme, in which the page is left."""
    found = []
    for name, dark in (("light", False), ("dark", True)):
        assert await browser.run(THEME.replace("NAME", name))
        await browser.wait_for(f"{DARK} === {str(dark).lower()}", 20)
        await browser.run("document.querySelector('.testtime-panel').scrollTo(0, 0)")
        found += [f"{name}: {text}" for text in await violations(browser, PANEL)]
    return found


def test_nothing_serious_in_the_panel(comfy_server):
    url = comfy_server.url

    async def look():
        async with Browser(1500, 1300) as browser:
            await ready(browser, url)
            queue(url, await browser.run(CLIENT), "50%", seed=16)
            await browser.wait_for(OPEN, 120)
            await browser.run("document.querySelectorAll('.testtime-pick')[0].click()")
            await browser.run("document.querySelectorAll('.testtime-drop')[1].click()")
            found = [f"question, {text}" for text in await in_both_themes(browser)]
            await browser.run("document.querySelector('.testtime-primary').click()")
            await browser.wait_for(f"{ASK}.hidden && {STATUS} === 'complete'", 120)
            found += [f"finished, {text}" for text in await in_both_themes(browser)]
            # The check itself can fail: the same panel with two things made wrong.
            await browser.run("document.querySelector('.testtime-runs').removeAttribute('aria-label')")
            await browser.run("document.querySelector('.testtime-status').style.color = '#555'")
            wrong = [text.split(" ")[0] for text in await violations(browser, PANEL)]
            return found, wrong

    found, wrong = asyncio.run(look())
    assert not found, "\n".join(found)
    assert {"select-name", "color-contrast"} <= set(wrong)
