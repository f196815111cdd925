"""What becomes of packets that come late, and what PyAV's errors mean; no stream is needed."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dvt_edge.camera.address import Kind, parse
from dvt_edge.camera.causes import Cause, ReadingError
from dvt_edge.camera.frame import Pixels
from dvt_edge.camera.plan import Plan

av = pytest.importorskip("av")
from dvt_edge.camera.readers.containers import Arrival, failure_of  # noqa: E402
from dvt_edge.camera.readers.video import _Reading  # noqa: E402


@pytest.mark.parametrize(
    ("number", "kind", "cause"),
    [
        (errno.ENODEV, "v4l2", Cause.NOT_FOUND),
        (errno.EBUSY, "v4l2", Cause.BUSY),
        (errno.EACCES, "v4l2", Cause.UNAUTHORISED),
        (errno.ENOENT, "v4l2", Cause.NOT_FOUND),
        (errno.ENOTTY, "v4l2", Cause.NOT_FOUND),
        (errno.EISDIR, "file", Cause.NOT_FOUND),
        (errno.EPERM, "rtsp", Cause.UNDECODABLE),
        (errno.ECONNREFUSED, "rtsp", Cause.NOT_FOUND),
        (errno.ECONNRESET, "rtsp", Cause.ENDED),
        (errno.EHOSTUNREACH, "rtsp", Cause.NOT_FOUND),
        (errno.ETIMEDOUT, "rtsp", Cause.NO_FRAMES),
        (errno.EIO, "rtsp", Cause.NOT_FOUND),
        (errno.EIO, "file", Cause.UNDECODABLE),
    ],
)
def test_errors_of_the_system(number: int, kind: Kind, cause: Cause) -> None:
    with pytest.raises(av.error.FFmpegError) as caught:
        av.error.err_check(-number, "rtsp://me:secret@host/x")
    failure = failure_of(caught.value, kind)
    assert failure.cause is cause
    assert "secret" not in failure.detail


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("HTTPUnauthorizedError", Cause.UNAUTHORISED),
        ("HTTPForbiddenError", Cause.UNAUTHORISED),
        ("HTTPNotFoundError", Cause.NOT_FOUND),
        ("HTTPServerError", Cause.BUSY),
        ("InvalidDataError", Cause.UNDECODABLE),
        ("DecoderNotFoundError", Cause.UNDECODABLE),
        ("EOFError", Cause.ENDED),
        ("ExitError", Cause.NO_FRAMES),
    ],
)
def test_errors_of_ffmpeg(name: str, cause: Cause) -> None:
    error = getattr(av.error, name)(-1, "rtsp://me:secret@host/x")
    assert failure_of(error, "rtsp").cause is cause


@dataclass
class Packet:
    """What is asked of one."""

    pts: int
    is_keyframe: bool = False
    is_corrupt: bool = False
    size: int = 100

    @property
    def dts(self) -> int:
        return self.pts


class Frame:
    is_corrupt = False

    def __init__(self, pts: int) -> None:
        self.pts = pts


class Decoder:
    """Gives a frame for each packet at once."""

    framerate = None

    def decode(self, packet: Packet) -> list[Frame]:
        return [Frame(packet.pts)]


class Box:
    """Keeps what is put and lost."""

    opened = True

    def __init__(self) -> None:
        self.put_at: list[float] = []
        self.lost: list[str] = []

    def put(self, render: Any, captured_at: float, *, tried: bool = True) -> None:
        self.put_at.append(captured_at)

    def lose(self, why: str, damage: str = "") -> None:
        self.lost.append(why)


def reading(uri: str) -> tuple[_Reading, Box]:
    box = Box()
    plan = Plan(parse(uri), False, 5.0, 5.0, "tcp", 0, 0, (), os.getpid())
    made = _Reading(plan, box)  # type: ignore[arg-type]
    made._context = Decoder()  # type: ignore[assignment]
    made._time_base, made._caught_up, made._intra = 1e-3, True, False
    return made, box


def arrival(packet: Packet, at: float, waited: bool = True) -> Arrival:
    return Arrival(packet, at, at, waited, unstamped=False)


def test_a_decoder_that_cannot_keep_up() -> None:
    """What comes too late is passed over, up to a key frame after the last that is at hand."""
    made, box = reading("rtsp://host/x")
    made._packet(arrival(Packet(0, is_keyframe=True), 100.0))
    made._packet(arrival(Packet(33), 100.033))
    assert len(box.put_at) == 2
    for number in range(3, 6):  # from a buffer, 1.5 s late
        made._packet(arrival(Packet(33 * number), 101.6 + number / 30, waited=False))
    assert box.lost == ["late"] * 3
    made._packet(arrival(Packet(1700), 101.7))
    assert box.lost[3:] == ["held"]
    made._packet(arrival(Packet(1733, is_keyframe=True), 101.733))
    assert box.put_at[-1] == pytest.approx(101.733)


def test_a_slow_network() -> None:
    """What had to be waited for is given, and its age is said; up to a limit."""
    made, box = reading("rtsp://host/x")
    made._packet(arrival(Packet(0, is_keyframe=True), 100.0))
    made._packet(arrival(Packet(33), 103.033))
    assert box.put_at[-1] == pytest.approx(100.033)
    with pytest.raises(ReadingError, match="slower than the stream") as caught:
        made._packet(arrival(Packet(66), 106.066))
    assert caught.value.cause is Cause.STALLED


def test_what_lay_in_buffers_while_opening() -> None:
    """Is decoded, because others are built on it, and not given."""
    made, box = reading("rtsp://host/x")
    made._caught_up = False
    made._packet(arrival(Packet(0, is_keyframe=True), 100.0, waited=False))
    assert (box.put_at, box.lost) == ([], ["late"])


def test_a_lost_reference() -> None:
    made, box = reading("rtsp://host/x")
    made._packet(arrival(Packet(0, is_keyframe=True), 100.0))
    made._packet(arrival(Packet(33, is_corrupt=True), 100.033))
    made._packet(arrival(Packet(66), 100.066))
    made._packet(arrival(Packet(99, is_keyframe=True), 100.099))
    assert box.lost == ["damaged", "held"]
    assert len(box.put_at) == 2


@pytest.mark.parametrize(("behind_s", "is_true"), [(0.05, True), (-1.0, False), (60.0, False)])
def test_v4l2_stamps(behind_s: float, is_true: bool) -> None:
    """Of the driver, where they can be of this clock."""
    made, box = reading("0")
    now = time.monotonic()
    made._packet(arrival(Packet(round(1e3 * (now - behind_s)), is_keyframe=True), now))
    assert box.put_at == [pytest.approx(now - behind_s * is_true, abs=2e-3)]


def test_colours_are_those_of_another_decoder() -> None:
    """Full and limited range, as Pillow reads the same JPEG."""
    import io

    from PIL import Image

    made, _ = reading("/clip.mp4")
    levels = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8).repeat(8, 0).repeat(8, 1)
    rgb = np.stack([levels, levels[::-1], levels.T], axis=-1)
    data = io.BytesIO()
    Image.fromarray(rgb).save(data, "jpeg", quality=95, subsampling=0)
    with av.open(io.BytesIO(data.getvalue())) as container:
        frame = next(container.decode(video=0))
    pixels: Pixels = made._pixels(frame)
    expected = np.asarray(Image.open(data).convert("RGB"))[..., ::-1]
    assert np.abs(pixels.astype(int) - expected).max() <= 6
