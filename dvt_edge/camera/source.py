"""A camera, stream or file as an iterator that heals itself."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from typing_extensions import Self

from dvt_edge.camera.address import Address, parse
from dvt_edge.camera.causes import Cause, EventKind, ReadingError, SourceEvent
from dvt_edge.camera.frame import CapturedFrame, SourceCounts
from dvt_edge.camera.link import LONGEST_BACKOFF_S, Filled, Link, LostError, backoff_s
from dvt_edge.camera.plan import Transport
from dvt_edge.errors import ConfigError, SourceError

_LOG = logging.getLogger("dvt_edge.camera")
DAMAGE_EVENT_S = 1.0
"""Damaged pictures are reported at most this often; they are counted all the same."""


class Source:
    """Frames of a camera, stream or file, made by :func:`open_source`.

    An iterator and a context manager. One thread takes frames; :meth:`close`, from any thread,
    ends the iteration.
    """

    def __init__(
        self,
        address: Address,
        *,
        every_frame: bool,
        stall_s: float,
        open_s: float,
        transport: Transport,
        on_event: Callable[[SourceEvent], object] | None,
    ) -> None:
        self._address = address
        self._settings: dict[str, Any] = {
            "every_frame": every_frame,
            "stall_s": stall_s,
            # Per attempt: one that hangs leaves time for another.
            "open_s": open_s / 2 if address.is_camera else open_s,
            "transport": transport,
        }
        self._longest_open_s = self._settings["open_s"]
        self._slowest_opening_s = 0.0
        self._on_event = on_event
        self._lock = threading.RLock()
        """Held by the thread that takes a frame."""
        self._closing = threading.Event()
        self._link: Link | None = None
        self._guard = weakref.finalize(self, lambda: None)
        """Ends the process of a source that is dropped without being closed."""
        self._past = SourceCounts()
        """Of processes that have ended."""
        self._away: Cause | None = None
        """Why the source is opened again, or was last."""
        self._attempts = 0
        """How often, since it last stayed."""
        self._connected_at = 0.0
        self._last_seq = -1
        self._shape: tuple[int, ...] | None = None
        self._damage = ("", 0, -math.inf)
        """What was wrong last, how many were counted, when that was reported."""
        self._open(time.monotonic() + open_s)

    @property
    def uri(self) -> str:
        """Without credentials."""
        return str(self._address)

    @property
    def counts(self) -> SourceCounts:
        """What has become of every picture so far."""
        link = self._link
        return self._past if link is None else _sum(self._past, link.counts())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> CapturedFrame:
        """The newest frame, or with ``every_frame`` the next; waits for it, and where the source is
        away until it is back.

        Raises :class:`StopIteration` at the end of a file and after :meth:`close`, and
        :class:`~dvt_edge.errors.SourceError` where a file cannot be read to its end.
        """
        with self._lock:
            while not self._closing.is_set():
                try:
                    if self._link is None:
                        self._heal()
                        continue
                    return self._frame(self._link.next())
                except ReadingError as failure:
                    if self._closing.is_set():
                        break
                    self._lost(failure)
            self._drop()
            raise StopIteration

    def close(self) -> None:
        """End the iteration and the decoder's process. Frames taken stay valid."""
        self._closing.set()
        link = self._link
        if link is not None:
            link.kill()  # who waits for it holds the lock
        with self._lock:
            self._drop()

    def _open(self, until: float) -> None:
        """Until there is a whole picture. What may heal is tried until ``until``."""
        attempt = 0
        while True:
            try:
                self._connect()
                return
            except ReadingError as failure:
                self._drop()
                attempt += 1
                pause_s = backoff_s(attempt, random.random())
                if self._is_hopeless(failure) or time.monotonic() + pause_s >= until:
                    raise SourceError(self._reason(failure), failure.cause) from None
                if failure.cause is not self._away:
                    self._away = failure.cause
                    self._tell("retrying", failure.cause, self._reason(failure))
                time.sleep(pause_s)
            except BaseException:
                self._drop()
                raise

    def _is_hopeless(self, failure: ReadingError) -> bool:
        """Whether a source that was never open will not open later, as far as can be told."""
        cause, kind = failure.cause, self._address.kind
        return (
            failure.final
            or not self._address.is_camera
            or cause is Cause.UNAUTHORISED
            or (cause is Cause.NOT_FOUND and kind not in ("rtsp", "http"))
        )

    def _connect(self) -> None:
        past, began = self._past.received, time.monotonic()
        self._link = link = Link(self._address, base=past, **self._settings)
        self._guard.detach()
        self._guard = weakref.finalize(self, link.close)
        self._damage = (self._damage[0], 0, self._damage[2])
        if self._closing.is_set():
            link.kill()
        link.wait_opened()
        self._connected_at = time.monotonic()
        # What opened soon will do so again: an attempt that hangs is no reason to wait long. But a
        # quick opening may be luck: the next key frame may be further away.
        self._slowest_opening_s = max(self._slowest_opening_s, self._connected_at - began)
        soon_s = max(self._settings["stall_s"], 3 * self._slowest_opening_s)
        self._settings["open_s"] = min(self._longest_open_s, soon_s)

    def _heal(self) -> None:
        """Open again until that succeeds or the source is closed."""
        away = self._away
        if time.monotonic() - self._connected_at > LONGEST_BACKOFF_S:
            self._attempts = 0  # else it comes and goes: that is no reason to be hasty
        while not self._closing.wait(backoff_s(self._attempts, random.random())):
            self._attempts += 1
            try:
                self._connect()
            except ReadingError as failure:
                self._drop()
                patience_s = 2 * self._settings["open_s"]
                self._settings["open_s"] = min(self._longest_open_s, patience_s)
                if failure.cause is not self._away and not self._closing.is_set():
                    self._away = failure.cause
                    self._tell("retrying", failure.cause, self._reason(failure))
            else:
                self._past = replace(self._past, reconnects=self._past.reconnects + 1)
                self._tell("reconnected", away, f"{self.uri}: frames come again")
                return

    def _lost(self, failure: ReadingError) -> None:
        """What follows from the end of the process."""
        damaged = self._counted("damaged")
        if isinstance(failure, LostError):
            self._tell_damage(failure.damage, damaged, at_once=True)
        self._drop()
        if self._address.is_camera and not failure.final:
            self._away = failure.cause
            self._tell("disconnected", failure.cause, self._reason(failure))
            return
        self._closing.set()
        if failure.cause is not Cause.ENDED:
            raise SourceError(self._reason(failure), failure.cause) from None
        self._tell("ended", failure.cause, f"{self.uri}: {failure.detail}")

    def _frame(self, filled: Filled) -> CapturedFrame:
        before = filled.seq - self._last_seq - 1
        self._last_seq = filled.seq
        pixels = filled.pixels
        self._tell_damage(filled.damage, self._counted("damaged"))
        if self._shape not in (None, pixels.shape):
            height, width = pixels.shape[:2]
            self._tell("resized", None, f"{self.uri}: frames are {width}x{height} from here on")
        self._shape = pixels.shape
        order: Literal["gray", "bgr"] = "gray" if pixels.ndim == 2 else "bgr"
        return CapturedFrame(pixels, order, filled.captured_at, filled.seq, before, self.uri)

    def _counted(self, what: str) -> int:
        return 0 if self._link is None else self._link.counts()[what]

    def _tell_damage(self, what: str, counted: int, at_once: bool = False) -> None:
        """Once a second at most: what was left out since the last time."""
        last, told, told_at = self._damage
        what, now = what or last, time.monotonic()
        self._damage = (what, told, told_at)
        if counted > told and what and (at_once or now - told_at >= DAMAGE_EVENT_S):
            self._damage = ("", counted, now)
            number = "a picture was" if counted - told == 1 else f"{counted - told} pictures were"
            self._tell("damaged", Cause.UNDECODABLE, f"{self.uri}: {number} left out: {what}")

    def _drop(self) -> None:
        """Give the process back, and keep what it counted."""
        link, self._link = self._link, None
        if link is None:
            return
        link.close()
        self._guard.detach()
        counts = link.counts()
        known = sum(counts.values()) - counts["received"]
        self._past = _sum(self._past, counts | {"unread": max(0, counts["received"] - known)})

    def _reason(self, failure: ReadingError) -> str:
        return (
            f"{self.uri}: {failure.cause.words}: {failure.detail.strip().rstrip('.')}; "
            f"{failure.cause.remedy}"
        )

    def _tell(self, kind: EventKind, cause: Cause | None, reason: str) -> None:
        event = SourceEvent(kind, cause, reason)
        if self._on_event is not None:
            self._on_event(event)
        elif kind in ("disconnected", "retrying", "damaged"):
            _LOG.warning(reason)
        else:
            _LOG.info(reason)


def _sum(counts: SourceCounts, more: dict[str, int]) -> SourceCounts:
    return replace(counts, **{name: getattr(counts, name) + more[name] for name in more})


def check_settings(stall_s: float, open_s: float, transport: str) -> None:
    """Raises :class:`~dvt_edge.errors.ConfigError` for values that mean nothing."""
    for name, seconds in (("stall_s", stall_s), ("open_s", open_s)):
        if not 0 < seconds < math.inf:
            raise ConfigError(f"{name} is a positive number of seconds, found {seconds}")
    if transport not in ("tcp", "udp"):
        raise ConfigError(f"transport is tcp or udp, found {transport!r}")


def open_source(
    uri: str,
    *,
    every_frame: bool = False,
    stall_s: float = 5.0,
    open_s: float = 15.0,
    transport: Transport = "tcp",
    on_event: Callable[[SourceEvent], object] | None = None,
) -> Source:
    """Open a camera, stream or file, and wait for its first picture.

    ``uri`` is ``v4l2:///dev/video0`` (or ``0``), ``csi://0``, ``rtsp://user:${PASSWORD}@host/path``,
    ``http://host/stream.mjpg``, ``file:///clip.mp4`` (or a path), ``images:///folder``,
    ``gst://PIPELINE`` or ``test://``.

    The newest frame is given, and those that nobody took in time are counted. With ``every_frame``
    a file, folder or ``test://`` waits instead, and none is left out. Where a camera gives no frame
    for ``stall_s`` seconds, or fails otherwise, its process is killed and another opens it again;
    ``on_event`` hears of it in the thread that takes frames, and without it the logger
    ``dvt_edge.camera`` does.

    Raises :class:`~dvt_edge.errors.SourceError` with its cause: at once if waiting cures nothing,
    else after ``open_s`` seconds. Raises :class:`~dvt_edge.errors.ConfigError` for a URI that means
    nothing. ``transport`` is that of RTSP.
    """
    from dvt_edge.camera.readers import LIBRARIES, MODULES
    from dvt_edge.requirements import need

    check_settings(stall_s, open_s, transport)
    address = parse(str(uri))
    if every_frame and address.kind not in ("file", "images", "test"):
        raise ConfigError(
            f"{address}: every_frame is for files, images:// and test://; a camera does not wait"
        )
    if (library := LIBRARIES.get(MODULES[address.kind])) is not None:
        need(f"{address.kind}://", library, error=SourceError)
    return Source(
        address,
        every_frame=every_frame,
        stall_s=stall_s,
        open_s=open_s,
        transport=transport,
        on_event=on_event,
    )
