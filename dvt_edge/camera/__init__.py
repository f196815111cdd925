"""Cameras, streams and files as frames: the newest one, how old it is, and how many were left out.

    with open_source("rtsp://user:${PASSWORD}@host/stream") as source:
        for frame in source:
            runtime.classify(frame.pixels, color_order=frame.color_order)

:func:`open_sources` gives those of several cameras in turn. No old frame is given as new, and every
frame is accounted for. Neither PyAV nor GStreamer is imported here: they run in a process of their
own.
"""

from __future__ import annotations

from dvt_edge.camera.address import redacted
from dvt_edge.camera.causes import Cause, SourceEvent
from dvt_edge.camera.elements import missing_elements, needed_library
from dvt_edge.camera.frame import CapturedFrame, SourceCounts
from dvt_edge.camera.source import Source, open_source
from dvt_edge.camera.sources import Sources, open_sources

__all__ = [
    "CapturedFrame",
    "Cause",
    "Source",
    "SourceCounts",
    "SourceEvent",
    "Sources",
    "missing_elements",
    "needed_library",
    "open_source",
    "open_sources",
    "redacted",
]
