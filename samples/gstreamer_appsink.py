"""Classify the pictures of a GStreamer pipeline of your own, taken from an appsink.

`dvt_edge.open_source("gst://...")` does more: it runs the pipeline in a process that can be killed,
and opens it again. This is for programs that have a pipeline already. It needs
`sudo apt install python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base`, and an
environment made with `python3 -m venv --system-site-packages`.

    python samples/gstreamer_appsink.py --profile samples/profiles/demo-cpu.yaml \\
        --pipeline "videotestsrc is-live=true" --max-frames 30
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

import dvt_edge

try:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstApp", "1.0")
    from gi.repository import GLib, Gst, GstApp  # noqa: F401 (GstApp gives the sink its methods)
except (ImportError, ValueError) as missing:
    sys.exit(f"error: GStreamer's Python module is needed ({missing}); see this file's first lines")

SINK = "videoconvert ! video/x-raw,format=BGR ! appsink name=sink max-buffers=1 drop=true"


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify what a GStreamer pipeline gives.")
    parser.add_argument("--profile", required=True, help="what to run, and its budget (YAML)")
    parser.add_argument("--pipeline", required=True, help="elements up to raw video, no sink")
    parser.add_argument("--max-frames", type=int, help="end after so many")
    args = parser.parse_args()

    Gst.init(None)
    pipeline = Gst.parse_launch(f"{args.pipeline} ! {SINK}")
    sink = pipeline.get_by_name("sink")
    with dvt_edge.Runtime(args.profile) as runtime:
        pipeline.set_state(Gst.State.PLAYING)
        try:
            count = 0
            while not sink.is_eos() and count != args.max_frames:
                sample = sink.try_pull_sample(Gst.SECOND // 5)
                failure = pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
                if failure is not None:
                    sys.exit(f"error: {failure.parse_error()[0].message}")
                if sample is None:
                    continue  # nothing yet, or the end
                form = sample.get_caps().get_structure(0)
                width, height = form.get_value("width"), form.get_value("height")
                buffer = sample.get_buffer()
                rows = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8)
                rows = rows.reshape(height, -1)[:, : 3 * width]  # rows are padded to four bytes
                answer = runtime.classify(rows.reshape(height, width, 3), color_order="bgr")
                print(f"{answer.label} ({answer.confidence:.2f}) from exit {answer.exit_stage}")
                count += 1
        finally:
            pipeline.set_state(Gst.State.NULL)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except (dvt_edge.DvtEdgeError, GLib.Error) as error:
        sys.exit(f"error: {error}")
