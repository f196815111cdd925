"""Frame -> model input: resize, centre crop, colour order, normalise.

The native library does it in one pass over the pixels that the crop keeps; without it NumPy and
Pillow do. Both give the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from operator import index
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from dvt_edge.errors import FrameError
from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.native import calls
from dvt_edge.runtime.native.library import PreprocessPlan, library

Pixels = npt.NDArray[np.uint8]
Box = Sequence[int]
"""Part of a frame: left edge, top edge, width and height in pixels."""
LAYOUTS: tuple[ColorOrder, ...] = get_args(ColorOrder)
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_REACH = {"bilinear": 1, "bicubic": 2}
_THIN = 8
"""From this ratio of the sides on, Pillow resizes only what the crop keeps."""


def check_frame(frame: object, order: ColorOrder = "bgr") -> Pixels:
    """Return ``frame`` if it is a uint8 array of layout ``order`` with pixels in it.

    ``bgr``, ``rgb`` and ``gray`` frames are [H, W, 3], [H, W, 1] or [H, W], the last two gray;
    ``nv12`` frames [H * 3 / 2, W]; ``yuyv`` frames [H, W, 2].
    Raises :class:`~dvt_edge.errors.FrameError` saying what was found.
    """
    if order not in LAYOUTS:
        raise FrameError(f"unknown layout {order!r}; color_order is one of {', '.join(LAYOUTS)}")
    if not isinstance(frame, np.ndarray):
        raise FrameError(
            f"a frame is a NumPy array uint8 [H, W, 3] or [H, W], found {type(frame).__name__}; "
            "decode files first, for example with cv2.imread"
        )
    if frame.dtype != np.uint8:
        raise FrameError(
            f"a frame holds uint8 levels 0..255, found {frame.dtype}; convert it first"
        )
    if frame.ndim == 3 and frame.shape[2] == 1:
        frame = frame[..., 0]
    if order == "nv12":
        if frame.ndim != 2 or len(frame) % 3 or frame.shape[1] % 2:
            raise FrameError(
                "an nv12 frame has shape [H * 3 / 2, W] with even H and W, found "
                f"{list(frame.shape)}; give color_order if its layout is another"
            )
    elif order == "yuyv":
        if frame.ndim != 3 or frame.shape[2] != 2 or frame.shape[1] % 2:
            raise FrameError(
                f"a yuyv frame has shape [H, W, 2] with even W, found {list(frame.shape)}; "
                "give color_order if its layout is another"
            )
    elif frame.ndim != 2 and not (frame.ndim == 3 and frame.shape[2] == 3):
        raise FrameError(f"a frame has shape [H, W, 3] or [H, W], found {list(frame.shape)}")
    if frame.size == 0:
        raise FrameError(f"the frame has no pixels: shape {list(frame.shape)}")
    return frame


def cut_box(frame: object, box: object, order: ColorOrder) -> Pixels:
    """The part ``box`` of ``frame``: left edge, top edge, width and height in pixels.

    A view where the layout allows one, so nothing is copied; of ``nv12`` the box's pixels are
    copied. In ``nv12`` and ``yuyv``, whose pixels share their colour, the box grows to even edges.
    Raises :class:`~dvt_edge.errors.FrameError` for a box that is not four whole numbers or reaches
    out of the frame.
    """
    pixels = check_frame(frame, order)
    height, width = brightness(pixels, order).shape[:2]
    try:
        left, top, across, down = (index(value) for value in box)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise FrameError(
            f"a box is four whole numbers (x, y, width, height) in pixels, found {box!r}"
        ) from None
    right, bottom = left + across, top + down
    if left < 0 or top < 0 or across < 1 or down < 1 or right > width or bottom > height:
        raise FrameError(
            f"the box (x, y, width, height) = ({left}, {top}, {across}, {down}) is not within the "
            f"frame of {width}x{height} pixels; clip it first"
        )
    if order in ("nv12", "yuyv"):
        left, right = left // 2 * 2, (right + 1) // 2 * 2
    if order != "nv12":
        return pixels[top:bottom, left:right]
    top, bottom = top // 2 * 2, (bottom + 1) // 2 * 2
    colour = pixels[height + top // 2 : height + bottom // 2, left:right]
    return np.concatenate([pixels[top:bottom, left:right], colour])


def frame_shape(height: int, width: int, order: ColorOrder) -> tuple[int, ...]:
    """Shape of the array that holds a picture of so many pixels; odd ones lose a row or column
    where the layout has none."""
    if order == "nv12":
        return max(1, height // 2) * 3, max(1, width // 2) * 2
    if order == "yuyv":
        return height, max(1, width // 2) * 2, 2
    return (height, width) if order == "gray" else (height, width, 3)


def brightness(frame: Pixels, order: ColorOrder) -> Pixels:
    """The part of a checked frame to compare pictures by: Y of YUV layouts [H, W], else all."""
    if order == "nv12":
        return frame[: len(frame) * 2 // 3]
    return frame[..., 0] if order == "yuyv" else frame


def to_channels(frame: Pixels, channels: int, order: ColorOrder) -> Pixels:
    """RGB [H, W, 3] or gray [H, W], whichever the model's ``channels`` (3 or 1) asks for.

    ``order`` is the layout of the checked ``frame``; a colour frame given with ``gray`` counts
    as OpenCV's BGR. Gray is ITU-R 601 luma, as Pillow and OpenCV compute it; YUV is BT.601 of
    limited range (Y 16..235), as OpenCV reads it.
    """
    if order in ("nv12", "yuyv"):
        frame, order = _rgb_from_yuv(frame, order), "rgb"
    if channels == 1:
        if frame.ndim == 2:
            return frame
        rgb = frame if order == "rgb" else frame[..., ::-1]
        return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("L"))
    if frame.ndim == 2:
        return np.repeat(frame[..., None], 3, axis=2)
    return frame if order == "rgb" else frame[..., ::-1]


def _rgb_from_yuv(frame: Pixels, order: ColorOrder) -> Pixels:
    """RGB [H, W, 3] in the fixed point that OpenCV and ``native/device.h`` use."""
    y = brightness(frame, order)
    height, width = y.shape
    if order == "nv12":
        chroma = frame[height:].reshape(height // 2, width // 2, 2).repeat(2, axis=0)
    else:
        chroma = frame[..., 1].reshape(height, width // 2, 2)
    u, v = np.moveaxis(chroma.repeat(2, axis=1).astype(np.int32) - 128, 2, 0)
    light = np.maximum(y.astype(np.int32) - 16, 0) * 1220542 + (1 << 19)
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[..., 0] = ((light + 1673527 * v) >> 20).clip(0, 255)
    rgb[..., 1] = ((light - 852492 * v - 409993 * u) >> 20).clip(0, 255)
    rgb[..., 2] = ((light + 2116026 * u) >> 20).clip(0, 255)
    return rgb


def resize_and_crop(image: Pixels, config: InputConfig) -> Pixels:
    """Resize the short side to ``config.resize`` (antialiased) and cut the centre square out.

    Returns uint8 [crop, crop] or [crop, crop, 3].
    """
    height, width = image.shape[:2]
    resized = _resized(height, width, config)
    if max(resized) > _THIN * min(resized) and resized != (height, width):
        return _resize_crop_only(image, resized, config)
    if resized != (height, width):
        across = (0, 0, width, height)
        down = (0, 0, resized[1], height)
        image = _two_passes(image, resized, across, down, config)
    top, left = _corner(resized, config.crop)
    return image[top : top + config.crop, left : left + config.crop]


def _resized(height: int, width: int, config: InputConfig) -> tuple[int, int]:
    """Height and width of the whole resized picture."""
    short = min(height, width)
    if short == config.resize:
        return height, width
    return (
        max(config.crop, round(height * config.resize / short)),
        max(config.crop, round(width * config.resize / short)),
    )


def _corner(resized: tuple[int, int], crop: int) -> tuple[int, int]:
    return (resized[0] - crop) // 2, (resized[1] - crop) // 2


def _resize_crop_only(image: Pixels, resized: tuple[int, int], config: InputConfig) -> Pixels:
    """The crop of a thin picture, of which the whole would be huge; to one level the same pixels.

    Pillow's box is in single precision, so the part around it is cut out first.
    """
    parts, ends = [], []
    for size, after, start in zip(
        image.shape[:2], resized, _corner(resized, config.crop), strict=True
    ):
        step = size / after
        reach = _REACH[config.interpolation] * max(1.0, step) + 1
        first = max(0, floor(start * step - reach))
        end = min(size, ceil((start + config.crop) * step + reach))
        parts.append(slice(first, end))
        ends.append((start * step - first, min((start + config.crop) * step, size) - first))
    part = image[tuple(parts)]
    (top, bottom), (left, right) = ends
    across = (left, 0, right, len(part))
    down = (0, top, config.crop, bottom)
    return _two_passes(part, (config.crop, config.crop), across, down, config)


def _two_passes(
    image: Pixels,
    size: tuple[int, int],
    across: tuple[float, float, float, float],
    down: tuple[float, float, float, float],
    config: InputConfig,
) -> Pixels:
    """Columns first, then rows, to ``size`` (height, width); each pass reads its box (left, top,
    right, bottom).

    In one call, Pillow 13 and later may filter rows first, and with ``bicubic`` that can change
    pixels by many levels: what a bundle answers would depend on Pillow's version.
    """
    kind, height = _FILTERS[config.interpolation], image.shape[0]
    picture = Image.fromarray(np.ascontiguousarray(image))
    filtered = picture.resize((size[1], height), kind, across)
    return np.asarray(filtered.resize((size[1], size[0]), kind, down))


class Preprocessor:
    """Frames to normalised input, as one profile's ``input`` says; on at most ``threads`` threads.

    ``native`` False does without the native library also where there is one.
    """

    def __init__(self, config: InputConfig, threads: int = 1, *, native: bool = True) -> None:
        self.config = config
        self._threads = threads
        self._native = native and library() is not None
        self._plan: tuple[object, PreprocessPlan | None] = (None, None)
        mean = np.asarray(config.mean, np.float32)
        std = np.asarray(config.std, np.float32)
        self._scale = (1 / (255 * std)).reshape(-1, 1, 1)
        self._shift = (-mean / std).reshape(-1, 1, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the model's input."""
        return self.config.channels, self.config.crop, self.config.crop

    def __call__(
        self,
        frame: object,
        out: npt.NDArray[np.float32] | npt.NDArray[np.float16],
        order: ColorOrder | None = None,
    ) -> None:
        """Write ``frame`` (uint8, as :func:`check_frame` wants it), normalised, into ``out``, an
        array [C, crop, crop].

        ``order`` overrides the profile's colour order, for frames from another source.
        Raises :class:`~dvt_edge.errors.FrameError`.
        """
        order = order or self.config.color_order
        pixels = check_frame(frame, order)
        fits = out.flags.c_contiguous and out.shape == self.shape and out.dtype in calls.OUTPUTS
        if not (fits and self._run(pixels, order, out)):
            self.normalise(self._crop(pixels, order), out)

    def hand_over(
        self,
        frame: object,
        order: ColorOrder | None,
        take: calls.TakeFrame,
        slot: int,
        dtype: npt.DTypeLike,
    ) -> bool:
        """Give ``frame`` to ``take``, which makes the image of ``slot``, of type ``dtype``, from it
        elsewhere.

        False where that cannot be, such as without native code. Raises
        :class:`~dvt_edge.errors.FrameError`.
        """
        order = order or self.config.color_order
        pixels, plan = self._planned(check_frame(frame, order), order, np.dtype(dtype))
        return plan is not None and take(plan, pixels, slot)

    def crop(self, frame: object, order: ColorOrder | None = None) -> Pixels:
        """``frame`` in the model's channels, resized and cropped: uint8 [crop, crop(, 3)], RGB."""
        order = order or self.config.color_order
        return self._crop(check_frame(frame, order), order)

    def normalise(
        self, pixels: Pixels, out: npt.NDArray[np.float32] | npt.NDArray[np.float16]
    ) -> None:
        """Write what :meth:`crop` gave, normalised, into ``out`` [C, crop, crop]."""
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if out.dtype == np.float16:  # rounded once, at the end
            out[...] = planes * self._scale + self._shift
            return
        np.multiply(planes, self._scale, out=out)
        out += self._shift

    def picture(self, frame: object, order: ColorOrder | None = None) -> Pixels:
        """What to compare frames by: see :func:`brightness`."""
        order = order or self.config.color_order
        return brightness(check_frame(frame, order), order)

    def _crop(self, pixels: Pixels, order: ColorOrder) -> Pixels:
        side = self.config.crop
        levels = np.empty((side, side, 3) if self.config.channels == 3 else (side, side), np.uint8)
        if self._run(pixels, order, levels):
            return levels
        return resize_and_crop(to_channels(pixels, self.config.channels, order), self.config)

    def _run(self, pixels: Pixels, order: ColorOrder, out: npt.NDArray[Any]) -> bool:
        """Whether the native library wrote ``out``."""
        pixels, plan = self._planned(pixels, order, out.dtype)
        if plan is None:
            return False
        calls.preprocess(plan, pixels, out, self._threads)
        return True

    def _planned(
        self, pixels: Pixels, order: ColorOrder, dtype: np.dtype[Any]
    ) -> tuple[Pixels, PreprocessPlan | None]:
        """``pixels`` with packed rows, and how native code makes ``dtype`` of them, if it can."""
        if not self._native:
            return pixels, None
        if pixels.ndim == 2 and order in ("bgr", "rgb"):
            order = "gray"
        elif pixels.ndim == 3 and order == "gray":
            order = "bgr"
        packed = (1,) if pixels.ndim == 2 else (pixels.shape[2], 1)
        if pixels.strides[1:] != packed:
            pixels = np.ascontiguousarray(pixels)
        key = (order, pixels.shape, pixels.strides[0], dtype)
        # One source's frames are alike. The pair is replaced as a whole: threads may race here.
        known, plan = self._plan
        if key != known:
            height, width = brightness(pixels, order).shape[:2]
            resized = _resized(height, width, self.config)
            stride = pixels.strides[0]
            plan = calls.make_plan(self.config, order, (height, width), resized, stride, dtype)
            self._plan = key, plan
        return pixels, plan
