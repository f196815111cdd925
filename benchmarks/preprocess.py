"""Preprocessing of one 1920x1080 BGR frame to [3, 224, 224] float32: native, Pillow and OpenCV.

    python benchmarks/preprocess.py [--runs 300] [--threads 1] [--out FILE.json]

Resize of the short side to 256, crop 224, ImageNet's mean and std. The ways are timed in turn, run
by run, in one process, all with the same number of threads (Pillow and NumPy have one).

`opencv area` is what is usually written: the whole frame through INTER_AREA, which looks at all
pixels as ours does, though it averages them more coarsely than an antialiased cubic; then the crop,
then NumPy. `opencv area, crop first` resizes only what the crop keeps. `opencv linear` reads four
pixels of the frame for each of the result, whatever the factor: it aliases, and nothing that reads
the whole frame can be as fast; it shows what antialiasing costs. Prints a table with the machine;
writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
import numpy.typing as npt
import PIL
from rich.console import Console
from rich.table import Table

from dvt_edge.machine.board import processor_name
from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.native.library import unavailable
from dvt_edge.runtime.preprocess import Preprocessor, frame_shape

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 1080, 1920
CONFIG = InputConfig(
    resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), color_order="bgr"
)
BASE = "native bicubic"
"""What the others are divided by."""

Frame = npt.NDArray[np.uint8]


def opencv(
    frame: Frame, out: npt.NDArray[np.float32], interpolation: int, *, crop_first: bool = False
) -> None:
    """OpenCV's resize, the crop before or after it, then NumPy."""
    if crop_first:
        side = CONFIG.crop * HEIGHT // CONFIG.resize
        top, left = (HEIGHT - side) // 2, (WIDTH - side) // 2
        part = frame[top : top + side, left : left + side]
        pixels = cv2.resize(part, (CONFIG.crop, CONFIG.crop), interpolation=interpolation)
    else:
        width = round(WIDTH * CONFIG.resize / HEIGHT)
        whole = cv2.resize(frame, (width, CONFIG.resize), interpolation=interpolation)
        top, left = (CONFIG.resize - CONFIG.crop) // 2, (width - CONFIG.crop) // 2
        pixels = whole[top : top + CONFIG.crop, left : left + CONFIG.crop]
    NORMALISE.normalise(pixels[..., ::-1], out)


NORMALISE = Preprocessor(CONFIG, native=False)


def ways(threads: int) -> dict[str, Callable[[], None]]:
    """Name -> one run. All write the same array."""
    frames: dict[ColorOrder, Frame] = {
        order: np.random.default_rng(0).integers(
            0, 256, frame_shape(HEIGHT, WIDTH, order), np.uint8
        )
        for order in ("bgr", "nv12", "yuyv")
    }
    out = np.empty(NORMALISE.shape, np.float32)
    half = np.empty(NORMALISE.shape, np.float16)
    bilinear = CONFIG.model_copy(update={"interpolation": "bilinear"})
    native = {c.interpolation: Preprocessor(c, threads) for c in (CONFIG, bilinear)}
    pillow = {c.interpolation: Preprocessor(c, native=False) for c in (CONFIG, bilinear)}
    bgr = frames["bgr"]
    return {
        BASE: lambda: native["bicubic"](bgr, out),
        "pillow bicubic": lambda: pillow["bicubic"](bgr, out),
        "opencv area": lambda: opencv(bgr, out, cv2.INTER_AREA),
        "opencv area, crop first": lambda: opencv(bgr, out, cv2.INTER_AREA, crop_first=True),
        "opencv linear, aliased": lambda: opencv(bgr, out, cv2.INTER_LINEAR),
        "native bilinear": lambda: native["bilinear"](bgr, out),
        "pillow bilinear": lambda: pillow["bilinear"](bgr, out),
        "native bicubic float16": lambda: native["bicubic"](bgr, half),
        "native bicubic nv12": lambda: native["bicubic"](frames["nv12"], out, "nv12"),
        "pillow bicubic nv12": lambda: pillow["bicubic"](frames["nv12"], out, "nv12"),
        "native bicubic yuyv": lambda: native["bicubic"](frames["yuyv"], out, "yuyv"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/cpu/preprocess.json")
    arguments = parser.parse_args()
    if unavailable():
        raise SystemExit(f"nothing to compare: {unavailable()}")
    cv2.setNumThreads(arguments.threads)
    runs = ways(arguments.threads)
    times = np.zeros((len(runs), arguments.runs))
    for at in range(-5, arguments.runs):  # the first five warm up
        for way, run in enumerate(runs.values()):
            started = perf_counter()
            run()
            if at >= 0:
                times[way, at] = 1e3 * (perf_counter() - started)
    results = {
        name: {
            "median_ms": round(float(np.median(t)), 4),
            "p95_ms": round(float(np.percentile(t, 95)), 4),
            # Of each round's pair: what slows the machine for a while slows both.
            "times_base": round(float(np.median(t / times[0])), 2),
        }
        for name, t in zip(runs, times, strict=True)
    }
    machine = (
        f"{processor_name()}, OpenCV {cv2.__version__}, Pillow {PIL.__version__}, "
        f"NumPy {np.__version__}, threads {arguments.threads}"
    )
    table = Table(title=f"1920x1080 -> 3x224x224, {arguments.runs} runs in turn", caption=machine)
    for column in ("way", "median ms", "p95 ms", f"times {BASE}"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, r in results.items():
        table.add_row(name, f"{r['median_ms']:.2f}", f"{r['p95_ms']:.2f}", f"{r['times_base']:.2f}")
    Console().print(table)
    document = {
        "command": " ".join(["python benchmarks/preprocess.py", *sys.argv[1:]]),
        "machine": machine,
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "runs": arguments.runs,
        "threads": arguments.threads,
        "base": BASE,
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
