"""Folders of images, and single ones."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np

from dvt_edge.camera.causes import Cause, ReadingError
from dvt_edge.camera.frame import Pixels
from dvt_edge.camera.mailbox import DamagedError, Mailbox
from dvt_edge.camera.plan import Plan
from dvt_edge.errors import DataError
from dvt_edge.files.datasets import find_images, load_image


def read(plan: Plan, mailbox: Mailbox) -> None:
    """In the order of their names; with ``fps`` when they are due, else as they are asked for."""
    address, place = plan.address, Path(plan.address.target)
    if not place.exists():
        raise ReadingError(Cause.NOT_FOUND, "no such file or folder")
    paths = [place] if place.is_file() else find_images(place)
    if not paths:
        raise ReadingError(Cause.NO_FRAMES, "the folder holds no images")
    due = time.monotonic()
    while True:
        for path in paths:
            if address.fps and not plan.every_frame:
                mailbox.pause_until(due)
                captured_at, due = due, max(due + 1 / address.fps, time.monotonic())
            else:
                captured_at = time.monotonic()
            try:
                pixels = bgr_image(path)
            except DamagedError as error:
                mailbox.lose("damaged", str(error))
            else:
                mailbox.put(partial(np.asarray, pixels), captured_at)
        if not mailbox.opened:
            raise ReadingError(Cause.UNDECODABLE, f"none can be read: {mailbox.damage}")
        if not address.loop:
            raise ReadingError(Cause.ENDED, "these were all images")


def bgr_image(path: Path) -> Pixels:
    """uint8 [H, W, 3] BGR, or [H, W] if the file is gray; raises :class:`DamagedError`."""
    try:
        pixels = load_image(path)
    except DataError as error:
        raise DamagedError(str(error)) from None
    return pixels if pixels.ndim == 2 else pixels[..., ::-1]
