"""Streams, files and V4L2 devices, through PyAV."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import av.error
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from dvt_edge.camera.causes import Cause, ReadingError
from dvt_edge.camera.frame import Pixels
from dvt_edge.camera.mailbox import DamagedError, Mailbox
from dvt_edge.camera.plan import Plan
from dvt_edge.camera.readers.containers import Arrival, failure_of, open_container
from dvt_edge.camera.timeline import Timeline

LATE_S = 1.0
"""A camera's picture that comes later than this is passed over while there are newer ones."""
CATCH_UP_S = 2.0
"""Longest time after opening in which what comes at once counts as having lain in a buffer."""
_LOW_DELAY = 1 << 19  # AV_CODEC_FLAG_LOW_DELAY; PyAV's names for it differ between versions


def read(plan: Plan, mailbox: Mailbox) -> None:
    """Until the end; a file that loops has none."""
    while True:
        try:
            live = _Reading(plan, mailbox).run()
        except av.error.FFmpegError as error:
            raise failure_of(error, plan.address.kind) from error
        if not live and not mailbox.opened:
            raise ReadingError(Cause.UNDECODABLE, "holds no whole picture", final=True)
        if not plan.address.loop:
            raise ReadingError(Cause.ENDED, "nothing more comes", final=not live)


class _Reading:
    """One pass over a source, from opening to its end."""

    def __init__(self, plan: Plan, mailbox: Mailbox) -> None:
        self._plan, self._mailbox = plan, mailbox
        self._is_camera = plan.address.is_camera
        self._timeline = Timeline()
        self._converter = VideoReformatter()
        self._joined = self._caught_up = False
        """Whether a key frame has come; whether buffers are known to be empty."""
        self._opened_at = 0.0
        self._paced_from: tuple[float, float] | None = None
        """(time, time stamp) of the file's first picture."""
        self._last_due = 0.0

    def run(self) -> bool:
        """Whether it was live: what has a length is played at its own pace."""
        plan = self._plan
        with open_container(plan) as container:
            if plan.address.kind == "http" and container.file.duration is not None:
                self._is_camera = False
            stream = container.video_stream()
            self._context = context = stream.codec_context
            intra = self._intra = context.codec.intra_only
            if intra:
                context.options = {"err_detect": "explode"}  # else half a picture passes for whole
            # Never a thread per frame: then damage is reported with other pictures than its own.
            context.thread_type = "SLICE"
            if self._is_camera:
                context.flags |= _LOW_DELAY
            self._time_base = float(stream.time_base or 0) or 1 / 90_000
            self._opened_at = time.monotonic()
            for arrival in container.arrivals(stream):
                if self._is_camera and not self._caught_up:
                    opened_s = arrival.at - self._opened_at
                    self._caught_up = arrival.waited or opened_s > CATCH_UP_S
                if not intra:
                    self._packet(arrival)
                elif arrival.packet.size:
                    self._intra_packet(arrival)
        return self._is_camera

    def _intra_packet(self, arrival: Arrival) -> None:
        """Decoded only when somebody asks for it."""
        packet = arrival.packet
        if packet.is_corrupt or _is_cut_off(packet, self._context):
            self._mailbox.lose("damaged", "a picture is cut off")
        elif self._is_camera and not self._caught_up:
            self._mailbox.lose("late")
        elif self._mailbox.opened:
            self._put(partial(self._decoded, packet), packet.pts, arrival, tried=False)
        else:
            try:
                first = self._decoded(packet).copy()
            except DamagedError as error:
                self._mailbox.lose("damaged", str(error))
            else:
                self._put(lambda: first, packet.pts, arrival)

    def _decoded(self, packet: Any) -> Pixels:
        try:
            frames = self._context.decode(packet)
        except av.error.FFmpegError as error:
            raise DamagedError(f"a picture cannot be decoded ({type(error).__name__})") from None
        if not frames or frames[-1].is_corrupt:
            raise DamagedError("a picture is damaged")
        return self._pixels(frames[-1])

    def _packet(self, arrival: Arrival) -> None:
        """Of a stream whose pictures depend on those before; empty at the end: what is left."""
        mailbox, packet = self._mailbox, arrival.packet
        if self._is_camera and packet.size:
            stamp = packet.pts if packet.pts is not None else packet.dts
            pts = None if stamp is None else stamp * self._time_base
            behind_s = arrival.at - self._timeline.captured_at(pts, arrival.began)
            if (
                behind_s > LATE_S and not arrival.waited
            ):  # decoding cannot keep up: go on further ahead
                self._joined = False
                mailbox.lose("late")
                return
        if packet.size and not self._joined:
            if not packet.is_keyframe or packet.is_corrupt:
                mailbox.lose("held")
                return
            self._joined = True
        try:
            frames = self._context.decode(packet if packet.size else None)
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            self._damage(f"a picture cannot be decoded ({type(error).__name__})")
            return
        for frame in frames:
            if frame.is_corrupt or packet.is_corrupt:
                self._damage("a picture is damaged")
            elif not self._joined:
                mailbox.lose("damaged")  # its key frame was
            elif self._is_camera and not self._caught_up:
                mailbox.lose("late")
            else:
                self._put(partial(self._pixels, frame), frame.pts, arrival)

    def _damage(self, what: str) -> None:
        """Those that follow are built on it, so the next key frame is waited for."""
        self._joined = False
        self._mailbox.lose("damaged", what)

    def _put(
        self, render: Callable[[], Pixels], pts: int | None, arrival: Arrival, tried: bool = True
    ) -> None:
        seconds = None if pts is None else pts * self._time_base
        kind = self._plan.address.kind
        if kind == "v4l2":
            taken = arrival.at if seconds is None else seconds
            # The kernel stamps with this clock; some drivers stamp with another or not at all.
            captured_at = taken if 0 <= arrival.at - taken < 5 else arrival.at
        elif self._is_camera:
            captured_at = arrival.began
            if not arrival.unstamped:
                captured_at = self._timeline.captured_at(seconds, arrival.began)
            if arrival.at - captured_at > self._plan.stall_s:
                detail = "the network is slower than the stream, so what comes is old"
                raise ReadingError(Cause.STALLED, detail)
        elif self._plan.is_paced:
            captured_at = self._due(seconds)
            self._mailbox.pause_until(captured_at)
        else:
            captured_at = time.monotonic()
        self._mailbox.put(render, captured_at, tried=tried)

    def _due(self, seconds: float | None) -> float:
        """When a file's picture would have been taken, had the file begun to be recorded now."""
        rate = self._context.framerate
        step = 1 / float(rate) if rate else 1 / 30
        if seconds is None:
            seconds = 0.0 if self._paced_from is None else self._last_due + step
        if self._paced_from is None or not -step <= seconds - self._last_due < 60:
            self._paced_from = (time.monotonic(), seconds)
        self._last_due = seconds
        began, first = self._paced_from
        return began + seconds - first

    def _pixels(self, frame: VideoFrame) -> Pixels:
        """[H, W, 3] BGR or [H, W] gray; a view of the converter's own memory, so no copy."""
        gray = frame.format.name.startswith(("gray", "ya", "mono"))
        try:
            picture = self._converter.reformat(frame, format="gray" if gray else "bgr24")
        except (av.error.FFmpegError, ValueError) as error:
            raise DamagedError(f"pixel format {frame.format.name} cannot be converted") from error
        plane, channels = picture.planes[0], 1 if gray else 3
        rows: Pixels = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        pixels = rows[: picture.height, : picture.width * channels]
        return pixels if gray else pixels.reshape(picture.height, picture.width, 3)


def _is_cut_off(packet: Any, context: VideoCodecContext) -> bool:
    """Whether a JPEG lacks its end; some cameras pad it with zeros."""
    if context.name != "mjpeg":
        return False
    tail = bytes(memoryview(packet)[-1024:]).rstrip(b"\0")
    return not tail.endswith(b"\xff\xd9")
