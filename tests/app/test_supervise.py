"""What ends a run, and what systemd hears of it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from dvt_edge.app import supervise
from dvt_edge.app.loop import CameraLoop, Sinks
from dvt_edge.app.supervise import Signals, notify_systemd, stop_all, watch_over
from dvt_edge.errors import BackendError, DataError
from tests.app.conftest import PlayedCamera, PlayedFrame, PlayedRuntime


def _loop(
    *frames: PlayedFrame | Exception,
    ends: bool = True,
    max_frames: int | None = None,
    runtime: PlayedRuntime | None = None,
) -> CameraLoop:
    camera = PlayedCamera(frames, ends=ends)
    loop = CameraLoop(
        *("played", camera.open, runtime or PlayedRuntime(), Sinks()),
        exits=3,
        max_frames=max_frames,
    )
    loop.start()
    return loop


def test_the_end_of_all_cameras() -> None:
    assert watch_over([_loop(PlayedFrame()), _loop()], Signals()) == "source"


def test_enough_frames() -> None:
    assert watch_over([_loop(PlayedFrame(), PlayedFrame(), max_frames=1)], Signals()) == "frames"


def test_a_camera_that_fails() -> None:
    """The others go on, somebody is told once, and in the end it counts."""
    failed: list[CameraLoop] = []
    loops = [_loop(ends=False), _loop(DataError("gone"))]
    assert watch_over(loops, Signals(), duration_s=0.5, failed=failed.append) == "duration"
    assert failed == loops[1:]
    assert not loops[0].ended.is_set()
    assert stop_all(loops)
    assert watch_over([_loop(PlayedFrame()), _loop(DataError("gone"))], Signals()) == "error"


def test_a_runtime_that_fails() -> None:
    """That concerns all cameras: those that are silent are not waited for."""
    broken = PlayedRuntime(BackendError("the GPU has fallen off the bus"))
    loops = [_loop(ends=False), _loop(PlayedFrame(), runtime=broken)]
    assert watch_over(loops, Signals()) == "error"
    assert stop_all(loops)


def test_time_is_up() -> None:
    loop, started = _loop(ends=False), time.monotonic()
    assert watch_over([loop], Signals(), duration_s=0.05) == "duration"
    assert 0.05 <= time.monotonic() - started < 5
    assert stop_all([loop])


def test_nobody_reads() -> None:
    loop = _loop(ends=False)
    assert watch_over([loop], Signals(), gone=lambda: True) == "reader"
    assert stop_all([loop])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(number: signal.Signals) -> None:
    """The first one ends the run, the second one does what it always did."""
    before = signal.getsignal(number)
    loop = _loop(ends=False)
    with Signals() as signals:
        threading.Timer(0.05, lambda: os.kill(os.getpid(), number)).start()
        assert watch_over([loop], signals) == number.name
        assert signal.getsignal(number) == before
    assert stop_all([loop])


def test_signals_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_signals_off_the_main_thread() -> None:
    """Nothing can be had there, and nothing is done."""
    problems: list[Exception] = []

    def enter() -> None:
        try:
            with Signals():
                pass
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert problems == []


def test_stop_all_gives_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that hang take no longer than one."""
    monkeypatch.setattr(supervise, "PATIENCE_S", 0.1)
    runtime = PlayedRuntime()
    runtime.go_on.clear()
    loops = [_loop(PlayedFrame(), runtime=runtime) for _ in range(2)]
    assert runtime.working.wait(10)
    started = time.monotonic()
    assert not stop_all(loops)
    assert time.monotonic() - started < 5
    runtime.go_on.set()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """Where systemd listens."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(10)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return listener


def test_systemd_hears_that_it_runs(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ready, then alive at every interval."""
    monkeypatch.setattr(supervise, "WATCHDOG_S", 0.01)
    loop = _loop(ends=False)
    watch_over([loop], Signals(), duration_s=0.3)
    with systemd:
        assert systemd.recv(99) == b"READY=1"
        assert systemd.recv(99) == b"WATCHDOG=1"
        assert systemd.recv(99) == b"WATCHDOG=1"
    assert stop_all([loop])


def test_systemd_does_not_hear_of_a_frame_that_hangs(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it restarts the process; a camera that is silent is another matter."""
    monkeypatch.setattr(supervise, "WATCHDOG_S", 0.01)
    monkeypatch.setattr(supervise, "HANGS_S", 0.0)
    runtime = PlayedRuntime()
    runtime.go_on.clear()
    loop = _loop(PlayedFrame(), runtime=runtime)
    assert runtime.working.wait(10)
    watch_over([loop], Signals(), duration_s=0.2)
    with systemd:
        assert systemd.recv(99) == b"READY=1"
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):
            systemd.recv(99)
    runtime.go_on.set()
    assert loop.ended.wait(10)


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@dvt-edge-nobody", "vsock:1:2"])
def test_no_systemd(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify_systemd("READY=1")
