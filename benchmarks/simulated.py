"""A Runtime whose stages compute nothing and take the time that real ones took.

What ``benchmarks/promise_audit.py`` runs deployments with: recorded latencies
(``python benchmarks/wall_clock.py --traces FILE`` makes them), a clock that only the stages move, a
backend that answers from records, and a bundle to open it with. Everything else is the real code:
Runtime, session, controller, audits, and the measurement of the costs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from traces import Trace

import dvt_edge.runtime.runtime  # noqa: F401  # what is patched must have been imported
from dvt_edge.bundle.bundle import file_sha256, write_records
from dvt_edge.bundle.costs import Costs, costs_from_timing
from dvt_edge.bundle.manifest import MANIFEST, RECORDS, SCHEMA_VERSION, Manifest
from dvt_edge.bundle.measurement import EnergyFigures
from dvt_edge.machine.clock import now_utc
from dvt_edge.policy import Records
from dvt_edge.runtime.backends.protocol import SLOTS, RunWhole, StageAnswer, machine_name
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.measuring.timing import ForcedExits, time_back_to_back, time_paced
from dvt_edge.runtime.native.calls import TakeFrame

SIDE = 4
"""Pixels of a frame's side: preprocessing is real, and to take next to nothing."""


@dataclass
class SimulatedClock:
    """A :class:`~dvt_edge.machine.clock.Clock`, and a ``perf_counter`` when called: only the
    simulated backend moves it, and who sleeps."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def every(self, seconds: float, tick: Callable[[], bool]) -> Callable[[], None]:
        raise NotImplementedError("nobody samples")


class SimulatedBackend:
    """:class:`~dvt_edge.runtime.backends.protocol.Backend` that answers from records.

    Set :attr:`shown`, the record that the next frame shows. Stages take what the trace says at
    its next frame, times :attr:`factor`; :meth:`play` begins a trace.
    """

    name = "simulated"
    gpu: str | None = None
    stage_ms: float | None = None
    time_stages = False
    take_frame: TakeFrame | None = None
    run_whole: RunWhole | None = None
    max_batch = 1
    bytes_resident = 0

    def __init__(self, clock: SimulatedClock, records: Records, trace: Trace) -> None:
        self._clock = clock
        self.shown = 0
        self.factor = 1.0
        """Of all that a frame takes."""
        self._image = np.zeros((SLOTS, 1, 1, SIDE, SIDE), np.float32)
        self._answers = [
            [
                StageAnswer(confidence[at : at + 1], class_id[at : at + 1])
                for at in range(len(records))
            ]
            for confidence, class_id in zip(
                np.ascontiguousarray(records.confidence.T),
                np.ascontiguousarray(records.prediction.T),
                strict=True,
            )
        ]
        self.play(trace)

    def play(self, trace: Trace, start: int = 0) -> None:
        """Take the times of ``trace`` from its frame ``start`` on, round and round."""
        self._segments: list[list[float]] = trace.segments().tolist()
        self._next = start % len(self._segments)
        self._now = self._segments[self._next]

    def image_buffer(self, count: int, slot: int = 0) -> npt.NDArray[np.float32]:
        """Asked for once for each frame: the moment for all that a frame takes beside stages."""
        self._now = self._segments[self._next]
        self._next = (self._next + 1) % len(self._segments)
        self._clock.seconds += self._now[0] * self.factor
        return self._image[slot, :count]

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        self._clock.seconds += self._now[1 + stage] * self.factor
        return self._answers[stage][self.shown]

    def logits(self, stage: int, count: int) -> npt.NDArray[np.float32]:
        raise NotImplementedError("nobody evaluates")

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp], slot: int = 0) -> None:
        raise NotImplementedError("there are no batches")

    def set_aside(self, stage: int, row_at: int, slot: int) -> None:
        raise NotImplementedError("there is one camera")

    def close(self) -> None:
        """Nothing to free."""


@contextmanager
def simulated_time(clock: SimulatedClock) -> Iterator[None]:
    """``clock`` is the time wherever the runtime looks at it; solving takes none of it.

    Thresholds are solved at once, on the thread of the frames, and are installed where the
    Runtime would install them: with the next frame.
    """
    replaced: dict[str, object] = {
        "perf_counter": clock,
        "in_background": lambda work: work(),
    }
    patches = [
        patch.object(module, name, value)
        for path, module in list(sys.modules.items())
        if path.startswith("dvt_edge.runtime.")
        for name, value in replaced.items()
        if hasattr(module, name) and (name != "perf_counter" or module.perf_counter is perf_counter)
    ]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in reversed(patches):
            each.stop()


def simulated_costs(
    loop: CascadeLoop, manifest: Manifest, clock: SimulatedClock, fps: float | None, seconds: float
) -> Costs:
    """What ``dvt-edge profile`` would store after timing for ``seconds`` at this pace."""
    exits = ForcedExits(loop, manifest)
    timing = (
        time_back_to_back(exits, clock, seconds)
        if fps is None
        else time_paced(exits, clock, seconds, fps)
    )
    return costs_from_timing(
        machine_name(loop.backend),
        manifest.content_hash,
        now_utc(),
        manifest.measured_shape,
        timing,
        EnergyFigures(),
    )


def write_bundle(folder: Path, records: Records) -> Path:
    """A bundle with ``records`` and stages that only a :class:`SimulatedBackend` runs."""
    folder.mkdir(parents=True)
    exits = records.exits
    names = [f"stage{k + 1}.onnx" for k in range(exits)]
    for name in names:
        # ONNX without a graph: its version, and a producer's name that makes each file another.
        (folder / name).write_bytes(bytes([0x08, 8, 0x12, len(name)]) + name.encode())
    write_records(folder / RECORDS, records)
    tensor = {"name": "image", "shape": ["N", 1, SIDE, SIDE], "dtype": "float32"}
    stage = {"inputs": [tensor], "outputs": [tensor], "parameters": 0, "macs": 0}
    figures = {"accuracy_before": 0.0, "accuracy_after": 0.0}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "build_key": "simulated",
        "device": "simulated",
        "engine": {"backend": "onnxruntime", "threads": 1},
        "input": {"resize": SIDE, "crop": SIDE, "mean": [0], "std": [1], "color_order": "gray"},
        "exits": {},
        "budget": {"latency_ms": 1e6},
        "class_names": [str(c) for c in range(int(records.prediction.max()) + 1)],
        "frame_shape": [SIDE, SIDE],
        "stages": [stage | {"file": name} for name in names],
        "quantization": {
            "precision": "fp32",
            "exits": [figures] * exits,
            "changed_decisions": 0.0,
            "tolerance_points": 1.0,
        },
        "files": {name: file_sha256(folder / name) for name in (*names, RECORDS)},
        "versions": {},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder
