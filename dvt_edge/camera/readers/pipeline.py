"""CSI cameras and GStreamer pipelines, through PyGObject. Jetson's decoder is one of its elements.

A pipeline ends in pictures; what makes BGR or gray of them and hands them over is added here.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

from dvt_edge.camera.causes import Cause, ReadingError
from dvt_edge.camera.frame import Pixels
from dvt_edge.camera.mailbox import Mailbox
from dvt_edge.camera.plan import Plan
from dvt_edge.camera.readers.descriptions import SINK, description

PULL_S = 0.2


def read(plan: Plan, mailbox: Mailbox) -> None:
    """Until the pipeline ends or reports an error."""
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstApp", "1.0")
    from gi.repository import GLib, Gst, GstApp  # noqa: F401 (GstApp gives the sink its methods)

    Gst.init(None)
    try:
        pipeline = Gst.parse_launch(f"{description(plan.address)} ! {SINK}")
    except GLib.Error as error:
        absent = error.matches(Gst.ParseError.quark(), Gst.ParseError.NO_SUCH_ELEMENT)
        cause = Cause.NOT_FOUND if absent else Cause.UNDECODABLE
        detail = f"the pipeline cannot be built: {error.message}"
        raise ReadingError(cause, detail, final=True) from None
    try:
        change = pipeline.set_state(Gst.State.PAUSED)
        live = change == Gst.StateChangeReturn.NO_PREROLL
        # What is no camera waits for nobody: it is played at the pace that it was recorded at.
        pipeline.get_by_name("dvt-edge").set_property("sync", not live)
        if (
            change == Gst.StateChangeReturn.FAILURE
            or pipeline.set_state(Gst.State.PLAYING) == Gst.StateChangeReturn.FAILURE
        ):
            raise _failure(Gst, pipeline) or ReadingError(
                Cause.NOT_FOUND, "the pipeline does not start"
            )
        _pull(Gst, pipeline, mailbox)
        raise ReadingError(Cause.ENDED, "the pipeline has ended", final=not live)
    finally:
        pipeline.set_state(Gst.State.NULL)


def _pull(gst: Any, pipeline: Any, mailbox: Mailbox) -> None:
    sink = pipeline.get_by_name("dvt-edge")
    while True:
        sample = sink.try_pull_sample(int(PULL_S * gst.SECOND))
        if sample is None:
            failure = _failure(gst, pipeline)
            if failure is not None:
                raise failure
            if sink.is_eos():
                return
            continue
        buffer = sample.get_buffer()
        if buffer.has_flags(gst.BufferFlags.CORRUPTED):
            mailbox.lose("damaged", "a picture is marked as damaged")
            continue
        mailbox.put(partial(_pixels, gst, sample), _captured_at(gst, pipeline, buffer))


def _captured_at(gst: Any, pipeline: Any, buffer: Any) -> float:
    """Live sources stamp pictures when they are taken, with the kernel's monotonic clock."""
    now = time.monotonic()
    if buffer.pts == gst.CLOCK_TIME_NONE:
        return now
    taken = (buffer.pts + pipeline.get_base_time()) / gst.SECOND
    return taken if 0 <= now - taken < 5 else now


def _pixels(gst: Any, sample: Any) -> Pixels:
    """[H, W, 3] BGR or [H, W] gray; GStreamer pads rows to four bytes."""
    form = sample.get_caps().get_structure(0)
    width, height = form.get_value("width"), form.get_value("height")
    channels = 1 if form.get_value("format") == "GRAY8" else 3
    buffer = sample.get_buffer()
    line = -(-width * channels // 4) * 4
    rows: Pixels = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8)
    pixels = rows[: line * height].reshape(height, line)[:, : width * channels]
    return pixels if channels == 1 else pixels.reshape(height, width, 3)


def _failure(gst: Any, pipeline: Any) -> ReadingError | None:
    """What the pipeline reports, if it does."""
    message = pipeline.get_bus().pop_filtered(gst.MessageType.ERROR)
    if message is None:
        return None
    error, _ = message.parse_error()
    codes = gst.ResourceError
    causes = {
        codes.NOT_FOUND: Cause.NOT_FOUND,
        codes.OPEN_READ: Cause.NOT_FOUND,
        codes.BUSY: Cause.BUSY,
        codes.NOT_AUTHORIZED: Cause.UNAUTHORISED,
    }
    for code, cause in causes.items():
        if error.matches(gst.ResourceError.quark(), code):
            return ReadingError(cause, error.message)
    if error.matches(gst.StreamError.quark(), gst.StreamError.FAILED):
        return ReadingError(Cause.NO_FRAMES, error.message)
    return ReadingError(Cause.UNDECODABLE, error.message)
