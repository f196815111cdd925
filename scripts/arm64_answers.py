"""What this machine's preprocessing and cascade answer, as JSON; ``arm64.py`` compares two.

    python scripts/arm64_answers.py BUNDLE SCENES --every 5

Needs no torch. Exit status 1 where the native library is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import kernel_twins
import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.files.datasets import find_images, load_image
from dvt_edge.profile import InputConfig
from dvt_edge.runtime.cascade_loop import open_loop
from dvt_edge.runtime.native.library import unavailable
from dvt_edge.runtime.preprocess import LAYOUTS, Preprocessor, frame_shape

THRESHOLD = 0.8
"""Of every exit but the last, so that each of them answers a part of the demo's scenes."""
FRAMES = ((48, 48), (31, 70), (97, 55), (240, 320), (541, 963))
"""Heights and widths. Thinner than 1:8, Pillow alone is a level off on any machine."""
INPUTS = ((20, 16), (48, 48), (256, 224))
"""Short sides after resizing, and crops."""

Values = dict[str, Any]
Scene = Sequence[Any]
"""Name, class, exit, confidences of the exits that were asked."""


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("bundle", type=Path)
    arguments.add_argument("scenes", type=Path, help="folder with one folder per class")
    arguments.add_argument("--every", type=int, default=1, help="take each n-th scene")
    given = arguments.parse_args()
    if reason := unavailable():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    versions = {name: version(name) for name in ("numpy", "onnxruntime", "pillow")}
    answers = {
        "versions": {"python": platform.python_version(), **versions},
        "preprocess": preprocess(),
        "scenes": classify(given.bundle, given.scenes, given.every),
    }
    json.dump(answers, sys.stdout)
    return 0


def _inputs() -> Iterator[tuple[str, InputConfig]]:
    """Every layout, number of channels, filter and size of the input."""
    for order, channels, interpolation, (resize, crop) in product(
        LAYOUTS, (1, 3), ("bilinear", "bicubic"), INPUTS
    ):
        values: Values = {
            "resize": resize,
            "crop": crop,
            "interpolation": interpolation,
            "mean": (0.485, 0.456, 0.406)[:channels],
            "std": (0.229, 0.224, 0.225)[:channels],
            "color_order": "bgr" if channels == 3 else "gray",
        }
        yield order, InputConfig.model_validate(values)


def preprocess() -> Values:
    """Native code, with all instructions and with those that all processors have, against Pillow
    and NumPy; bit for bit. ``sha256`` is that of everything the native code gave."""
    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    found = {"compared": 0, "unlike_portable": 0, "unlike_pillow": 0}
    for order, config in _inputs():
        fast, plain = Preprocessor(config), Preprocessor(config, native=False)
        for size, dtype in product(FRAMES, (np.float32, np.float16)):
            noise = rng.integers(0, 256, frame_shape(*size, order), np.uint8)  # type: ignore[arg-type]
            # Half of it black and white, where a cubic overshoots most.
            frame = np.where(rng.random(noise.shape) < 0.5, noise, (noise > 127) * np.uint8(255))
            native = _run(fast, frame, order, dtype)
            digest.update(native)
            kernel_twins.limit_instructions(0)
            portable = _run(fast, frame, order, dtype)
            kernel_twins.limit_instructions(2)
            found["compared"] += 1
            found["unlike_portable"] += native != portable
            found["unlike_pillow"] += native != _run(plain, frame, order, dtype)
    return {**found, "sha256": digest.hexdigest()}


def _run(preprocessor: Preprocessor, frame: npt.NDArray[np.uint8], order: Any, dtype: Any) -> bytes:
    out = np.full(preprocessor.shape, np.nan, dtype)
    preprocessor(frame, out, order)
    return out.tobytes()


def classify(bundle: Path, scenes: Path, every: int) -> list[Scene]:
    """Each ``every``-th scene of the folder."""
    opened = Bundle(bundle)
    loop = open_loop(opened, None)
    exits = len(opened.manifest.stages)
    thresholds = (THRESHOLD,) * (exits - 1) + (-inf,)
    rows: list[Scene] = []
    for path in find_images(scenes)[::every]:
        answer = loop.run_one(load_image(path), thresholds)
        name = path.relative_to(scenes).as_posix()
        rows.append([name, answer.class_id, answer.exit_stage, answer.confidences])
    loop.backend.close()
    return rows


if __name__ == "__main__":
    sys.exit(main())
