"""MJPEG over HTTP: the connection is ours, so that it can be told when a picture began to come.

MJPEG has no time stamps. But while the network keeps up there is a pause before each picture, and
then nothing old lies in a buffer; where pictures follow each other without one, they get older.
"""

from __future__ import annotations

import socket
import ssl
import time
import urllib.error
import urllib.request
from collections import deque
from http.client import HTTPException
from statistics import median
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from dvt_edge.camera.causes import Cause, ReadingError

PAUSE_S = 0.002
"""A shorter wait before a picture is no pause."""
HEAD_BYTES = 2048
"""What of a picture may come before the pause: the end of the last one's part, and a header."""
LONG = 2.0
"""A pause of more than so many usual ones may be a hold-up of the network."""
UNKNOWN_S = 1 / 30
"""Time between pictures before any pause has shown it."""
_STATUS = {
    401: (Cause.UNAUTHORISED, "user or password is refused (401)"),
    403: (Cause.UNAUTHORISED, "access is refused (403)"),
    404: (Cause.NOT_FOUND, "there is no such stream (404)"),
    429: (Cause.BUSY, "too many viewers (429)"),
}


class Multipart:
    """What PyAV reads an MJPEG stream from; :meth:`open` gives None where it is another stream."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._began = time.monotonic()
        """When the picture at hand began to come."""
        self._bytes = 0
        """So much of it has come."""
        self._first_wait = self._later_wait = 0.0
        """The longest before it began to come, and since."""
        self._last_captured = self._last_began = -1.0
        self._steps: deque[float] = deque(maxlen=15)
        """Times between pictures that came after a pause, in seconds."""

    @classmethod
    def open(cls, url: str, open_s: float, read_s: float) -> Multipart | None:
        """Raises :class:`ReadingError`."""
        response = _request(url, open_s)
        if not response.headers.get_content_type().startswith("multipart/"):
            response.close()
            return None
        # Python has no way to change the time-out of a response.
        connection = getattr(getattr(response.fp, "raw", None), "_sock", None)
        if connection is not None:
            connection.settimeout(read_s)
        return cls(response)

    def read(self, size: int) -> bytes:
        """What is there, at most ``size`` bytes; called by PyAV."""
        asked = time.monotonic()
        try:
            data: bytes = self._response.read1(size)
        except TimeoutError:
            raise ReadingError(Cause.STALLED, "nothing comes any more") from None
        except (OSError, HTTPException):
            raise ReadingError(Cause.ENDED, "the connection was cut") from None
        now = time.monotonic()
        if self._bytes > HEAD_BYTES:
            self._later_wait = max(self._later_wait, now - asked)
        elif now - asked > self._first_wait:
            self._first_wait, self._began = now - asked, now
        self._bytes += len(data)
        return data

    def captured_at(self) -> float:
        """Of the picture that is now complete; to be asked once for each.

        When it began to come, if there was the usual pause before. After a longer one it may have
        waited somewhere all the while. Without a pause it is at least as long after the last as
        pictures are apart: a sender that puts all of them into a buffer sends them that old.
        """
        began, step = self._began, self._began - self._last_began
        usual_s = median(self._steps) if self._steps else UNKNOWN_S
        if self._last_began < 0:
            captured_at = began
        elif self._first_wait > max(PAUSE_S, 2 * self._later_wait):
            late_s = step - usual_s if self._steps and step > LONG * usual_s else 0.0
            captured_at = began - late_s
            self._steps.append(step)
        else:
            captured_at = min(began, self._last_captured + usual_s)
        self._last_began, self._last_captured = began, captured_at
        self._bytes, self._first_wait, self._later_wait = 0, 0.0, 0.0
        return captured_at

    def close(self) -> None:
        self._response.close()


def _request(url: str, open_s: float) -> Any:
    parts = urlsplit(url)
    place = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if parts.username is not None:
        known = urllib.request.HTTPPasswordMgrWithPriorAuth()
        name, password = unquote(parts.username), unquote(parts.password or "")
        known.add_password(None, place, name, password)
        handlers.append(urllib.request.HTTPBasicAuthHandler(known))
        handlers.append(urllib.request.HTTPDigestAuthHandler(known))
    try:
        return urllib.request.build_opener(*handlers).open(place, timeout=open_s)
    except urllib.error.HTTPError as error:
        kind = Cause.BUSY if error.code >= 500 else Cause.NOT_FOUND
        fallback = (kind, f"the server answers {error.code}")
        raise ReadingError(*_STATUS.get(error.code, fallback)) from None
    except urllib.error.URLError as error:
        raise _unreachable(error.reason) from None
    except (OSError, HTTPException, ValueError) as error:
        raise _unreachable(error) from None


def _unreachable(reason: object) -> ReadingError:
    if isinstance(reason, TimeoutError):
        return ReadingError(Cause.NO_FRAMES, "no answer in time")
    if isinstance(reason, ConnectionRefusedError):
        return ReadingError(Cause.NOT_FOUND, "nobody listens there")
    if isinstance(reason, socket.gaierror):
        return ReadingError(Cause.NOT_FOUND, "no host has that name")
    if isinstance(reason, ssl.SSLError):
        return ReadingError(Cause.UNAUTHORISED, f"the connection is not safe ({reason.reason})")
    if isinstance(reason, ConnectionError | HTTPException):
        return ReadingError(Cause.ENDED, "the connection was cut")
    words = getattr(reason, "strerror", None) or type(reason).__name__
    return ReadingError(Cause.NOT_FOUND, f"the host cannot be reached ({words})")
