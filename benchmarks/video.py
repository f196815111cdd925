"""The video rule on a made video: answers kept, how many of them are wrong, and the time.

    python benchmarks/video.py [--frames 4000] [--noise 1.0] [--out FILE.json]

The video is a 48x48 window over a canvas of the demo's test scenes: it rests on a scene, pans to a
neighbouring one, or cuts to another, all of random length; every frame gets its own sensor noise.
Each frame is classified by the demo cascade twice, plain and with ``video: true``, in one process
and in turns, under one budget halfway between the first and the last exit's cost. A kept answer
counts as different where the plain cascade gives this very frame another class. Prints a table with
the machine; writes JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from dvt_edge import Prediction, Profile, Runtime
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.converters.build import build
from dvt_edge.files.datasets import find_images, load_image
from dvt_edge.machine.board import processor_name
from dvt_edge.profile import BudgetConfig

ROOT = Path(__file__).resolve().parents[1]
SIDE = 48
"""Of a scene and of the window, in pixels."""
GRID = 12
"""Scenes along each side of the canvas."""
MEASURE_S = 5.0
CUT_SHARE = 0.5
"""Of the moves from a scene to the next, the others are pans."""
REST_FRAMES = (15, 90)
PAN_FRAMES = (15, 120)
KINDS = ("rest", "pan", "cut")

Frame = npt.NDArray[np.uint8]


def make_canvas(rng: np.random.Generator) -> Frame:
    """[GRID * SIDE, GRID * SIDE]: test scenes in random order, side by side."""
    paths = find_images(ROOT / "samples/demo/scenes/test")
    chosen = rng.choice(len(paths), GRID * GRID, replace=False)
    scenes = [load_image(paths[i]) for i in chosen]
    return np.block([scenes[row * GRID : (row + 1) * GRID] for row in range(GRID)])


def make_video(count: int, noise: float, seed: int) -> Iterator[tuple[str, Frame]]:
    """``count`` frames uint8 [SIDE, SIDE], each with what the camera does; noise in gray levels."""
    rng = np.random.default_rng(seed)
    canvas = make_canvas(rng).astype(np.float32)

    def frames() -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
        """Kind of movement and the window's corner, without end."""
        at = rng.integers(0, GRID, 2)
        while True:
            corner = at * float(SIDE)
            for _ in range(rng.integers(*REST_FRAMES)):
                yield "rest", corner
            if rng.random() < CUT_SHARE:
                at = rng.integers(0, GRID, 2)
                yield "cut", at * float(SIDE)
                continue
            goal = np.clip(at + rng.integers(-1, 2, 2), 0, GRID - 1)
            steps = int(rng.integers(*PAN_FRAMES))
            for step in range(1, steps):
                yield "pan", corner + (goal - at) * SIDE * step / steps
            at = goal

    for _, (kind, corner) in zip(range(count), frames(), strict=False):
        top, left = corner.round().astype(int)
        window = canvas[top : top + SIDE, left : left + SIDE]
        noisy = window + rng.normal(0, noise, window.shape)
        yield kind, noisy.round().clip(0, 255).astype(np.uint8)


def run(plain: Runtime, video: Runtime, frames: int, noise: float, seed: int) -> dict[str, Any]:
    """Classify the video with both, in turns; returns the figures."""
    rows = []
    for number, (kind, frame) in enumerate(make_video(frames, noise, seed)):
        answers: list[tuple[Prediction, float]] = []
        for runtime in (plain, video) if number % 2 else (video, plain):
            started = perf_counter()
            answer = runtime.classify(frame)
            answers.append((answer, 1e3 * (perf_counter() - started)))
        (fresh, plain_ms), (other, video_ms) = answers if number % 2 else answers[::-1]
        kept = not other.stage_latency_ms
        rows.append((kind, kept, other.class_id != fresh.class_id, plain_ms, video_ms))
    kinds = np.array([row[0] for row in rows])
    kept, differs = (np.array([row[i] for row in rows], bool) for i in (1, 2))
    plain_ms, video_ms = (np.array([row[i] for row in rows], float) for i in (3, 4))

    def figures(part: npt.NDArray[np.bool_]) -> dict[str, Any]:
        count = int(part.sum())
        held = int((part & kept).sum())
        return {
            "frames": count,
            "kept": held,
            "kept_that_differ": int((part & kept & differs).sum()),
            "plain_mean_ms": float(plain_ms[part].mean()) if count else None,
            "video_mean_ms": float(video_ms[part].mean()) if count else None,
        }

    return {"all": figures(np.ones(len(rows), bool))} | {k: figures(kinds == k) for k in KINDS}


def open_runtimes(folder: Path) -> tuple[Runtime, Runtime]:
    """The demo cascade, measured on this machine: plain and with the video rule."""
    profile = Profile.from_yaml(ROOT / "samples/profiles/demo-cpu.yaml")
    anything = BudgetConfig(latency_ms=1e6)
    profile = profile.model_copy(update={"output": folder / "bundle", "budget": anything})
    build(profile)
    with Runtime(profile) as runtime:
        costs = runtime.measure(MEASURE_S)
        runtime.bundle.store(COSTS, costs)
    middle = (costs.mean_ms[0] + costs.mean_ms[-1]) / 2
    budgets = [BudgetConfig(latency_ms=middle, video=video) for video in (False, True)]
    plain, video = (Runtime(profile.model_copy(update={"budget": b})) for b in budgets)
    return plain, video


def show(result: dict[str, Any]) -> None:
    table = Table(
        title=f"Video rule, {result['all']['frames']} frames, noise {result['noise']:g} levels, "
        f"budget {result['budget_ms']:.3f} ms",
        caption=result["machine"],
    )
    columns = ("frames", "number", "answers kept", "of them differ", "plain ms", "video ms")
    for column in columns:
        table.add_column(column, justify="right")
    for kind in ("all", *KINDS):
        part = result[kind]
        if not part["frames"]:
            continue
        differ = f"{part['kept_that_differ'] / part['kept']:.2%}" if part["kept"] else "-"
        table.add_row(
            kind,
            str(part["frames"]),
            f"{part['kept'] / part['frames']:.1%}",
            differ,
            f"{part['plain_mean_ms']:.4f}",
            f"{part['video_mean_ms']:.4f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--noise", type=float, default=1.0, help="of the sensor, in gray levels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/cpu/video.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain, video = open_runtimes(Path(folder))
        with plain, video:
            figures = run(plain, video, options.frames, options.noise, options.seed)
            result = {
                "machine": processor_name(),
                "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "budget_ms": plain.budget.latency_ms,
                "exit_ms": plain.costs.mean_ms,
                "noise": options.noise,
                "seed": options.seed,
                **figures,
            }
    show(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
