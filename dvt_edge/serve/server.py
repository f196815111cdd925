"""The server: an event loop in a thread of its own, and how it begins and ends."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from starlette.websockets import WebSocket

from dvt_edge.app.sinks import Note, Seen
from dvt_edge.runtime.metrics import MetricsExporter
from dvt_edge.runtime.runtime import Runtime
from dvt_edge.serve.desk import Desk
from dvt_edge.serve.guard import Rules
from dvt_edge.serve.hub import Hub
from dvt_edge.serve.pictures import Pictures
from dvt_edge.serve.routes import STALE_S, make_app, make_routes
from dvt_edge.serve.seconds import WINDOW_S, Seconds
from dvt_edge.serve.viewer import CLOSING_S, LONGEST_MESSAGE, TRY_LATER, Viewer

MOST_VIEWERS = 4
"""Each takes pictures, which take time from the stages."""
MOST_CONNECTIONS = 64
"""More are answered 503."""
STARTING_S = 10.0
ENDING_S = 0.9
"""How long :meth:`Server.close` waits for the thread."""


class Server:
    """Serves ``runtime`` on ``listener`` from :meth:`start` to :meth:`close`."""

    def __init__(self, listener: socket.socket, rules: Rules, runtime: Runtime) -> None:
        exits = len(runtime.costs.exits)
        self.hub = Hub(Seconds(exits, lambda: runtime.budget.latency_ms))
        self.viewers_ever = 0
        self.pictures_encoded = 0
        self.error: BaseException | None = None
        """What ended the thread, if it was not :meth:`close`."""
        self._listener, self._rules, self._runtime = listener, rules, runtime
        self._metrics = MetricsExporter(runtime)
        self._hello = {
            "exits": exits,
            "labelled": runtime.records.label is not None,
            "records": len(runtime.records),
            "energy": runtime.costs.energy_mj is not None,
            "energy_source": runtime.costs.energy_source,
            "start_latency_ms": runtime.budget.latency_ms,
            "device": runtime.costs.machine,
            "stale_s": STALE_S,
            "window_s": WINDOW_S,
        }
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dvt-edge serve", daemon=True)

    def start(self) -> None:
        """Returns once it answers; raises what kept it from that."""
        self._thread.start()
        self._running.wait(STARTING_S)
        if self.error is not None:
            raise self.error

    def take(self, seen: Seen) -> None:
        """Raises what ended the server, if it is no more."""
        if self.error is not None:
            raise self.error
        self.hub.take(seen)
        if dropped := seen.frame.dropped_before:
            self._metrics.dropped(dropped)

    def event(self, note: Note) -> None:
        self.hub.event(note)

    def close(self) -> None:
        """Within :data:`ENDING_S`."""
        self._metrics.close()
        loop = self._loop
        if loop is not None and self._thread.is_alive():
            try:
                loop.call_soon_threadsafe(self._stop.set)
            except RuntimeError:  # it ended this moment
                return
            self._thread.join(ENDING_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # the loop's thread is told: see take()
            self.error = error
        finally:
            self._running.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        threads = ThreadPoolExecutor(2, "dvt-edge serve")
        desk = Desk(self._runtime, self.hub, threads)
        pictures = Pictures(threads)

        async def serve(socket: WebSocket) -> None:
            await self._serve(socket, pictures, desk)

        routes = make_routes(self.hub, self._prometheus, serve)
        server = uvicorn.Server(_configure(make_app(routes, self._rules)))
        serving = asyncio.create_task(server.serve([self._listener]))
        looking = asyncio.create_task(desk.keep_looking())
        starting = asyncio.create_task(self._say_when_running(server))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            ends = (serving, looking, stopping)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            await self._say_goodbye(server, serving)
            for task in ends:
                if task.done():
                    task.result()
        finally:
            self.pictures_encoded = pictures.encoded
            for task in (*ends, starting):
                task.cancel()
            await asyncio.gather(*ends, starting, return_exceptions=True)
            desk.close()
            threads.shutdown(wait=False, cancel_futures=True)

    async def _say_when_running(self, server: uvicorn.Server) -> None:
        while not server.started:
            await asyncio.sleep(0.005)
        self._running.set()

    async def _serve(self, socket: WebSocket, pictures: Pictures, desk: Desk) -> None:
        await socket.accept()
        if self.hub.viewers >= MOST_VIEWERS:
            reason = f"{MOST_VIEWERS} viewers are watching already; close one of them"
            await socket.close(TRY_LATER, reason)
            return
        self.viewers_ever += 1
        await Viewer(socket, self.hub, pictures, desk.set_budget).run(self._hello)

    async def _say_goodbye(self, server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
        """Viewers are told; whoever does not listen is cut off."""
        self.hub.ended.set()
        for _ in range(int(CLOSING_S / 0.02)):
            if not self.hub.viewers:
                break
            await asyncio.sleep(0.02)
        server.should_exit = True
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await asyncio.wait([serving], timeout=0.5)

    def _prometheus(self) -> tuple[bytes, str]:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._metrics.registry), CONTENT_TYPE_LATEST


def _configure(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="wsproto",
        lifespan="off",
        log_config=None,  # logging is the program's
        log_level="error",
        access_log=False,  # addresses may hold the token
        proxy_headers=False,
        server_header=False,
        ws_max_size=LONGEST_MESSAGE,
        ws_per_message_deflate=False,  # JPEG does not shrink
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
