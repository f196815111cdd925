"""What is recorded can be classified again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.app.loop import CameraLoop, Seen, Sinks
from dvt_edge.app.record import ABOUT, ANSWERS, FREE_BYTES, Recording, about_recording
from dvt_edge.app.replay import Replay, open_replay, read_answers
from dvt_edge.errors import ConfigError, DataError, SourceError
from dvt_edge.profile import ColorOrder
from dvt_edge.runtime.runtime import Runtime
from tests.app.conftest import Kept, PlayedFrame, seen
from tests.conftest import random_pixels

Notes = list[tuple[str, str]]
Scenes = list[npt.NDArray[np.uint8]]


def _record(folder: Path, frames: list[PlayedFrame]) -> Recording:
    recording = Recording(folder, about_recording("camera", "abc"), lambda *_: None)
    for frame in frames:
        recording.take(seen(frame=frame))
    recording.close()
    return recording


def _frames(count: int, interval_s: float = 1 / 30) -> list[PlayedFrame]:
    return [
        PlayedFrame(random_pixels(6, 8, seed=k), seq=2 * k, captured_at=1e5 + k * interval_s)
        for k in range(count)
    ]


def test_a_recording(tmp_path: Path) -> None:
    """About it, a line per frame, and every exit's answer as far as they ran."""
    assert _record(tmp_path / "new", _frames(3)).summary() == {
        "folder": str(tmp_path / "new"),
        "frames": 3,
        "stopped": None,
    }
    about = json.loads((tmp_path / "new" / ABOUT).read_text(encoding="utf-8"))
    assert (about["source"], about["bundle"]) == ("camera", "abc")
    lines = read_answers(tmp_path / "new")
    assert [line["file"] for line in lines] == [f"frames/0000000{k}.png" for k in range(3)]
    assert [line["at_s"] for line in lines] == pytest.approx([0, 1 / 30, 2 / 30], abs=1e-5)
    assert [line["seq"] for line in lines] == [0, 2, 4]
    assert lines[0]["confidences"] == [0.4, 0.9]
    assert lines[0]["classes"] == [0, 1]
    assert lines[0]["thresholds"] == [0.8, 0.8, 0.0]


@pytest.mark.parametrize(
    ("shape", "order"), [((5, 7), "gray"), ((5, 7, 3), "rgb"), ((5, 7, 3), "bgr"), ((5, 7), "bgr")]
)
def test_pixels_are_kept_without_loss(
    tmp_path: Path, shape: tuple[int, ...], order: ColorOrder
) -> None:
    """Colour comes back as BGR, as a camera gives it."""
    pixels = random_pixels(*shape)
    _record(tmp_path / "new", [PlayedFrame(pixels, order)])
    (frame,) = open_replay(f"replay://{tmp_path / 'new'}?fps=0")
    assert frame.color_order == ("bgr" if len(shape) == 3 else "gray")
    expected = pixels[..., ::-1] if order == "rgb" else pixels
    np.testing.assert_array_equal(frame.pixels, expected)


def test_replay_answers_as_recorded(tmp_path: Path, runtime: Runtime, scenes: Scenes) -> None:
    """Frame by frame: class, exit, and the confidences of all exits that ran, to the last bit."""
    recording = Recording(tmp_path / "new", {}, lambda *_: None)
    for k, pixels in enumerate(scenes):
        frame = PlayedFrame(pixels, seq=k, captured_at=k / 30)
        recording.take(Seen("camera", frame, runtime.classify(pixels), 5.0, 1e9))
    recording.close()
    sinks, kept = Sinks(), Kept()
    sinks.add("kept", kept)
    source = f"replay://{tmp_path / 'new'}?fps=0"
    loop = CameraLoop(source, lambda _: open_replay(source), runtime, sinks, exits=3)
    loop.run()
    assert loop.error is None
    recorded = read_answers(tmp_path / "new")
    assert len({line["exit_stage"] for line in recorded}) > 1
    for line, again in zip(recorded, kept.seen, strict=True):
        p = again.prediction
        assert again.frame.seq == line["seq"]
        assert (p.class_id, p.exit_stage) == (line["class_id"], line["exit_stage"])
        assert list(p.confidences) == line["confidences"]
        assert list(p.classes) == line["classes"]


def test_recording_ends_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Notes
) -> None:
    """And says so once; the camera goes on."""
    recording = Recording(tmp_path / "new", {}, lambda *note: notes.append(note))
    free = FREE_BYTES
    monkeypatch.setattr(
        "dvt_edge.app.record.shutil.disk_usage",
        lambda _: SimpleNamespace(total=1 << 40, free=free),
    )
    recording.take(seen(0))
    free -= 1
    for k in range(1, 5):
        recording.take(seen(k))
    free = 1 << 39
    recording.take(seen(5))
    recording.close()
    assert [kind for kind, _ in notes] == ["recording_ended"]
    assert "ended after 1 frames: only 1024 MiB are left" in notes[0][1]
    assert recording.summary()["frames"] == 1
    assert recording.summary()["stopped"] == "only 1024 MiB are left on the disk"


def test_small_disks_are_used_to_95_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card of 8 GB has less than a GiB to spare."""
    recording = Recording(tmp_path / "new", {}, lambda *_: None)
    usage = SimpleNamespace(total=8e9, free=0.401e9)
    monkeypatch.setattr("dvt_edge.app.record.shutil.disk_usage", lambda _: usage)
    recording.take(seen(0))
    usage.free = 0.399e9
    recording.take(seen(1))
    recording.close()
    assert recording.summary()["frames"] == 1


def test_folders_that_cannot_be_recorded_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        Recording(tmp_path, {}, lambda *_: None)
    with pytest.raises(ConfigError, match="cannot be recorded to"):
        Recording(tmp_path / "file", {}, lambda *_: None)
    with pytest.raises(ConfigError, match="cannot be recorded to"):
        Recording(tmp_path / "file" / "below", {}, lambda *_: None)


def test_yuv_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="layout nv12"):
        _record(tmp_path / "new", [PlayedFrame(random_pixels(6, 4), "nv12")])


# replay


def test_the_pace_that_was_recorded(tmp_path: Path) -> None:
    """Frames are due at the times between them, and never come earlier."""
    _record(tmp_path / "new", _frames(6, 0.05))
    started = time.monotonic()
    taken = [
        (frame.captured_at, time.monotonic()) for frame in open_replay(f"replay://{tmp_path}/new")
    ]
    due = [at for at, _ in taken]
    assert due[0] >= started
    assert all(now >= at for at, now in taken)
    steps = np.diff(due) / 0.05
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_the_newest_frame_that_is_due(tmp_path: Path) -> None:
    """Whoever is slow gets the newest, and how many were passed over; the sum is exact."""
    _record(tmp_path / "new", _frames(20, 0.02))
    seqs, dropped = [], 0
    for frame in open_replay(f"replay://{tmp_path}/new"):
        seqs.append(frame.seq)
        dropped += frame.dropped_before
        time.sleep(0.1)
    assert seqs[0] < seqs[-1] == 38
    assert dropped > 0
    assert len(seqs) + dropped == 20


@pytest.mark.parametrize(("query", "every_frame"), [("?fps=1000", True), ("?fps=0", False)])
def test_every_frame(tmp_path: Path, query: str, every_frame: bool) -> None:
    _record(tmp_path / "new", _frames(10, 0.02))
    frames = []
    for frame in open_replay(f"replay://{tmp_path}/new{query}", every_frame=every_frame):
        frames.append(frame)
        time.sleep(0.005)
    assert [frame.seq for frame in frames] == list(range(0, 20, 2))
    assert all(frame.dropped_before == 0 for frame in frames)
    assert all(frame.age_ms >= 0 for frame in frames)


def test_close_lets_go_whoever_waits(tmp_path: Path) -> None:
    _record(tmp_path / "new", _frames(2, 3600.0))
    replay = open_replay(f"replay://{tmp_path}/new")
    loop = CameraLoop("replay", lambda _: replay, _NoRuntime(), Sinks(), exits=3)
    loop.start()
    while loop.counts.captured == 0:
        time.sleep(0.005)
    loop.stop()
    assert loop.join(10)
    assert loop.counts.captured == 1


class _NoRuntime:
    def classify(self, frame: object, **_: Any) -> Any:
        raise DataError("not asked for")


def test_pictures_without_a_line_are_left_over_of_a_kill(tmp_path: Path) -> None:
    _record(tmp_path / "new", _frames(2))
    (tmp_path / "new" / "frames" / "00000002.png").write_bytes(b"half a pic")
    assert len(list(open_replay(f"replay://{tmp_path}/new?fps=0"))) == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not a line"),
        ("[]", "not a line"),
        ('{"file": "a.png", "seq": 1}', "not a line"),
        ('{"file": "a.png", "seq": "x", "at_s": 0}', "not a line"),
        ('{"file": "a.png", "seq": 1, "at_s": 0}', "a.png: cannot be read"),
        ("", "holds no frames"),
    ],
)
def test_damaged_recordings(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / ANSWERS).write_text(line and line + "\n", encoding="utf-8")
    with pytest.raises(SourceError, match=problem):
        list(open_replay(f"replay://{tmp_path}?fps=0"))


@pytest.mark.parametrize("query", ["fps=fast", "fps=-1", "fps=nan", "fps=", "pace=1"])
def test_wrong_addresses(tmp_path: Path, query: str) -> None:
    with pytest.raises(ConfigError, match=r"expected replay://folder"):
        open_replay(f"replay://{tmp_path}?{query}")


def test_no_recording(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no recording"):
        Replay(tmp_path)
