"""A number and a time that a machine reads off a picture: how old it is can then be measured from
outside, whatever lies between. Blocks of eight pixels survive JPEG and H.264."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dvt_edge.camera.frame import Pixels

BLOCK = 8
_COLUMNS, _ROWS = 40, 2
WIDTH, HEIGHT = _COLUMNS * BLOCK, _ROWS * BLOCK
"""Pixels that it takes, in the upper left corner."""
_BITS = _COLUMNS * _ROWS  # 32 of the number, 40 of the time, 8 to check
_PRIME = 251


class Stamp(NamedTuple):
    """What was written."""

    number: int
    at: float
    """Seconds, to the millisecond."""


def write_stamp(pixels: Pixels, number: int, at: float) -> None:
    """Into ``pixels``, [H, W, 3] or [H, W], at least 16 high and 320 wide."""
    value = (number % 2**32) << 40 | round(at * 1e3) % 2**40
    value = value << 8 | value % _PRIME
    bits = [value >> place & 1 for place in range(_BITS)]
    blocks = np.array(bits, np.uint8).reshape(_ROWS, _COLUMNS) * 255
    area = np.kron(blocks, np.ones((BLOCK, BLOCK), np.uint8))
    pixels[:HEIGHT, :WIDTH] = area if pixels.ndim == 2 else area[..., None]


def read_stamp(pixels: Pixels) -> Stamp | None:
    """What :func:`write_stamp` wrote; None if the picture is damaged there."""
    area = pixels[:HEIGHT, :WIDTH]
    if area.shape[:2] != (HEIGHT, WIDTH):
        return None
    area = area if area.ndim == 2 else area[..., 1]
    middles = area.reshape(_ROWS, BLOCK, _COLUMNS, BLOCK)[:, 2:6, :, 2:6].mean(axis=(1, 3))
    value = sum(int(bit) << place for place, bit in enumerate((middles > 127).ravel()))
    value, check = value >> 8, value & 255
    if value % _PRIME != check or (np.abs(middles - 127.5) < 64).any():
        return None
    return Stamp(value >> 40, (value & (2**40 - 1)) / 1e3)
