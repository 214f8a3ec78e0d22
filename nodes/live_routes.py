"""HTTP routes of the panel: what a tab that is opened late or reloaded asks for, and answers to questions.

Holds no nodes.
"""

from __future__ import annotations

import asyncio

from ..reports.page import render
from .host.asking import desk
from .host.audience import audience, server
from .host.live import store
from .host.results import store as results
from .host.saved import thumbs_of

NODES: list[type] = []
GONE = "This run is no longer in memory. Save Search can write the page of a search into the output folder."


def page_of(run: str) -> str | None:
    """The page of a run whose result this server still has, with the previews that the panel was sent."""
    trace = results.trace_of(run)
    return None if trace is None or not trace.records else render(trace, thumbs_of(trace))


def register() -> None:
    """Add the routes to the running server; nothing happens without one (tests, library use)."""
    instance = server()
    if instance is None:
        return
    from aiohttp import web

    def client_of(request: web.Request) -> str | None:
        return request.query.get("client")

    @instance.routes.get("/testtime/runs")
    async def runs(request: web.Request) -> web.Response:
        runs = store.listing(client_of(request))
        return web.json_response({"enabled": store.enabled, "audience": audience(), "runs": runs})

    @instance.routes.get("/testtime/runs/{run}")
    async def run(request: web.Request) -> web.Response:
        name = request.match_info["run"]
        found = store.snapshot(name) if store.shows(name, client_of(request)) else None
        if found is None:
            return web.json_response({"error": GONE}, status=404)
        return web.json_response(found)

    @instance.routes.get("/testtime/runs/{run}/report")
    async def report(request: web.Request) -> web.Response:
        name = request.match_info["run"]
        page = await asyncio.to_thread(page_of, name) if store.shows(name, client_of(request)) else None
        if page is None:
            return web.Response(status=404, text=GONE)
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
        if not desk.hello(client[:64]):
            return web.json_response({"error": "this window is not connected to the server"}, status=409)
        return web.json_response({"question": desk.current(client)})

    @instance.routes.get("/testtime/question")
    async def question(request: web.Request) -> web.Response:
        return web.json_response({"question": desk.current(client_of(request))})

    @instance.routes.post("/testtime/question/{number}")
    async def answer(request: web.Request) -> web.Response:
        try:
            message = await request.json()
        except ValueError:
            message = None
        status, said = desk.answer(request.match_info["number"], message)
        return web.json_response(said, status=status)


register()
