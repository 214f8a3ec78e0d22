"""HTTP routes of the live panel: what a tab that is opened late or reloaded asks for. Holds no nodes."""

from __future__ import annotations

import sys

from .host.live import store

NODES: list[type] = []


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

    @instance.routes.post("/testtime/live")
    async def live(request: web.Request) -> web.Response:
        try:
            enabled = (await request.json())["enabled"]
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": 'send {"enabled": true} or {"enabled": false}'}, status=400)
        store.enabled = bool(enabled)
        return web.json_response({"enabled": store.enabled})


register()
