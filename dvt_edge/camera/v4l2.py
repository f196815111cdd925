"""What a V4L2 device can do, asked of the kernel: a few ioctls of ``linux/videodev2.h``."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Ioctl = Callable[[int, int, bytearray], object]
"""``fcntl.ioctl``, or what a test puts in its place: fills the buffer or raises OSError."""

_CAPABILITY = struct.Struct("=16s32s32sII I 12x")
_FORMAT = struct.Struct("=II I32sI I 12x")
_SIZE = struct.Struct("=IIIIIIIII 8x")
_INTERVAL = struct.Struct("=IIIII IIIIII 8x")


def _code(direction: int, number: int, size: int) -> int:
    """Of an ioctl of V4L2; the same on x86 and Arm."""
    return direction << 30 | size << 16 | ord("V") << 8 | number


_READ, _READ_WRITE = 2, 3
QUERY_CAPABILITY = _code(_READ, 0, _CAPABILITY.size)
ENUM_FORMATS = _code(_READ_WRITE, 2, _FORMAT.size)
ENUM_SIZES = _code(_READ_WRITE, 74, _SIZE.size)
ENUM_INTERVALS = _code(_READ_WRITE, 75, _INTERVAL.size)

_CAPTURE = {0x1: 1, 0x1000: 9}
"""Capability -> type of its buffers: single-planar and multi-planar capture."""
_HAS_DEVICE_CAPABILITIES = 0x80000000
_DISCRETE = 1
_LIMIT = 256
"""Entries of one list; a driver that never ends it is not followed."""

FFMPEG_NAMES = {
    "MJPG": "mjpeg",
    "JPEG": "mjpeg",
    "YUYV": "yuyv422",
    "UYVY": "uyvy422",
    "NV12": "nv12",
    "YU12": "yuv420p",
    "GREY": "gray",
    "Y16 ": "gray16le",
    "RGB3": "rgb24",
    "BGR3": "bgr24",
    "H264": "h264",
    "HEVC": "hevc",
}
"""What ``?format=`` calls a pixel format; others cannot be asked for by name."""


@dataclass(frozen=True)
class Size:
    """One that a format comes in."""

    width: int
    height: int
    fps: tuple[float, ...] = ()
    """Frames per second, the fastest first; empty where the driver says nothing."""


@dataclass(frozen=True)
class PixelFormat:
    """One that a device delivers."""

    code: str
    """Four letters, such as MJPG."""
    description: str
    compressed: bool
    sizes: tuple[Size, ...]
    """Of a range the smallest and the largest."""


@dataclass(frozen=True)
class Device:
    """A camera that V4L2 knows."""

    path: str
    name: str
    driver: str
    formats: tuple[PixelFormat, ...] = ()
    problem: str = ""
    """Why it could not be asked."""


def find_devices(root: Path = Path("/"), ioctl: Ioctl = fcntl.ioctl) -> list[Device]:
    """Every ``/dev/video*`` that takes pictures, or that cannot be asked whether it does.

    A camera often has a second node, which delivers data about pictures; that one is left out.
    """
    nodes = sorted((root / "dev").glob("video[0-9]*"), key=lambda node: (len(node.name), node.name))
    found = (read_device(node, f"/dev/{node.name}", ioctl) for node in nodes)
    return [device for device in found if device is not None]


def read_device(node: Path, path: str, ioctl: Ioctl = fcntl.ioctl) -> Device | None:
    """What ``node`` says of itself; None if it takes no pictures. Nothing is captured."""
    try:
        descriptor = os.open(node, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        problem = "no permission" if error.errno in (errno.EACCES, errno.EPERM) else error.strerror
        return Device(path, "", "", problem=problem or "cannot be opened")
    try:
        answer = bytearray(_CAPABILITY.size)
        try:
            ioctl(descriptor, QUERY_CAPABILITY, answer)
        except OSError:
            return None  # something else of that name
        driver, card, _, _, capabilities, of_node = _CAPABILITY.unpack(answer)
        if capabilities & _HAS_DEVICE_CAPABILITIES:
            capabilities = of_node
        for capability, kind in _CAPTURE.items():
            if capabilities & capability:
                formats = tuple(_formats(descriptor, kind, ioctl))
                return Device(path, _text(card), _text(driver), formats)
        return None
    finally:
        os.close(descriptor)


def _formats(descriptor: int, kind: int, ioctl: Ioctl) -> Iterator[PixelFormat]:
    for index in range(_LIMIT):
        answer = bytearray(_FORMAT.pack(index, kind, 0, b"", 0, 0))
        if not _asked(descriptor, ENUM_FORMATS, answer, ioctl):
            return
        _, _, flags, description, pixel_format, _ = _FORMAT.unpack(answer)
        code = pixel_format.to_bytes(4, "little").decode("ascii", "replace")
        sizes = _sizes(descriptor, pixel_format, ioctl)
        yield PixelFormat(code, _text(description), bool(flags & 1), tuple(sizes))


def _sizes(descriptor: int, pixel_format: int, ioctl: Ioctl) -> Iterator[Size]:
    for index in range(_LIMIT):
        answer = bytearray(_SIZE.pack(index, pixel_format, *(0,) * 7))
        if not _asked(descriptor, ENUM_SIZES, answer, ioctl):
            return
        _, _, kind, *numbers = _SIZE.unpack(answer)
        if kind != _DISCRETE:
            narrowest, widest, _, lowest, highest, _ = numbers
            yield Size(narrowest, lowest)
            yield Size(widest, highest)
            return
        width, height = numbers[:2]
        rates = sorted(_rates(descriptor, pixel_format, width, height, ioctl), reverse=True)
        yield Size(width, height, tuple(rates))


def _rates(
    descriptor: int, pixel_format: int, width: int, height: int, ioctl: Ioctl
) -> Iterator[float]:
    for index in range(_LIMIT):
        answer = bytearray(_INTERVAL.pack(index, pixel_format, width, height, *(0,) * 7))
        if not _asked(descriptor, ENUM_INTERVALS, answer, ioctl):
            return
        _, _, _, _, kind, numerator, denominator, *_ = _INTERVAL.unpack(answer)
        if numerator:
            yield round(denominator / numerator, 3)
        if kind != _DISCRETE:  # of a range: the shortest interval
            return


def _asked(descriptor: int, code: int, answer: bytearray, ioctl: Ioctl) -> bool:
    """Fill ``answer``; False at the end of a list."""
    try:
        ioctl(descriptor, code, answer)
    except OSError:
        return False
    return True


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace").strip()
