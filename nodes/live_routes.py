"""HTTP routes of the panel: what a tab that is opened late or reloaded asks for, and answers to questions.

Holds no nodes.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..reports.page import render
from .host.asking import desk
from .host.audience import audience, server
from .host.live import store
from .host.results import store as results
from .host.saved import films_of, thumbs_of

NODES: list[type] = []
GONE = "This run is no longer in memory. Save Search can write the page of a search into the output folder."


def page_of(run: str) -> str | None:
    """The page of a run whose result this server still has, with the previews that the panel was sent."""
    trace = results.trace_of(run)
    return None if trace is None or not trace.records else render(trace, thumbs_of(trace), films=films_of(trace))


def client_of(request: web.Request) -> str | None:
    """The window that asks."""
    return request.query.get("client")


async def runs(request: web.Request) -> web.Response:
    """The runs that a tab may see."""
    listing = store.listing(client_of(request))
    return web.json_response({"enabled": store.enabled, "audience": audience(), "runs": listing})


async def run(request: web.Request) -> web.Response:
    """All that is known of one run."""
    name = request.match_info["run"]
    found = store.snapshot(name) if store.shows(name, client_of(request)) else None
    if found is None:
        return web.json_response({"error": GONE}, status=404)
    return web.json_response(found)


async def report(request: web.Request) -> web.Response:
    """The page of a run."""
    name = request.match_info["run"]
    page = await asyncio.to_thread(page_of, name) if store.shows(name, client_of(request)) else None
    if page is None:
        return web.Response(status=404, text=GONE)
    return web.Response(text=page, content_type="text/html")


async def live(request: web.Request) -> web.Response:
    """Switch live previews on or off."""
    try:
        enabled = (await request.json())["enabled"]
    except (ValueError, KeyError, TypeError):
        return web.json_response({"error": 'send {"enabled": true} or {"enabled": false}'}, status=400)
    store.enabled = bool(enabled)
    return web.json_response({"enabled": store.enabled})


async def panel(request: web.Request) -> web.Response:
    """A tab with a panel says that it is there."""
    try:
        client = str((await request.json())["client"])
    except (ValueError, KeyError, TypeError):
        return web.json_response({"error": 'send {"client": "id of the window"}'}, status=400)
    if not desk.hello(client[:64]):
        return web.json_response({"error": "this window is not connected to the server"}, status=409)
    return web.json_response({"question": desk.current(client)})


async def question(request: web.Request) -> web.Response:
    """What a tab is asked."""
    return web.json_response({"question": desk.current(client_of(request))})


async def answer(request: web.Request) -> web.Response:
    """The answer to a question."""
    try:
        message = await request.json()
    except ValueError:
        message = None
    status, said = desk.answer(request.match_info["number"], message)
    return web.json_response(said, status=status)


ROUTES = (
    ("GET", "/testtime/runs", runs),
    ("GET", "/testtime/runs/{run}", run),
    ("GET", "/testtime/runs/{run}/report", report),
    ("POST", "/testtime/live", live),
    ("POST", "/testtime/panel", panel),
    ("GET", "/testtime/question", question),
    ("POST", "/testtime/question/{number}", answer),
)


def register() -> None:
    """Add the routes to the running server; nothing happens without one (tests, library use)."""
    instance = server()
    if instance is None:
        return
    for method, path, handler in ROUTES:
        instance.routes.route(method, path)(handler)


register()
