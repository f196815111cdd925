"""Why a source gives no frames, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal


class Cause(str, Enum):
    """Why there is no frame. Each has one :attr:`remedy`."""

    NOT_FOUND = "not_found"
    """Nothing of that name, or nobody answers there."""
    BUSY = "busy"
    """Somebody else has it."""
    UNAUTHORISED = "unauthorised"
    """User, password or permission is wrong."""
    NO_FRAMES = "no_frames"
    """It can be opened, and no picture comes."""
    STALLED = "stalled"
    """Pictures came, and come no more."""
    UNDECODABLE = "undecodable"
    """What comes is no whole picture."""
    ENDED = "ended"
    """The file is over, or the sender hung up."""

    __str__ = str.__str__

    @property
    def remedy(self) -> str:
        """What to do, one line."""
        return _REMEDIES[self]

    @property
    def words(self) -> str:
        """For people: ``not found``."""
        return self.value.replace("_", " ")


_REMEDIES = {
    Cause.NOT_FOUND: "check the name and the cable; dvt-edge cameras lists what is attached here",
    Cause.BUSY: "close the other program that uses it (sudo fuser -v /dev/video0), or wait",
    Cause.UNAUTHORISED: "check user and password, of a device or file its permissions "
    "(sudo usermod -aG video $USER, then log in again)",
    Cause.NO_FRAMES: "check that it is switched on and sends video; give a longer open_s if it is "
    "slow to start",
    Cause.STALLED: "check network, cable and power; a longer stall_s allows for longer gaps",
    Cause.UNDECODABLE: "see whether another player shows it; cameras should send H.264, H.265 or "
    "MJPEG",
    Cause.ENDED: "open it again, or add ?loop=1 to the URI of a file",
}

EventKind = Literal[
    "disconnected", "retrying", "reconnected", "damaged", "resized", "ended", "failed"
]


@dataclass(frozen=True)
class SourceEvent:
    """What happened to a source."""

    kind: EventKind
    """``disconnected``: no frames any more, it is opened again. ``retrying``: it is still away,
    for another cause than before. ``reconnected``: frames come again. ``damaged``: pictures were
    left out because they were not whole. ``resized``: frames have another size from here on.
    ``ended``: nothing more comes. ``failed``: it was not opened, or a file not read to its end;
    only of :func:`~dvt_edge.camera.sources.open_sources`, where others go on."""
    cause: Cause | None
    """Of ``reconnected``: why it was away. None with ``resized`` and where a library is missing."""
    reason: str
    """For people, with source and remedy; holds no credentials."""


class ReadingError(Exception):
    """Why reading stopped; goes from the decoder's process to the one that wants frames."""

    def __init__(self, cause: Cause, detail: str, *, final: bool = False) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail
        self.final = final
        """Whether opening the source again cures nothing."""
