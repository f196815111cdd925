"""Preprocessing against a plain Pillow and NumPy reference, and a table of bad frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dvt_edge.errors import FrameError
from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.native.library import library, unavailable
from dvt_edge.runtime.preprocess import (
    LAYOUTS,
    Preprocessor,
    brightness,
    check_frame,
    frame_shape,
    resize_and_crop,
    to_channels,
)
from tests.conftest import random_pixels
from tests.runtime.conftest import COLOR

Pixels = npt.NDArray[np.uint8]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
GRAY = InputConfig(
    resize=20, crop=16, mean=(0.13,), std=(0.26,), color_order="gray", interpolation="bilinear"
)
NATIVE = pytest.param(
    True, marks=pytest.mark.skipif(library() is None, reason=str(unavailable())), id="native"
)
BOTH = [NATIVE, pytest.param(False, id="pillow")]


def _run(
    config: InputConfig, frame: object, order: ColorOrder | None = None, *, native: bool = True
) -> npt.NDArray[np.float32]:
    preprocess = Preprocessor(config, native=native)
    out = np.full(preprocess.shape, np.nan, np.float32)
    preprocess(frame, out, order)
    return out


def _reference(config: InputConfig, image: Image.Image) -> npt.NDArray[np.float64]:
    """What the documentation says, written down plainly: [C, crop, crop]."""
    image = image.convert("L" if config.channels == 1 else "RGB")
    short = min(image.size)
    width, height = (max(config.crop, round(n * config.resize / short)) for n in image.size)
    if short != config.resize:
        # Columns first: in one call, Pillow's order depends on its version.
        image = image.resize((width, image.height), FILTERS[config.interpolation])
        image = image.resize((width, height), FILTERS[config.interpolation])
    left, top = (image.width - config.crop) // 2, (image.height - config.crop) // 2
    image = image.crop((left, top, left + config.crop, top + config.crop))
    values = np.asarray(image, float).reshape(config.crop, config.crop, config.channels) / 255
    return ((values - config.mean) / config.std).transpose(2, 0, 1)


SIZES = [
    (16, 16), (20, 20), (20, 31), (31, 20), (21, 19), (1, 1), (1, 2), (2, 1), (1, 40), (40, 1),
    (3, 200), (200, 3), (64, 48), (480, 640), (17, 16),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("config", [COLOR, GRAY], ids=["colour", "gray"])
@pytest.mark.parametrize("native", BOTH)
def test_equals_reference(config: InputConfig, size: tuple[int, int], native: bool) -> None:
    """Odd, tiny, tall and wide frames, colour and gray."""
    # Thin frames are resized by parts without the native library; Pillow's boxes are floats.
    thin = not native and max(size) > 8 * min(size)
    atol = 1 / (255 * min(config.std)) + 1e-5 if thin else 1e-5
    rgb = random_pixels(*size, 3)
    expected = _reference(config, Image.fromarray(rgb))
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    np.testing.assert_allclose(_run(config, bgr, native=native), expected, atol=atol)
    np.testing.assert_allclose(_run(config, rgb, "rgb", native=native), expected, atol=atol)
    gray = random_pixels(*size)
    expected = _reference(config, Image.fromarray(gray))
    np.testing.assert_allclose(_run(config, gray, native=native), expected, atol=atol)
    np.testing.assert_allclose(_run(config, gray[..., None], native=native), expected, atol=atol)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    resize=st.integers(4, 40),
    margin=st.integers(0, 36),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    gray=st.booleans(),
)
def test_any_shape_equals_reference(
    height: int, width: int, resize: int, margin: int, interpolation: str, gray: bool
) -> None:
    """Every output pixel is written and is the reference's."""
    config = InputConfig.model_validate(
        (GRAY if gray else COLOR).model_dump()
        | {"resize": resize, "crop": max(4, resize - margin), "interpolation": interpolation}
    )
    rgb = random_pixels(height, width, 3)
    expected = _reference(config, Image.fromarray(rgb))
    np.testing.assert_allclose(_run(config, rgb, "rgb"), expected, atol=1e-5)


@pytest.mark.parametrize("color_order", ["bgr", "rgb"])
def test_color_order(color_order: ColorOrder) -> None:
    """The profile's order, unless the call says another."""
    config = COLOR.model_copy(update={"color_order": color_order})
    other: ColorOrder = "rgb" if color_order == "bgr" else "bgr"
    frame = random_pixels(20, 20, 3)
    np.testing.assert_array_equal(_run(config, frame), _run(config, frame, color_order))
    np.testing.assert_array_equal(_run(config, frame), _run(config, frame[..., ::-1], other))
    assert np.abs(_run(config, frame) - _run(config, frame, other)).max() > 0.1


def test_pure_red() -> None:
    """Red is channel 0 of the model, wherever the frame had it."""
    bgr = np.zeros((16, 16, 3), np.uint8)
    bgr[..., 2] = 255
    high = (1 - np.array(COLOR.mean)) / COLOR.std
    low = -np.array(COLOR.mean) / COLOR.std
    expected = [high[0], low[1], low[2]]
    np.testing.assert_allclose(_run(COLOR, bgr).mean(axis=(1, 2)), expected, atol=1e-5)


def test_gray_weights() -> None:
    """A gray model weighs colours as ITU-R 601; green counts most, blue least."""
    values = [
        _run(GRAY, np.full((16, 16, 3), np.eye(3, dtype=np.uint8)[c] * 200)) for c in range(3)
    ]
    luma = [(v.mean() * 0.26 + 0.13) * 255 / 200 for v in values]  # frames are BGR
    np.testing.assert_allclose(luma, [0.114, 0.587, 0.299], atol=0.005)


@pytest.mark.parametrize("config", [COLOR, GRAY], ids=["colour", "gray"])
@pytest.mark.parametrize("size", [(20, 24), (33, 47)], ids=["as is", "resized"])
def test_memory_layout_does_not_matter(config: InputConfig, size: tuple[int, int]) -> None:
    """Views, flips, steps, Fortran order and read-only frames; none of them is changed."""
    base = random_pixels(2 * size[0], 2 * size[1], 3)
    views = {
        "step": base[::2, ::2],
        "flip": base[::2, ::2][::-1, ::-1],
        "transposed": base[::2, ::2].transpose(1, 0, 2),
        "fortran": np.asfortranarray(base[::2, ::2]),
        "one channel": base[::2, ::2, 1],
        "swapped": base[::2, ::2, ::-1],
    }
    frozen = base[::2, ::2].copy()
    frozen.flags.writeable = False
    for name, view in (views | {"read-only": frozen}).items():
        before = view.copy()
        np.testing.assert_array_equal(
            _run(config, view), _run(config, np.ascontiguousarray(view).copy()), err_msg=name
        )
        np.testing.assert_array_equal(view, before, err_msg=name)


def test_crop_is_centred() -> None:
    """With a short side that fits, the crop is cut out of the middle, without resampling."""
    config = GRAY.model_copy(update={"resize": 20, "crop": 10})
    frame = random_pixels(20, 41)
    np.testing.assert_array_equal(resize_and_crop(frame, config), frame[5:15, 15:25])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "found NoneType; decode files first"),
        ("photo.jpg", "found str; decode files first"),
        ([[0, 1], [2, 3]], "found list"),
        (Image.new("RGB", (8, 8)), "found Image"),
        (np.zeros((8, 8, 3), np.float32), "found float32; convert it first"),
        (np.zeros((8, 8, 3), np.int8), "found int8"),
        (np.zeros((8, 8), bool), "found bool"),
        (np.zeros((8, 8), object), "found object"),
        (np.uint8(3), "found uint8"),
        (np.zeros((), np.uint8), r"shape \[H, W, 3\] or \[H, W\], found \[\]"),
        (np.zeros(8, np.uint8), r"found \[8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"found \[8, 8, 4\]"),
        (np.zeros((8, 8, 2), np.uint8), r"found \[8, 8, 2\]"),
        (np.zeros((8, 8, 0), np.uint8), r"found \[8, 8, 0\]"),
        (np.zeros((3, 8, 8), np.uint8), r"found \[3, 8, 8\]"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"found \[1, 8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"no pixels: shape \[0, 8, 3\]"),
        (np.zeros((8, 0), np.uint8), "no pixels"),
        (np.zeros((0, 0, 1), np.uint8), "no pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_frames(frame: object, message: str) -> None:
    """Each message says what was found; nothing is written to the backend's memory."""
    with pytest.raises(FrameError, match=message):
        check_frame(frame)
    out = np.full(Preprocessor(COLOR).shape, 7, np.float32)
    with pytest.raises(FrameError, match=message):
        Preprocessor(COLOR)(frame, out)
    assert (out == 7).all()


@settings(deadline=None, max_examples=150)
@given(
    order=st.sampled_from(LAYOUTS),
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    resize=st.integers(4, 60),
    margin=st.integers(0, 50),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    gray=st.booleans(),
    dtype=st.sampled_from([np.float16, np.float32]),
)
@pytest.mark.skipif(library() is None, reason=str(unavailable()))
def test_native_equals_pillow(
    order: ColorOrder,
    height: int,
    width: int,
    resize: int,
    margin: int,
    interpolation: str,
    gray: bool,
    dtype: type[np.float16 | np.float32],
) -> None:
    """The same pixels and numbers, but for one level in thin frames: a bundle's answers do not
    depend on whether there was a compiler."""
    config = InputConfig.model_validate(
        (GRAY if gray else COLOR).model_dump()
        | {"resize": resize, "crop": max(4, resize - margin), "interpolation": interpolation}
    )
    frame = random_pixels(*frame_shape(height, width, order))
    native, pillow = Preprocessor(config), Preprocessor(config, native=False)
    levels = pillow.crop(frame, order)
    picture = brightness(frame, order).shape[:2]
    if max(picture) > 7 * min(picture):
        np.testing.assert_allclose(native.crop(frame, order).astype(int), levels, atol=1)
        return
    np.testing.assert_array_equal(native.crop(frame, order), levels)
    found: npt.NDArray[Any] = np.empty(native.shape, dtype)
    expected = found.copy()
    native(frame, found, order)
    pillow(frame, expected, order)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(2, 10_000, 3), (10_000, 2, 3), (1, 1_000_000), (1_000_000, 1)])
def test_thin_frames_cost_no_memory(
    shape: tuple[int, ...], interpolation: str, native: bool
) -> None:
    """The whole resized picture of the last would have 65 billion pixels."""
    update = {"resize": 256, "crop": 224, "interpolation": interpolation}
    config = COLOR.model_copy(update=update)
    frame = random_pixels(*shape)
    found = Preprocessor(config, native=native).crop(frame)
    # The crop shows the middle; the same from a frame that is not as long.
    axis = int(np.argmax(shape[:2]))
    middle = [slice(None)] * frame.ndim
    middle[axis] = slice(shape[axis] // 2 - 50, shape[axis] // 2 + 50)
    short = Preprocessor(config, native=native).crop(frame[tuple(middle)])
    np.testing.assert_allclose(found.astype(int), short, atol=1)


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("order", ["nv12", "yuyv"])
def test_yuv_equals_opencv(order: ColorOrder, native: bool) -> None:
    """Colours to two levels of OpenCV's, whose fast paths round on their own."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    frame = random_pixels(*frame_shape(48, 64, order), seed=3)
    code = cv2.COLOR_YUV2RGB_NV12 if order == "nv12" else cv2.COLOR_YUV2RGB_YUYV
    expected = cv2.cvtColor(frame, code)
    np.testing.assert_allclose(to_channels(frame, 3, order).astype(int), expected, atol=2)
    config = COLOR.model_copy(update={"resize": 48, "crop": 48})
    found = Preprocessor(config, native=native).crop(frame, order)
    np.testing.assert_allclose(found.astype(int), expected[:, 8:56], atol=2)


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("order", ["nv12", "yuyv"])
def test_yuv_of_a_gray_model_and_of_the_profile(order: ColorOrder, native: bool) -> None:
    """A profile may say that frames are YUV; gray is the luma of the colours they show."""
    frame = random_pixels(*frame_shape(30, 44, order), seed=4)
    config = InputConfig.model_validate(GRAY.model_dump() | {"color_order": order})
    expected = _run(config, to_channels(frame, 3, order), "rgb", native=native)
    np.testing.assert_array_equal(_run(config, frame, native=native), expected)


def test_yuv_range() -> None:
    """Y 16 is black and 235 white, whatever lies beyond."""
    for y, level in ((0, 0), (16, 0), (235, 255), (255, 255), (126, 128)):
        frame = np.full((4, 4, 2), 128, np.uint8)
        frame[..., 0] = y
        assert (to_channels(frame, 3, "yuyv") == level).all()


@pytest.mark.parametrize(
    ("shape", "order", "message"),
    [
        ((12, 8, 3), "nv12", r"nv12 frame has shape \[H \* 3 / 2, W\] .* found \[12, 8, 3\]"),
        ((13, 8), "nv12", r"even H and W, found \[13, 8\]; give color_order"),
        ((12, 7), "nv12", r"found \[12, 7\]"),
        ((0, 8), "nv12", "no pixels"),
        ((8, 8), "yuyv", r"yuyv frame has shape \[H, W, 2\] with even W, found \[8, 8\]"),
        ((8, 8, 3), "yuyv", r"found \[8, 8, 3\]"),
        ((8, 7, 2), "yuyv", r"found \[8, 7, 2\]"),
        ((8, 0, 2), "yuyv", "no pixels"),
        ((8, 8, 2), "bgr", r"found \[8, 8, 2\]"),
        ((8, 8, 3), "bggr", "unknown layout 'bggr'; color_order is one of bgr, rgb, gray, nv12"),
        ((8, 8, 3), "BGR", "unknown layout 'BGR'"),
        ((8, 8, 3), ["bgr"], "unknown layout"),
    ],
)
def test_bad_layouts(shape: tuple[int, ...], order: ColorOrder, message: str) -> None:
    """A frame that cannot be of the layout, and layouts that do not exist."""
    out = np.full(Preprocessor(COLOR).shape, 7, np.float32)
    with pytest.raises(FrameError, match=message):
        Preprocessor(COLOR)(np.zeros(shape, np.uint8), out, order)
    assert (out == 7).all()


@pytest.mark.parametrize("native", BOTH)
def test_any_output_array(native: bool) -> None:
    """Also one that is not contiguous is written; float16 is float32 rounded once."""
    frame = random_pixels(33, 47, 3)
    preprocess = Preprocessor(COLOR, native=native)
    expected = _run(COLOR, frame, native=native)
    spread = np.zeros((3, 16, 32), np.float32)[..., ::2]
    preprocess(frame, spread)
    np.testing.assert_array_equal(spread, expected)
    half = np.zeros(preprocess.shape, np.float16)
    preprocess(frame, half)
    np.testing.assert_array_equal(half, expected.astype(np.float16))


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("size", [(20, 30), (21, 31), (1, 1)])
def test_frame_shape(order: ColorOrder, size: tuple[int, int]) -> None:
    """Every shape that it gives is a frame of that layout, of as many pixels as can be."""
    frame = check_frame(random_pixels(*frame_shape(*size, order)), order)
    height, width = brightness(frame, order).shape[:2]
    assert abs(height - size[0]) <= 1
    assert abs(width - size[1]) <= 1
