"""Frames to images on a device of host memory, by the kernel's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.backends.device_preprocess import DevicePreprocess
from dvt_edge.runtime.native import calls
from dvt_edge.runtime.native.library import library, unavailable
from dvt_edge.runtime.preprocess import Preprocessor, frame_shape
from tests.runtime.conftest import COLOR

pytestmark = pytest.mark.skipif(library() is None, reason=str(unavailable()))

CONFIG = InputConfig.model_validate(COLOR.model_dump() | {"resize": 20, "crop": 16})


def _image(
    device: Any, make: DevicePreprocess, frame: Any, order: ColorOrder, slot: int, dtype: Any
) -> Any:
    """The image of ``frame``, as the device made it."""
    with device.current():
        at = device.allocate(np.dtype(dtype).itemsize * 3 * 16 * 16)
        assert Preprocessor(CONFIG).hand_over(frame, order, make.take, slot, dtype)
        make.make_image(slot, at)
    return device.memory[at].view(dtype).reshape(3, 16, 16)


def _frame(height: int, width: int, order: ColorOrder) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(height).integers(
        0, 256, frame_shape(height, width, order), np.uint8
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("order", sorted(calls.LAYOUTS))
def test_equals_the_host(new_device: Callable[[], Any], order: ColorOrder, dtype: Any) -> None:
    """Bit by bit, for sizes in turn in both slots, larger and smaller ones; half precision for
    TensorRT, single for ONNX Runtime."""
    device = new_device()
    make = DevicePreprocess(device, b"code")
    for number, (height, width) in enumerate([(30, 40), (60, 90), (60, 90), (22, 26), (60, 90)]):
        frame = _frame(height, width, order)
        expected = np.empty((3, 16, 16), dtype)
        Preprocessor(CONFIG)(frame, expected, order)
        found = _image(device, make, frame, order, number % 2, dtype)
        np.testing.assert_array_equal(found, expected)


def test_sizes_in_turn_take_no_more_memory(new_device: Callable[[], Any]) -> None:
    """What is too small is given back, and what is large enough is used again."""
    device = new_device()
    make = DevicePreprocess(device, b"code")
    held = []
    for _ in range(20):
        for height in (24, 30, 60):
            frame = _frame(height, 40, "bgr")
            assert Preprocessor(CONFIG).hand_over(frame, "bgr", make.take, 0, np.float16)
        held.append(len(device.memory))
    assert len(set(held)) == 1
    assert held[0] == (2 if device.integrated else 4)


def test_without_native_code(new_device: Callable[[], Any]) -> None:
    """There is no plan, so the host does it."""
    make = DevicePreprocess(new_device(), b"code")
    host = Preprocessor(CONFIG, native=False)
    assert not host.hand_over(_frame(24, 30, "bgr"), "bgr", make.take, 0, np.float16)
