"""A headless Chromium driven over its DevTools websocket: just enough to open a page, run JavaScript and look at it."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import aiohttp


def find_chromium() -> str | None:
    """The first Chromium or Chrome on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


# Text whose contrast with what lies behind it (WCAG 2: relative luminance, opacity included) is below what its size
# needs: 4.5, and 3 from 24 px or bold 18.7 px on. Disabled controls are exempt, pictures count as nothing behind.
CONTRAST = """(selector) => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const over = ([r, g, b], a, [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const [r, g, b, a = 1] = parse(getComputedStyle(element).backgroundColor);
    return a === 1 ? [r, g, b] : over([r, g, b], a, behind(element.parentElement));
  };
  const own = (element) => Number(getComputedStyle(element).opacity);
  const opacity = (element) => (element ? own(element) * opacity(element.parentElement) : 1);
  const found = [];
  for (const root of document.querySelectorAll(selector)) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      const text = walker.currentNode.textContent.trim();
      if (!text || !element.checkVisibility() || element.closest(":disabled, .testtime-spoken, option")) continue;
      const style = getComputedStyle(element);
      const back = behind(element);
      const [r, g, b, a = 1] = parse(style.color);
      const front = over([r, g, b], a * opacity(element), back);
      const [low, high] = [light(front), light(back)].sort((x, y) => x - y);
      const ratio = (high + 0.05) / (low + 0.05);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      if (ratio < (large ? 3 : 4.5)) found.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
    }
  }
  return found;
}"""


class Browser:
    """One page of a headless Chromium, as an async context manager.

    ``console`` collects uncaught exceptions, ``errors`` what the page writes with console.error.
    """

    def __init__(self, width: int = 1600, height: int = 1000, dark: bool = False):
        self._size = (width, height)
        self._dark = dark
        self._count = 0
        self.console: list[str] = []
        self.errors: list[str] = []

    async def __aenter__(self) -> Browser:
        self._profile = Path(tempfile.mkdtemp(prefix="testtime-browser-"))
        command = [find_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--use-gl=swiftshader"]
        command += [f"--user-data-dir={self._profile}", "--remote-debugging-port=0", "--hide-scrollbars"]
        command += [f"--window-size={self._size[0]},{self._size[1]}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = self._profile / "DevToolsActivePort"
        for _ in range(300):
            if port_file.exists() and port_file.read_text().strip():
                break
            await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as response:
            pages = [entry for entry in await response.json() if entry["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime"):
            await self.call(f"{domain}.enable")
        if self._dark:
            scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
            await self.call("Emulation.setEmulatedMedia", features=scheme)
        return self

    async def __aexit__(self, *exception) -> None:
        await self._session.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    async def call(self, method: str, **params) -> dict:
        """One DevTools command and its result."""
        self._count += 1
        number = self._count
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=120)
            if message.get("method") == "Runtime.exceptionThrown":
                self.console.append(json.dumps(message["params"]["exceptionDetails"])[:2000])
            if message.get("method") == "Runtime.consoleAPICalled" and message["params"]["type"] == "error":
                told = [part.get("value", part.get("description")) for part in message["params"]["args"]]
                self.errors.append(" ".join(map(str, told))[:2000])
            if message.get("method") == "Page.javascriptDialogOpening":  # "leave with unsaved changes?"
                self._count += 1
                accept = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                await self._socket.send_json({"id": self._count, **accept})
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    async def open(self, url: str) -> None:
        """Navigate to ``url``; returns at once, ``wait_for`` waits."""
        await self.call("Page.navigate", url=url)

    async def run(self, expression: str):
        """The JSON value of a JavaScript expression; promises are awaited."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return result["result"].get("value")

    async def wait_for(self, expression: str, timeout: float = 60.0) -> None:
        """Poll until a JavaScript expression is true."""
        deadline = asyncio.get_running_loop().time() + timeout
        while asyncio.get_running_loop().time() < deadline:
            if await self.run(f"Boolean({expression})"):
                return
            await asyncio.sleep(0.25)
        raise TimeoutError(f"not true within {timeout:.0f} s: {expression}")

    async def faint(self, selector: str) -> list[str]:
        """Texts inside ``selector`` that are too faint to read, with their contrast; see ``CONTRAST``."""
        return await self.run(f"({CONTRAST})({json.dumps(selector)})")

    async def screenshot(self, path: Path, full_page: bool = False) -> None:
        """Save a PNG of the window, or of the whole page."""
        result = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full_page)
        path.write_bytes(base64.b64decode(result["data"]))
