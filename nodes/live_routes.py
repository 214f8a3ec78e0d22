"""HTTP routes of the panel: what a tab that is opened late or reloaded asks for, and answers to questions.

Holds no nodes.
"""

from __future__ import annotations

import asyncio
import sys

from ..reports.page import render
from .host.asking import desk
from .host.live import store
from .host.results import store as results
from .host.saved import thumbs_of

NODES: list[type] = []
GONE = "This run is not kept any more. Save Search writes the page of a search into the output folder."


def page_of(run: str) -> str | None:
    """The page of a run whose result this server still has, with the previews that the panel was sent."""
    trace = results.trace_of(run)
    return None if trace is None or not trace.records else render(trace, thumbs_of(trace))


def register() -> None:
    """Add the routes to the running server; nothing happens without one (tests, library use)."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is None:
        return
    from aiohttp import web

    @instance.routes.get("/testtime/runs")
    async def runs(request: web.Request) -> web.Response:
        return web.json_response({"enabled": store.enabled, "runs": store.listing()})

    @instance.routes.get("/testtime/runs/{run}")
    async def run(request: web.Request) -> web.Response:
        found = store.snapshot(request.match_info["run"])
        if found is None:
            return web.json_response({"error": "this run is not kept any more"}, status=404)
        return web.json_response(found)

    @instance.routes.get("/testtime/runs/{run}/report")
    async def report(request: web.Request) -> web.Response:
        page = await asyncio.to_thread(page_of, request.match_info["run"])
        if page is None:
            return web.Response(
                status=404, text="This run is not kept any more. Save Search writes its page to a file."
            )
        return web.Response(text=page, content_type="text/html")

    @instance.routes.post("/testtime/live")
    async def live(request: web.Request) -> web.Response:
        try:
            enabled = (await request.json())["enabled"]
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": 'send {"enabled": true} or {"enabled": false}'}, status=400)
        store.enabled = bool(enabled)
        return web.json_response({"enabled": store.enabled})

    @instance.routes.post("/testtime/panel")
    async def panel(request: web.Request) -> web.Response:
        try:
            client = str((await request.json())["client"])
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": 'send {"client": "id of the window"}'}, status=400)
        desk.hello(client[:64])
        return web.json_response({"question": desk.current()})

    @instance.routes.get("/testtime/question")
    async def question(request: web.Request) -> web.Response:
        return web.json_response({"question": desk.current()})

    @instance.routes.post("/testtime/question/{number}")
    async def answer(request: web.Request) -> web.Response:
        try:
            message = await request.json()
        except ValueError:
            message = None
        status, said = desk.answer(request.match_info["number"], message)
        return web.json_response(said, status=status)


register()
