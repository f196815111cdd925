"""What PyAV opens, when its packets come in, and what its errors mean."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream
from typing_extensions import Self

from dvt_edge.camera.address import Kind
from dvt_edge.camera.causes import Cause, ReadingError
from dvt_edge.camera.plan import Plan
from dvt_edge.camera.readers.multipart import Multipart

WAITED_S = 0.005
"""Reading that takes longer waited for the network, so nothing newer lies in a buffer."""

_CAUSES: tuple[tuple[type[BaseException], Cause, str], ...] = (
    (av.error.HTTPUnauthorizedError, Cause.UNAUTHORISED, "user or password is refused (401)"),
    (av.error.HTTPForbiddenError, Cause.UNAUTHORISED, "access is refused (403)"),
    (av.error.HTTPNotFoundError, Cause.NOT_FOUND, "there is no such stream (404)"),
    (av.error.HTTPClientError, Cause.NOT_FOUND, "the request is refused (4xx)"),
    (av.error.HTTPError, Cause.BUSY, "the server has a problem (5xx)"),
    (av.error.FileNotFoundError, Cause.NOT_FOUND, "no such file or device"),
    (av.error.IsADirectoryError, Cause.NOT_FOUND, "is a folder, not a file"),
    (av.error.ConnectionRefusedError, Cause.NOT_FOUND, "nobody listens there"),
    (av.error.ProtocolNotFoundError, Cause.NOT_FOUND, "FFmpeg here does not know the protocol"),
    (av.error.ConnectionResetError, Cause.ENDED, "the connection was cut"),
    (av.error.BrokenPipeError, Cause.ENDED, "the connection was cut"),
    (av.error.EOFError, Cause.ENDED, "nothing more comes"),
    (av.error.TimeoutError, Cause.NO_FRAMES, "no answer in time"),
    (av.error.ExitError, Cause.NO_FRAMES, "no answer in time"),
    (av.error.InvalidDataError, Cause.UNDECODABLE, "is no video that FFmpeg knows"),
    (av.error.LookupError, Cause.UNDECODABLE, "FFmpeg here lacks what decodes it"),
)
_ERRNO = {
    errno.EBUSY: (Cause.BUSY, "in use"),
    errno.EMFILE: (Cause.BUSY, "too many files are open"),
    errno.ENODEV: (Cause.NOT_FOUND, "the device is gone"),
    errno.ENXIO: (Cause.NOT_FOUND, "the device is gone"),
    errno.ENOTTY: (Cause.NOT_FOUND, "is no camera"),
    errno.EHOSTUNREACH: (Cause.NOT_FOUND, "the host cannot be reached"),
    errno.ENETUNREACH: (Cause.NOT_FOUND, "the network cannot be reached"),
}


@dataclass(frozen=True)
class Arrival:
    """A packet, and when it came in; times are those of ``time.monotonic``."""

    packet: Any
    """Of PyAV; at the end an empty one, which fetches what is left in the decoder."""
    at: float
    """When it was complete."""
    began: float
    """When its first data came, where that is known, else ``at``."""
    waited: bool
    """Whether it had to be waited for."""
    unstamped: bool
    """Whether its time stamps are made up."""


class Container:
    """An open file, stream or device."""

    def __init__(self, file: InputContainer, kind: Kind, multipart: Multipart | None) -> None:
        self.file, self._kind, self._multipart = file, kind, multipart

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        if self._multipart is not None:
            self._multipart.close()

    def video_stream(self) -> VideoStream:
        """The first that is no cover of an album; raises :class:`ReadingError`."""
        for stream in self.file.streams.video:
            if "attached_pic" not in str(getattr(stream, "disposition", "")):
                if stream.codec_context is None:
                    raise ReadingError(Cause.UNDECODABLE, "FFmpeg here lacks what decodes it")
                return stream
        kinds = ", ".join(sorted({stream.type for stream in self.file.streams}))
        raise ReadingError(Cause.UNDECODABLE, f"holds no video, only {kinds or 'nothing'}")

    def arrivals(self, stream: VideoStream) -> Iterator[Arrival]:
        """Packets of ``stream`` until its end; raises :class:`ReadingError`."""
        packets = self.file.demux(stream)
        last = time.monotonic()
        while True:
            asked = time.monotonic()
            try:
                packet = next(packets, None)
            except (av.error.TimeoutError, av.error.ExitError):
                raise ReadingError(Cause.STALLED, "nothing comes any more") from None
            except av.error.FFmpegError as error:
                failure = failure_of(error, self._kind)
                if failure.cause is Cause.NOT_FOUND and self._kind in ("rtsp", "http"):
                    raise ReadingError(Cause.ENDED, "the connection was cut") from None
                raise failure from None
            if packet is None:
                return
            at = time.monotonic()
            began = at
            if self._multipart is not None:
                began = self._multipart.captured_at()
            elif self._kind == "rtsp" and not stream.codec_context.codec.intra_only:
                # FFmpeg hands on such a picture when the next one begins.
                began = last
            last = at
            if packet.size or packet.dts is None:
                waited = at - asked > WAITED_S
                yield Arrival(packet, at, began, waited, self._multipart is not None)


def open_container(plan: Plan) -> Container:
    """Raises :class:`ReadingError`."""
    address = plan.address
    options: dict[str, str] = {}
    source: Any = address.target
    form = multipart = None
    if address.kind == "v4l2":
        form = "v4l2"
        if address.size:
            options["video_size"] = "{}x{}".format(*address.size)
        if address.fps:
            options["framerate"] = f"{address.fps:g}"
        if address.format:
            options["input_format"] = address.format
    elif address.kind in ("rtsp", "http"):
        # What is read to learn the format is old when the first picture is asked for.
        options["fpsprobesize"] = "0"
        if address.kind == "rtsp":
            options["rtsp_transport"] = plan.transport
        elif (multipart := Multipart.open(source, plan.open_s, plan.stall_s)) is not None:
            source, form = multipart, "mpjpeg"
    patience = (plan.open_s, plan.stall_s) if address.is_camera else None
    asked = time.monotonic()
    try:
        file = av.open(source, "r", format=form, options=options, timeout=patience)
    except av.error.FFmpegError as error:
        if multipart is not None:
            multipart.close()
        if patience is not None and time.monotonic() - asked >= plan.open_s:
            # Depending on what FFmpeg was waiting for, it calls that by other names.
            raise ReadingError(Cause.NO_FRAMES, "no answer in time") from None
        raise failure_of(error, address.kind) from None
    return Container(file, address.kind, multipart)


def failure_of(error: av.error.FFmpegError, kind: Kind) -> ReadingError:
    """What PyAV's typed errors mean; FFmpeg's own text may hold the URL, so it is not used."""
    number = getattr(error, "errno", None)
    if number in _ERRNO:
        return ReadingError(*_ERRNO[number])
    remote = kind in ("rtsp", "http")
    if isinstance(error, av.error.PermissionError):  # of a network: FFmpeg's -1, for anything
        if remote:
            return ReadingError(Cause.UNDECODABLE, "the answer is not understood")
        return ReadingError(Cause.UNAUTHORISED, "no permission")
    for known, cause, detail in _CAUSES:
        if isinstance(error, known):
            return ReadingError(cause, detail)
    words = getattr(error, "strerror", None) or type(error).__name__
    if remote:  # names that cannot be resolved end here
        return ReadingError(Cause.NOT_FOUND, f"the host cannot be reached or found ({words})")
    return ReadingError(Cause.UNDECODABLE, words)
