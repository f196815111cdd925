"""Parts of frames: the same as frames of their own, and boxes that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.errors import FrameError
from dvt_edge.profile import ColorOrder
from dvt_edge.runtime.preprocess import LAYOUTS, Preprocessor, cut_box, frame_shape
from tests.runtime.conftest import COLOR


def _frame(order: ColorOrder, height: int = 24, width: int = 30) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, frame_shape(height, width, order), np.uint8)


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("box", [(0, 0, 30, 24), (4, 6, 10, 8), (5, 3, 7, 9), (29, 23, 1, 1)])
def test_a_box_is_the_picture_cut_out(order: ColorOrder, box: tuple[int, int, int, int]) -> None:
    """Of YUV, whose colours belong to two or four pixels, with even edges."""
    frame = _frame(order)
    left, top, width, height = box
    right, bottom = left + width, top + height
    if order in ("nv12", "yuyv"):
        left, right = left - left % 2, right + right % 2
    if order == "nv12":
        top, bottom = top - top % 2, bottom + bottom % 2
        y, colour = frame[:24], frame[24:].reshape(12, 15, 2)
        part = colour[top // 2 : bottom // 2, left // 2 : right // 2]
        expected = np.vstack([y[top:bottom, left:right], part.reshape(len(part), -1)])
    else:
        expected = frame[top:bottom, left:right]
    cut = cut_box(frame, box, order)
    np.testing.assert_array_equal(cut, expected)
    assert np.shares_memory(cut, frame) == (order != "nv12")


@pytest.mark.parametrize("order", LAYOUTS)
def test_native_code_reads_the_view(order: ColorOrder) -> None:
    frame, preprocess = _frame(order, 240, 320), Preprocessor(COLOR)
    cut = cut_box(frame, (40, 60, 128, 96), order)
    np.testing.assert_array_equal(
        preprocess.crop(cut, order), preprocess.crop(np.ascontiguousarray(cut), order)
    )


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 31, 24), r"\(0, 0, 31, 24\) is not within the frame of 30x24 pixels; clip it"),
        ((-1, 0, 4, 4), "not within"),
        ((0, 21, 4, 4), "not within"),
        ((0, 0, 0, 4), "not within"),
        ((30, 0, 1, 1), "not within"),
        ((0, 0, 4), "four whole numbers"),
        ((0, 0, 4, 4, 4), "four whole numbers"),
        ((0.5, 0, 4, 4), "four whole numbers"),
        (("a", 0, 4, 4), "four whole numbers"),
        (None, "four whole numbers"),
        (7, "four whole numbers"),
    ],
)
@pytest.mark.parametrize("order", ["bgr", "nv12"])
def test_boxes_that_cannot_be(box: object, message: str, order: ColorOrder) -> None:
    with pytest.raises(FrameError, match=message):
        cut_box(_frame(order), box, order)


def test_numpy_integers_are_whole_numbers() -> None:
    assert cut_box(_frame("bgr"), np.array([1, 2, 3, 4]), "bgr").shape == (4, 3, 3)


def test_no_frame() -> None:
    with pytest.raises(FrameError, match="NumPy array"):
        cut_box("a.png", (0, 0, 1, 1), "bgr")
