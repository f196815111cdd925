"""Several cameras: fair turns, nothing old, and one that is dead costs the others nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typing_extensions import Self

import dvt_edge
from dvt_edge.camera import CapturedFrame, Cause, Sources, open_sources, sources
from dvt_edge.errors import ConfigError, SourceError
from tests.camera.clips import GRACE_S, Events, check_accounts, nothing_left, wait_for


def _frame(seq: int, before: int = 0) -> CapturedFrame:
    return CapturedFrame(np.zeros((2, 2), np.uint8), "gray", time.monotonic(), seq, before)


@dataclass
class Played:
    """A camera that a test plays."""

    frames: list[CapturedFrame]
    ends: bool = True
    error: Exception | None = None
    given: int = 0
    closed: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[CapturedFrame]:
        for frame in self.frames:
            if self.closed.is_set():
                return
            yield frame
            self.given += 1  # it was taken, or at least put where it may be
        if self.error is not None:
            raise self.error
        if not self.ends:
            assert self.closed.wait(GRACE_S)

    def close(self) -> None:
        self.closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


Play = Callable[..., Sources]


@pytest.fixture
def play() -> Iterator[Play]:
    """A function that opens sources over played cameras, or what opening them raises, by URI."""
    opened: list[Sources] = []

    def make(cameras: dict[str, Played | Exception], on_event: Any = None) -> Sources:
        def open_it(uri: str) -> Any:
            found = cameras[uri]
            if isinstance(found, Exception):
                raise found
            return found

        opened.append(Sources(list(cameras), open_it, on_event))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_fair_turns(play: Play) -> None:
    """Whoever has a frame has its turn; who has none is passed over."""
    cameras = {f"test:///{name}": Played([_frame(0)], ends=False) for name in "abc"}
    found = play(dict(cameras))
    wait_for(lambda: all(camera.newest is not None for camera in found._cameras))
    assert [next(found).source_index for _ in range(3)] == [0, 1, 2]
    found._cameras[2].newest = _frame(1)
    assert next(found).source_index == 2
    for camera in found._cameras:
        camera.newest, camera.put_at = _frame(2), time.monotonic()
    assert [next(found).source_index for _ in range(3)] == [0, 1, 2]


def test_a_frame_that_waits_is_replaced_and_counted(play: Play) -> None:
    """Ten come and nobody looks: the last one is given, the nine are counted, with those that were
    lost before them."""
    frames = [_frame(0), _frame(3, before=2), *(_frame(seq) for seq in range(4, 12))]
    camera = Played(frames, ends=False)
    found = play({"test://": camera})
    wait_for(lambda: camera.given == 10)
    frame = next(found)
    assert (frame.seq, frame.dropped_before) == (11, 11)


def test_nothing_old_is_given(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame whose turn came late is left out, and counted with the next one."""
    camera = Played([_frame(0)], ends=False)
    found = play({"test://": camera})
    wait_for(lambda: camera.given == 1)
    monkeypatch.setattr(sources, "FRESH_S", 0.0)
    with found._change:
        assert found._take(found._cameras[0], 0) is None
    monkeypatch.setattr(sources, "FRESH_S", 60.0)
    found._put(found._cameras[0], _frame(1))
    frame = next(found)
    assert (frame.seq, frame.dropped_before) == (1, 1)


def test_files_do_not_age(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their last frame is not replaced, and given however late."""
    monkeypatch.setattr(sources, "FRESH_S", 0.0)
    assert [frame.seq for frame in play({"file:///a.mp4": Played([_frame(0)])})] == [0]


def test_the_end_is_that_of_all(play: Play) -> None:
    """The last frame of each is still given."""
    found = play(
        {"images:///a": Played([_frame(0), _frame(1)]), "images:///b": Played([_frame(0)])}
    )
    seen = Counter(frame.source_index for frame in found)
    assert seen == {0: 2, 1: 1}
    with pytest.raises(StopIteration):
        next(found)


def test_a_camera_that_fails_on_the_way(play: Play) -> None:
    """The others go on, and somebody hears of it."""
    events = Events()
    broken = Played([_frame(0)], error=SourceError("cut off", Cause.UNDECODABLE))
    found = play({"images:///a": broken, "images:///b": Played([_frame(0)] * 9)}, events)
    assert Counter(frame.source_index for frame in found) == {0: 1, 1: 9}
    assert events.causes("failed") == [Cause.UNDECODABLE]


def test_a_camera_that_does_not_open(play: Play) -> None:
    events = Events()
    gone = SourceError("a: not found", Cause.NOT_FOUND)
    found = play({"test:///a": gone, "images:///b": Played([_frame(0)] * 3)}, events)
    assert [frame.source_index for frame in found] == [1] * 3
    assert [(event.kind, event.cause) for event in events] == [("failed", Cause.NOT_FOUND)]


@pytest.mark.parametrize("bug", [OSError("too many open files"), ZeroDivisionError("division")])
def test_whatever_goes_wrong_is_said(play: Play, bug: Exception) -> None:
    """Else one would wait for ever."""
    with pytest.raises(SourceError, match=r"too many|division"):
        play({"test://": bug}, Events())


def test_none_opens(play: Play) -> None:
    """Each is named; the cause is one where they agree."""
    gone = {uri: SourceError(f"{uri}: not found", Cause.NOT_FOUND) for uri in ("/a", "/b")}
    with pytest.raises(
        SourceError, match=r"none of 2 cameras can be opened: /a: .*; /b: "
    ) as caught:
        play(dict(gone), Events())
    assert caught.value.cause is Cause.NOT_FOUND
    with pytest.raises(SourceError) as caught:
        play({"/a": gone["/a"], "/b": SourceError("no library")}, Events())
    assert caught.value.cause is None


def test_close_ends_the_wait(play: Play) -> None:
    """From another thread; the cameras are closed, too."""
    cameras = [Played([], ends=False), Played([], ends=False)]
    found = play({"test:///a": cameras[0], "test:///b": cameras[1]})
    wait_for(lambda: all(camera.source is not None for camera in found._cameras))
    threading.Timer(0.05, found.close).start()
    assert list(found) == []
    assert all(camera.closed.is_set() for camera in cameras)


def test_close_while_one_is_being_opened(play: Play) -> None:
    """It is not waited for, and closed once it is open."""
    go_on, late = threading.Event(), Played([_frame(0)], ends=False)

    def open_it(uri: str) -> Any:
        if uri == "test:///late":
            assert go_on.wait(GRACE_S)
            return late
        return Played([], ends=False)

    found = Sources(["test:///now", "test:///late"], open_it, None)
    found.close()
    assert not late.closed.is_set()
    go_on.set()
    assert late.closed.wait(GRACE_S)
    assert late.given == 0


@pytest.mark.parametrize(
    ("uris", "options", "message"),
    [
        ([], {}, "no source is given"),
        (["test://", "rstp://me:secret@host/x"], {}, "unknown source rstp://"),
        (["test://", "test://"], {}, "test:// is given twice"),
        (["rtsp://me:secret@host/x"] * 2, {}, r"rtsp://\*\*\*@host/x is given twice"),
        (["test://", "test://?fps=0"], {}, "fps is a number"),
        (["test://"], {"stall_s": 0}, "stall_s is a positive number"),
        (["test://"], {"open_s": float("inf")}, "open_s is a positive number"),
        (["test://"], {"transport": "quic"}, "transport is tcp or udp"),
    ],
)
def test_wrong_arguments(uris: list[str], options: dict[str, Any], message: str) -> None:
    """Are refused before anything is opened, and hold no password."""
    with nothing_left(), pytest.raises(ConfigError, match=message) as caught:
        open_sources(uris, **options)
    assert "secret" not in str(caught.value)


def _take(found: Sources, pause_s: float = 0.0, most: int = 10**9) -> list[CapturedFrame]:
    """Frames with their first pixel only: all of them would keep the decoder's memory."""
    frames = []
    for frame in islice(found, most):
        assert frame.source == found.uris[frame.source_index]
        assert frame.age_ms < 1000 * GRACE_S
        frames.append(replace(frame, pixels=frame.pixels[:1, :1].copy()))
        time.sleep(pause_s)
    return frames


def test_two_cameras() -> None:
    """Real ones, and somebody who is slow: both come, and every picture received is given or
    counted."""
    uris = ["test://?fps=50&size=64x48", "test://?fps=40&size=48x64"]
    with nothing_left():
        with dvt_edge.open_sources(uris) as found:
            assert found.uris == tuple(uris)
            frames = _take(found, 0.05, 20)
        for index in (0, 1):
            own = [frame for frame in frames if frame.source_index == index]
            assert len(own) >= 5
            check_accounts(own)
            assert own[-1].seq > len(own)  # some were left out


def test_folders_give_every_picture(tmp_path: Path) -> None:
    """Each waits until its frame was taken, as it does alone."""
    for name, count in (("a", 7), ("b", 3)):
        (tmp_path / name).mkdir()
        for k in range(count):
            Image.new("L", (8, 8), k).save(tmp_path / name / f"{k}.png")
    events = Events()
    uris = [f"images://{tmp_path}/a", f"images://{tmp_path}/b", "/gone.mp4"]
    with nothing_left():
        with open_sources(uris, on_event=events) as found:
            frames = _take(found)
        for index, count in ((0, 7), (1, 3)):
            own = [frame for frame in frames if frame.source_index == index]
            assert [int(frame.pixels[0, 0]) for frame in own] == list(range(count))
            assert not any(frame.dropped_before for frame in own)
        assert sorted(event.kind for event in events) == ["ended", "ended", "failed"]


def test_none_is_there() -> None:
    with (
        nothing_left(),
        pytest.raises(SourceError, match=r"none of 2 cameras .*/a\.mp4.*/b") as caught,
    ):
        open_sources(["/gone/a.mp4", "test:///gone/b"], on_event=Events())
    assert caught.value.cause is Cause.NOT_FOUND
