"""Streams over loopback: MJPEG and RTSP, healthy and with every fault that networks have."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from camera_servers import Fault, MjpegServer, Proxy, RtspServer, rtsp_server_lacks

from dvt_edge.camera import CapturedFrame, Cause, Source, link, open_source
from dvt_edge.camera.stamp import read_stamp
from dvt_edge.errors import SourceError
from tests.camera.clips import (
    Events,
    check_accounts,
    check_closed_accounts,
    hidden_age_ms,
    nothing_left,
    numbers,
    patience,
    take_until,
    wait_for,
)

pytest.importorskip("av")

HIDDEN_MS = 200.0
"""A picture is given as new if it is older than it says by more than this."""
PASSWORD = "p@s/s:w%rd ?#ä"

Server = MjpegServer | RtspServer


@pytest.fixture(scope="module")
def mjpeg() -> Iterator[MjpegServer]:
    with MjpegServer() as server:
        yield server


@pytest.fixture(scope="module")
def rtsp() -> Iterator[RtspServer]:
    if lacking := rtsp_server_lacks():
        pytest.skip(f"no RTSP server: {lacking}")
    with RtspServer(key_every=15) as server:
        yield server


@pytest.fixture(params=["mjpeg", "rtsp"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to be waited for in the field is not waited for here."""
    monkeypatch.setattr(link, "LONGEST_BACKOFF_S", 0.4)


def through(proxy: Proxy, server: Server) -> str:
    return server.uri.replace(str(server.port), str(proxy.port))


def test_healthy(server: Server) -> None:
    """The newest, no older than it says, and none is missed that is not counted."""
    with open_source(server.uri) as source:
        frames = [next(source) for _ in range(40)]
    check_accounts(frames)
    check_closed_accounts(source)
    missed = np.diff(numbers(frames)) - np.diff([frame.seq for frame in frames])
    assert (missed >= 0).all()  # the sender leaves pictures out where a machine is busy
    assert missed.sum() <= 10
    assert max(map(hidden_age_ms, frames)) < HIDDEN_MS


def test_who_is_slow_gets_the_newest(server: Server) -> None:
    """However long it takes, and everything that it missed is counted."""
    with open_source(server.uri) as source:
        frames, oldest_ms = [], 0.0
        for frame in source:
            stamp = read_stamp(frame.pixels)
            assert stamp is not None
            oldest_ms = max(oldest_ms, 1e3 * (time.monotonic() - stamp.at))
            frames.append(frame)
            time.sleep(0.4)
            if len(frames) == 4:
                break
    assert oldest_ms < HIDDEN_MS + 300  # the latter for a busy machine
    check_accounts(frames)
    check_closed_accounts(source)
    assert sum(frame.dropped_before for frame in frames[1:]) > 10


FAULTS: tuple[tuple[Fault, tuple[Cause, ...]], ...] = (
    ("cut", (Cause.ENDED,)),
    ("refuse", (Cause.ENDED, Cause.NOT_FOUND, Cause.UNDECODABLE)),
    ("stall", (Cause.STALLED,)),
    ("corrupt", (Cause.UNDECODABLE, Cause.ENDED, Cause.STALLED, Cause.NO_FRAMES)),
    ("slow", (Cause.STALLED, Cause.NO_FRAMES, Cause.ENDED)),
)


class Viewer:
    """Takes frames and keeps accounts of them, not their pixels."""

    def __init__(self, source: Source) -> None:
        self.source, self.last_seq, self.hidden_ms = source, -1, 0.0

    def look(self, seconds: float, judge: bool = True) -> None:
        """``judge``: whether stamps can be trusted."""
        until = time.monotonic() + seconds
        with patience(self.source):
            for frame in self.source:
                assert frame.seq - self.last_seq - 1 == frame.dropped_before
                self.last_seq = frame.seq
                if judge:
                    self.hidden_ms = max(self.hidden_ms, hidden_age_ms(frame))
                if time.monotonic() > until:
                    return
        raise AssertionError("it never came back")


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(FAULTS[:3], id="connections"),
        pytest.param(FAULTS[3:], id="contents", marks=pytest.mark.slow),
    ],
)
def test_it_heals(
    server: Server, proxy: Proxy, faults: tuple[tuple[Fault, tuple[Cause, ...]], ...]
) -> None:
    """The same iterator goes on after every fault; no old picture is given as new; every picture
    is accounted for; no process or descriptor is left."""
    events = Events()
    uri = through(proxy, server)
    with nothing_left(), open_source(uri, stall_s=0.5, on_event=events) as source:
        viewer = Viewer(source)
        for fault, causes in faults:
            viewer.look(0.3)
            before = len(events)
            proxy.set(fault)
            mend = threading.Timer(0.2 if fault == "cut" else 0.8, proxy.set, ["none"])
            mend.start()
            viewer.look(0.9, judge=fault != "corrupt")
            mend.join()
            lost = [event.cause for event in events[before:] if event.kind == "disconnected"]
            assert set(lost) <= set(causes), fault
            assert lost or fault in ("stall", "corrupt", "slow")  # at times no harm is done
        viewer.look(0.3)
    assert viewer.hidden_ms < HIDDEN_MS
    assert len(events.causes("disconnected")) == len(events.causes("reconnected"))
    check_closed_accounts(source)


@pytest.mark.slow
def test_many_faults(server: Server, proxy: Proxy) -> None:
    """Fifty in a row, without pause."""
    chance = np.random.default_rng(0)
    with nothing_left(), open_source(through(proxy, server), stall_s=0.5) as source:
        viewer = Viewer(source)
        for _ in range(50):
            fault = FAULTS[chance.integers(len(FAULTS))][0]
            proxy.set(fault)
            mend = threading.Timer(chance.uniform(0.05, 0.8), proxy.set, ["none"])
            mend.start()
            viewer.look(chance.uniform(0.1, 0.6), judge=False)
            mend.join()
        viewer.look(3.0, judge=False)  # what was damaged is over
        viewer.hidden_ms = 0.0
        viewer.look(1.0)
    assert viewer.hidden_ms < HIDDEN_MS
    check_closed_accounts(source)


def test_a_camera_that_is_switched_off_and_on(server: Server) -> None:
    """Also where the sender itself goes, and comes back at the same place."""
    events = Events()
    own: Server = MjpegServer() if isinstance(server, MjpegServer) else RtspServer()
    with own, open_source(own.uri, stall_s=2, on_event=events) as source:
        frames = [next(source) for _ in range(5)]
        if isinstance(own, RtspServer):
            own.stop()
            started = threading.Timer(1.0, own.start)
        else:
            own.close()
            started = threading.Timer(1.0, lambda: again.append(MjpegServer(port=own.port)))
        again: list[MjpegServer] = []
        started.start()
        frames += take_until(source, lambda frame: events.causes("reconnected") != [])
        frames += [next(source) for _ in range(5)]
        started.join()
        for one in again:
            one.close()
    check_accounts(frames)
    assert hidden_age_ms(frames[-1]) < HIDDEN_MS
    # The last picture may be cut off.
    assert next(event.kind for event in events if event.kind != "damaged") == "disconnected"


@pytest.mark.slow
def test_a_sender_that_freezes(rtsp: RtspServer) -> None:
    """It keeps the connection and says nothing."""
    events = Events()
    with RtspServer() as own, open_source(own.uri, stall_s=0.5, on_event=events) as source:
        next(source)
        os.kill(own.pid, signal.SIGSTOP)
        threading.Timer(1.5, os.kill, [own.pid, signal.SIGCONT]).start()
        frame = take_until(source, lambda frame: events.causes("reconnected") != [])[-1]
    assert events.causes("disconnected") == [Cause.STALLED]
    assert hidden_age_ms(frame) < HIDDEN_MS


def test_joined_in_the_middle() -> None:
    """Of a group of pictures: nothing is given before it is whole."""
    if lacking := rtsp_server_lacks():
        pytest.skip(f"no RTSP server: {lacking}")
    with RtspServer(key_every=60) as own, open_source(own.uri) as first:
        next(first)
        time.sleep(0.5)  # the media is shared: the second viewer comes amid a group
        with open_source(own.uri) as source:
            frames = [next(source) for _ in range(5)]
    numbers(frames)  # each stamp is whole
    assert source.counts.held > 0
    assert frames[0].dropped_before >= source.counts.held
    check_accounts(frames)


@pytest.fixture(scope="module", params=["mjpeg", "rtsp"])
def locked(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "mjpeg":
        server: Server = MjpegServer(user=f"admin:{PASSWORD}")
    elif lacking := rtsp_server_lacks():
        pytest.skip(f"no RTSP server: {lacking}")
    else:
        server = RtspServer(user=f"admin:{PASSWORD}")
    with server:
        yield server


class TestCredentials:
    """Passwords with special characters work, wrong ones are said to be wrong, none is shown."""

    def test_right(self, locked: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CAMERA_PASSWORD", PASSWORD)
        uri = locked.uri.replace("//", "//admin:${CAMERA_PASSWORD}@")
        with open_source(uri) as source:
            next(source)
            commands = _commands()
        assert PASSWORD not in source.uri
        assert not any(PASSWORD in text or "admin" in text for text in commands)

    @pytest.mark.parametrize("user", ["", "admin:guess@"])
    def test_wrong(self, locked: Server, user: str) -> None:
        """At once: waiting cures nothing."""
        started = time.monotonic()
        with nothing_left(), pytest.raises(SourceError) as caught:
            open_source(locked.uri.replace("//", f"//{user}"), open_s=60)
        assert time.monotonic() - started < 30
        assert caught.value.cause is Cause.UNAUTHORISED
        assert "guess" not in str(caught.value)
        assert "admin" not in str(caught.value)


def _commands() -> list[str]:
    """Command lines of all processes, which everyone on a machine can read."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
                found.append(file.read())
        except OSError:
            pass
    return found


def test_a_stream_that_changes_its_size(mjpeg: MjpegServer) -> None:
    events = Events()
    with MjpegServer() as own, open_source(own.uri, on_event=events) as source:
        next(source)
        own.resize((640, 360))
        frames = take_until(source, lambda frame: frame.pixels.shape == (360, 640, 3))
        assert read_stamp(frames[-1].pixels) is not None
    assert [event.kind for event in events] == ["resized"]
    assert "640x360" in events[0].reason


def test_pictures_that_are_cut_off(mjpeg: MjpegServer) -> None:
    """Every third: the others are given."""

    def spoil(number: int, jpeg: bytes) -> bytes:
        return jpeg[: len(jpeg) // 2] if number % 3 == 0 else jpeg

    events = Events()
    with MjpegServer(spoil=spoil) as own, open_source(own.uri, on_event=events) as source:
        frames = [next(source) for _ in range(20)]
    assert all(number % 3 for number in numbers(frames))
    check_accounts(frames)
    assert source.counts.damaged >= 5
    assert events.causes("damaged")


@pytest.mark.slow
def test_a_camera_that_starts_slowly_later(mjpeg: MjpegServer) -> None:
    """As one does that sends a key frame now and then: that the first opening was quick is no
    reason to give up too soon for ever."""
    with Proxy(mjpeg.port) as proxy, open_source(through(proxy, mjpeg), stall_s=0.2) as source:
        before = next(source)
        mjpeg.slow_start_s = 2.5
        proxy.set("cut")
        after = take_until(source, lambda frame: source.counts.reconnects > 0)
    assert after[-1].seq > before.seq


@pytest.mark.slow
def test_nothing_but_garbage() -> None:
    """Is no picture: said when there is none within the time, and again after it was well."""
    good = True

    def spoil(number: int, jpeg: bytes) -> bytes:
        return jpeg if good else jpeg[:20] + bytes(len(jpeg) - 22) + b"\xff\xd9"

    events = Events()
    with MjpegServer(spoil=spoil) as own:
        with open_source(own.uri, stall_s=0.2, on_event=events) as source:
            next(source)
            good = False
            mend = threading.Timer(1.5, own.__setattr__, ["spoil", lambda number, jpeg: jpeg])
            mend.start()
            take_until(source, lambda frame: events.causes("reconnected") != [])
            mend.join()
        assert events.causes("disconnected") == [Cause.UNDECODABLE]
        good = False
        own.spoil = spoil
        with pytest.raises(SourceError) as caught:
            open_source(own.uri, stall_s=0.2, open_s=1)
    assert caught.value.cause is Cause.UNDECODABLE


class TestNobodyThere:
    def test_nobody_listens(self) -> None:
        """It may be about to start: tried until the time is up."""
        events = Events()
        started = time.monotonic()
        with nothing_left(), pytest.raises(SourceError, match="nobody listens there") as caught:
            open_source("http://127.0.0.1:9/x", open_s=1.5, on_event=events)
        assert caught.value.cause is Cause.NOT_FOUND
        assert time.monotonic() - started > 0.5
        assert events.causes("retrying") == [Cause.NOT_FOUND]

    def test_it_starts_late(self) -> None:
        late: list[MjpegServer] = []
        with MjpegServer() as taken:
            port = taken.port
        threading.Timer(1.0, lambda: late.append(MjpegServer(port=port))).start()
        with open_source(f"http://127.0.0.1:{port}/stream.mjpg") as source:
            next(source)
        late[0].close()

    @pytest.mark.parametrize("scheme", ["http", "rtsp"])
    def test_it_says_nothing(self, scheme: str) -> None:
        """A connection is made, and then nothing comes."""
        with Proxy(9) as proxy, MjpegServer() as server:
            mute = Proxy(server.port)
            mute.set("stall")
            with nothing_left(), pytest.raises(SourceError) as caught:
                open_source(f"{scheme}://127.0.0.1:{mute.port}/x", open_s=1)
            mute.close()
            assert proxy.fault == "none"
        assert caught.value.cause is Cause.NO_FRAMES

    def test_no_host_has_that_name(self) -> None:
        for scheme in ("http", "rtsp"):
            with pytest.raises(SourceError) as caught:
                open_source(f"{scheme}://no-such-host.invalid/x", open_s=0.5)
            assert caught.value.cause is Cause.NOT_FOUND


def test_closing_from_another_thread(mjpeg: MjpegServer) -> None:
    """Ends the iteration, while frames come and while the source is away."""
    for away in (False, True):
        with Proxy(mjpeg.port) as proxy, nothing_left():
            events = Events()
            source = open_source(through(proxy, mjpeg), stall_s=0.5, on_event=events)
            if away:
                proxy.set("refuse")
            ended = threading.Event()

            def look(source: Source = source, ended: threading.Event = ended) -> None:
                for _ in source:
                    pass
                ended.set()

            threading.Thread(target=look).start()
            if away:
                wait_for(lambda: len(events) > 0)  # noqa: B023
            source.close()
            assert ended.wait(30)
            source.close()
            with pytest.raises(StopIteration):
                next(source)


def test_a_frame_outlives_its_source(mjpeg: MjpegServer) -> None:
    with open_source(mjpeg.uri) as source:
        frames: list[CapturedFrame] = [next(source) for _ in range(10)]
    assert len(set(numbers(frames))) == 10
