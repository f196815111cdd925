"""Viewers on the socket: pictures at their own pace, budgets, and those who do wrong."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from websocket import ABNF, WebSocketException

from dvt_edge import Runtime
from dvt_edge.app.sinks import Note
from dvt_edge.serve import LivePage, viewer
from dvt_edge.serve.server import MOST_VIEWERS
from dvt_edge.serve.viewer import LONGEST_MESSAGE, Leave, parse
from tests.conftest import random_pixels
from tests.serve.conftest import Camera, Watcher, made_seen, wait_until

Serve = Callable[..., LivePage]


def test_a_frame_and_its_answer(serve: Serve) -> None:
    """All that the page shows of it, and the picture itself."""
    page = serve()
    with Watcher(page) as watcher:
        hello, picture = watcher.receive()
        assert hello["exits"] == 3
        assert picture is None
        page.take(made_seen(7, exit_stage=2, confidence=0.5, energy_mj=1.5, dropped_before=2))
        while picture is None:
            message, picture = watcher.next()
        frame = message["frame"]
        assert frame.pop("age_ms") >= 0
        assert frame == {
            "source": "gate", "seq": 7, "dropped_before": 2, "label": "coat", "confidence": 0.5,
            "exit_stage": 2, "latency_ms": 2.0, "energy_mj": 1.5, "truncated": False,
            "reason": None,
        }  # fmt: skip
        shown = Image.open(io.BytesIO(picture))
        assert (shown.format, shown.mode, shown.size) == ("JPEG", "RGB", (64, 36))


def test_confidence_that_is_no_number(serve: Serve) -> None:
    """JSON has none for it."""
    page = serve()
    page.take(made_seen(confidence=float("nan")))
    with Watcher(page) as watcher:
        watcher.receive()
        assert watcher.wait_for("frame")["frame"]["confidence"] is None


def test_no_picture_is_sent_twice_and_the_newest_is(serve: Serve) -> None:
    """Those that came meanwhile are left out."""
    page = serve()
    with Watcher(page) as watcher:
        watcher.receive()
        page.take(made_seen(1))
        assert watcher.wait_for("frame")["frame"]["seq"] == 1
        for seq in range(2, 9):
            page.take(made_seen(seq))
        assert watcher.wait_for("frame")["frame"]["seq"] == 8
        message, picture = watcher.next()  # after a second: nothing new
        assert picture is None
        assert "frame" not in message


def test_one_message_for_each_acknowledgement(serve: Serve, runtime: Runtime) -> None:
    """Without one, nothing more comes, however many frames there are."""
    page = serve()
    with Camera(page, runtime), Watcher(page) as watcher:
        watcher.receive()
        watcher.next()
        watcher.socket.settimeout(0.5)
        with pytest.raises(WebSocketException, match="timed out"):
            watcher.socket.recv_data()


def test_a_slow_viewer_slows_nobody(serve: Serve, runtime: Runtime) -> None:
    """Beside one that never acknowledges and one that reads nothing at all, another gets picture
    after picture, and the camera's loop goes on."""
    page = serve()
    with (
        Camera(page, runtime, fps=60) as camera,
        Watcher(page) as stuck,
        Watcher(page, narrow=True) as deaf,
        Watcher(page) as fast,
    ):
        stuck.receive()
        deaf.send(type="next")
        fast.receive()
        seen: list[int] = []
        before = camera.given
        while len(seen) < 10:
            message, picture = fast.next()
            if picture is not None:
                seen.append(message["frame"]["seq"])
        assert seen == sorted(set(seen))
        assert camera.given >= before + 10
        stuck.socket.settimeout(0.2)
        with pytest.raises(WebSocketException, match="timed out"):
            stuck.socket.recv_data()


def test_no_frame_is_kept(serve: Serve) -> None:
    """But the newest: a camera has few places to write to, and a slow viewer none of them."""
    page = serve()
    with Watcher(page) as slow, Watcher(page, narrow=True) as deaf:
        slow.receive()
        deaf.send(type="next")
        seen = made_seen(1, pixels=random_pixels(1080, 1920, 3))
        frame = weakref.ref(seen.frame)
        page.take(seen)
        del seen
        slow.wait_for("frame")
        time.sleep(0.1)
        page.take(made_seen(2))
        wait_until(lambda: frame() is None)


def test_pictures_come_at_a_limited_pace(serve: Serve, runtime: Runtime) -> None:
    """However fast frames and acknowledgements are."""
    page = serve()
    with Camera(page, runtime, fps=200), Watcher(page) as watcher:
        watcher.receive()
        started, count = time.monotonic(), 0
        while count < 10:
            count += watcher.next()[1] is not None
        assert time.monotonic() - started > 9 / viewer.PICTURES_PER_S


def test_a_viewer_that_never_acknowledges_makes_room(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while."""
    monkeypatch.setattr(viewer, "PATIENCE_S", 0.3)
    with Watcher(serve()) as watcher:
        watcher.receive()
        assert watcher.closed() == (1008, "nothing was acknowledged for 0.3 s")


def test_too_many_viewers(serve: Serve) -> None:
    """The fifth is told so, and may come once one has left."""
    page = serve()
    watchers = [Watcher(page) for _ in range(MOST_VIEWERS)]
    for watcher in watchers:
        watcher.receive()
    with Watcher(page) as fifth:
        assert fifth.closed() == (1013, "4 viewers are watching already; close one of them")
    page.take(made_seen())
    for watcher in watchers:
        assert watcher.wait_for("frame")
    watchers.pop().close()

    def has_room() -> bool:
        with Watcher(page) as another:
            return another.socket.recv_data()[0] == ABNF.OPCODE_TEXT

    wait_until(has_room)
    for watcher in watchers:
        watcher.close()
    assert page.summary()["viewers"] == MOST_VIEWERS + 1


def test_events_and_seconds(serve: Serve) -> None:
    """Those from before the viewer came, and then only new ones."""
    page = serve()
    page.event(Note("thresholds_changed", "one", time=5.0))
    page.take(made_seen(1, exit_stage=3, latency_ms=4.0))
    with Watcher(page) as watcher:
        hello, _ = watcher.receive()
        assert hello["events"] == [
            {"kind": "thresholds_changed", "reason": "one", "source": None, "time": 5.0}
        ]
        page.event(Note("camera_lost", "two", "gate"))
        told = watcher.wait_for("events")
        assert [event["reason"] for event in told["events"]] == ["two"]
        # A second may be over at any time: it comes with what comes next, once.
        early = next((message for message in (hello, told) if "seconds" in message), None)
        row = (early or watcher.wait_for("seconds"))["seconds"][0]
        assert row[1:4] == [2.0, 4.0, 4.0]  # budget, latency, slowest
        assert row[8:] == [0, 0, 1]


def test_another_camera(serve: Serve) -> None:
    """The first one's picture, unless another is asked for."""
    page = serve()
    for source in ("gate", "yard"):
        page.take(made_seen(1, source=source))
    with Watcher(page) as watcher:
        watcher.receive()
        message = watcher.wait_for("frame")
        assert message["sources"] == ["gate", "yard"]
        assert message["frame"]["source"] == "gate"
        watcher.send(type="source", name="yard")
        assert watcher.wait_for("frame")["frame"]["source"] == "yard"
        watcher.send(type="source", name="no such camera")
        assert watcher.wait_for("frame")["frame"]["source"] == "gate"


def test_a_budget_is_put_in_force(serve: Serve, runtime: Runtime) -> None:
    """For the Runtime and all viewers; what it gives was known before."""
    page = serve()
    with Watcher(page) as watcher, Watcher(page) as other:
        watcher.receive()
        other.receive()
        before = watcher.wait_for("state")["state"]
        assert before["latency_ms"] == 2.0
        steps = watcher.wait_for("steps")["steps"]["values"]
        assert runtime.budget.latency_ms == 2.0  # solving for them changed nothing
        assert before["records"]["exits"] == runtime.solution.exit_fraction.tolist()
        step = steps[len(steps) // 4]
        watcher.send(type="budget", latency_ms=step["latency_ms"])
        message = watcher.wait_for("settled")
        assert "refused" not in message
        assert runtime.budget.latency_ms == step["latency_ms"]
        assert runtime.solution.accuracy == step["accuracy"]
        assert message["state"]["records"] == {k: step[k] for k in before["records"]}
        assert message["state"]["records"]["exits"] != before["records"]["exits"]
        while (seen := other.wait_for("state")["state"])["latency_ms"] == 2.0:
            pass
        assert seen["latency_ms"] == step["latency_ms"]


def test_other_keys_of_the_budget_stay(serve: Serve, runtime: Runtime) -> None:
    runtime.set_budget(statistic="p95", latency_ms=5.0, audit=0.05, deadline_ms=9.0)
    with Watcher(serve()) as watcher:
        watcher.receive()
        watcher.send(type="budget", latency_ms=2.5)
        assert "refused" not in watcher.wait_for("settled")
    budget = runtime.budget
    assert (budget.latency_ms, budget.statistic, budget.audit, budget.deadline_ms) == (
        2.5, "p95", 0.05, 9.0,
    )  # fmt: skip
    runtime.set_budget(statistic="mean", audit=0.0, deadline_ms=None)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (0.5, "smaller than the first exit's; the smallest possible is 1 ms"),
        (-1, "expected a positive number"),
        (None, "give latency_ms"),
    ],
)
def test_budgets_that_cannot_be_kept(
    serve: Serve, runtime: Runtime, limit: float | None, reason: str
) -> None:
    """The viewer is told why; the old one stays, and so does the viewer."""
    with Watcher(serve()) as watcher:
        watcher.receive()
        watcher.send(type="budget", latency_ms=limit)
        message = watcher.wait_for("settled")
        assert reason in message["refused"]
        assert runtime.budget.latency_ms == 2.0
        watcher.send(type="budget", latency_ms=3)
        assert "refused" not in watcher.wait_for("settled")
    assert runtime.budget.latency_ms == 3.0


def test_of_many_budgets_the_last_counts(
    serve: Serve, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slider that is dragged about does not make a queue."""
    asked: list[float] = []
    solving = threading.Event()

    def slowly(**changes: float) -> None:
        asked.append(changes["latency_ms"])
        solving.wait(10)

    monkeypatch.setattr(runtime, "set_budget", slowly)
    with Watcher(serve()) as watcher:
        watcher.receive()
        for tenth in range(10, 40):
            watcher.send(type="budget", latency_ms=tenth / 10)
            while not asked:
                time.sleep(0.01)
        watcher.next()
        solving.set()
        watcher.wait_for("settled")
    assert asked == [1.0, 3.9]


GARBAGE: list[tuple[str | bytes, int]] = [
    ("", 1008),
    ("next", 1008),
    ("{}", 1008),
    ("[]", 1008),
    ("null", 1008),
    ('{"type": "next", "more": 1}', 1008),
    ('{"type": "nothing"}', 1008),
    ('{"type": "budget"}', 1008),
    ('{"type": "budget", "latency_ms": "1"}', 1008),
    ('{"type": "budget", "latency_ms": true}', 1008),
    ('{"type": "budget", "latency_ms": NaN}', 1008),
    ('{"type": "budget", "latency_ms": 1e999}', 1008),
    ('{"type": "budget", "latency_ms": %s}' % ("9" * 4000), 1008),
    ('{"type": "budget", "latency_ms": [1]}', 1008),
    ('{"type": "budget", "latency_ms": 1, "statistic": "max"}', 1008),
    ('{"type": "source", "name": 1}', 1008),
    ("[" * 2000, 1008),
    ("x" * (LONGEST_MESSAGE + 1), 1009),
    (b"next", 1003),
    (bytes(LONGEST_MESSAGE + 1), 1009),
]


def test_garbage_is_closed_with_a_code(serve: Serve) -> None:
    """Whatever is no message ends that viewer; another one notices nothing."""
    page = serve()
    with Watcher(page) as good:
        good.receive()
        for message, code in GARBAGE:
            with Watcher(page) as bad:
                bad.receive()
                if isinstance(message, bytes):
                    bad.socket.send_binary(message)
                else:
                    bad.socket.send(message)
                assert bad.closed()[0] == code, message
        page.take(made_seen())
        assert good.wait_for("frame")


def test_a_flood_is_closed(serve: Serve) -> None:
    with Watcher(serve()) as watcher:
        watcher.receive()
        with suppress(OSError):  # it may break while there is still something to be sent
            for _ in range(10 * viewer.MESSAGES_PER_S):
                watcher.send(type="next")
        assert watcher.closed()[0] == 1008


@pytest.mark.parametrize(
    "data",
    [
        random_pixels(300).tobytes(),
        bytes([0x81, 0x05]) + b"plain",  # not masked
        bytes([0xF1, 0x80, 0, 0, 0, 0]),  # reserved bits
        bytes([0x89, 0xFE, 0x10, 0]) + bytes(4),  # a long ping
        bytes([0x81, 0x84, 0, 0, 0, 0, 0xFF, 0xFE, 0xFD, 0xFC]),  # not UTF-8
        bytes([0x81, 0xFF]) + bytes([0x7F] * 8),  # endless
    ],
)  # fmt: skip
def test_bytes_that_are_no_frames(serve: Serve, data: bytes) -> None:
    page = serve()
    with Watcher(page) as good:
        good.receive()
        bad = Watcher(page)
        bad.receive()
        bad.raw.sendall(data)
        bad.raw.shutdown(socket.SHUT_WR)
        page.take(made_seen())
        assert good.wait_for("frame")
        bad.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)
NEARLY = st.fixed_dictionaries(
    {"type": st.sampled_from(["next", "budget", "source", "x"])},
    optional={"latency_ms": JSON, "name": JSON, "more": JSON},
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=100) | JSON.map(json.dumps) | NEARLY.map(json.dumps))
def test_any_text(text: str) -> None:
    """It is a message of one of three kinds, or it is refused."""
    try:
        values = parse(text)
    except Leave:
        return
    kind = values.pop("type")
    if kind == "budget":
        limit = values.pop("latency_ms")
        assert limit is None or abs(limit) < 1e9
    elif kind == "source":
        assert isinstance(values.pop("name"), str)
    else:
        assert kind == "next"
    assert values == {}
