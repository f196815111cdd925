"""Frame -> model input: resize, centre crop, colour order, normalise. NumPy and Pillow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from dvt_edge.errors import FrameError
from dvt_edge.profile import ColorOrder, InputConfig

Pixels = npt.NDArray[np.uint8]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def check_frame(frame: object) -> Pixels:
    """Return ``frame`` if it is a uint8 array [H, W, 3], [H, W, 1] or [H, W] with pixels in it.

    Raises :class:`~dvt_edge.errors.FrameError` saying what was found.
    """
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
    if frame.ndim != 2 and not (frame.ndim == 3 and frame.shape[2] == 3):
        raise FrameError(f"a frame has shape [H, W, 3] or [H, W], found {list(frame.shape)}")
    if frame.size == 0:
        raise FrameError(f"the frame has no pixels: shape {list(frame.shape)}")
    return frame


def to_channels(frame: Pixels, channels: int, order: ColorOrder) -> Pixels:
    """RGB [H, W, 3] or gray [H, W], whichever the model's ``channels`` (3 or 1) asks for.

    ``order`` is the channel order of a colour ``frame``; a colour frame given with ``gray`` counts
    as OpenCV's BGR. Gray is ITU-R 601 luma, as Pillow and OpenCV compute it.
    """
    if channels == 1:
        if frame.ndim == 2:
            return frame
        rgb = frame if order == "rgb" else frame[..., ::-1]
        return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("L"))
    if frame.ndim == 2:
        return np.repeat(frame[..., None], 3, axis=2)
    return frame if order == "rgb" else frame[..., ::-1]


def resize_and_crop(image: Pixels, config: InputConfig) -> Pixels:
    """Resize the short side to ``config.resize`` (antialiased) and cut the centre square out.

    Returns uint8 [crop, crop] or [crop, crop, 3].
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if short != config.resize:
        size = (
            max(config.crop, round(width * config.resize / short)),
            max(config.crop, round(height * config.resize / short)),
        )
        resized = Image.fromarray(np.ascontiguousarray(image)).resize(
            size, _FILTERS[config.interpolation]
        )
        image = np.asarray(resized)
        height, width = image.shape[:2]
    top, left = (height - config.crop) // 2, (width - config.crop) // 2
    return image[top : top + config.crop, left : left + config.crop]


class Preprocessor:
    """Frames to normalised input, as one profile's ``input`` says."""

    def __init__(self, config: InputConfig) -> None:
        self.config = config
        mean = np.asarray(config.mean, np.float32)
        std = np.asarray(config.std, np.float32)
        self._scale = (1 / (255 * std)).reshape(-1, 1, 1)
        self._shift = (-mean / std).reshape(-1, 1, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the model's input."""
        return self.config.channels, self.config.crop, self.config.crop

    def __call__(
        self, frame: object, out: npt.NDArray[np.float32], order: ColorOrder | None = None
    ) -> None:
        """Write ``frame`` (uint8 [H, W, 3] or [H, W]), normalised, into ``out`` [C, crop, crop].

        ``order`` overrides the profile's colour order, for frames from another source.
        Raises :class:`~dvt_edge.errors.FrameError`.
        """
        self.normalise(self.crop(frame, order), out)

    def crop(self, frame: object, order: ColorOrder | None = None) -> Pixels:
        """``frame`` in the model's channels, resized and cropped: uint8 [crop, crop(, 3)], RGB."""
        config = self.config
        image = to_channels(check_frame(frame), config.channels, order or config.color_order)
        return resize_and_crop(image, config)

    def normalise(self, pixels: Pixels, out: npt.NDArray[np.float32]) -> None:
        """Write what :meth:`crop` gave, normalised, into ``out`` [C, crop, crop]."""
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        np.multiply(planes, self._scale, out=out)
        out += self._shift
