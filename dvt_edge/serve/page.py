"""The page as a sink of the camera's loop, and the server behind it in a thread of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from dvt_edge.app.sinks import Note, Seen
from dvt_edge.errors import ConfigError
from dvt_edge.requirements import need
from dvt_edge.runtime.runtime import Runtime
from dvt_edge.serve.address import choose_token, is_loopback, open_listener, page_url

if TYPE_CHECKING:
    from dvt_edge.serve.server import Server


class LivePage:
    """Serves one page: picture, answer, costs, promise, and a slider for the budget.

    ``address`` is ``HOST:PORT``. Only this machine reaches a loopback address; for any other,
    viewers need a token: ``token``, or that of ``DVT_EDGE_TOKEN``, or one that is made. With a
    token, loopback needs it, too. It is a sink: give it the loop's answers and events.

        page = LivePage("127.0.0.1:8080")   # the port is taken; nothing is answered yet
        page.start(runtime)
        print(page.url)
        ...
        page.close()

    Raises :class:`~dvt_edge.errors.ConfigError`, with the remedy, for an address that cannot be
    had, a token that is too short, and without the extra ``serve``.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        need("--serve", "starlette", "uvicorn", "wsproto", "prometheus_client")
        self._listener = open_listener(address)
        try:
            self.token = choose_token(token, loopback=is_loopback(self._listener))
        except ConfigError:
            self._listener.close()
            raise
        self.url = page_url(self._listener, self.token)
        """With the token."""
        self.port: int = self._listener.getsockname()[1]
        self._early: list[Note] = []
        """Events before :meth:`start`."""
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._closed = False

    def start(self, runtime: Runtime) -> None:
        """Answer from now on, until :meth:`close`; budgets are set on ``runtime``."""
        from dvt_edge.serve.guard import Rules
        from dvt_edge.serve.server import Server

        server = Server(self._listener, Rules(self.token, self.port), runtime)
        with self._lock:
            for note in self._early:
                server.event(note)
            self._server = server
        server.start()

    def take(self, seen: Seen) -> None:
        """Keep the newest frame and note its figures; about a microsecond."""
        if self._server is not None:
            self._server.take(seen)

    def event(self, event: Note) -> None:
        """Show what happened."""
        with self._lock:
            if self._server is not None:
                self._server.event(event)
            else:
                self._early.append(event)

    def summary(self) -> dict[str, Any]:
        """What came of it; without the token."""
        if self._server is None:
            return {"address": self.url.partition("?")[0], "viewers": 0, "pictures": 0}
        return {
            "address": self.url.partition("?")[0],
            "viewers": self._server.viewers_ever,
            "pictures": self._server.pictures_encoded,
        }

    def close(self) -> None:
        """Say goodbye to viewers and free the port, within a second; twice does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._server is not None:
            self._server.close()
        self._listener.close()
