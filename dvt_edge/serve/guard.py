"""Who may see the page and change the budget: in front of every route, so none is forgotten.

| asked of | what | else |
| --- | --- | --- |
| every request, where there is no token | ``Host`` is a name of this machine's loopback | 400 |
| every request, where there is a token | the token | 401 |
| the socket, and methods that change something | ``Origin`` is the page's own | 403 |

The first is against DNS rebinding: another site whose name leads to 127.0.0.1. With a token such a
site gains nothing, since it does not have the cookie.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
    "Referrer-Policy": "no-referrer",  # an address may hold the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every response."""
COOKIE_DAYS = 30
_SAFE = ("GET", "HEAD", "OPTIONS")
_ASK = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>dvt-edge: token needed</title>
<h1>Token needed</h1>
<p>Open the address that dvt-edge printed when it started, or give its token here.</p>
<form action="/" method="get">
<label>Token <input name="token" type="password" autocomplete="current-password" required></label>
<button>Open</button>
</form>
</html>
"""


@dataclass(frozen=True)
class Rules:
    """What is asked of a request."""

    token: str | None
    """None lets everyone on this machine in."""
    port: int

    @property
    def cookie(self) -> str:
        """Name of the token's cookie. Browsers send the cookies of all ports of a host."""
        return f"dvt_edge_{self.port}"

    def refusal(self, connection: HTTPConnection) -> Response | None:
        """None where ``connection`` may go on."""
        hosts = connection.headers.getlist("host")
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if self.token is None and not _names_loopback(host):
            return PlainTextResponse(
                "this address is served under localhost, 127.0.0.1 and [::1] only\n", 400
            )
        if not self._has_token(connection):
            return HTMLResponse(_ASK, 401, {"WWW-Authenticate": "Bearer"})
        changes = connection.scope["type"] == "websocket" or connection.scope["method"] not in _SAFE
        origins = connection.headers.getlist("origin")
        own = (f"http://{host}", f"https://{host}")  # a proxy may speak TLS
        if changes and (len(origins) != 1 or origins[0].lower() not in own):
            return PlainTextResponse("Origin must be the page's own\n", 403)
        return None

    def _has_token(self, connection: HTTPConnection) -> bool:
        if self.token is None:
            return True
        given = self._given(connection)
        return hmac.compare_digest(given.encode(), self.token.encode())

    def _given(self, connection: HTTPConnection) -> str:
        """The token that comes with ``connection``; a wrong one is not made good by a cookie."""
        if (asked := token_in_address(connection)) is not None:
            return asked
        if (header := connection.headers.get("authorization")) is not None:
            scheme, _, given = header.partition(" ")
            return given.strip() if scheme.lower() == "bearer" else ""
        return connection.cookies.get(self.cookie, "")


def token_in_address(connection: HTTPConnection) -> str | None:
    """That of ``/?token=...``; other paths take it from the cookie or the header."""
    if connection.scope["path"] != "/":
        return None
    return connection.query_params.get("token")


def _names_loopback(host: str) -> bool:
    """Whether the header ``Host`` names this machine's loopback, with any port or none: a tunnel
    may have another one."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    if port and not port.isdecimal():
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets through to ``app`` what ``rules`` allow, and puts :data:`HEADERS` on every response."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        cookie = ""

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if cookie:
                    headers.append("Set-Cookie", cookie)
            await send(message)

        refused = self._rules.refusal(connection)
        if refused is None:
            if self._rules.token is not None and token_in_address(connection) is not None:
                cookie = (
                    f"{self._rules.cookie}={self._rules.token}; Path=/; HttpOnly; SameSite=Strict; "
                    f"Max-Age={COOKIE_DAYS * 24 * 3600}"
                )
            await self._app(scope, receive, send_with_headers)
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, send_with_headers).send_denial_response(refused)
        else:
            await refused(scope, receive, send_with_headers)
