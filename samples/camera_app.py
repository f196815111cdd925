"""Classify what a camera sees. All of it is two lines:

    for frame in dvt_edge.open_source("0"):
        print(runtime.classify(frame.pixels, color_order=frame.color_order).label)

The rest is options. From the repository's root, after `make demo`, without a camera:

    python samples/camera_app.py --profile samples/profiles/demo-cpu.yaml --source test://
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice

import dvt_edge


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify what a camera sees.")
    parser.add_argument("--profile", required=True, help="what to run, and its budget (YAML)")
    parser.add_argument("--source", default="0", help="camera, stream or file; test:// is made up")
    parser.add_argument("--max-frames", type=int, help="end after so many")
    args = parser.parse_args()

    with dvt_edge.Runtime(args.profile) as runtime, dvt_edge.open_source(args.source) as source:
        for frame in islice(source, args.max_frames):
            answer = runtime.classify(frame.pixels, color_order=frame.color_order)
            print(
                f"frame {frame.seq}: {answer.label} ({answer.confidence:.2f}) from exit "
                f"{answer.exit_stage} in {answer.latency_ms:.2f} ms; {frame.age_ms:.0f} ms old, "
                f"{frame.dropped_before} left out before it"
            )
        print(runtime.promise.sentence)  # does the budget hold?


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except dvt_edge.DvtEdgeError as error:  # its message says what to do
        sys.exit(f"error: {error}")
