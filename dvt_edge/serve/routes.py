"""What is served, behind the guard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from dvt_edge.serve.guard import Guard, Rules
from dvt_edge.serve.hub import Hub

FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "budget.js": "text/javascript",
    "charts.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "uplot/uPlot.iife.min.js": "text/javascript",
    "uplot/uPlot.min.css": "text/css",
    "uplot/LICENSE": "text/plain",
}
"""All that is served from the folder ``static`` besides the page: nothing else can be asked for."""
STALE_S = 5.0
"""Without a frame for so long, ``/healthz`` is not well."""
Serve = Callable[[WebSocket], Awaitable[None]]


@cache
def read_static(name: str) -> bytes:
    """A file of the folder ``static``."""
    return files("dvt_edge.serve").joinpath("static", *name.split("/")).read_bytes()


def health(hub: Hub) -> tuple[int, dict[str, object]]:
    """Status and body of ``/healthz``."""
    quiet_s = hub.quiet_s
    if quiet_s is None:
        state = "no frame yet"
    elif quiet_s < STALE_S:
        state = "ok"
    else:
        state = f"no frame for {quiet_s:.0f} s"
    values = {"state": state, "frames": hub.frames, "last_frame_s": quiet_s}
    return 200 if state == "ok" else 503, values


def make_routes(
    hub: Hub, metrics: Callable[[], tuple[bytes, str]], serve: Serve
) -> list[BaseRoute]:
    """``metrics`` gives the text of ``/metrics`` and its type, ``serve`` is the socket's."""

    async def page(request: Request) -> Response:
        return Response(read_static("index.html"), media_type="text/html")

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            raise HTTPException(404)
        return Response(read_static(name), media_type=FILES[name])

    async def healthz(request: Request) -> Response:
        status, values = health(hub)
        return JSONResponse(values, status)

    def prometheus(request: Request) -> Response:  # in a thread: it reads temperatures
        text, kind = metrics()
        return Response(text, media_type=kind)

    return [
        Route("/", page),
        Route("/static/{name:path}", static),
        Route("/healthz", healthz),
        Route("/metrics", prometheus),
        WebSocketRoute("/live", serve),
    ]


def make_app(routes: list[BaseRoute], rules: Rules) -> ASGIApp:
    """The routes behind the guard."""
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return Guard(app, rules)
