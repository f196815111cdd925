"""Small images as text that a page carries along."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageOps, features

from dvt_edge.files.datasets import Pixels

SIDE_PX = 72
QUALITY = 68
"""Of WebP and JPEG: about 1 kB an image."""


def thumbnail_uri(image: Pixels, side_px: int = SIDE_PX) -> str:
    """The centre of ``image``, uint8 [H, W, 3] RGB or [H, W] gray, as a ``data:`` URI.

    At most ``side_px`` wide and high; small images are not enlarged, browsers do that as well.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    side = min(side_px, *picture.size)
    picture = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
    kind = "WEBP" if features.check("webp") else "JPEG"
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=QUALITY)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"
