"""A recording as a camera: ``replay://folder``, as ``dvt-edge run --record folder`` left it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import Self

from dvt_edge.app.record import ANSWERS
from dvt_edge.camera import CapturedFrame, Cause
from dvt_edge.errors import ConfigError, SourceError

SCHEME = "replay://"


class Replay:
    """The frames of a recording, at the times between them that were recorded.

    Like a camera it gives the newest frame that is due and counts those that it passed over;
    ``every_frame`` gives them all, late ones too. ``fps`` sets another pace; with 0 each frame
    comes when it is asked for. A frame's ``seq`` is the recorded one; ``dropped_before`` counts
    recorded frames that were passed over now. Raises :class:`~dvt_edge.errors.SourceError` for a
    folder that is no recording, and for a frame of it that cannot be read.
    """

    def __init__(
        self, folder: Path, *, fps: float | None = None, every_frame: bool = False
    ) -> None:
        self._folder, self._fps = folder, fps
        self._every_frame = every_frame or fps == 0
        self._lines = read_answers(folder)
        self._at_s = [line["at_s"] if not fps else k / fps for k, line in enumerate(self._lines)]
        self._next = 0
        self._started: float | None = None
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[CapturedFrame]:
        return self

    def __next__(self) -> CapturedFrame:
        if self._started is None:
            self._started = time.monotonic()
        passed_over = 0
        if self._fps != 0 and self._next < len(self._lines):
            due = self._due(self._next)
            if (wait_s := due - time.monotonic()) > 0:
                self._closed.wait(wait_s)
            while not self._every_frame and self._due(self._next + 1) <= time.monotonic():
                self._next += 1
                passed_over += 1
        if self._closed.is_set() or self._next >= len(self._lines):
            raise StopIteration
        at, self._next = self._next, self._next + 1
        line = self._lines[at]
        pixels = _pixels(self._folder / line["file"])
        captured_at = time.monotonic() if self._fps == 0 else self._due(at)
        return CapturedFrame(
            pixels,
            "gray" if pixels.ndim == 2 else "bgr",
            captured_at,
            seq=line["seq"],
            dropped_before=passed_over,
        )

    def close(self) -> None:
        """No frame comes any more; whoever waits for one is let go."""
        self._closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _due(self, at: int) -> float:
        """When a frame's time has come; there is none after the last."""
        assert self._started is not None
        return self._started + self._at_s[at] if at < len(self._at_s) else float("inf")


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    """Gray [H, W], or BGR [H, W, 3]."""
    try:
        with Image.open(path) as image:
            pixels = np.array(image)
    except Exception as error:  # decoders raise whatever they like
        raise SourceError(
            f"{path}: cannot be read ({error}); record again", Cause.UNDECODABLE
        ) from None
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])


def open_replay(uri: str, *, every_frame: bool = False) -> Replay:
    """``replay://folder`` or ``replay:///from/the/root``; ``?fps=N`` sets the pace, 0 none.

    Raises :class:`~dvt_edge.errors.SourceError`, and as :func:`parse_replay`.
    """
    folder, fps = parse_replay(uri)
    return Replay(folder, fps=fps, every_frame=every_frame)


def parse_replay(uri: str) -> tuple[Path, float | None]:
    """Folder and pace; raises :class:`~dvt_edge.errors.ConfigError` for a wrong address."""
    path, _, query = uri.removeprefix(SCHEME).partition("?")
    fps: float | None = None
    for key, value in parse_qsl(query, keep_blank_values=True):
        try:
            fps = float(value)
        except ValueError:
            fps = -1.0
        if key != "fps" or not 0 <= fps <= 10_000:
            raise ConfigError(
                f"{uri}: expected replay://folder or replay://folder?fps=N with N in 0..10000, "
                f"found {key}={value}"
            )
    return Path(path), fps


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The lines of a recording, in order; raises :class:`~dvt_edge.errors.SourceError`."""
    path = folder / ANSWERS
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(
            f"{folder}: no recording ({path.name}: {reason}); make one with dvt-edge run --record",
            Cause.NOT_FOUND,
        ) from None
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            values = json.loads(line)
            float(values["at_s"]), int(values["seq"]), str(values["file"])
        except (ValueError, TypeError, KeyError) as error:
            raise SourceError(
                f"{path}:{number}: not a line of a recording ({error})", Cause.UNDECODABLE
            ) from None
        lines.append(values)
    if not lines:
        raise SourceError(f"{path}: holds no frames; record again", Cause.NO_FRAMES)
    return lines
