"""Frames per second with one frame in flight and with two.

    python benchmarks/in_flight.py [--seconds 3] [--rounds 5]

The demo on the CPU, by frame size and threads per stage: ``classify`` in a loop, ``classify_each``,
which preprocesses the next frame in a second thread, and ``classify`` from two threads. The ways
take turns in each round. Prints the median over rounds, with the machine.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from dvt_edge import Profile, Runtime
from dvt_edge.converters.build import build
from dvt_edge.machine.board import available_cores, processor_name

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((48, 48), (480, 640), (1080, 1920))

Frames = npt.NDArray[np.uint8]


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--seconds", type=float, default=3.0, help="per way and round")
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    table = Table(
        title=f"frames per second, median of {given.rounds} rounds",
        caption=f"{processor_name()}, {available_cores()} cores",
    )
    for column in ("frame", "threads", "classify", "classify_each", "two threads", "ratios"):
        table.add_column(column, justify="right")
    for threads, (height, width) in itertools.product((1, available_cores()), SIZES):
        rates = _rates(threads, (height, width), given.seconds, given.rounds)
        one, each, two = (float(np.median(column)) for column in zip(*rates, strict=True))
        table.add_row(
            f"{width}x{height}",
            str(threads),
            *(f"{rate:.0f}" for rate in (one, each, two)),
            f"{each / one:.2f}, {two / one:.2f}",
        )
    Console().print(table)


def _rates(
    threads: int, size: tuple[int, int], seconds: float, rounds: int
) -> list[tuple[float, ...]]:
    profile = Profile.from_yaml(ROOT / "samples/profiles/demo-cpu.yaml")
    with tempfile.TemporaryDirectory() as folder:
        engine = profile.engine.model_copy(update={"threads": threads})
        output = Path(folder) / "bundle"
        profile = profile.model_copy(update={"engine": engine, "output": output})
        build(profile)
        with Runtime(profile) as runtime:
            frames = np.random.default_rng(0).integers(0, 256, (16, *size), np.uint8)
            ways = (_one, _each, _two)
            for way in ways:
                _rate(way, runtime, frames, 0.3)
            return [
                tuple(_rate(way, runtime, frames, seconds) for way in ways) for _ in range(rounds)
            ]


def _rate(
    way: Callable[[Runtime, Frames, float], int], runtime: Runtime, frames: Frames, seconds: float
) -> float:
    started = perf_counter()
    return way(runtime, frames, started + seconds) / (perf_counter() - started)


def _source(frames: Frames, until: float) -> Iterator[npt.NDArray[np.uint8]]:
    return itertools.takewhile(lambda _: perf_counter() < until, itertools.cycle(frames))


def _one(runtime: Runtime, frames: Frames, until: float) -> int:
    return sum(1 for frame in _source(frames, until) if runtime.classify(frame))


def _each(runtime: Runtime, frames: Frames, until: float) -> int:
    return sum(1 for _ in runtime.classify_each(_source(frames, until)))


def _two(runtime: Runtime, frames: Frames, until: float) -> int:
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(lambda _: _one(runtime, frames, until), range(2)))


if __name__ == "__main__":
    main()
