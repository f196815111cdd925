"""The decoder's process: it ends with whoever asks, however that ends, and leaves nothing."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from camera_servers import MjpegServer

from dvt_edge.camera import Cause, Source, open_source
from dvt_edge.errors import SourceError
from tests.camera.clips import (
    Events,
    check_accounts,
    check_closed_accounts,
    children,
    descriptors,
    nothing_left,
    take_until,
    wait_for,
    write_clip,
)

pytest.importorskip("av")


def child_of(source: Source) -> int:
    assert source._link is not None
    return source._link.pid


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


SCRIPT = """
import sys
from dvt_edge.camera import open_source
source = open_source("test://?size=64x48")
next(source)
print(source._link.pid, flush=True)
for frame in source:
    pass
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_dies_with_its_parent(how: signal.Signals) -> None:
    """Also with one that is killed; and a script needs no guard around its main part."""
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(how)
        wait_for(lambda: not is_alive(pid))


def test_it_dies_while_it_waits_for_the_network() -> None:
    with MjpegServer(spoil=lambda number, jpeg: jpeg) as server:
        code = SCRIPT.replace("test://?size=64x48", server.uri)
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        with parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            parent.kill()
            wait_for(lambda: not is_alive(pid))


def test_a_script_says_nothing_at_its_end() -> None:
    """No warning of any library, closed or not."""
    for end in ("source.close()", "del source", "pass"):
        code = (
            "from dvt_edge.camera import open_source\n"
            "source = open_source('test://?size=64x48')\n"
            f"frames = [next(source) for _ in range(6)]\n{end}\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-X", "dev", "-c", code],
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == ("", "")


def test_importing_it_is_light() -> None:
    code = (
        "import sys, dvt_edge.camera\n"
        "print(sorted({'av', 'gi', 'torch', 'PIL', 'pydantic', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_decoder_that_crashes_or_hangs(how: signal.Signals) -> None:
    """Of a camera: another takes over, in the same iterator, and the count goes on."""
    events = Events()
    with nothing_left(), open_source("test://", stall_s=1.0, on_event=events) as source:
        frames = [next(source) for _ in range(3)]
        first = child_of(source)
        os.kill(first, how)
        frames += take_until(source, lambda frame: events.causes("reconnected") != [])
        assert child_of(source) != first
        assert not is_alive(first)
        check_accounts(frames)
        del frames
    hangs = how is signal.SIGSTOP
    assert events.causes("disconnected") == [Cause.STALLED if hangs else Cause.UNDECODABLE]
    assert ("has not moved" if hangs else "the decoder crashed") in events[0].reason
    check_closed_accounts(source)
    assert source.counts.reconnects == 1


def test_a_decoder_that_crashes_on_a_file(tmp_path: Path) -> None:
    """Starting over would give old pictures as new."""
    path = write_clip(tmp_path / "clip.mp4", frames=60)
    with nothing_left(), open_source(str(path), every_frame=True) as source:
        next(source)
        os.kill(child_of(source), signal.SIGKILL)
        with pytest.raises(SourceError, match="decoder crashed") as caught:
            for _ in source:
                pass
        assert caught.value.cause is Cause.UNDECODABLE
        with pytest.raises(StopIteration):
            next(source)


def test_nothing_leaks_over_many_openings() -> None:
    """Failed ones and good ones."""
    with open_source("test://?size=64x48") as source:
        next(source)
    gc.collect()
    before = descriptors()
    for at in range(6):
        if at % 2:
            with pytest.raises(SourceError):
                open_source("/absent.mp4")
        else:
            with open_source("test://?size=64x48") as source:
                next(source)
    gc.collect()
    assert descriptors() <= before
    assert not [name for name in os.listdir("/dev/shm") if "dvt" in name]


def test_a_source_that_is_dropped() -> None:
    """Without being closed: its process goes with it."""
    started = set(children())
    source = open_source("test://?size=64x48")
    frame = next(source)
    pid = child_of(source)
    del source
    gc.collect()
    wait_for(lambda: not is_alive(pid))
    assert set(children()) <= started
    assert frame.pixels.shape == (48, 64)


def test_memory_stays_as_it_is() -> None:
    """Of both processes, over some hundred frames."""
    with open_source("test://?size=640x480&fps=1000") as source:
        for _ in range(100):
            next(source)
        before = _kilobytes(os.getpid()), _kilobytes(child_of(source))
        for _ in range(600):
            next(source)
        after = _kilobytes(os.getpid()), _kilobytes(child_of(source))
    assert max(b - a for a, b in zip(before, after, strict=True)) < 20_000


def _kilobytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_interrupting_a_frame() -> None:
    """Ctrl-C while a frame is waited for: the source can go on."""
    with open_source("test://?fps=2&size=64x48") as source:
        next(source)

        def interrupt(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            for _ in source:
                pass
        signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - started < 10
        frames = [next(source) for _ in range(2)]
    assert frames[1].seq - frames[0].seq - 1 == frames[1].dropped_before
