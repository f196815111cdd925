"""Fashion scenes: real photographs at random scale and place with clutter, for the demo.

Plain Fashion-MNIST hardly tells the exits of a cascade apart. What makes an image hard for few
tokens is the object's scale, its place and what lies around it, so each 28x28 photograph is placed
on a 48x48 canvas as a camera above a conveyor would see it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

CANVAS = 48
"""Height and width of a scene in pixels."""
OBJECT_SIZES = (12, 44)
"""Smallest and largest side of the object in pixels, both possible."""
CLUTTER_PATCHES = 4
CLUTTER_SIZE = 8
CLUTTER_BRIGHTNESS = 0.7
OBJECT_LEVEL = 13
"""Clutter shows only where the object's pixel is below this level of 255."""

Gray = npt.NDArray[np.uint8]


def draw_scene(photographs: Gray, index: int, rng: np.random.Generator) -> Gray:
    """One scene [48, 48] uint8 with photograph ``index`` of ``photographs`` [N, 28, 28] in it.

    The clutter is cut from other photographs of the same array, so scenes made from held-out
    photographs show nothing that was trained on. All randomness comes from ``rng``. ``train.yaml``
    names this function as ``data.draw``. Raises :class:`ValueError` for other photographs.
    """
    if photographs.shape[1:] != (28, 28):
        raise ValueError(
            f"scenes are drawn from gray 28x28 photographs, found {list(photographs.shape[1:])}"
        )
    size = int(rng.integers(OBJECT_SIZES[0], OBJECT_SIZES[1] + 1))
    top, left = rng.integers(0, CANVAS - size + 1, size=2)
    photograph = Image.fromarray(photographs[index])
    scene = np.zeros((CANVAS, CANVAS), np.uint8)
    scene[top : top + size, left : left + size] = np.asarray(
        photograph.resize((size, size), Image.Resampling.BILINEAR)
    )
    free = scene < OBJECT_LEVEL
    side = photographs.shape[1] - CLUTTER_SIZE + 1
    for _ in range(CLUTTER_PATCHES):
        other = int(rng.integers(0, len(photographs) - 1))
        other += other >= index  # any photograph but the object's own
        y, x = rng.integers(0, side, size=2)
        patch = photographs[other, y : y + CLUTTER_SIZE, x : x + CLUTTER_SIZE]
        y, x = rng.integers(0, CANVAS - CLUTTER_SIZE + 1, size=2)
        place = (slice(y, y + CLUTTER_SIZE), slice(x, x + CLUTTER_SIZE))
        dimmed = np.rint(patch * CLUTTER_BRIGHTNESS).astype(np.uint8)
        scene[place] = np.where(free[place], dimmed, scene[place])
    return scene


def draw_scenes(photographs: Gray, count: int, seed: int) -> tuple[Gray, npt.NDArray[np.int64]]:
    """A fixed set of scenes [count, 48, 48] and the index of each one's photograph [count].

    Photographs are taken in order, starting again when ``count`` exceeds their number; scene ``i``
    depends on ``seed`` and ``i`` alone.
    """
    indices = np.arange(count) % len(photographs)
    scenes = [
        draw_scene(photographs, int(photo), np.random.default_rng((seed, i)))
        for i, photo in enumerate(indices)
    ]
    return np.stack(scenes), indices
