"""Annotated videos: they can be played, at the camera's pace, and show the answer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt_edge.app.annotate import AnnotatedVideo, draw_answer, video_size
from dvt_edge.errors import ConfigError
from tests.app.conftest import PlayedFrame, answer, seen
from tests.conftest import random_pixels

av = pytest.importorskip("av", reason="needs PyAV")


def _read(path: Path) -> list[tuple[float, Image.Image]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_image()) for frame in container.decode(video=0)]


def _write(path: Path, frames: list[PlayedFrame]) -> AnnotatedVideo:
    video = AnnotatedVideo(path)
    for frame in frames:
        video.take(seen(frame=frame))
    return video


def _flat(level: int, captured_at: float, shape: tuple[int, ...] = (120, 160)) -> PlayedFrame:
    return PlayedFrame(np.full(shape, level, np.uint8), captured_at=captured_at)


@pytest.mark.parametrize("ending", [".mp4", ".MP4", ".mov", ".mkv"])
def test_every_frame_at_its_time(tmp_path: Path, ending: str) -> None:
    """An uneven pace, and two frames at once."""
    times = [100.0, 100.05, 100.05, 101.0, 101.033]
    path = tmp_path / f"out{ending}"
    video = _write(path, [_flat(40 * k, at) for k, at in enumerate(times)])
    video.close()
    found = _read(path)
    np.testing.assert_allclose([at for at, _ in found], np.array(times) - 100, atol=2e-3)
    for k, (_, picture) in enumerate(found):
        assert picture.size == (480, 360)
        below = np.asarray(picture.convert("L"))[300:]
        assert abs(float(below.mean()) - 40 * k) < 4
    assert video.summary() == {"file": str(path), "frames": 5}


def test_the_answer_is_drawn() -> None:
    """In the upper left corner; long names become small, not cut off."""
    for label in ("bag", "a name that is far too long for a picture of this size " * 2):
        picture = Image.new("RGB", (640, 480), (90, 90, 90))
        draw_answer(picture, answer(label=label))
        pixels = np.asarray(picture.convert("L"))
        assert pixels[:100, :100].max() > 200
        assert (pixels[100:] == 90).all()
        assert (pixels[:, 635:] == 90).all()


def test_confidences_that_are_no_number_are_drawn_too() -> None:
    draw_answer(Image.new("RGB", (640, 480)), answer(confidence=float("nan")))


def test_other_sizes_and_layouts_are_brought_to_the_first(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    frames = [
        PlayedFrame(random_pixels(33, 47, 3), "bgr", captured_at=0.0),
        PlayedFrame(random_pixels(100, 50, 3), "rgb", captured_at=0.1),
        PlayedFrame(random_pixels(48, 32), "nv12", captured_at=0.2),
    ]
    _write(path, frames).close()
    assert {picture.size for _, picture in _read(path)} == {video_size(47, 33)}


def test_colours_are_right(tmp_path: Path) -> None:
    """Red stays red, whatever the layout."""
    red = np.zeros((200, 200, 3), np.uint8)
    red[..., 0] = 200
    path = tmp_path / "out.mkv"
    _write(
        path, [PlayedFrame(red, "rgb"), PlayedFrame(red[..., ::-1], "bgr", captured_at=1.0)]
    ).close()
    for _, picture in _read(path):
        np.testing.assert_allclose(np.asarray(picture)[-20, -20], (200, 0, 0), atol=12)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((48, 48), (480, 480)),
        ((640, 480), (640, 480)),
        ((1920, 1080), (1280, 720)),
        ((1080, 1920), (720, 1280)),
        ((641, 483), (640, 482)),
        ((3, 4000), (2, 1280)),
    ],
)
def test_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert video_size(*size) == expected


def test_what_was_written_can_be_played_after_a_kill(tmp_path: Path) -> None:
    """To the last whole fragment: the file is never closed here."""
    path = tmp_path / "out.mp4"
    video = _write(path, [_flat(k, k / 30) for k in range(150)])
    assert len(_read(path)) >= 60
    video.close()
    assert len(_read(path)) == 150


def test_another_encoder_where_there_is_no_x264(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dvt_edge.app.annotate.ENCODERS", ("no such encoder", "mpeg4"))
    _write(tmp_path / "out.mp4", [_flat(9, 0.0), _flat(9, 0.1)]).close()
    assert len(_read(tmp_path / "out.mp4")) == 2


def test_no_frame_at_all(tmp_path: Path) -> None:
    video = AnnotatedVideo(tmp_path / "out.mp4")
    video.close()
    assert video.summary()["frames"] == 0


@pytest.mark.parametrize(
    ("name", "problem"),
    [("out.gif", "ends in .mp4, .mov, .mkv"), ("out", "found ''"), ("gone/out.mp4", "cannot be")],
)
def test_files_that_cannot_be_written(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        AnnotatedVideo(tmp_path / name)


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match="--annotate needs PyAV; install with pip install"):
        AnnotatedVideo(tmp_path / "out.mp4")
