"""Classify what a detector finds: its boxes in a frame, all in one call.

The detector here is a stand-in, which boxes what moves between two frames, so it needs a camera
that stands still. Put yours in place of `moving_boxes`; it gives (x, y, width, height) in pixels.

    python samples/detector_crops.py --profile samples/profiles/demo-cpu.yaml --source test://
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice

import numpy as np
import numpy.typing as npt

import dvt_edge

CELL = 16  # motion is found in cells of so many pixels
CHANGE = 8  # mean difference of a cell's levels, of 255, that is called motion


def moving_boxes(
    before: npt.NDArray[np.uint8], now: npt.NDArray[np.uint8]
) -> list[tuple[int, int, int, int]]:
    """A box around each group of neighbouring cells in which two frames of one size differ."""
    change = np.abs(now.astype(np.int16) - before)
    change = change if change.ndim == 2 else change.max(axis=2)
    down, across = change.shape[0] // CELL, change.shape[1] // CELL
    cells = change[: down * CELL, : across * CELL].reshape(down, CELL, across, CELL)
    moving = {(int(y), int(x)) for y, x in np.argwhere(cells.mean(axis=(1, 3)) >= CHANGE)}
    boxes = []
    while moving:
        group, waiting = [], [moving.pop()]
        while waiting:
            y, x = waiting.pop()
            group.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & moving
            moving -= near
            waiting += near
        top, left = np.min(group, axis=0) * CELL
        bottom, right = (np.max(group, axis=0) + 1) * CELL
        boxes.append((int(left), int(top), int(right - left), int(bottom - top)))
    return sorted(boxes)


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify what a detector finds.")
    parser.add_argument("--profile", required=True, help="what to run, and its budget (YAML)")
    parser.add_argument("--source", default="0", help="camera, stream or file; test:// is made up")
    parser.add_argument("--max-frames", type=int, help="end after so many")
    args = parser.parse_args()

    with dvt_edge.Runtime(args.profile) as runtime, dvt_edge.open_source(args.source) as source:
        before = None
        for frame in islice(source, args.max_frames):
            same_size = before is not None and before.shape == frame.pixels.shape
            boxes = moving_boxes(before, frame.pixels) if same_size else []
            before = frame.pixels
            answers = runtime.classify_batch(
                frame.pixels, color_order=frame.color_order, boxes=boxes
            )
            print(f"frame {frame.seq}: {len(boxes)} boxes")
            for box, answer in zip(boxes, answers, strict=True):
                print(f"  {box}: {answer.label} ({answer.confidence:.2f})")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except dvt_edge.DvtEdgeError as error:
        sys.exit(f"error: {error}")
