"""Frames as JPEG, for viewers; each frame is encoded once, however many look at it."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import Executor
from math import ceil

import numpy as np
from PIL import Image

from dvt_edge.profile import ColorOrder
from dvt_edge.runtime.preprocess import Pixels, to_channels
from dvt_edge.serve.hub import Newest

WIDEST = 960
"""Wider pictures are made smaller, in pixels."""
QUALITY = 80


def encode(pixels: Pixels, order: ColorOrder) -> bytes:
    """A frame as JPEG, at most :data:`WIDEST` wide; of gray frames, gray."""
    picture = _picture(pixels, order)
    if picture.width > WIDEST:  # by a whole number: five times as fast as to any size
        picture = picture.reduce(ceil(picture.width / WIDEST))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _picture(pixels: Pixels, order: ColorOrder) -> Image.Image:
    if pixels.ndim == 2 and order != "nv12":
        return Image.fromarray(pixels)
    if order in ("nv12", "yuyv"):
        return Image.fromarray(to_channels(pixels, 3, order))
    height, width = pixels.shape[:2]
    layout = "RGB" if order == "rgb" else "BGR"
    flat = np.ascontiguousarray(pixels)
    return Image.frombuffer("RGB", (width, height), flat, "raw", layout, 0, 1)


class Pictures:
    """Encodes in ``threads``; used by one event loop."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._made: dict[str, tuple[int, asyncio.Future[bytes]]] = {}
        """The last one of each camera."""
        self.encoded = 0

    async def of(self, newest: Newest) -> bytes:
        """Its picture; viewers who ask at the same time wait for the same one."""
        number, seen = newest
        made = self._made.get(seen.source)
        if made is None or made[0] != number:
            frame = seen.frame
            work = asyncio.get_running_loop().run_in_executor(
                self._threads, encode, frame.pixels, frame.color_order
            )
            made = self._made[seen.source] = (number, work)
            self.encoded += 1
        return await asyncio.shield(made[1])  # a viewer who leaves does not end it for the others
