"""Classify what several cameras see with one Runtime, each camera's newest frame in fair turns.

    python samples/two_cameras.py --profile samples/profiles/demo-cpu.yaml \\
        --source "test://?fps=15" --source "test://?fps=5"

A camera that is slow or away does not hold the others up; it is opened again by itself.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from itertools import islice

import dvt_edge


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify what several cameras see.")
    parser.add_argument("--profile", required=True, help="what to run, and its budget (YAML)")
    parser.add_argument(
        "--source", required=True, action="append", help="a camera; give one for each"
    )
    parser.add_argument("--max-frames", type=int, help="end after so many, of all cameras together")
    args = parser.parse_args()

    answered: Counter[str] = Counter()
    with (
        dvt_edge.Runtime(args.profile) as runtime,
        dvt_edge.open_sources(args.source) as sources,
    ):
        for frame in islice(sources, args.max_frames):
            answer = runtime.classify(frame.pixels, color_order=frame.color_order)
            camera = f"{frame.source_index + 1} {frame.source}"
            answered[camera] += 1
            print(
                f"camera {camera}: {answer.label} ({answer.confidence:.2f}) from exit "
                f"{answer.exit_stage}, {frame.age_ms:.0f} ms old"
            )
        for camera, count in sorted(answered.items()):
            print(f"camera {camera}: {count} frames answered")
        print(runtime.promise.sentence)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except dvt_edge.DvtEdgeError as error:
        sys.exit(f"error: {error}")
