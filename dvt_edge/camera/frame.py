"""What a source gives."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class CapturedFrame:
    """A picture, when it was taken, and how many before it nobody got."""

    pixels: Pixels = field(repr=False)
    """uint8 [H, W, 3], or gray [H, W]; yours to keep and to change. Its memory is that of the
    decoder's process: it is used again once no array looks at it any more."""
    color_order: Literal["bgr", "gray"]
    """Layout of the pixels, as ``Runtime.classify`` takes it."""
    captured_at: float
    """Seconds on the clock of :func:`time.monotonic`, which is the same in all processes.

    When the driver took the picture (V4L2, GStreamer), or when it came in less what the stream's
    time stamps say of a delay (RTSP), or when it came in (MJPEG); a file's pictures are taken when
    they are due, and with ``every_frame`` when they are decoded."""
    seq: int
    """Number of the picture among all that the source received, from 0, reconnects included."""
    dropped_before: int
    """Pictures received between the last frame given and this one: ``seq`` less the last frame's
    ``seq`` less 1."""
    source: str = ""
    """URI of the camera, without credentials."""
    source_index: int = 0
    """Its place among those of :func:`~dvt_edge.camera.sources.open_sources`."""

    @property
    def age_ms(self) -> float:
        """Milliseconds since it was captured, now."""
        return 1e3 * (time.monotonic() - self.captured_at)


@dataclass(frozen=True)
class SourceCounts:
    """What became of every picture received: ``received`` is the sum of all others, less those
    that wait in the decoder's process while a source is open."""

    received: int = 0
    given: int = 0
    superseded: int = 0
    """A newer one came before anybody asked."""
    late: int = 0
    """Old when it came, or when it was asked for: what waits in buffers after opening or a
    hold-up."""
    held: int = 0
    """Received before the first whole picture: streams are joined between key frames."""
    damaged: int = 0
    """Not whole, or depends on one that was not."""
    unread: int = 0
    """Received when the connection ended, and never asked for."""
    reconnects: int = 0
    """How often the source was opened again with success; no part of the sum."""
