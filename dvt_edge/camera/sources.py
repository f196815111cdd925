"""Several cameras as one iterator: the newest frame of each, in fair turns."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from typing_extensions import Self

from dvt_edge.camera.address import Address, parse
from dvt_edge.camera.causes import Cause, SourceEvent
from dvt_edge.camera.frame import CapturedFrame
from dvt_edge.camera.mailbox import FRESH_S
from dvt_edge.camera.plan import Transport
from dvt_edge.camera.source import Source, check_settings, open_source
from dvt_edge.errors import ConfigError, SourceError

_LOG = logging.getLogger("dvt_edge.camera")

OnEvent = Callable[[SourceEvent], object]


class _Camera:
    """What is known of one camera; its fields change under the lock of all."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.address: Address = parse(uri)
        self.waits = self.address.kind == "images" and self.address.fps is None
        """Whether it is asked for the next frame only once the last one was taken."""
        self.source: Source | None = None
        self.newest: CapturedFrame | None = None
        self.put_at = 0.0
        self.lost = 0
        """Frames since the last one taken that nobody gets."""
        self.ended = False
        self.error: Exception | None = None


class Sources:
    """Frames of several cameras, made by :func:`open_sources`: an iterator and a context manager.

    Each camera opens and heals in a thread of its own. One thread takes frames; :meth:`close`, from
    any thread, ends the iteration.
    """

    def __init__(
        self, uris: Sequence[str], open_it: Callable[[str], Source], on_event: OnEvent | None
    ) -> None:
        self._cameras = [_Camera(uri) for uri in uris]
        self._open, self._on_event = open_it, on_event
        self._change = threading.Condition()
        self._closing = False
        self._turn = 0
        for camera in self._cameras:
            name = f"dvt-edge {camera.address}"
            threading.Thread(target=self._read, args=(camera,), name=name, daemon=True).start()
        try:
            with self._change:
                self._change.wait_for(lambda: self._is_open or self._has_ended)
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if not self._is_open:
            raise self._refusal()

    @property
    def uris(self) -> tuple[str, ...]:
        """Of all cameras, without credentials, in the order of ``source_index``."""
        return tuple(str(camera.address) for camera in self._cameras)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> CapturedFrame:
        """The newest frame of the next camera that has one; waits until one has.

        Raises :class:`StopIteration` once all cameras have ended, and after :meth:`close`.
        """
        with self._change:
            while not self._closing:
                for turn in range(len(self._cameras)):
                    index = (self._turn + turn) % len(self._cameras)
                    frame = self._take(self._cameras[index], index)
                    if frame is not None:
                        self._turn = index + 1
                        return frame
                if self._has_ended:
                    break
                self._change.wait()
        raise StopIteration

    def close(self) -> None:
        """End the iteration and the cameras; one that is being opened is let go. Frames taken stay
        valid."""
        with self._change:
            self._closing = True
            self._change.notify_all()
            sources = [camera.source for camera in self._cameras]
            for camera in self._cameras:
                camera.newest = None  # its memory is the decoder's
        for source in sources:
            if source is not None:
                source.close()

    @property
    def _is_open(self) -> bool:
        return any(camera.source is not None for camera in self._cameras)

    @property
    def _has_ended(self) -> bool:
        return all(camera.ended for camera in self._cameras)

    def _take(self, camera: _Camera, index: int) -> CapturedFrame | None:
        """Its newest frame, unless that is old by now; under the lock."""
        frame, camera.newest = camera.newest, None
        if frame is None:
            return None
        if camera.address.is_camera and time.monotonic() - camera.put_at > FRESH_S:
            camera.lost += 1 + frame.dropped_before
            return None
        if camera.waits:
            self._change.notify_all()
        before, camera.lost = camera.lost + frame.dropped_before, 0
        return replace(frame, dropped_before=before, source_index=index)

    def _read(self, camera: _Camera) -> None:
        """The thread of one camera."""
        try:
            with self._open(camera.uri) as source:
                with self._change:
                    camera.source = source
                    self._change.notify_all()
                    if self._closing:
                        return
                for frame in source:
                    self._put(camera, frame)
        except Exception as error:  # whatever it is: the others go on
            camera.error = error
            if not self._closing:
                self._tell(error)
        finally:
            with self._change:
                camera.ended = True
                self._change.notify_all()

    def _put(self, camera: _Camera, frame: CapturedFrame) -> None:
        with self._change:
            if self._closing:
                return
            if camera.newest is not None:
                camera.lost += 1 + camera.newest.dropped_before
            camera.newest, camera.put_at = frame, time.monotonic()
            self._change.notify_all()
            if camera.waits:
                self._change.wait_for(lambda: camera.newest is None or self._closing)

    def _tell(self, error: Exception) -> None:
        cause = getattr(error, "cause", None)
        event = SourceEvent("failed", cause and Cause(cause), str(error))
        if self._on_event is not None:
            self._on_event(event)
        else:
            _LOG.warning(event.reason)

    def _refusal(self) -> SourceError:
        """Why no camera could be opened."""
        errors = [camera.error for camera in self._cameras if camera.error is not None]
        causes = {getattr(error, "cause", None) for error in errors}
        if len(errors) == 1:
            text = str(errors[0])
        else:
            text = f"none of {len(errors)} cameras can be opened: {'; '.join(map(str, errors))}"
        return SourceError(text, causes.pop() if len(causes) == 1 else None)


def open_sources(
    uris: Sequence[str],
    *,
    stall_s: float = 5.0,
    open_s: float = 15.0,
    transport: Transport = "tcp",
    on_event: OnEvent | None = None,
) -> Sources:
    """Open several cameras, and wait until one of them gives pictures.

        with open_sources(["rtsp://gate/stream", "rtsp://yard/stream"]) as sources:
            for frame in sources:
                print(frame.source, runtime.classify(frame.pixels).label)

    ``uris`` and the options are those of :func:`open_source`. Frames come in fair turns, each the
    newest of its camera: one that waits for its turn is replaced by the next, and counted in
    ``dropped_before``; one that has become old is left out. A camera that cannot be opened, is away
    or ends does not hold up the others. ``on_event`` is called in the cameras' threads; what keeps
    one from opening is an event ``failed``.

    Raises :class:`~dvt_edge.errors.ConfigError` at once for no URI at all, one that means nothing
    and one given twice, and :class:`~dvt_edge.errors.SourceError`, which names each, where none can
    be opened.
    """
    given = [str(uri) for uri in uris] if not isinstance(uris, str) else [uris]
    if not given:
        raise ConfigError("no source is given; expected URIs such as v4l2:///dev/video0")
    check_settings(stall_s, open_s, transport)
    twice = next((uri for at, uri in enumerate(given) if uri in given[:at]), None)
    if twice is not None:
        raise ConfigError(f"{parse(twice)} is given twice; name each camera once")
    open_it = partial(
        open_source, stall_s=stall_s, open_s=open_s, transport=transport, on_event=on_event
    )
    return Sources(given, open_it, on_event)
