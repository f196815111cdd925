"""Cameras on loopback, for the benchmark and the tests of sources: MJPEG over HTTP, RTSP where
GStreamer's server is installed, and a proxy that does to a connection what networks do.

Every picture is stamped with its number and with when it was made, on ``time.monotonic``.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import random
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import Self

from dvt_edge.camera.stamp import write_stamp

Pixels = npt.NDArray[np.uint8]
SYSTEM_PYTHON = "/usr/bin/python3"
"""Debian's and Jetson's, which has GStreamer's bindings."""
RTSP_SERVER = Path(__file__).with_name("rtsp_server.py")


def scene(width: int, height: int, seed: int = 0) -> Pixels:
    """Something that compresses like a picture: soft colours, RGB."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 16, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _stop_listening(listener: socket.socket) -> None:
    """Closing alone would leave a thread in ``accept`` with the port."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


class MjpegServer:
    """``multipart/x-mixed-replace`` at a camera's pace, to any number of viewers.

    Each viewer gets the newest picture when the last one has gone out, as cameras do it.
    ``user`` (``name:password``) is demanded of viewers.
    """

    def __init__(
        self,
        fps: float = 30.0,
        size: tuple[int, int] = (320, 240),
        user: str | None = None,
        port: int = 0,
        spoil: Callable[[int, bytes], bytes] = lambda number, jpeg: jpeg,
    ) -> None:
        self._fps, self._size, self._user, self.spoil = fps, size, user, spoil
        self.slow_start_s = 0.0
        """How long a viewer waits for an answer."""
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._ending = threading.Event()
        self._newest: tuple[int, bytes] = (-1, b"")
        self._change = threading.Condition()
        for work in (self._draw, self._accept):
            threading.Thread(target=work, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}/stream.mjpg"

    def resize(self, size: tuple[int, int]) -> None:
        self._size = size

    def close(self) -> None:
        self._ending.set()
        _stop_listening(self._listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _draw(self) -> None:
        number, due, drawn = 0, time.monotonic(), scene(*self._size)
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            due += 1 / self._fps
            if drawn.shape[1::-1] != self._size:
                drawn = scene(*self._size)
            write_stamp(drawn, number, time.monotonic())
            jpeg = io.BytesIO()
            Image.fromarray(drawn).save(jpeg, "jpeg", quality=90)
            with self._change:
                self._newest = (number, self.spoil(number, jpeg.getvalue()))
                self._change.notify_all()
            number += 1

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                viewer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(viewer,), daemon=True).start()

    def _serve(self, viewer: socket.socket) -> None:
        with viewer:
            try:
                request = viewer.recv(65536).decode(errors="replace")
                if not self._knows(request):
                    viewer.sendall(
                        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n"
                        b'WWW-Authenticate: Basic realm="camera"\r\nConnection: close\r\n\r\n'
                    )
                    return
                time.sleep(self.slow_start_s)
                viewer.sendall(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
                    b"Content-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
                )
                sent = -1
                while not self._ending.is_set():
                    with self._change:
                        self._change.wait_for(lambda sent=sent: self._newest[0] != sent, 1.0)
                        sent, jpeg = self._newest
                    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    viewer.sendall(b"--frame\r\n" + head.encode() + jpeg + b"\r\n")
            except OSError:
                return

    def _knows(self, request: str) -> bool:
        if self._user is None:
            return True
        return f"Basic {base64.b64encode(self._user.encode()).decode()}" in request


class RtspServer:
    """H.264 over RTSP, by GStreamer; :meth:`stop` and :meth:`start` keep the port."""

    def __init__(
        self,
        fps: int = 30,
        size: tuple[int, int] = (320, 240),
        user: str | None = None,
        key_every: int = 30,
        environment: dict[str, str] | None = None,
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        words = (self.port, *size, fps, key_every)
        self._command = [SYSTEM_PYTHON, str(RTSP_SERVER), *map(str, words)]
        self._environment = os.environ | {"RTSP_USER": user or ""} | (environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def uri(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/stream"

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the RTSP server does not start")

    def stop(self) -> None:
        """At once, as a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def close(self) -> None:
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def rtsp_server_lacks() -> str:
    """Why there can be no :class:`RtspServer` here; empty where there can."""
    if not shutil.which(SYSTEM_PYTHON):
        return f"no {SYSTEM_PYTHON}"
    code = (
        "import gi; gi.require_version('GstRtspServer', '1.0')\n"
        "from gi.repository import Gst, GstRtspServer; Gst.init(None)\n"
        "assert Gst.ElementFactory.find('x264enc'), 'no x264enc'"
    )
    done = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (
        f"{done.stderr.strip().splitlines()[-1]}; apt-get install gir1.2-gst-rtsp-server-1.0 "
        "python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
    )


Fault = Literal["none", "refuse", "cut", "stall", "corrupt", "slow"]


class Proxy:
    """Passes TCP connections on to ``port``, and does to them what :attr:`fault` says."""

    def __init__(self, port: int, seed: int = 0) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.fault: Fault = "none"
        """``refuse``: connections end as they begin, and open ones are cut. ``cut``: open ones end,
        new ones pass. ``stall``: nothing passes. ``corrupt``: some bytes are replaced. ``slow``:
        20 kB/s."""
        self._chance = random.Random(seed)
        self._ending = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, fault: Fault) -> None:
        if fault in ("refuse", "cut"):
            self.fault = "refuse" if fault == "refuse" else "none"
            for connection in list(self._open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        else:
            self.fault = fault

    def close(self) -> None:
        self._ending = True
        _stop_listening(self._listener)
        self.set("refuse")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._ending:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(near,), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with near:
            if self.fault == "refuse":
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to), 1)
            except OSError:
                return
            with far:
                pair = {near, far}
                self._open |= pair
                with contextlib.suppress(OSError):
                    self._pump(near, far)
                self._open -= pair

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        left = select.poll()
        left.register(near, select.POLLRDHUP)
        while not self._ending:
            if self.fault == "stall":
                time.sleep(0.01)
                if left.poll(0):
                    return  # the viewer has given up
                continue
            ready, _, _ = select.select([near, far], [], [], 0.05)
            for one in ready:
                data = one.recv(4096 if self.fault == "slow" else 65536)
                if not data:
                    return
                if one is far:
                    if self.fault == "corrupt":
                        data = self._spoilt(data)
                    elif self.fault == "slow":
                        time.sleep(len(data) / 20_000)
                (far if one is near else near).sendall(data)

    def _spoilt(self, data: bytes) -> bytes:
        spoilt = bytearray(data)
        for _ in range(1 + len(spoilt) // 2000):
            spoilt[self._chance.randrange(len(spoilt))] = self._chance.randrange(256)
        return bytes(spoilt)


if __name__ == "__main__":  # to look at with a browser: camera_servers.py [640x480]
    width, height = map(int, (sys.argv[1] if len(sys.argv) > 1 else "640x480").split("x"))
    with MjpegServer(size=(width, height)) as shown:
        print(shown.uri, flush=True)
        threading.Event().wait()
