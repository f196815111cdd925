"""The page as a sink: beginning, ending, what the loop pays, health and metrics."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from dvt_edge import Runtime
from dvt_edge.app.sinks import Note, Sinks
from dvt_edge.errors import ConfigError
from dvt_edge.serve import LivePage, routes
from tests.conftest import random_pixels
from tests.serve.conftest import ANYWHERE, Watcher, ask, made_seen, wait_until

Serve = Callable[..., LivePage]


def test_served(serve: Serve) -> None:
    page = serve()
    assert page.url == f"http://127.0.0.1:{page.port}/"
    assert page.token is None
    answer = ask(page)
    assert answer.status == 200
    assert b"<title>dvt-edge live</title>" in answer.body
    for name in re.findall(rb'(?:src|href)="([^"]+)"', answer.body):
        assert ask(page, name.decode()).status == 200, name


def test_port_in_use(runtime: Runtime) -> None:
    """Is found out before anything is loaded, and names the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"--serve .*:{port}: port {port} is in use .*choose"
        ):
            LivePage(f"127.0.0.1:{port}")


def test_a_bad_token_frees_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ConfigError, match="16 to 128 letters"):
        LivePage(f"127.0.0.1:{port}", token="short")
    socket.create_server(("127.0.0.1", port)).close()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(ConfigError, match=r"pip install 'dvt-edge\[serve\]'"):
        LivePage(ANYWHERE)


def test_importing_is_light() -> None:
    """Neither the server nor its libraries are imported before they are needed."""
    code = (
        "import sys, dvt_edge.serve\n"
        "print(sorted({'starlette', 'uvicorn', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_other_addresses_have_a_token(serve: Serve) -> None:
    """One is made, and the address that is printed holds it."""
    page = serve("0.0.0.0:0")
    assert page.token is not None
    assert page.url.endswith(f":{page.port}/?token={page.token}")
    assert page.token not in json.dumps(page.summary())


def test_closing_with_viewers(serve: Serve) -> None:
    """Within a second, whatever they do: they are told, the port is free, no thread is left."""
    page = serve()
    with Watcher(page) as good, Watcher(page, narrow=True) as full:
        good.receive()
        full.send(type="next")  # and reads nothing, so that a large picture cannot be sent
        page.take(made_seen(pixels=random_pixels(1080, 1920, 3)))
        good.wait_for("frame")
        idle = socket.create_connection(("127.0.0.1", page.port))
        started = time.monotonic()
        page.close()
        assert time.monotonic() - started < 1.5  # a second, and a busy machine
        page.close()
        assert good.closed() == (1001, "the run has ended")
        idle.close()
        page.take(made_seen())  # a late frame does no harm
        page.event(Note("late", "late"))
    socket.create_server(("127.0.0.1", page.port)).close()
    wait_until(lambda: all(thread.name != "dvt-edge serve" for thread in threading.enumerate()))


def test_closing_before_the_start() -> None:
    page = LivePage(ANYWHERE)
    page.event(Note("early", "early"))
    page.take(made_seen())
    page.close()
    assert page.summary() == {"address": page.url, "viewers": 0, "pictures": 0}


def test_events_from_before_the_start(runtime: Runtime) -> None:
    page = LivePage(ANYWHERE)
    try:
        page.event(Note("early", "costs are not used"))
        page.start(runtime)
        with Watcher(page) as watcher:
            assert watcher.receive()[0]["events"][0]["reason"] == "costs are not used"
    finally:
        page.close()


def test_nothing_is_encoded_for_nobody(serve: Serve, runtime: Runtime) -> None:
    """A frame costs a picture only where a viewer has asked for it."""
    page = serve()
    for seq in range(50):
        page.take(made_seen(seq))
    with Watcher(page) as watcher:
        watcher.receive()
        watcher.wait_for("frame")
        for seq in range(50):
            page.take(made_seen(seq))
        watcher.wait_for("frame")
    page.close()
    assert page.summary()["pictures"] <= 3


def test_as_an_output_of_a_run(serve: Serve) -> None:
    """Among other sinks."""
    page, sinks = serve(), Sinks()
    sinks.add("serve", page)
    sinks.take(made_seen())
    sinks.note("kind", "a reason")
    assert json.loads(ask(page, "/healthz").body)["frames"] == 1
    sinks.close()
    assert not sinks.failures
    with pytest.raises(OSError, match="refused"):
        ask(page)


def test_a_server_that_died_is_told(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sink, so that it becomes an event; the page does not stand still in silence."""

    def fail(runtime: Runtime) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr("dvt_edge.serve.desk.look", fail)
    page = serve()
    page.take(made_seen())
    with Watcher(page) as watcher:
        assert watcher.closed()[0] == 1001

    def tells() -> bool:
        try:
            page.take(made_seen())
        except MemoryError:
            return True
        return False

    wait_until(tells)


def test_health(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Well while frames come, and not before."""
    page = serve()
    answer = ask(page, "/healthz")
    assert (answer.status, json.loads(answer.body)) == (
        503, {"state": "no frame yet", "frames": 0, "last_frame_s": None},
    )  # fmt: skip
    page.take(made_seen())
    answer = ask(page, "/healthz")
    assert (answer.status, json.loads(answer.body)["state"]) == (200, "ok")
    assert answer.headers["content-type"] == "application/json"
    monkeypatch.setattr(routes, "STALE_S", 0.05)
    time.sleep(0.1)
    answer = ask(page, "/healthz")
    assert (answer.status, json.loads(answer.body)["state"]) == (503, "no frame for 0 s")


def test_metrics(serve: Serve) -> None:
    """Those of the exporter, with the frames that nobody classified."""
    page = serve()
    page.take(made_seen(dropped_before=3))
    answer = ask(page, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "\ndvt_edge_dropped_total 3.0\n" in answer.body.decode()
    assert 'dvt_edge_budget{limit="latency_ms"} 2.0' in answer.body.decode()
