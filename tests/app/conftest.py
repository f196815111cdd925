"""A camera and a Runtime that a test plays, and frames and answers of any kind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from typing_extensions import Self

from dvt_edge.app.frames import OnSourceEvent
from dvt_edge.app.loop import Note, Seen
from dvt_edge.app.record import ANSWERS
from dvt_edge.errors import FrameError
from dvt_edge.profile import ColorOrder
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.runtime import Runtime
from tests.conftest import random_pixels


@dataclass(frozen=True)
class PlayedFrame:
    """What a camera gives; its age is what a test says."""

    pixels: npt.NDArray[np.uint8] = field(default_factory=lambda: random_pixels(24, 32))
    color_order: ColorOrder = "gray"
    captured_at: float = 0.0
    seq: int = 0
    dropped_before: int = 0
    age_ms: float = 5.0


class PlayedCamera:
    """Gives ``frames``, raises those that are errors, and then ends, or waits until it is closed.

    ``open`` is what a loop opens it with.
    """

    def __init__(self, frames: Sequence[PlayedFrame | Exception], *, ends: bool = True) -> None:
        self._frames, self._ends = frames, ends
        self._closed = threading.Event()
        self.report: OnSourceEvent = lambda event: None
        self.waited_for = threading.Event()
        """Set once all frames were given."""

    def open(self, on_event: OnSourceEvent) -> Self:
        self.report = on_event
        return self

    def __iter__(self) -> Iterator[PlayedFrame]:
        for frame in self._frames:
            if isinstance(frame, Exception):
                raise frame
            yield frame
        self.waited_for.set()
        if not self._ends:
            self._closed.wait()

    def close(self) -> None:
        self._closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def answer(**changes: Any) -> Prediction:
    """One of a cascade of three exits, left at the second."""
    values: dict[str, Any] = {
        "class_id": 1,
        "label": "bag",
        "confidence": 0.9,
        "exit_stage": 2,
        "latency_ms": 2.0,
        "preprocess_ms": 0.5,
        "stage_latency_ms": (0.5, 1.0),
        "thresholds": (0.8, 0.8, -float("inf")),
        "confidences": (0.4, 0.9),
        "classes": (0, 1),
    }
    return Prediction(**(values | changes))


class PlayedRuntime:
    """Answers with :func:`answer`; refuses frames that are not flat."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.boxes: list[object] = []
        """Of every frame."""
        self.working = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def classify(
        self,
        frame: object,
        *,
        color_order: ColorOrder | None,
        deadline_ms: float | None,
        box: object,
    ) -> Prediction:
        self.boxes.append(box)
        self.working.set()
        self.go_on.wait(10)
        if self.error is not None:
            raise self.error
        assert isinstance(frame, np.ndarray)
        if frame.ndim != 2:
            raise FrameError(f"a frame of {frame.ndim} dimensions")
        return answer()


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.events: list[Note] = []
        self.closed = 0

    def take(self, seen: Seen) -> None:
        self.seen.append(seen)

    def event(self, event: Note) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def seen(seq: int = 0, *, frame: PlayedFrame | None = None, **changes: Any) -> Seen:
    """A frame and its answer; keywords replace fields of the answer."""
    frame = frame or PlayedFrame(seq=seq, captured_at=seq / 30)
    return Seen("camera", frame, answer(**changes), 5.0, 1e9 + seq)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Fail unless ``condition`` comes true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not come true"
        time.sleep(0.005)


@pytest.fixture
def notes() -> list[tuple[str, str]]:
    """Kinds and reasons; ``lambda *note: notes.append(note)`` fills it."""
    return []


@pytest.fixture(scope="session")
def runtime(costed_bundle: Path) -> Iterator[Runtime]:
    """Of the demo; nothing may be set there."""
    with Runtime(costed_bundle) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def scenes(samples: Path) -> list[npt.NDArray[np.uint8]]:
    """Two of each class."""
    folders = sorted((samples / "demo" / "scenes" / "test").iterdir())
    paths = [path for folder in folders for path in sorted(folder.iterdir())[:2]]
    return [np.asarray(Image.open(path)) for path in paths]


def write_recording(
    folder: Path, samples: Path, count: int, fps: float = 0.0, *, bad: tuple[int, ...] = ()
) -> str:
    """The URI of a recording of ``count`` test scenes, with frames of the wrong kind at the places
    ``bad``; without ``fps``, frames come as they are asked for."""
    scenes = sorted((samples / "demo" / "scenes" / "test").glob("*/0000*.png"))
    folder.mkdir()
    Image.fromarray(random_pixels(8, 8, 4)).save(folder / "bad.png")
    lines = [
        {
            "file": "bad.png" if k in bad else str(scenes[k % len(scenes)]),
            "seq": k,
            "at_s": k / fps if fps else 0.0,
        }
        for k in range(count)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / ANSWERS).write_text(text, encoding="utf-8")
    return f"replay://{folder}{'' if fps else '?fps=0'}"


def objects(text: str) -> list[dict[str, Any]]:
    """JSON lines, all of them whole."""
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def check_sum(summary: dict[str, Any]) -> None:
    """Every frame is counted once."""
    parts = [summary[name] for name in ("answered", "dropped", "failed")]
    assert summary["captured"] == sum(parts)
