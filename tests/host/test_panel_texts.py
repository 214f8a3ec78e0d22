"""The panel's own texts: the same in every language of the pack, all used, and shown in the language of the setting."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from ..browser import Browser, find_chromium
from .test_panel import panel_modules, ready
from .test_workflows import setting

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path"),
]
ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"


def test_every_language_has_every_text_and_german_is_shown(comfy_server):
    url = comfy_server.url
    load = f"import('{panel_modules(url)}texts.js')"
    drawing = f"{panel_modules(url)}../draw/texts.js"

    async def look():
        async with Browser(1200, 900) as browser:
            setting(url, "Comfy.Locale", "de-AT")
            try:
                await ready(browser, url)
                texts = await browser.run(
                    f"Promise.all([{load}, import('{drawing}')]).then(([panel, draw]) =>"
                    " ['en', 'de'].map((name) => ({ ...draw.DRAWING_TEXTS[name], ...panel.TEXTS[name] })))"
                )
                languages = await browser.run(f"{load}.then((module) => Object.keys(module.TEXTS))")
                other = await browser.run(
                    f"{load}.then(({{ say, speak }}) => [speak('fr'), say('cost'), speak('de'), say('cost'),"
                    " say('used', { nodes: '<b>$&</b>' }), speak(undefined)])"
                )
                kept = await browser.run("window.app.extensionManager.setting.get('Comfy.Locale')")
                label = await browser.run("document.querySelector('.testtime-panel').getAttribute('aria-label')")
                headings = await browser.run(
                    "[...document.querySelectorAll('.testtime-panel h3')].map((h) => h.textContent)"
                )
            finally:
                setting(url, "Comfy.Locale", "en")
        return texts, languages, other, kept, label, headings

    texts, languages, other, kept, label, headings = asyncio.run(look())
    assert set(languages) == {path.name for path in (ROOT / "locales").iterdir()}
    english, german = texts
    assert english.keys() == german.keys()
    sources = "".join(path.read_text(encoding="utf-8") for path in WEB.rglob("*.js") if path.name != "texts.js")
    for key, text in english.items():
        assert f'"{key}"' in sources, f"{key} is not used"
        places = [sorted(re.findall(r"{(\w+)}", said)) for said in (text, german[key])]
        assert places[0] == places[1], key
        assert german[key] != text or key in ("prompt", "verifier"), f"{key} is not translated"
    assert set(re.findall(r'say\("(\w+)"', sources)) <= english.keys()
    assert other == ["en", "Cost", "de", "Aufwand", "Übernommen in <b>$&</b>", "en"]
    # Front ends that have no German themselves refuse the setting by now, and go back to English.
    assert kept in ("de-AT", "en")
    shown = german if kept == "de-AT" else english
    assert label == shown["panel"] and shown["tree"] in headings
    assert german["panel"] == "Suchfenster" and german["tree"] == "Stammbaum"
