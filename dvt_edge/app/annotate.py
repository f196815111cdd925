"""A video of the frames with their answers drawn onto them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dvt_edge.app.jsonl import check_file
from dvt_edge.app.sinks import Note, Seen
from dvt_edge.errors import ConfigError
from dvt_edge.requirements import need
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.preprocess import to_channels

if TYPE_CHECKING:
    import av
    import av.container

ENDINGS = (".mp4", ".mov", ".mkv")
ENCODERS = ("libx264", "mpeg4")
"""In software, since some boards have no other; the first one that is there."""
LARGEST, SMALLEST = 1280, 480
"""Longest side of the video: larger pictures are reduced, and small ones enlarged until the text
fits."""
TICKS = 10_000
"""Of the video's clock, per second; mpeg4 has no more than 65,535."""
_OPTIONS = {"preset": "veryfast", "crf": "23", "tune": "zerolatency", "g": "60"}
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
"""The file can be played to the last whole fragment, about two seconds, whatever ends the
process."""


class AnnotatedVideo:
    """Writes frames and answers to a video file, each frame for as long as it was the newest.

    The encoder runs on one core, so that the stages keep theirs. The first frame sets the size;
    others are brought to it. Raises :class:`~dvt_edge.errors.ConfigError` for a file that cannot
    be written, one of another kind, and without PyAV.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in ENDINGS:
            raise ConfigError(
                f"{path}: an annotated video ends in {', '.join(ENDINGS)}, found "
                f"'{path.suffix}'; choose another name"
            )
        need("--annotate", "av")
        check_file(str(path))  # found out now, not at the first frame
        self._path = path
        self._frames = 0
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._started = 0.0
        self._last = -1

    def take(self, seen: Seen) -> None:
        rgb = to_channels(seen.frame.pixels, 3, seen.frame.color_order)
        picture = Image.fromarray(np.ascontiguousarray(rgb))
        if self._container is None:
            self._open(video_size(*picture.size), seen.frame.captured_at)
        self._write(picture, seen)

    def event(self, event: Note) -> None:
        """Is not drawn."""

    def close(self) -> None:
        if self._container is not None and self._stream is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def summary(self) -> dict[str, Any]:
        """What came of it."""
        return {"file": str(self._path), "frames": self._frames}

    def _open(self, size: tuple[int, int], started: float) -> None:
        import av

        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        container = av.open(str(self._path), "w", options=_FRAGMENTS)
        stream = container.add_stream(encoder, rate=30, options=_OPTIONS)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        stream.codec_context.thread_count = 1
        self._container, self._stream, self._started = container, stream, started

    def _write(self, picture: Image.Image, seen: Seen) -> None:
        import av

        assert self._container is not None
        assert self._stream is not None
        size = self._stream.width, self._stream.height
        enlarged = size[0] > picture.width
        how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR
        picture = picture.resize(size, how)
        draw_answer(picture, seen.prediction)
        frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
        ticks = round((seen.frame.captured_at - self._started) * TICKS)
        self._last = frame.pts = max(self._last + 1, ticks)
        frame.time_base = Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))
        self._frames += 1


def video_paths(path: Path, cameras: int) -> list[Path]:
    """One file for each camera: ``path``, or of several ``path`` with -1, -2, ... in its name."""
    if cameras == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{k}{path.suffix}") for k in range(1, cameras + 1)]


def video_size(width: int, height: int) -> tuple[int, int]:
    """Of the video of such pictures; both even, as the encoders want it."""
    longest = max(width, height)
    times = LARGEST / longest if longest > LARGEST else -(-SMALLEST // longest)
    return max(2, round(width * times) // 2 * 2), max(2, round(height * times) // 2 * 2)


def draw_answer(picture: Image.Image, answer: Prediction) -> None:
    """Label and confidence, exit and latency, in the upper left corner of an RGB picture."""
    text = (
        f"{answer.label}  {100 * answer.confidence:.1f} %\n"
        f"exit {answer.exit_stage} of {len(answer.thresholds)}  {answer.latency_ms:.2f} ms"
    )
    draw = ImageDraw.Draw(picture, "RGBA")
    size = max(12, picture.height // 18)
    font = ImageFont.load_default(size)
    right = draw.multiline_textbbox((0, 0), text, font)[2]
    if right > 0.9 * picture.width:  # a long name
        font = ImageFont.load_default(max(6, int(0.9 * size * picture.width / right)))
    edge = size // 3
    box = draw.multiline_textbbox((edge, edge), text, font)
    draw.rectangle((0, 0, box[2] + edge, box[3] + edge), (0, 0, 0, 160))
    draw.multiline_text((edge, edge), text, (255, 255, 255), font)
