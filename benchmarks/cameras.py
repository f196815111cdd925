"""Two cameras on one Runtime against one, with and without regrouping.

    python benchmarks/cameras.py [--seconds 2] [--rounds 5] [--regroup-ms 4] [--force] [--out FILE]

The demo, a thread for each camera: ``test://`` cameras at 30 fps, and scenes in memory as fast as
they are answered. One camera, two, and two whose frames wait for one another take turns in each
round. Where the Runtime measures that waiting does not pay nothing waits; ``--force`` lets frames
wait all the same. Prints medians over the rounds, with the machine; ``--out`` writes JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from dvt_edge import Profile, Runtime, open_source
from dvt_edge.files.datasets import find_images, load_image
from dvt_edge.machine.board import available_cores, processor_name

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / "samples" / "profiles" / "demo-cpu.yaml"
URIS = ("test://?fps=30", "test://?fps=30&size=640x480")
WAYS = ("one", "two", "two, regrouped")

Frame = npt.NDArray[np.uint8]
Frames = Callable[[int, float], Iterator[Frame]]
"""Of a camera, by its number, until a time."""


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--seconds", type=float, default=2.0, help="per way and round")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--regroup-ms", type=float, default=4.0)
    arguments.add_argument("--latency-ms", type=float, default=2.0, help="budget, mean per frame")
    arguments.add_argument("--force", action="store_true", help="wait even where it does not pay")
    arguments.add_argument("--out", type=Path, help="JSON file")
    given = arguments.parse_args()
    machine = {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "cores": available_cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "command": " ".join(["python", *sys.argv]),
    }
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    profile = Profile.from_yaml(PROFILE)
    if not (profile.output / "manifest.json").is_file():
        sys.exit(f"{profile.output} does not exist: run 'make demo' first")
    scenes = [load_image(path) for path in find_images(ROOT / "samples/demo/scenes/test")[::7]]
    with ExitStack() as opened:
        plain = opened.enter_context(Runtime(profile))
        grouping = opened.enter_context(Runtime(profile, regroup_ms=given.regroup_ms))
        for runtime in (plain, grouping):
            runtime.set_budget(latency_ms=given.latency_ms)
        regroup = grouping.regroup
        assert regroup is not None
        console.print(regroup.reason)
        if given.force:
            regroup.most = max(regroup.most, 2)
        cameras = [opened.enter_context(open_source(uri)) for uri in URIS]

        def seen(camera: int, until: float) -> Iterator[Frame]:
            frames = (frame.pixels for frame in cameras[camera])
            return itertools.takewhile(lambda _: time.perf_counter() < until, frames)

        def kept(camera: int, until: float) -> Iterator[Frame]:
            frames = itertools.cycle(scenes[camera::2])
            return itertools.takewhile(lambda _: time.perf_counter() < until, frames)

        runtimes = dict(zip(WAYS, (plain, plain, grouping), strict=True))
        found: dict[str, Any] = {"machine": machine, "regrouping": regroup.reason}
        for name, frames in (("cameras at 30 fps", seen), ("scenes in memory", kept)):
            regroup.sizes.clear()
            rounds = [
                {way: _round(runtimes[way], way, frames, given.seconds) for way in WAYS}
                for _ in range(given.rounds)
            ]
            found[name] = _medians(rounds) | {"together": dict(sorted(regroup.sizes.items()))}
            _show(console, name, found[name])
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _round(runtime: Runtime, way: str, frames: Frames, seconds: float) -> dict[str, float]:
    """Frames per second of all cameras, and their latencies in milliseconds."""
    started = time.perf_counter()

    def loop(camera: int) -> list[float]:
        coming = frames(camera, started + seconds)
        return [runtime.classify(frame, color_order="gray").latency_ms for frame in coming]

    cameras = range(1 if way == WAYS[0] else 2)
    with ThreadPoolExecutor(len(cameras)) as pool:
        latencies = list(itertools.chain(*pool.map(loop, cameras)))
    took_s = time.perf_counter() - started
    p50, p99 = np.percentile(latencies, (50, 99))
    return {
        "fps": len(latencies) / took_s,
        "mean_ms": float(np.mean(latencies)),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
    }


def _medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Of each figure, and of the ratios of frames per second within a round."""
    figures = {
        way: {name: float(np.median([r[way][name] for r in rounds])) for name in rounds[0][way]}
        for way in WAYS
    }
    ratios = {
        f"{above} / {below}": [round(r[above]["fps"] / r[below]["fps"], 4) for r in rounds]
        for above, below in ((WAYS[1], WAYS[0]), (WAYS[2], WAYS[1]))
    }
    return {"ways": figures, "fps_ratios": ratios}


def _show(console: Console, title: str, values: dict[str, Any]) -> None:
    table = Table(title=title)
    for column in ("cameras", "fps", "mean ms", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "cameras" else "right")
    for way, row in values["ways"].items():
        table.add_row(way, *(f"{value:.4g}" for value in row.values()))
    console.print(table)
    for name, ratios in values["fps_ratios"].items():
        shown = ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
        console.print(f"fps, {name}: median {np.median(ratios):.2f} ({shown})")
    console.print(f"later stages on so many frames: how often: {values['together']}")


if __name__ == "__main__":
    main()
