"""Cameras that are attached to this machine, and what to write to use each."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dvt_edge.camera.elements import missing_elements
from dvt_edge.camera.v4l2 import FFMPEG_NAMES, Device, Ioctl, PixelFormat, Size, find_devices

_CSI_DRIVER = "tegra-video"
"""Jetson's; its nodes deliver what the sensor sees, before any colours are made of it."""
_WANTED = (1280, 720)
"""Models look at less; more costs time."""
_PREFERRED = ("MJPG", "YUYV", "NV12", "UYVY", "YU12", "GREY")
"""What a USB camera delivers at full pace comes first."""


@dataclass(frozen=True)
class Attached:
    """A camera and its line."""

    uri: str
    """To paste after ``--source``; empty where nothing here can open it."""
    device: Device
    size: Size | None = None
    """What the URI asks for."""
    remark: str = ""

    @property
    def profile_line(self) -> str:
        """For the profile."""
        if self.size is None:
            return f"camera: {{source: '{self.uri}'}}"
        fps = f", fps: {self.size.fps[0]:g}" if self.size.fps else ""
        frame = f", frame: [{self.size.width}, {self.size.height}]"
        return f"camera: {{source: '{self.uri}'{fps}{frame}}}"


def find_attached(
    root: Path = Path("/"),
    ioctl: Ioctl = fcntl.ioctl,
    missing: Callable[[str], list[str]] = missing_elements,
) -> list[Attached]:
    """V4L2 devices, and CSI sensors where GStreamer can open them."""
    found = []
    sensors = 0
    for device in find_devices(root, ioctl):
        if device.driver != _CSI_DRIVER:
            found.append(_usb(device))
            continue
        lacking = missing("csi://0") if not sensors else []
        remark = f"CSI; GStreamer lacks {', '.join(lacking)}" if lacking else "CSI"
        found.append(Attached(f"csi://{sensors}", device, _size_of(device.formats), remark))
        sensors += 1
    return found


def _usb(device: Device) -> Attached:
    uri = f"v4l2://{device.path}"
    if device.problem:
        return Attached(uri, device, remark=device.problem)
    known = {form.code: form for form in device.formats if form.code in FFMPEG_NAMES}
    order = [code for code in _PREFERRED if code in known] + list(known)
    if not order:
        codes = ", ".join(form.code for form in device.formats) or "none"
        return Attached(uri, device, remark=f"pixel formats that FFmpeg does not take: {codes}")
    size = _size_of([known[order[0]]])
    if size is None:
        return Attached(uri, device)
    rate = f"&fps={size.fps[0]:g}" if size.fps else ""
    name = FFMPEG_NAMES[order[0]]
    query = f"?size={size.width}x{size.height}{rate}&format={name}"
    return Attached(uri + query, device, size)


def _size_of(formats: list[PixelFormat] | tuple[PixelFormat, ...]) -> Size | None:
    """The largest that is no larger than what models need, else the smallest."""
    sizes = [size for form in formats for size in form.sizes]
    fitting = [s for s in sizes if s.width <= _WANTED[0] and s.height <= _WANTED[1]]
    if fitting:
        return max(fitting, key=lambda s: (s.width * s.height, s.fps[:1]))
    return min(sizes, key=lambda s: s.width * s.height, default=None)
