"""Parts of frames through the Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dvt_edge.errors import FrameError
from dvt_edge.runtime.events import OtherConditions
from dvt_edge.runtime.runtime import Runtime

BOXES = [(0, 0, 48, 48), (30, 10, 60, 50), (100, 100, 20, 20)]


@pytest.fixture(scope="module")
def runtime(costed_bundle: Path) -> Iterator[Runtime]:
    with Runtime(costed_bundle) as made:
        yield made


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def test_a_box_is_answered_as_the_picture_cut_out(runtime: Runtime, frame: np.ndarray) -> None:
    for box in BOXES:
        x, y, width, height = box
        cut = np.ascontiguousarray(frame[y : y + height, x : x + width])
        for order in ("bgr", "rgb"):
            found = runtime.classify(frame, box=box, color_order=order)
            expected = runtime.classify(cut, color_order=order)
            assert (found.class_id, found.confidences) == (
                expected.class_id,
                expected.confidences,
            )


def test_boxes_of_one_frame_make_a_batch(runtime: Runtime, frame: np.ndarray) -> None:
    found = runtime.classify_batch(frame, boxes=BOXES, color_order="bgr")
    single = [runtime.classify(frame, box=box, color_order="bgr") for box in BOXES]
    assert [p.class_id for p in found] == [p.class_id for p in single]
    assert runtime.classify_batch(frame, boxes=[], color_order="bgr") == []


def test_boxes_that_reach_out_are_refused(runtime: Runtime, frame: np.ndarray) -> None:
    with pytest.raises(FrameError, match="not within the frame of 160x120 pixels"):
        runtime.classify(frame, box=(150, 0, 20, 20), color_order="bgr")
    with pytest.raises(FrameError, match="not within"):
        runtime.classify_batch(frame, boxes=[*BOXES, (0, 0, 161, 1)], color_order="bgr")
    assert runtime.classify(frame, color_order="bgr").label  # and the next frame is answered


def test_their_sizes_are_not_the_cameras(runtime: Runtime, frame: np.ndarray) -> None:
    """A detector's boxes differ, and none of them is what costs were measured with."""
    before = len(runtime.events)
    for _ in range(70):
        runtime.classify(frame, box=(3, 4, 90, 80), color_order="bgr")
    new = list(runtime.events)[before:]
    assert not any(isinstance(e, OtherConditions) and "frame is" in e.reason for e in new)
