"""Frames of every layout as JPEG."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dvt_edge.profile import ColorOrder
from dvt_edge.serve.hub import Newest
from dvt_edge.serve.pictures import WIDEST, Pictures, encode
from tests.conftest import random_pixels
from tests.serve.conftest import made_seen

RED = (200, 30, 40)


def _plain(order: ColorOrder, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A frame that is red, or as light as red, all over."""
    shapes = {
        "gray": (height, width),
        "nv12": (height * 3 // 2, width),
        "yuyv": (height, width, 2),
    }
    frame = np.empty(shapes.get(order, (height, width, 3)), np.uint8)
    if order == "gray":
        frame[:] = 82
    elif order == "nv12":
        frame[:height], frame[height:, ::2], frame[height:, 1::2] = 86, 109, 197
    elif order == "yuyv":
        frame[..., 0], frame[:, ::2, 1], frame[:, 1::2, 1] = 86, 109, 197
    else:
        frame[:] = RED if order == "rgb" else RED[::-1]
    return frame


@pytest.mark.parametrize("order", get_args(ColorOrder))
@pytest.mark.parametrize(("height", "width"), [(36, 64), (720, 1280), (1080, 1920)])
def test_layouts(order: ColorOrder, height: int, width: int) -> None:
    """The colours that were in front of the camera, in pictures that are small enough."""
    picture = Image.open(io.BytesIO(encode(_plain(order, height, width), order)))
    assert picture.size == ((width, height) if width <= WIDEST else (width // 2, height // 2))
    pixel = np.array(picture)[5, 5]
    expected = (82,) if order == "gray" else RED
    assert np.abs(pixel.astype(int) - expected).max() <= 8


def test_colour_frames_of_a_gray_model() -> None:
    """They come as OpenCV gives them."""
    picture = Image.open(io.BytesIO(encode(_plain("bgr", 36, 64), "gray")))
    assert np.abs(np.array(picture)[5, 5].astype(int) - RED).max() <= 8


def test_views_into_other_arrays() -> None:
    """Pixels need not lie side by side in memory."""
    whole = random_pixels(40, 60, 3)
    assert encode(whole[2:38:2, ::3], "bgr") == encode(whole[2:38:2, ::3].copy(), "bgr")


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5000), (5000, 1, 3)])
def test_odd_sizes(shape: tuple[int, ...]) -> None:
    order: ColorOrder = "gray" if len(shape) == 2 else "bgr"
    Image.open(io.BytesIO(encode(np.zeros(shape, np.uint8), order))).load()


def test_each_frame_is_encoded_once() -> None:
    """For all who look at it, and again only when another one was asked for meanwhile."""

    async def look() -> int:
        with ThreadPoolExecutor(2) as threads:
            pictures = Pictures(threads)
            one, two = Newest(1, made_seen(1)), Newest(2, made_seen(2))
            same = await asyncio.gather(*(pictures.of(one) for _ in range(4)))
            assert len(set(same)) == 1
            assert await pictures.of(one) == same[0]
            assert await pictures.of(two) != same[0]
            await pictures.of(Newest(3, made_seen(1, source="yard")))
            await pictures.of(two)
            return pictures.encoded

    assert asyncio.run(look()) == 3


def test_a_viewer_who_leaves_does_not_end_it_for_others() -> None:
    async def look() -> None:
        with ThreadPoolExecutor(1) as threads:
            pictures = Pictures(threads)
            newest = Newest(1, made_seen())
            leaving = asyncio.create_task(pictures.of(newest))
            staying = asyncio.create_task(pictures.of(newest))
            await asyncio.sleep(0)
            leaving.cancel()
            assert (await staying).startswith(b"\xff\xd8")

    asyncio.run(look())
