"""A Runtime, frames that no camera took, and viewers of every kind."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from websocket import ABNF, WebSocket, create_connection

from dvt_edge import Prediction, Runtime
from dvt_edge.app.sinks import Seen
from dvt_edge.profile import ColorOrder
from dvt_edge.serve import LivePage
from tests.conftest import random_pixels

TOKEN = "correct-horse-battery"
ANYWHERE = "127.0.0.1:0"


@dataclass
class MadeFrame:
    """What a camera gives."""

    pixels: npt.NDArray[np.uint8]
    seq: int = 1
    color_order: ColorOrder = "bgr"
    dropped_before: int = 0
    captured_at: float = field(default_factory=time.monotonic)

    @property
    def age_ms(self) -> float:
        return 1e3 * (time.monotonic() - self.captured_at)


def made_seen(
    seq: int = 1,
    *,
    source: str = "gate",
    exit_stage: int = 1,
    pixels: npt.NDArray[np.uint8] | None = None,
    **changes: Any,
) -> Seen:
    """A frame and its answer; keywords are those of :class:`Prediction`, and ``dropped_before``."""
    shown = random_pixels(36, 64, 3, seed=seq) if pixels is None else pixels
    frame = MadeFrame(shown, seq, dropped_before=changes.pop("dropped_before", 0))
    values: dict[str, Any] = {
        "class_id": 3,
        "label": "coat",
        "confidence": 0.75,
        "latency_ms": float(exit_stage),
        "preprocess_ms": 0.1,
        "stage_latency_ms": (0.5,),
        "thresholds": (0.5, 0.5, -np.inf),
    }
    answer = Prediction(exit_stage=exit_stage, **(values | changes))
    return Seen(source, frame, answer, frame.age_ms, time.time())


class Camera:
    """Gives ``page`` answers in a thread of its own, each as the records have it."""

    def __init__(self, page: LivePage, runtime: Runtime, fps: float = 50) -> None:
        self._page, self._runtime, self._fps = page, runtime, fps
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.given = 0

    def _run(self) -> None:
        records = self._runtime.records
        while not self._ending.wait(1 / self._fps):
            exits = records.exits_taken(self._runtime.thresholds)
            row = self.given % len(records)
            self.given += 1
            exit_stage = int(exits[row]) + 1
            self._page.take(
                made_seen(
                    self.given,
                    exit_stage=exit_stage,
                    label=str(records.prediction[row, exit_stage - 1]),
                    confidence=float(records.confidence[row, exit_stage - 1]),
                    latency_ms=self._runtime.costs.mean_ms[exit_stage - 1],
                )
            )

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(5)

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    """Fails after 10 s."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "never happened"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def served_runtime(costed_bundle: Path) -> Iterator[Runtime]:
    """Its exits cost 1, 2 and 4 ms; it classifies nothing here."""
    with Runtime(costed_bundle) as opened:
        yield opened


@pytest.fixture
def runtime(served_runtime: Runtime) -> Runtime:
    """Under a mean latency of 2 ms."""
    budget = served_runtime.bundle.manifest.budget
    served_runtime.set_budget(budget.changed(latency_ms=2.0))
    return served_runtime


@contextmanager
def serving(runtime: Runtime) -> Iterator[Callable[..., LivePage]]:
    """A function ``(address, token)`` that serves the Runtime, on loopback if left out."""
    pages: list[LivePage] = []

    def start(address: str = ANYWHERE, token: str | None = None) -> LivePage:
        pages.append(LivePage(address, token))
        pages[-1].start(runtime)
        return pages[-1]

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("DVT_EDGE_TOKEN", raising=False)
            yield start
    finally:
        for page in pages:
            page.close()


@pytest.fixture
def serve(runtime: Runtime) -> Iterator[Callable[..., LivePage]]:
    """:func:`serving`, for one test."""
    with serving(runtime) as start:
        yield start


@pytest.fixture(scope="module")
def pages(served_runtime: Runtime) -> Iterator[tuple[LivePage, LivePage]]:
    """Without a token, and with :data:`TOKEN`; both have had a frame. Tests only ask."""
    with serving(served_runtime) as start:
        both = start(), start(token=TOKEN)
        for page in both:
            page.take(made_seen())
        yield both


@pytest.fixture
def page(pages: tuple[LivePage, LivePage]) -> LivePage:
    """Without a token."""
    return pages[0]


@pytest.fixture
def locked(pages: tuple[LivePage, LivePage]) -> LivePage:
    """With :data:`TOKEN`."""
    return pages[1]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


def ask(page: LivePage, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    """One request; underscores in names of headers stand for hyphens."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=names)
    answer = connection.getresponse()
    found = {name.lower(): value for name, value in answer.getheaders()}
    body = answer.read()
    connection.close()
    return Answer(answer.status, found, body)


class Watcher:
    """A viewer on the socket; ``narrow`` takes a few kilobytes unless it reads."""

    def __init__(self, page: LivePage, token: str | None = None, *, narrow: bool = False) -> None:
        options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)] if narrow else []
        self.socket = open_socket(page, token, sockopt=options)

    def receive(self) -> tuple[dict[str, Any], bytes | None]:
        """A message and its picture."""
        kind, data = self.socket.recv_data()
        assert kind == ABNF.OPCODE_TEXT, data
        message: dict[str, Any] = json.loads(data)
        if not message["picture"]:
            return message, None
        kind, data = self.socket.recv_data()
        assert kind == ABNF.OPCODE_BINARY
        return message, data

    def closed(self) -> tuple[int, str]:
        """Code and reason with which the server closes, after whatever it sends before."""
        while True:
            kind, data = self.socket.recv_data()
            if kind == ABNF.OPCODE_CLOSE:
                return int.from_bytes(data[:2], "big"), data[2:].decode()

    def send(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def next(self) -> tuple[dict[str, Any], bytes | None]:
        """Acknowledge the last message, and wait for another."""
        self.send(type="next")
        return self.receive()

    def wait_for(self, key: str) -> dict[str, Any]:
        """The first message that has ``key``, within 10 s."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            message, _ = self.next()
            if message.get(key):
                return message
        raise AssertionError(f"never came: {key}")

    def __enter__(self) -> Watcher:
        return self

    @property
    def raw(self) -> socket.socket:
        """Beneath."""
        assert self.socket.sock is not None
        return self.socket.sock

    def close(self) -> None:
        self.socket.close(timeout=2)
        self.socket.shutdown()

    def __exit__(self, *error: object) -> None:
        self.close()


def open_socket(
    page: LivePage,
    token: str | None = None,
    origin: str | None = "",
    path: str = "/live",
    **options: Any,
) -> WebSocket:
    """``origin`` is the page's own where empty."""
    address = f"127.0.0.1:{page.port}"
    return create_connection(
        f"ws://{address}{path}",
        timeout=10,
        origin=f"http://{address}" if origin == "" else origin,
        suppress_origin=origin is None,
        header=[f"Authorization: Bearer {token}"] if token else [],
        **options,
    )
