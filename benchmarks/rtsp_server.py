"""An RTSP server whose pictures are stamped, for Debian's Python, which has GStreamer's bindings:

    python3 rtsp_server.py PORT WIDTH HEIGHT FPS KEY_EVERY

``RTSP_USER`` (``name:password``) is demanded of viewers. Prints ``ready``. No NumPy here: Debian's
Python need not have it. The stamp is that of ``dvt_edge/camera/stamp.py``.
"""

from __future__ import annotations

import os
import random
import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstApp, GstRtspServer  # noqa: E402, F401

BLOCK, COLUMNS, ROWS, PRIME = 8, 40, 2, 251
DARK, BRIGHT = b"\x10" * BLOCK, b"\xeb" * BLOCK


def main() -> None:
    port, width, height, fps, key_every = map(int, sys.argv[1:])
    Gst.init(None)
    server = GstRtspServer.RTSPServer(service=str(port), address="127.0.0.1")
    factory = GstRtspServer.RTSPMediaFactory(shared=True)
    form = f"video/x-raw,format=I420,width={width},height={height},framerate={fps}/1"
    factory.set_launch(
        f"( appsrc name=src is-live=true do-timestamp=true format=time caps={form} ! "
        f"x264enc tune=zerolatency speed-preset=ultrafast key-int-max={key_every} threads=1 "
        "bitrate=4000 ! video/x-h264,profile=baseline ! "
        "rtph264pay name=pay0 pt=96 config-interval=-1 )"
    )
    factory.connect("media-configure", lambda _, media: Camera(media, width, height, fps))
    if user := os.environ.get("RTSP_USER"):
        demand(server, factory, *user.split(":", 1))
    server.get_mount_points().add_factory("/stream", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


def demand(server: object, factory: object, name: str, password: str) -> None:
    """Let only ``name`` in."""
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(name, password), token)
    server.set_auth(auth)
    factory.add_role_from_structure(
        Gst.Structure.from_string(
            "viewer, media.factory.access=(boolean)true, media.factory.construct=(boolean)true"
        )[0]
    )


class Camera:
    """Pushes a picture every 1 / fps seconds while there are viewers."""

    def __init__(self, media: object, width: int, height: int, fps: int) -> None:
        self.source = media.get_element().get_by_name_recurse_up("src")
        self.width, self.number, self.fps = width, 0, fps
        rng = random.Random(0)
        self.rest = []
        for _ in range(8):  # pictures that differ somewhat, as a camera's do
            rows = [
                bytes(90 + (x // 16 + y // 8) % 64 + rng.randrange(3) for x in range(width))
                for y in range(height // 8)
            ]
            luma = b"".join(row * 8 for row in rows).ljust(width * height, b"\x60")
            self.rest.append(luma + b"\x80" * (width * height // 2))
        self.due = time.monotonic()
        self.timer = GLib.timeout_add(1, self.push)
        media.connect("unprepared", lambda _: GLib.source_remove(self.timer))

    def push(self) -> bool:
        now = time.monotonic()
        if now >= self.due:
            self.due = max(self.due + 1 / self.fps, now)
            data = stamp(self.number, now, self.width)
            data += self.rest[self.number % len(self.rest)][len(data) :]
            self.source.emit("push-buffer", Gst.Buffer.new_wrapped(data))
            self.number += 1
        return True


def stamp(number: int, at: float, width: int) -> bytes:
    """The first rows of luma."""
    value = (number % 2**32) << 40 | round(at * 1e3) % 2**40
    value = value << 8 | value % PRIME
    rows = b""
    for row in range(ROWS):
        bits = (value >> (row * COLUMNS + column) & 1 for column in range(COLUMNS))
        line = b"".join(BRIGHT if bit else DARK for bit in bits).ljust(width, b"\x60")
        rows += line * BLOCK
    return rows


if __name__ == "__main__":
    main()
