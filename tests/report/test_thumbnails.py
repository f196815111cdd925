"""Small images as text."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image, features

from dvt_edge.report.classes import thumbnail_uri


@pytest.mark.parametrize(
    ("shape", "side"),
    [((300, 200, 3), 72), ((48, 48), 48), ((10, 500, 3), 10), ((1, 1), 1)],
)
def test_square_and_never_enlarged(shape: tuple[int, ...], side: int) -> None:
    kind, text = thumbnail_uri(np.full(shape, 128, np.uint8)).split(";base64,")
    assert kind.startswith("data:image/")
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert image.size == (side, side)
        assert image.convert("L").getpixel((0, 0)) == pytest.approx(128, abs=3)


def test_without_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some builds of Pillow lack WebP; JPEG is everywhere."""
    monkeypatch.setattr(features, "check", lambda name: False)
    assert thumbnail_uri(np.zeros((20, 20, 3), np.uint8)).startswith("data:image/jpeg;base64,")


def test_size() -> None:
    """Even noise, the worst there is, stays a few kilobytes."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    assert len(thumbnail_uri(noise)) < 8_000
