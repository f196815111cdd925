"""Who gets in: on every route there is, asked of the server itself."""

from __future__ import annotations

import hmac
from collections.abc import Callable

import pytest
from starlette.routing import BaseRoute, Route, WebSocketRoute
from websocket import WebSocketBadStatusException

from dvt_edge.serve import LivePage, guard, routes
from dvt_edge.serve.hub import Hub
from dvt_edge.serve.routes import FILES, make_routes
from dvt_edge.serve.seconds import Seconds
from tests.serve.conftest import TOKEN, Watcher, ask, open_socket

WRONG = TOKEN[:-1] + "Y"


def _routes() -> list[BaseRoute]:
    async def nothing(socket: object) -> None:
        raise AssertionError

    return make_routes(Hub(Seconds(3, lambda: None)), lambda: (b"", "text/plain"), nothing)


PATHS = [
    path
    for route in _routes()
    if isinstance(route, Route)
    for path in ([f"/static/{name}" for name in FILES] if "{" in route.path else [route.path])
]
SOCKETS = [route.path for route in _routes() if isinstance(route, WebSocketRoute)]
ELSEWHERE = ["/nothing", "/static/nothing", "/static/../guard.py", "/live"]


def test_every_route_is_asked() -> None:
    """None is of a kind that the tests below leave out."""
    assert len(_routes()) == 5
    assert {"/", "/healthz", "/metrics", "/static/page.js"} <= set(PATHS)
    assert SOCKETS == ["/live"]


def _status(page: LivePage, token: str | None = None, origin: str | None = "") -> int:
    """Of a socket that is refused; 101 where it is not."""
    try:
        open_socket(page, token, origin, SOCKETS[0]).shutdown()
    except WebSocketBadStatusException as refused:
        _check_headers(refused.resp_headers or {})
        return refused.status_code
    return 101


def _check_headers(headers: dict[str, str]) -> None:
    for name, value in guard.HEADERS.items():
        assert headers[name.lower()] == value


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_wrong_token_on_every_route(locked: LivePage, method: str) -> None:
    """No route, file, unknown path or socket is without it; nor is one with a wrong token beside a
    right cookie."""
    page = locked
    cookie = f"dvt_edge_{page.port}"
    for path in [*PATHS, *ELSEWHERE]:
        for headers in (
            {},
            {"Authorization": f"Bearer {WRONG}"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": f"Bearer {WRONG}", "Cookie": f"{cookie}={TOKEN}"},
            {"Cookie": f"{cookie}={WRONG}"},
            {"Cookie": f"another={TOKEN}"},
        ):
            answer = ask(page, path, method, **headers)
            assert answer.status == 401, (path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "set-cookie" not in answer.headers
            _check_headers(answer.headers)
    assert ask(page, f"/?token={WRONG}", Cookie=f"{cookie}={TOKEN}").status == 401
    assert ask(page, f"/healthz?token={TOKEN}").status == 401  # only the page takes it there


def test_wrong_token_on_the_socket(locked: LivePage) -> None:
    page = locked
    assert _status(page) == _status(page, WRONG) == 401
    assert _status(page, TOKEN) == 101


def test_right_token(locked: LivePage) -> None:
    """In a header on every route; once in the page's address, and then in the cookie."""
    page = locked
    for path in PATHS:
        answer = ask(page, path, Authorization=f"Bearer {TOKEN}")
        assert answer.status == 200, path
        assert "set-cookie" not in answer.headers
        _check_headers(answer.headers)
    answer = ask(page, f"/?token={TOKEN}")
    assert answer.status == 200
    cookie = answer.headers["set-cookie"]
    pair, *rest = cookie.split("; ")
    assert pair == f"dvt_edge_{page.port}={TOKEN}"
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(rest)
    for path in PATHS:
        assert ask(page, path, Cookie=pair).status == 200, path


def test_tokens_are_compared_in_constant_time(
    locked: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the function that is made for it, for every way a token may come."""
    compared: list[tuple[bytes, bytes]] = []
    right = hmac.compare_digest

    def compare(given: bytes, token: bytes) -> bool:
        compared.append((given, token))
        return right(given, token)

    page = locked
    monkeypatch.setattr(hmac, "compare_digest", compare)
    ask(page, "/healthz", Authorization=f"Bearer {WRONG}")
    ask(page, f"/?token={WRONG}x")
    ask(page, "/metrics", Cookie=f"dvt_edge_{page.port}={WRONG}y")
    ask(page, "/metrics")
    given = [WRONG, f"{WRONG}x", f"{WRONG}y", ""]
    assert compared == [(text.encode(), TOKEN.encode()) for text in given]


def test_tokens_of_any_letters(locked: LivePage) -> None:
    """What cannot be compared as text is wrong, and no accident."""
    page = locked
    for text in ("%C3%BC%F0%9F%98%80", "%00", "%FF", "a" * 4000):
        assert ask(page, f"/?token={text}").status == 401
    assert ask(page, "/", Authorization="Bearer \xfc\xe9").status == 401


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example",
     "192.168.1.5", "0.0.0.0", "127.0.0.1:x", "[::1", "", "localhost:80:80", "[::2]:80"],
)  # fmt: skip
def test_other_hosts(page: LivePage, host: str) -> None:
    """Without a token, a name that another site made lead here is refused, whatever is asked."""
    for path in [*PATHS, *ELSEWHERE]:
        answer = ask(page, path, Host=host)
        assert answer.status == 400, path
        _check_headers(answer.headers)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:8080", "LOCALHOST", "[::1]:9000", "127.0.0.2"]
)
def test_own_hosts(page: LivePage, host: str) -> None:
    """Those of the loopback, with any port: a tunnel may have another."""
    assert ask(page, "/", Host=host).status == 200


def test_hosts_with_a_token(serve: Callable[..., LivePage]) -> None:
    """A machine has many names; the token keeps others out."""
    page = serve("0.0.0.0:0")
    assert page.token
    assert ask(page, Host="jetson.local").status == 401
    answer = ask(page, Host="jetson.local", Authorization=f"Bearer {page.token}")
    assert answer.status == 200


@pytest.mark.parametrize("token", [None, TOKEN])
def test_origins_of_the_socket(pages: tuple[LivePage, LivePage], token: str | None) -> None:
    """Only the page's own, and one must be there, with a token and without."""
    page = pages[token is not None]
    own = f"127.0.0.1:{page.port}"
    for origin in ("http://evil.example", f"http://{own}.evil.example", "null", None,
                   f"http://localhost:{page.port}", "http://127.0.0.1"):  # fmt: skip
        assert _status(page, token, origin) == 403, origin
    assert _status(page, token, f"http://{own}") == 101
    assert _status(page, token, f"https://{own}") == 101


def test_methods(page: LivePage) -> None:
    """Nothing is changed by a request; other methods need the page's Origin, and are not there."""
    own = f"http://127.0.0.1:{page.port}"
    for path in PATHS:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert ask(page, path, method).status == 403
            assert ask(page, path, method, Origin="http://evil.example").status == 403
            assert ask(page, path, method, Origin=own).status == 405, path
        assert ask(page, path, "HEAD").body == b""


@pytest.mark.parametrize(
    "path",
    ["/static/", "/static/index.html", "/static/../server.py", "/static/%2e%2e/server.py",
     "/static/uplot", "/static//etc/passwd", "/static/uplot/../page.js/", "/nothing", "//"],
)  # fmt: skip
def test_paths_outside(page: LivePage, path: str) -> None:
    answer = ask(page, path)
    assert answer.status == 404
    _check_headers(answer.headers)


def test_the_policy_allows_nothing_from_elsewhere() -> None:
    """Nor anything written into the page itself, nor showing it inside another."""
    policy = dict(
        part.split(" ", 1) for part in guard.HEADERS["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {value for name, value in policy.items()} == {"'none'", "'self'"}
    page = routes.read_static("index.html").decode()
    assert "style=" not in page
    assert "<style" not in page
    assert page.count("<script") == page.count("src=") == 2
    for name in ["index.html", *FILES]:
        if not name.startswith("uplot/"):
            text = routes.read_static(name).decode()
            assert "https://" not in text
            assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_viewer_with_the_token(locked: LivePage) -> None:
    """Who has it is let in."""
    with Watcher(locked, TOKEN) as watcher:
        assert watcher.receive()[0]["exits"] == 3
