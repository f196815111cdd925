"""Clips and measurements that several tests of cameras use."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dvt_edge.camera import CapturedFrame, Cause, Source, SourceEvent
from dvt_edge.camera.stamp import read_stamp, write_stamp

GRACE_S = 30.0
"""How long a test waits for what must come; only a broken product takes so long."""
RGB = (200, 100, 50)


def write_clip(
    path: Path,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    *,
    frames: int = 20,
    size: tuple[int, int] = (320, 240),
    fps: int = 30,
    options: Mapping[str, str] | None = None,
    audio: bool = False,
) -> Path:
    """A clip of one colour, :data:`RGB`, stamped with the number of each frame where it is large
    enough."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.options = dict(options or {})
        sound = _sound_stream(container) if audio else None
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), RGB, np.uint8)
            if size[0] >= 320:
                write_stamp(picture, number, number / fps)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _write_sound(container, sound)
    return path


def damage_packet(path: Path, damaged: Path, number: int) -> Path:
    """A copy of the clip whose packet ``number`` lacks its second half, as after a loss."""
    import av

    with av.open(str(path)) as source, av.open(str(damaged), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        for at, packet in enumerate(source.demux(stream)):
            if packet.dts is None:
                continue
            data = bytearray(bytes(packet))
            if at == number:
                del data[len(data) // 2 :]
            written = av.Packet(bytes(data))
            written.pts, written.dts, written.time_base = packet.pts, packet.dts, packet.time_base
            written.is_keyframe = packet.is_keyframe
            written.stream = copied
            target.mux(written)
    return damaged


def write_sound(path: Path) -> Path:
    """A file with audio only."""
    import av

    with av.open(str(path), "w") as container:
        _write_sound(container, _sound_stream(container))
    return path


def _sound_stream(container: Any) -> Any:
    stream = container.add_stream("aac", rate=8000)
    stream.layout = "mono"
    return stream


def _write_sound(container: Any, stream: Any) -> None:
    import av

    for at in range(8):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 8000, at * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def numbers(frames: list[CapturedFrame]) -> list[int]:
    """What the stamps say."""
    stamps = [read_stamp(frame.pixels) for frame in frames]
    assert None not in stamps
    return [stamp.number for stamp in stamps if stamp is not None]


def check_accounts(frames: list[CapturedFrame]) -> None:
    """Gaps of ``seq`` are what ``dropped_before`` says."""
    assert frames[0].seq == frames[0].dropped_before
    for before, after in pairwise(frames):
        assert after.seq - before.seq - 1 == after.dropped_before >= 0


def check_closed_accounts(source: Source) -> None:
    """Once closed, every picture received has one fate."""
    counts = source.counts
    fates = ("given", "superseded", "late", "held", "damaged", "unread")
    assert counts.received == sum(getattr(counts, fate) for fate in fates)


def hidden_age_ms(frame: CapturedFrame) -> float:
    """How much older the picture is than ``age_ms`` says, by its stamp; 0 where the stamp was
    damaged."""
    stamp = read_stamp(frame.pixels)
    return 0.0 if stamp is None else 1e3 * (frame.captured_at - stamp.at)


@contextmanager
def patience(source: Source) -> Iterator[None]:
    """A source that never comes back ends the test, not the patience of whoever waits for it."""
    timer = threading.Timer(GRACE_S, source.close)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def take_until(source: Source, enough: Callable[[CapturedFrame], bool]) -> list[CapturedFrame]:
    """Frames up to the first that is ``enough``."""
    frames = []
    with patience(source):
        for frame in source:
            frames.append(frame)
            if enough(frame):
                return frames
    raise AssertionError("the source has ended")


class Events(list[SourceEvent]):
    """Keeps what a source reports."""

    def __call__(self, event: SourceEvent) -> None:
        self.append(event)

    def causes(self, kind: str) -> list[Cause | None]:
        return [event.cause for event in self if event.kind == kind]


def wait_for(true: Callable[[], bool]) -> None:
    """Until it is; fails if that takes very long."""
    until = time.monotonic() + GRACE_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> list[int]:
    """Processes that this one started and that have not been waited for."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(entry.parent.name))
    return found


@contextmanager
def nothing_left() -> Iterator[None]:
    """Neither descriptors nor processes."""
    opened, started = descriptors(), set(children())
    yield
    wait_for(lambda: descriptors() <= opened and set(children()) <= started)
