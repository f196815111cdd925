"""``test://``: pictures that move, without a camera.

The demo's scenes, or those of a folder, one after the other, each moved to and fro. Where dvt-edge
is installed without its repository, shapes are drawn.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dvt_edge.camera.causes import Cause, ReadingError
from dvt_edge.camera.frame import Pixels
from dvt_edge.camera.mailbox import DamagedError, Mailbox
from dvt_edge.camera.plan import Plan
from dvt_edge.camera.readers.images import bgr_image
from dvt_edge.camera.stamp import HEIGHT, WIDTH, write_stamp
from dvt_edge.files.datasets import find_images

SIZE = (640, 480)
FPS = 30.0
SCENE_S = 2.0
"""How long each scene is shown."""
MOVE = 0.06
"""How far it moves, of its height."""
_DEMO = Path(__file__).resolve().parents[3] / "samples" / "demo" / "scenes" / "test"


def read(plan: Plan, mailbox: Mailbox) -> None:
    """Without an end, at the pace of a camera; with ``every_frame`` as they are asked for."""
    address = plan.address
    width, height = address.size or SIZE
    fps = address.fps or FPS
    if address.stamp and (width < WIDTH or height < HEIGHT):
        raise ReadingError(
            Cause.UNDECODABLE, f"stamps need pictures of {WIDTH}x{HEIGHT} pixels or more"
        )
    due = time.monotonic()
    for number, pixels in enumerate(_pictures(address.target, width, height, fps)):
        if not plan.every_frame:
            mailbox.pause_until(due)
        now = time.monotonic()
        if address.stamp:
            pixels = pixels.copy()  # noqa: PLW2901
            write_stamp(pixels, number, now)
        mailbox.put(partial(np.asarray, pixels), now)
        due = max(due + 1 / fps, now)


def _pictures(folder: str, width: int, height: int, fps: float) -> Iterator[Pixels]:
    """Views of canvases, each picture a little further on."""
    margin = max(2, round(MOVE * height))
    for canvas in _canvases(folder, width + margin, height + margin):
        for step in range(max(1, round(SCENE_S * fps))):
            angle = 2 * math.pi * step / fps / SCENE_S
            top = round(margin * (1 + math.sin(angle)) / 2)
            left = round(margin * (1 + math.cos(angle)) / 2)
            yield canvas[top : top + height, left : left + width]


def _canvases(folder: str, width: int, height: int) -> Iterator[Pixels]:
    place = Path(folder) if folder else _DEMO
    if not folder and not place.is_dir():
        yield from _drawn(width, height)
    if not place.is_dir():
        raise ReadingError(Cause.NOT_FOUND, "no such folder of images")
    paths = find_images(place)
    if not paths:
        raise ReadingError(Cause.NO_FRAMES, "the folder holds no images")
    # Every class in turn, where there is a folder for each.
    groups = [list(group) for _, group in itertools.groupby(paths, lambda path: path.parent)]
    turns = [path for turn in itertools.zip_longest(*groups) for path in turn if path is not None]
    while True:
        shown = 0
        for path in turns:
            try:
                yield _canvas(bgr_image(path), width, height)
            except DamagedError:
                continue
            shown += 1
        if not shown:
            raise ReadingError(Cause.UNDECODABLE, "none of the images can be read")


def _canvas(pixels: Pixels, width: int, height: int) -> Pixels:
    """The whole image, as high as the canvas, between its own mirrored edges."""
    fitted = max(1, round(pixels.shape[1] * height / pixels.shape[0]))
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize((fitted, height))
    scaled = np.asarray(image)
    if fitted >= width:
        left = (fitted - width) // 2
        return scaled[:, left : left + width]
    before = (width - fitted) // 2
    sides = ((0, 0), (before, width - fitted - before)) + ((0, 0),) * (scaled.ndim - 2)
    return np.pad(scaled, sides, mode="symmetric")


def _drawn(width: int, height: int) -> Iterator[Pixels]:
    """Shapes before a gradient, BGR."""
    down, across = np.mgrid[0:height, 0:width]
    ground = np.stack([255 * down / height, 255 * across / width, 0 * down + 96], axis=-1)
    for number in itertools.count():
        image = Image.fromarray(ground.astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for place in range(3):
            centre = (width * (place + 1) / 4, height * (0.3 + 0.4 * (place + number) % 2 / 2))
            radius = min(width, height) * 0.12
            colour = ("white", "orange", "navy")[(place + number) % 3]
            if (place + number) % 2:
                draw.regular_polygon((*centre, radius), 3 + number % 4, fill=colour)
            else:
                box = [centre[0] - radius, centre[1] - radius]
                draw.ellipse([*box, box[0] + 2 * radius, box[1] + 2 * radius], fill=colour)
        yield np.asarray(image)
