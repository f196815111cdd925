"""Publishing to a broker: mosquitto where there is one, and brokers that are away or hang."""

from __future__ import annotations

import getpass
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dvt_edge.app.loop import Note
from dvt_edge.app.mqtt import WAITING, WAITING_EVENTS, Broker, Mqtt, parse_broker
from dvt_edge.errors import ConfigError
from tests.app.conftest import seen, wait_until

client = pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt")
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402

Notes = list[tuple[str, str]]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://host/cam", Broker("host", 1883, "cam", None, None, False)),
        ("mqtts://host/a/b/", Broker("host", 8883, "a/b", None, None, True)),
        ("mqtt://me:a%40b@[::1]:9/t", Broker("::1", 9, "t", "me", "a@b", False)),
        ("mqtt://me@host/t%20u", Broker("host", 1883, "t u", "me", None, False)),
    ],
)
def test_addresses(url: str, expected: Broker) -> None:
    assert parse_broker(url) == expected
    assert "a@b" not in str(expected)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://me:secret@host/t", "scheme 'http'"),
        ("host/t", "scheme ''"),
        ("mqtt:///t", "no host"),
        ("mqtt://me:secret@host", "no topic"),
        ("mqtt://host//", "no topic"),
        ("mqtt://me:secret@host:port/t", "is not a URL"),
        ("mqtt://host:70000/t", "is not a URL"),
        ("mqtt://host:0/t", "port 0"),
        ("mqtt://[::1/t", "is not a URL"),
        ("mqtt://me:secret@host/a/%23", "topic with"),
        ("mqtt://host/a/+/b", "topic with"),
        ("mqtt://host/a?qos=1", "more after the topic"),
        (f"mqtt://{'a' * 64}.org/a", "is not a URL"),
        ("mqtt://a..b/t", "is not a URL"),
    ],
)
def test_wrong_addresses(url: str, problem: str) -> None:
    """No message shows the password."""
    with pytest.raises(ConfigError, match="expected mqtt://user:password@host") as caught:
        parse_broker(url)
    assert problem in str(caught.value)
    assert "secret" not in str(caught.value)


def test_without_paho(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho", None)
    with pytest.raises(ConfigError, match=r"install with pip install 'dvt-edge\[mqtt\]'"):
        Mqtt("mqtt://host/t", lambda *_: None)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_broker_that_is_away_never_blocks(notes: Notes) -> None:
    """So many wait, the others are dropped and counted; at the end all are."""
    sink = Mqtt(f"mqtt://127.0.0.1:{_free_port()}/cam", lambda *note: notes.append(note))
    started = time.monotonic()
    for k in range(WAITING + 50):
        sink.take(seen(k))
    for _ in range(WAITING_EVENTS + 5):
        sink.event(Note("news", "something"))
    assert sink.summary()["dropped"] == 55
    sink.close()
    assert time.monotonic() - started < 5
    assert sink.summary()["published"] == 0
    assert sink.summary()["dropped"] == WAITING + WAITING_EVENTS + 55
    assert [kind for kind, _ in notes] == ["broker_offline"]


def test_a_broker_that_hangs_never_blocks(notes: Notes) -> None:
    """It takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sink = Mqtt(f"mqtt://127.0.0.1:{port}/cam", lambda *note: notes.append(note))
        held, _ = server.accept()
        started = time.monotonic()
        for k in range(WAITING + 50):
            sink.take(seen(k))
        sink.close()
        assert time.monotonic() - started < 5
        held.close()
    assert sink.summary()["dropped"] == WAITING + 50
    assert [kind for kind, _ in notes] == ["broker_offline"]
    assert notes[0][1].endswith("has not answered; what waits is dropped")


Serve = Callable[..., Any]
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto (apt install it)")


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """A function that runs mosquitto on a port until its block ends; ``user:password`` may be
    asked for."""

    @contextmanager
    def serve(port: int, login: str | None = None) -> Iterator[None]:
        lines = [f"listener {port} 127.0.0.1", f"allow_anonymous {str(login is None).lower()}"]
        lines += ["persistence false", f"user {getpass.getuser()}"]
        if login is not None:
            user, password = login.split(":")
            file = tmp_path / "passwords"
            subprocess.run(["mosquitto_passwd", "-b", "-c", str(file), user, password], check=True)
            lines.append(f"password_file {file}")
        config = tmp_path / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert MOSQUITTO is not None
        with subprocess.Popen(
            [MOSQUITTO, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                wait_until(lambda: _listens(port))
                yield
            finally:
                process.terminate()

    return serve


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _subscriber(port: int, login: str | None = None) -> Iterator[list[tuple[str, bytes, bool]]]:
    """Topics, payloads and whether they were retained, as they come."""
    got: list[tuple[str, bytes, bool]] = []
    reader = client.Client(CallbackAPIVersion.VERSION2)
    if login is not None:
        reader.username_pw_set(*login.split(":"))
    reader.on_message = lambda _c, _d, m: got.append((m.topic, m.payload, m.retain))
    ready: list[object] = []
    reader.on_subscribe = lambda *_: ready.append(_)
    reader.on_connect = lambda c, *_: c.subscribe("cam/#", qos=1)
    reader.connect("127.0.0.1", port)
    reader.loop_start()
    wait_until(lambda: bool(ready))
    try:
        yield got
    finally:
        reader.disconnect()
        reader.loop_stop()


@needs_broker
def test_answers_events_and_status(serve: Serve, notes: Notes) -> None:
    """In order; whoever comes later hears whether somebody is there."""
    port = _free_port()
    with serve(port, "me:s p@ce".replace(" ", "")), _subscriber(port, "me:sp@ce") as got:
        url = f"mqtt://me:sp%40ce@127.0.0.1:{port}/cam"
        sink = Mqtt(url, lambda *note: notes.append(note))
        wait_until(lambda: bool(notes))
        for k in range(100):
            sink.take(seen(k))
        sink.event(Note("disconnected", "no frame for 5 s", "camera", "stalled", 1e9))
        wait_until(lambda: len(got) == 102)
        with _subscriber(port, "me:sp@ce") as later:
            wait_until(lambda: later == [("cam/status", b"online", True)])
        sink.close()
        wait_until(lambda: got[-1][:2] == ("cam/status", b"offline"))
    answers = [json.loads(payload) for topic, payload, _ in got if topic == "cam/answer"]
    assert [values["seq"] for values in answers] == list(range(100))
    (event,) = [json.loads(payload) for topic, payload, _ in got if topic == "cam/event"]
    assert (event["event"], event["reason"]) == ("disconnected", "no frame for 5 s")
    assert sink.summary() == {
        "broker": f"mqtt://127.0.0.1:{port}/cam",
        "published": 101,
        "dropped": 0,
    }
    assert [kind for kind, _ in notes] == ["broker_online"]


@needs_broker
def test_a_wrong_password(serve: Serve, notes: Notes) -> None:
    port = _free_port()
    with serve(port, "me:right"):
        sink = Mqtt(f"mqtt://me:wrong@127.0.0.1:{port}/cam", lambda *note: notes.append(note))
        wait_until(lambda: bool(notes))
        sink.take(seen())
        sink.close()
    assert notes[0][0] == "broker_offline"
    assert "Not authorized" in notes[0][1]
    assert "wrong" not in notes[0][1]
    assert sink.summary()["dropped"] == 1


@needs_broker
@pytest.mark.slow
def test_a_broker_that_comes_goes_and_comes_back(serve: Serve, notes: Notes) -> None:
    """What waited arrives; nothing is lost."""
    port = _free_port()
    sink = Mqtt(f"mqtt://127.0.0.1:{port}/cam", lambda *note: notes.append(note))
    sink.take(seen(0))
    wait_until(lambda: [kind for kind, _ in notes] == ["broker_offline"])
    arrived: list[int] = []
    for k in (1, 2):
        with serve(port), _subscriber(port) as got:
            wait_until(lambda n=k: len(notes) == 2 * n, 30)  # type: ignore[misc]
            sink.take(seen(10 * k))
            wait_until(lambda: any(b'"seq": %d,' % (10 * k) in p for _, p, _ in got))  # noqa: B023
            arrived += [json.loads(p)["seq"] for t, p, _ in got if t == "cam/answer"]
        wait_until(lambda n=k: len(notes) == 2 * n + 1, 30)  # type: ignore[misc]
        sink.take(seen(10 * k + 1))
    kinds = [kind for kind, _ in notes]
    assert kinds == ["broker_offline", "broker_online"] * 2 + ["broker_offline"]
    assert {10, 11, 20} <= set(arrived)
    sink.close()
    assert sink.summary()["dropped"] == 1


_PUBLISHER = """
import sys, time
sys.path[:0] = {path!r}
from dvt_edge.app.mqtt import Mqtt
sink = Mqtt(sys.argv[1], print)
time.sleep(60)
"""


@needs_broker
@pytest.mark.slow
def test_last_will(serve: Serve) -> None:
    """After kill -9 the broker says so, also to those that come later."""
    port = _free_port()
    with serve(port):
        command = [sys.executable, "-c", _PUBLISHER.format(path=sys.path)]
        with (
            subprocess.Popen(
                [*command, f"mqtt://127.0.0.1:{port}/cam"], stdout=subprocess.DEVNULL
            ) as process,
            _subscriber(port) as got,
        ):
            wait_until(lambda: [p for _, p, _ in got] == [b"online"], 30)
            process.send_signal(signal.SIGKILL)
            wait_until(lambda: [p for _, p, _ in got] == [b"online", b"offline"])
        with _subscriber(port) as later:
            wait_until(lambda: later == [("cam/status", b"offline", True)])
