"""Frames and their answers in a folder, to be classified again.

| file | |
| --- | --- |
| `recording.json` | what was recorded, and with which bundle |
| `frames/00000000.png` ... | the pixels, without loss |
| `answers.jsonl` | one line per frame: its file, its time, and what every exit that ran answered |

A line is written after its picture: whatever ends the process, the frames that have a line are
whole.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dvt_edge.app.frames import Frame
from dvt_edge.app.jsonl import LineFile
from dvt_edge.app.sinks import MakeNote, Note, Seen
from dvt_edge.app.values import answer_values, iso_time
from dvt_edge.errors import ConfigError, DataError
from dvt_edge.policy.choose import finite_thresholds

ABOUT, ANSWERS, FRAMES = "recording.json", "answers.jsonl", "frames"
FREE_SHARE = 0.05
FREE_BYTES = 1 << 30
"""Recording stops where the disk has less left than both: a share of it, and so much."""


class Recording:
    """Writes frames and answers to ``folder``, which must be new or empty.

    It ends, and ``note`` is told once, when little of the disk is left. ``about`` is kept with it.
    Raises :class:`~dvt_edge.errors.ConfigError` for a folder that cannot be used.
    """

    def __init__(self, folder: Path, about: dict[str, Any], note: MakeNote) -> None:
        try:
            _check_empty(folder)
            (folder / FRAMES).mkdir(parents=True)
            (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be recorded to ({error.strerror}); choose another folder"
            ) from None
        self._lines = LineFile(str(folder / ANSWERS))
        self._folder, self._note = folder, note
        self._frames = 0
        self._stopped: str | None = None
        self._started: float | None = None

    def take(self, seen: Seen) -> None:
        if self._stopped is not None or self._is_full():
            return
        frame, name = seen.frame, f"{FRAMES}/{self._frames:08d}.png"
        if self._started is None:
            self._started = frame.captured_at
        picture(frame).save(self._folder / name, compress_level=1, compress_type=zlib.Z_RLE)
        values = {
            "file": name,
            "color_order": frame.color_order,
            "at_s": round(frame.captured_at - self._started, 6),
            "thresholds": finite_thresholds(seen.prediction.thresholds),
        }
        self._lines.write(values | answer_values(seen))
        self._frames += 1

    def event(self, event: Note) -> None:
        """Is not recorded."""

    def close(self) -> None:
        self._lines.close()

    def summary(self) -> dict[str, Any]:
        """What came of it."""
        return {"folder": str(self._folder), "frames": self._frames, "stopped": self._stopped}

    def _is_full(self) -> bool:
        disk = shutil.disk_usage(self._folder)
        if disk.free >= min(FREE_BYTES, FREE_SHARE * disk.total):
            return False
        self._stopped = f"only {disk.free / 2**20:.4g} MiB are left on the disk"
        self._note(
            "recording_ended",
            f"{self._folder}: recording ended after {self._frames} frames: {self._stopped}; the "
            "camera goes on",
        )
        return True


def open_recordings(
    folder: Path, abouts: Sequence[dict[str, Any]], note: MakeNote
) -> list[Recording]:
    """One for each camera: in ``folder`` where there is one, else in its folders 1, 2, ...

    Raises as :class:`Recording`.
    """
    if len(abouts) == 1:
        return [Recording(folder, abouts[0], note)]
    _check_empty(folder)
    return [Recording(folder / str(k), about, note) for k, about in enumerate(abouts, start=1)]


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty; record to a new folder")


def picture(frame: Frame) -> Image.Image:
    """All that ``frame`` holds; raises :class:`~dvt_edge.errors.DataError` for YUV layouts."""
    if frame.color_order not in ("rgb", "bgr", "gray"):
        raise DataError(f"frames of layout {frame.color_order} are not recorded, only RGB and gray")
    pixels = frame.pixels
    if pixels.ndim == 3 and frame.color_order != "rgb":
        pixels = pixels[..., ::-1]
    return Image.fromarray(np.ascontiguousarray(pixels))


def about_recording(source: str, content_hash: str) -> dict[str, Any]:
    """What :class:`Recording` keeps: the camera, the bundle, and when it began."""
    return {"source": source, "bundle": content_hash, "started": iso_time(time.time())}
