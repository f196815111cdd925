"""The loop over one camera's frames: take the newest, classify it, hand the answer on."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from dvt_edge.app.figures import Figures
from dvt_edge.app.frames import Frame, OpenSource, Source
from dvt_edge.app.sinks import Note, Seen, Sink, Sinks
from dvt_edge.app.values import note_of
from dvt_edge.camera import SourceCounts
from dvt_edge.errors import FrameError
from dvt_edge.profile import ColorOrder
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.preprocess import Box

__all__ = ["CameraLoop", "Classifier", "Counts", "Note", "Seen", "Sink", "Sinks"]

QUIET_S = 2.0
"""Without a frame for so long, a camera's state says so."""


@dataclass(frozen=True)
class Counts:
    """Of one camera's frames; ``captured`` is the sum of the others."""

    captured: int = 0
    answered: int = 0
    dropped: int = 0
    """Not given to the loop: a newer one was there, or they were old or damaged."""
    failed: int = 0
    """Refused by the Runtime, or still at work when the loop was given up."""


class Classifier(Protocol):
    """What the loop needs of a :class:`~dvt_edge.runtime.runtime.Runtime`."""

    def classify(
        self,
        frame: object,
        *,
        color_order: ColorOrder | None,
        deadline_ms: float | None,
        box: Box | None,
    ) -> Prediction: ...


class CameraLoop:
    """Classifies the frames of one camera until it ends, :meth:`stop`, or ``max_frames`` taken.

    ``open_source`` opens the camera, in the thread of the loop, and is given the function that
    wants its events. Several loops may share ``runtime`` and ``sinks``. Of each frame only the
    ``box`` is classified, where there is one. A frame that the Runtime refuses is counted as
    failed; anything else that goes wrong ends the loop and is its :attr:`error`.
    """

    def __init__(
        self,
        name: str,
        open_source: OpenSource,
        runtime: Classifier,
        sinks: Sinks,
        *,
        exits: int,
        deadline_ms: float | None = None,
        max_frames: int | None = None,
        box: Box | None = None,
    ) -> None:
        self.name = name
        self.figures = Figures(exits)
        self.error: Exception | None = None
        self.broken = False
        """Whether that was the Runtime's, which concerns all cameras."""
        self.ended = threading.Event()
        """Set when nothing more comes."""
        self.ended_itself = False
        """Whether that was before :meth:`stop`."""
        self._open, self._runtime, self._sinks = open_source, runtime, sinks
        self._deadline_ms, self._max_frames, self._box = deadline_ms, max_frames, box
        self._source: Source | None = None
        self._stopping = self._given_up = False
        self._lock = threading.Lock()
        """Held while counts change."""
        self._captured = self._answered = self._dropped = self._failed = 0
        self._refusal = ""
        self._last_frame_at: float | None = None
        self._working_since: float | None = None
        self._trouble = ""
        """What the camera reported last, since the last frame."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run in a thread of its own."""
        name = f"dvt-edge {self.name}"
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the frame at work; does not wait."""
        self._stopping = True
        source = self._source
        if source is not None:
            # A camera that hangs may hang here, too.
            threading.Thread(target=source.close, name="dvt-edge closing", daemon=True).start()

    def join(self, patience_s: float) -> bool:
        """Wait for the end; returns whether it came within ``patience_s``.

        If not, the loop is given up: the frame at work counts as failed, and nothing comes of it.
        """
        ended = self.ended.wait(max(0.0, patience_s))
        with self._lock:
            self._given_up = not ended
            self._failed = self._captured - self._answered - self._dropped
        return ended

    def run(self) -> None:
        """The loop itself, in the calling thread."""
        try:
            with self._open(self._source_event) as source:
                self._source = source
                if not self._stopping:
                    self._classify_all(source)
        except Exception as error:
            if not self._stopping:  # a camera that is closed while it is waited for may complain
                self.error = error
        finally:
            self._count_rest()
            self.ended_itself = not self._stopping
            self.ended.set()

    @property
    def pictures(self) -> SourceCounts | None:
        """What became of every picture that the camera received; None for a recording."""
        found: SourceCounts | None = getattr(self._source, "counts", None)
        return found

    @property
    def counts(self) -> Counts:
        """So far; while a frame is at work, it is captured and nothing else yet."""
        with self._lock:
            return Counts(self._captured, self._answered, self._dropped, self._failed)

    @property
    def working_s(self) -> float:
        """How long the frame at work has been; 0 while a frame is waited for."""
        since = self._working_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def state(self) -> str:
        """For people."""
        if self.error is not None:
            return "failed"
        if self.ended.is_set():
            return "ended"
        if self._last_frame_at is None:
            return f"opening{self._trouble and f': {self._trouble}'}"
        quiet_s = time.monotonic() - self._last_frame_at - self.working_s
        if quiet_s >= QUIET_S or self._trouble:
            return f"no frame for {quiet_s:.0f} s{self._trouble and f': {self._trouble}'}"
        return "running"

    def _source_event(self, event: Any) -> None:
        self._trouble = str(event.reason)
        self._sinks.event(note_of(event, self.name))

    def _classify_all(self, source: Source) -> None:
        for frame in source:
            self._classify(frame)
            if self._stopping or self.enough:
                return

    @property
    def enough(self) -> bool:
        """Whether ``max_frames`` were taken."""
        return self._max_frames is not None and self._answered + self._failed >= self._max_frames

    def _classify(self, frame: Frame) -> None:
        self._count(captured=1 + frame.dropped_before, dropped=frame.dropped_before)
        self._last_frame_at = self._working_since = time.monotonic()
        self._trouble = ""
        try:
            prediction = self._runtime.classify(
                frame.pixels,
                color_order=frame.color_order,
                deadline_ms=self._deadline_ms,
                box=self._box,
            )
        except FrameError as error:
            self._count(failed=1)
            self._note_refusal(str(error))
            return
        except Exception:
            self._count(failed=1)
            self.broken = True
            raise
        finally:
            self._working_since = None
        age_ms, now = frame.age_ms, time.time()
        if not self._count(answered=1):
            return
        self.figures.note(prediction.exit_stage, prediction.latency_ms, age_ms)
        self._sinks.take(Seen(self.name, frame, prediction, age_ms, now - age_ms / 1e3))

    def _count(
        self, captured: int = 0, answered: int = 0, dropped: int = 0, failed: int = 0
    ) -> bool:
        """Nothing is counted any more, and False returned, once the loop was given up."""
        with self._lock:
            if self._given_up:
                return False
            self._captured += captured
            self._answered += answered
            self._dropped += dropped
            self._failed += failed
            return True

    def _count_rest(self) -> None:
        """What came after the last frame that was given, where the camera ended by itself."""
        pictures = self.pictures
        if pictures is not None and not self._stopping and not self.enough:
            rest = max(0, pictures.received - self._captured)
            self._count(captured=rest, dropped=rest)

    def _note_refusal(self, reason: str) -> None:
        """Once for each reason in a row: all frames of a camera tend to fail alike."""
        if reason != self._refusal:
            self._refusal = reason
            self._sinks.note("frame_failed", reason, self.name)
