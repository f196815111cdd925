"""The small parts: time line, slots, mailbox, stamp, backing off."""

from __future__ import annotations

import gc
import threading
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvt_edge.camera.address import parse
from dvt_edge.camera.causes import Cause
from dvt_edge.camera.frame import Pixels
from dvt_edge.camera.link import LONGEST_BACKOFF_S, backoff_s
from dvt_edge.camera.mailbox import QUEUE, DamagedError, Mailbox
from dvt_edge.camera.plan import Plan
from dvt_edge.camera.slots import SLOTS, TALLY, FilledSlots, Slots, map_tally, new_tally
from dvt_edge.camera.stamp import HEIGHT, WIDTH, Stamp, read_stamp, write_stamp
from dvt_edge.camera.timeline import Timeline
from tests.conftest import random_pixels


class TestTimeline:
    def test_what_comes_late_is_old(self) -> None:
        line = Timeline()
        assert line.captured_at(10.0, 100.0) == 100.0
        assert line.captured_at(10.1, 100.1) == pytest.approx(100.1)
        assert line.captured_at(10.2, 101.2) == pytest.approx(100.2)  # held up for a second
        assert line.captured_at(10.3, 101.3) == pytest.approx(100.3)  # and still behind
        assert line.captured_at(10.4, 100.4) == pytest.approx(100.4)

    def test_the_first_may_have_been_late(self) -> None:
        """A quicker one shows it; from then on others are judged by that."""
        line = Timeline()
        line.captured_at(0.0, 103.0)
        assert line.captured_at(0.1, 100.1) == 100.1
        assert line.captured_at(0.2, 100.7) == pytest.approx(100.2)

    def test_without_stamps(self) -> None:
        assert Timeline().captured_at(None, 7.0) == 7.0

    def test_a_camera_that_restarts_its_clock(self) -> None:
        line = Timeline()
        line.captured_at(1000.0, 1.0)
        assert line.captured_at(0.0, 2.0) == 2.0
        assert line.captured_at(0.5, 3.0) == pytest.approx(2.5)

    def test_a_clock_that_drifts(self) -> None:
        """One that is slow by a thousandth does not make pictures ever older."""
        line = Timeline()
        ages = [at - line.captured_at(at * 0.999, at) for at in np.arange(0, 600, 0.5)]
        assert max(ages) < 0.1

    @given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 10)), min_size=1, max_size=60))
    def test_never_in_the_future(self, steps: list[tuple[float, float]]) -> None:
        line, at = Timeline(), 0.0
        for pts, wait in steps:
            at += wait
            assert line.captured_at(pts, at) <= at


class TestStamp:
    @given(st.integers(0, 2**32 - 1), st.integers(0, 2**40 - 1))
    def test_round(self, number: int, ms: int) -> None:
        pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
        write_stamp(pixels, number, ms / 1e3)
        assert read_stamp(pixels) == Stamp(number, ms / 1e3)

    def test_colour(self) -> None:
        pixels = random_pixels(40, 400, 3)
        write_stamp(pixels, 7, 1.5)
        assert read_stamp(pixels) == (7, 1.5)

    def test_what_is_none(self) -> None:
        assert read_stamp(random_pixels(64, 400)) is None
        assert read_stamp(np.zeros((8, 8), np.uint8)) is None


class TestSlots:
    def test_a_slot_is_used_again_once_nobody_looks(self) -> None:
        slots = Slots()
        filled = FilledSlots(slots.descriptors)
        for number in range(50):
            slot = slots.next_free()
            filled.fill(slot, np.full((4, 5, 3), number, np.uint8))
            pixels = slots.take(slot, (4, 5, 3))
            part = pixels[1:, ::2]
            del pixels  # the view keeps the slot
            assert slots.next_free() != slot
            assert (part == number).all()
            del part
        slots.close()

    def test_frames_that_are_kept_stay_as_they_are(self) -> None:
        """Also more of them than there are slots."""
        slots = Slots()
        filled = FilledSlots(slots.descriptors)
        kept = []
        for number in range(3 * SLOTS):
            slot = slots.next_free()
            filled.fill(slot, np.full((8, 8), number, np.uint8))
            kept.append(slots.take(slot, (8, 8)))
        slots.close()
        gc.collect()
        for number, pixels in enumerate(kept):
            assert (pixels == number).all()
            pixels[:] = 0  # they may be drawn on

    def test_sizes_change(self) -> None:
        slots = Slots()
        filled = FilledSlots(slots.descriptors)
        for shape in ((3, 3), (2000, 1000, 3), (10, 10, 3), (2160, 3840, 3)):
            slot = slots.next_free()
            source = random_pixels(*shape)
            filled.fill(slot, source)
            np.testing.assert_array_equal(slots.take(slot, shape), source)
        slots.close()


class TestMailbox:
    def mailbox(self, **changes: bool) -> tuple[Mailbox, dict[str, int]]:
        counters = map_tally(new_tally())

        class Live(dict[str, int]):
            def __missing__(self, name: str) -> int:
                return int(counters[TALLY.index(name)])

        settings = {"keep_all": False, "camera": False} | changes
        return Mailbox(counters, 100, **settings), Live()

    @staticmethod
    def picture(level: int = 0) -> Pixels:
        return np.full((2, 2), level, np.uint8)

    def test_the_newest_is_kept(self) -> None:
        box, counts = self.mailbox()
        for level in range(3):
            box.put(partial(self.picture, level), 1.0 + level)
        taken = box.take()
        assert taken is not None
        assert (taken[0].seq, taken[0].captured_at, taken[1][0, 0]) == (102, 3.0, 2)
        assert box.take() is None
        assert (counts["received"], counts["superseded"], counts["given"]) == (3, 2, 1)

    def test_losses_leave_gaps(self) -> None:
        box, counts = self.mailbox()
        box.lose("held")
        box.lose("damaged", "torn")
        box.put(self.picture, 0.0)
        taken = box.take()
        assert taken is not None
        assert taken[0].seq == 102
        assert (counts["held"], counts["damaged"], box.damage) == (1, 1, "torn")

    def test_what_lay_around_is_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A camera's, not a file's."""
        now = [1000.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        for camera in (True, False):
            box, counts = self.mailbox(camera=camera)
            box.put(self.picture, 0.0)
            now[0] += 5
            assert (box.take() is None) is camera
            assert counts["late"] == camera

    def test_what_cannot_be_rendered_is_damaged(self) -> None:
        box, counts = self.mailbox()
        box.put(self.picture, 0.0)
        assert box.take() is not None

        def broken() -> Pixels:
            raise DamagedError("no end")

        box.put(broken, 0.0, tried=False)
        assert box.take() is None
        assert box.bad_since is not None
        assert (counts["damaged"], counts["given"], box.damage) == (1, 1, "no end")
        box.put(self.picture, 0.0)
        assert box.bad_since is None

    def test_a_queue_makes_the_reader_wait(self) -> None:
        box, counts = self.mailbox(keep_all=True)

        def fill() -> None:
            for level in range(20):
                box.put(partial(self.picture, level), 0.0)

        thread = threading.Thread(target=fill)
        thread.start()
        levels: list[int] = []
        while len(levels) < 20:
            taken = box.take()
            if taken is not None:
                levels.append(int(taken[1][0, 0]))
                assert len(box._waiting) <= QUEUE
        thread.join()
        assert levels == list(range(20))
        assert (counts["given"], counts["superseded"]) == (20, 0)


def test_backing_off() -> None:
    """At once, then ever less often, never less than a few seconds; spread by half."""
    assert backoff_s(0, 1.0) == 0
    waits = [backoff_s(attempt, 1.0) for attempt in range(1, 100)]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_BACKOFF_S
    assert backoff_s(10, 0.0) == LONGEST_BACKOFF_S / 2


def test_causes_have_remedies() -> None:
    """Seven, each with one, in one line."""
    assert len(Cause) == 7
    for cause in Cause:
        assert cause.remedy
        assert "\n" not in cause.remedy
        assert str(cause) == cause.value


def test_a_plan_survives_its_pipe() -> None:
    address = parse("v4l2:///dev/video0?size=640x480&fps=15&format=mjpeg")
    plan = Plan(address, False, 1.0, 2.0, "tcp", 3, 4, (5, 6), 7)
    assert Plan.from_json(plan.to_json()) == plan
