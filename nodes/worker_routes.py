"""HTTP routes of a ComfyUI that is a worker of another one. A ComfyUI that is none has no such routes.

Holds no nodes.
"""

from __future__ import annotations

import asyncio
import hmac

from aiohttp import web

from ..scale.rows.comfyui import ASK, RELEASE, STATE, TOKEN_HEADER
from .host.audience import server
from .host.serving import TOKEN, Gone, desk

NODES: list[type] = []


def refused(request: web.Request) -> web.Response | None:
    """The answer to somebody else than the driver, None for the driver."""
    shown = request.headers.get(TOKEN_HEADER, "")
    return None if hmac.compare_digest(shown.encode(), TOKEN.encode()) else web.Response(status=403)


async def ask(request: web.Request) -> web.Response:
    """A packed question; its packed answer."""
    denied = refused(request)
    if denied is not None:
        return denied
    try:
        answer = await asyncio.wrap_future(desk.ask(await request.read()))
    except Gone as gone:
        return web.Response(status=409, text=str(gone))
    return web.Response(body=answer, content_type="application/octet-stream")


async def state(request: web.Request) -> web.Response:
    """Which prompt answers."""
    return refused(request) or web.json_response({"serves": desk.serves})


async def release(request: web.Request) -> web.Response:
    """Let the prompt that answers end."""
    denied = refused(request)
    if denied is None:
        desk.release()
    return denied or web.json_response({})


ROUTES = (("POST", ASK, ask), ("GET", STATE, state), ("POST", RELEASE, release))


def register() -> None:
    """Add the routes where this server is a worker."""
    instance = server()
    if instance is None or not TOKEN:
        return
    for method, path, handler in ROUTES:
        instance.routes.route(method, path)(handler)


register()
