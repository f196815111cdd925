"""Files, folders and ``test://``: every kind of pixels, and what is no picture."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt_edge.camera import CapturedFrame, Cause, open_source
from dvt_edge.camera.readers import scenes
from dvt_edge.camera.stamp import read_stamp
from dvt_edge.errors import ConfigError, SourceError
from tests.camera.clips import (
    RGB,
    Events,
    check_accounts,
    check_closed_accounts,
    damage_packet,
    nothing_left,
    numbers,
    take_until,
    write_clip,
    write_sound,
)

pytest.importorskip("av")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "gray"),
    [
        ("plain.mp4", "libx264", "yuv420p", False),
        ("reordered.mp4", "libx264", "yuv422p", False),
        ("old.mkv", "mpeg4", "yuv420p", False),
        ("jpegs.avi", "mjpeg", "yuvj420p", False),
        ("ten-bits.mkv", "libx264", "yuv420p10le", False),
        ("alpha.mov", "png", "rgba", False),
        ("gray.mkv", "ffv1", "gray", True),
        ("gray16.mkv", "ffv1", "gray16le", True),
        ("rgb.mkv", "ffv1", "bgr0", False),
    ],
)
def test_every_frame_of_a_file(
    clips: Path, name: str, codec: str, pixel_format: str, gray: bool
) -> None:
    """In order, none left out, in the right colour; then it ends."""
    events = Events()
    path = write_clip(clips / name, codec, pixel_format)
    with open_source(str(path), every_frame=True, on_event=events) as source:
        frames = list(source)
    assert numbers(frames) == list(range(20))
    assert [frame.seq for frame in frames] == list(range(20))
    check_accounts(frames)
    check_closed_accounts(source)
    assert [event.kind for event in events] == ["ended"]
    frame = frames[-1]
    assert frame.color_order == ("gray" if gray else "bgr")
    assert frame.pixels.dtype == np.uint8
    colour = frame.pixels[120, 160]
    luma = np.dot(RGB, (0.299, 0.587, 0.114))
    np.testing.assert_allclose(colour, luma if gray else RGB[::-1], atol=4)


def test_odd_sizes(clips: Path) -> None:
    path = write_clip(clips / "odd.mkv", "ffv1", "bgr0", size=(33, 17))
    with open_source(str(path), every_frame=True) as source:
        frame = next(source)
    assert frame.pixels.shape == (17, 33, 3)
    np.testing.assert_allclose(frame.pixels[8, 16], RGB[::-1], atol=2)


def test_a_file_plays_like_a_camera(clips: Path) -> None:
    """At its own pace; who is slow gets the newest, and knows how many were left out."""
    path = write_clip(clips / "paced.mp4", frames=30)
    started = time.monotonic()
    with open_source(f"file://{path}") as source:
        frames = []
        for frame in source:
            assert frame.age_ms >= 0
            frames.append(frame)
            time.sleep(0.15)
    assert time.monotonic() - started > 0.9
    check_accounts(frames)
    assert [frame.seq for frame in frames] == numbers(frames)
    assert source.counts.superseded + source.counts.late + source.counts.unread > 10
    check_closed_accounts(source)


def test_a_file_that_loops(clips: Path) -> None:
    path = write_clip(clips / "short.mp4", frames=4)
    with open_source(f"{path}?loop=1", every_frame=True) as source:
        frames = take_until(source, lambda frame: frame.seq == 9)
    assert numbers(frames) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_sound_is_no_matter(clips: Path) -> None:
    path = write_clip(clips / "sound.mp4", audio=True)
    with open_source(str(path), every_frame=True) as source:
        assert len(list(source)) == 20


def spoilt(clips: Path, kind: str) -> Path:
    path = clips / f"{kind}.mkv"
    if kind == "sound only":
        return write_sound(clips / "sound only.mp4")
    if kind == "no video":
        path.write_text("this is a text\n" * 1000)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "without its index":
        whole = write_clip(clips / "whole.mp4").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "cause", "words"),
    [
        ("absent", Cause.NOT_FOUND, "no such file"),
        ("sound only", Cause.UNDECODABLE, "holds no video, only audio"),
        ("no video", Cause.UNDECODABLE, "no video that FFmpeg knows"),
        ("empty", Cause.UNDECODABLE, ""),
        ("without its index", Cause.UNDECODABLE, "no video that FFmpeg knows"),
    ],
)
def test_what_is_no_video(clips: Path, kind: str, cause: Cause, words: str) -> None:
    """Is said at once, with the cause and one remedy, and leaves nothing behind."""
    path = spoilt(clips, kind)
    with nothing_left(), pytest.raises(SourceError) as caught:
        open_source(str(path))
    assert caught.value.cause is cause
    assert words in str(caught.value)
    assert cause.remedy in str(caught.value)


def test_a_file_that_is_cut_off(clips: Path) -> None:
    """What is whole is given, then it ends."""
    whole = write_clip(clips / "long.mkv", frames=60, options={"bf": "0"}).read_bytes()
    path = clips / "cut.mkv"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with open_source(str(path), every_frame=True) as source:
        frames = list(source)
    assert 20 < len(frames) < 60
    assert numbers(frames) == list(range(len(frames)))
    check_closed_accounts(source)


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_damage_is_counted_and_passed_over(clips: Path, codec: str) -> None:
    """H.264 up to the next key frame, for the pictures in between are built on the damaged one."""
    events = Events()
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    options = {"g": "10", "bf": "0"}
    good = write_clip(clips / f"good-{codec}.mkv", codec, pixel_format, frames=40, options=options)
    bad = damage_packet(good, clips / f"bad-{codec}.mkv", 13)
    with open_source(str(bad), every_frame=True, on_event=events) as source:
        frames = list(source)
    lost = [13] if codec == "mjpeg" else list(range(13, 20))
    assert sorted(set(range(40)) - set(numbers(frames))) == lost
    assert [frame.seq for frame in frames] == numbers(frames)
    assert source.counts.damaged + source.counts.held == len(lost)
    check_accounts(frames)
    check_closed_accounts(source)
    assert events.causes("damaged") == [Cause.UNDECODABLE]


class TestImages:
    def test_in_order_and_as_they_are(self, tmp_path: Path) -> None:
        Image.new("RGB", (20, 10), RGB).save(tmp_path / "a.png")
        Image.new("L", (7, 9), 77).save(tmp_path / "b.png")
        Image.new("RGBA", (5, 5), (*RGB, 128)).save(tmp_path / "c.png")
        Image.new("P", (3, 3)).save(tmp_path / "d.png")
        events = Events()
        with open_source(f"images://{tmp_path}", on_event=events) as source:
            frames = list(source)
        shapes = [frame.pixels.shape for frame in frames]
        assert shapes == [(10, 20, 3), (9, 7), (5, 5, 3), (3, 3, 3)]
        assert [frame.color_order for frame in frames] == ["bgr", "gray", "bgr", "bgr"]
        assert frames[0].pixels[0, 0].tolist() == list(RGB[::-1])
        assert frames[2].pixels[0, 0].tolist() == list(RGB[::-1])
        assert [event.kind for event in events] == ["resized"] * 3 + ["ended"]

    def test_what_cannot_be_read_is_left_out(self, tmp_path: Path) -> None:
        for name in "ace":
            Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
        (tmp_path / "b.png").write_text("no image")
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "d.png")
        events = Events()
        with open_source(str(tmp_path), on_event=events) as source:
            frames = list(source)
        assert [frame.dropped_before for frame in frames] == [0, 1, 1]
        assert source.counts.damaged == 2
        said = " ".join(event.reason for event in events if event.kind == "damaged")
        assert "b.png: not a readable image" in said or "d.png: not a readable image" in said

    def test_at_a_pace(self, tmp_path: Path) -> None:
        for name in "abcdef":
            Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
        started = time.monotonic()
        with open_source(f"images://{tmp_path}?fps=20&loop=1") as source:
            frames = take_until(source, lambda frame: frame.seq >= 10)
        assert time.monotonic() - started > 0.45
        check_accounts(frames)

    @pytest.mark.parametrize(
        ("names", "cause"), [((), Cause.NO_FRAMES), (("x.png",), Cause.UNDECODABLE)]
    )
    def test_none(self, tmp_path: Path, names: tuple[str, ...], cause: Cause) -> None:
        for name in names:
            (tmp_path / name).write_text("no image")
        with pytest.raises(SourceError) as caught:
            open_source(str(tmp_path))
        assert caught.value.cause is cause


class TestScenes:
    def test_the_demo_moves(self) -> None:
        with open_source("test://", every_frame=True) as source:
            frames = [next(source) for _ in range(8)]
        assert {frame.pixels.shape for frame in frames} == {(480, 640)}
        assert (frames[0].pixels != frames[7].pixels).any()
        assert frames[0].color_order == "gray"

    def test_a_folder(self, tmp_path: Path) -> None:
        Image.new("RGB", (40, 30), RGB).save(tmp_path / "a.png")
        uri = f"test://{tmp_path}?size=101x51&fps=50"
        with open_source(uri) as source:
            frame = next(source)
        assert frame.pixels.shape == (51, 101, 3)
        assert frame.pixels[20, 20].tolist() == list(RGB[::-1])

    def test_without_the_repository(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Shapes are drawn."""
        monkeypatch.setattr(scenes, "_DEMO", tmp_path / "absent")
        pictures = scenes._pictures("", 160, 120, 30.0)
        first = next(pictures)
        assert first.shape == (120, 160, 3)
        assert first.std() > 10
        assert any((next(pictures) != first).any() for _ in range(20))

    def test_live(self) -> None:
        """Ages are true: as old as the stamp in the picture says, and never old."""
        with open_source("test://?fps=60&size=320x240&stamp=1") as source:
            frames: list[CapturedFrame] = []
            oldest_ms = 0.0
            for frame in source:
                stamp = read_stamp(frame.pixels)
                assert stamp is not None
                oldest_ms = max(oldest_ms, 1e3 * (time.monotonic() - stamp.at))
                assert abs(frame.captured_at - stamp.at) < 0.002
                frames.append(frame)
                if len(frames) % 20 == 0:
                    time.sleep(0.5)  # what comes meanwhile is old afterwards
                if len(frames) == 70:
                    break
        check_accounts(frames)
        assert numbers(frames) == [frame.seq for frame in frames]
        assert oldest_ms < 200 + 100  # the latter for a busy machine
        check_closed_accounts(source)

    def test_no_such_folder(self) -> None:
        with pytest.raises(SourceError, match=r"test:///absent: not found: no such folder"):
            open_source("test:///absent")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stall_s": 0}, "stall_s is a positive number"),
        ({"open_s": float("nan")}, "open_s is a positive number"),
        ({"transport": "quic"}, "transport is tcp or udp, found 'quic'"),
        ({"every_frame": True}, "every_frame is for files"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source("rtsp://127.0.0.1:9/x", **options)  # type: ignore[arg-type]
