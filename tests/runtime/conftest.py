"""A backend that executes nothing and remembers everything, a device of host memory, a clock, and
bundles of known costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge import Prediction, Runtime
from dvt_edge.bundle.bundle import Bundle, file_sha256, write_records
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.manifest import COSTS, RECORDS
from dvt_edge.energy.meter import Counted, Meter
from dvt_edge.errors import EnergyError
from dvt_edge.files.datasets import find_images, load_image
from dvt_edge.policy import Records
from dvt_edge.profile import InputConfig
from dvt_edge.runtime.backends.onnxruntime_cpu import backend_name
from dvt_edge.runtime.backends.protocol import ASIDE, SLOTS, RunWhole, StageAnswer
from dvt_edge.runtime.cascade_loop import CascadeLoop, open_loop
from dvt_edge.runtime.events import Event
from dvt_edge.runtime.measuring.timing import ForcedExits
from dvt_edge.runtime.native import operator_library
from dvt_edge.runtime.native.calls import TakeFrame
from tests.conftest import HandClock, edit_manifest, made_records

CLASSES = 10
VALUES = 250
"""Records, and gray levels of frames."""
COLOR = InputConfig(resize=20, crop=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
STAGE_MS = (1.0, 1.0, 2.0)


def spoil(folder: Path, *files: str) -> None:
    """Let the manifest name files that are ONNX, but for the graph."""
    for name in files:
        (folder / name).write_bytes(bytes([0x08, 8]))
    digests = {name: file_sha256(folder / name) for name in files}
    edit_manifest(folder, lambda manifest: manifest["files"].update(digests))


class FakeBackend:
    """:class:`~dvt_edge.runtime.backends.protocol.Backend` whose answers can be read off the frame.

    ``confidence`` [V, K] and ``class_id`` [V, K] are looked up by the value of the frame's first
    pixel (the nearest there is), as :func:`value_frame` makes it. A stage checks that what the
    stage before handed on belongs to its image, so a mistake in which rows go on is found.
    """

    def __init__(
        self,
        confidence: npt.ArrayLike,
        class_id: npt.ArrayLike | None = None,
        *,
        shape: tuple[int, int, int] = (1, 4, 4),
        max_batch: int = 8,
    ) -> None:
        self.confidence = np.asarray(confidence, np.float32)
        values, stages = self.confidence.shape
        default = (np.arange(values)[:, None] + np.arange(stages)) % CLASSES
        self.class_id = np.asarray(default if class_id is None else class_id, np.int32)
        self.max_batch = max_batch
        # As what the demo's costs were measured with.
        self.name = backend_name(native=operator_library.unavailable() is None)
        self.gpu: str | None = None
        self.stage_ms: float | None = None
        self.time_stages = False
        self.take_frame: TakeFrame | None = None
        self.run_whole: RunWhole | None = None
        self.runs: list[tuple[int, int]] = []
        """(stage, count) of every run, in order."""
        self.kept: list[tuple[int, list[int]]] = []
        """(stage, rows) of every keep_rows, in order."""
        self.closed = 0
        self.aside: list[int] = []
        """Rows that frames were set aside in, in order."""
        self._images = np.zeros((SLOTS + 1, max_batch, *shape), np.float32)
        self._handed = np.zeros(max_batch, np.intp)
        self.bytes_resident = self._images.nbytes + self._handed.nbytes
        self._out = [
            (np.zeros(max_batch, np.float32), np.zeros(max_batch, np.int32)) for _ in range(stages)
        ]

    def image_buffer(self, count: int, slot: int = 0) -> npt.NDArray[np.float32]:
        assert not self.closed
        assert 1 <= count <= self.max_batch
        return self._images[slot, :count]

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        assert not self.closed
        self.runs.append((stage, count))
        levels = np.rint(255 * self._images[slot, :count, 0, 0, 0])
        seen = levels.clip(0, len(self.confidence) - 1).astype(np.intp)
        if stage:
            np.testing.assert_array_equal(seen, self._handed[:count])  # image and reuse fit
        self._handed[:count] = seen
        confidence, class_id = self._out[stage]
        confidence[:count] = self.confidence[seen, stage]
        class_id[:count] = self.class_id[seen, stage]
        return StageAnswer(confidence[:count], class_id[:count])

    def logits(self, stage: int, count: int) -> npt.NDArray[np.float32]:
        values = np.zeros((count, CLASSES), np.float32)
        values[np.arange(count), self._out[stage][1][:count]] = 1
        return values

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp], slot: int = 0) -> None:
        assert slot == ASIDE or stage == self.runs[-1][0]
        assert (np.diff(rows) > 0).all()
        self.kept.append((stage, rows.tolist()))
        self._images[slot, : len(rows)] = self._images[slot, rows]
        self._handed[: len(rows)] = self._handed[rows]

    def set_aside(self, stage: int, row_at: int, slot: int) -> None:
        level = np.rint(255 * self._images[slot, 0, 0, 0, 0]).clip(0, len(self.confidence) - 1)
        assert level == self._handed[0]  # what is handed on belongs to the slot's image
        self.aside.append(row_at)
        self._images[ASIDE, row_at] = self._images[slot, 0]
        self._handed[row_at] = self._handed[0]

    def close(self) -> None:
        self.closed += 1


def _value_frame(value: int) -> npt.NDArray[np.uint8]:
    return np.full((4, 4), value, np.uint8)


@pytest.fixture(scope="session")
def fake_backend() -> type[FakeBackend]:
    """The class, to be called with what the stages shall answer."""
    return FakeBackend


@pytest.fixture(scope="session")
def value_frame() -> Callable[[int], npt.NDArray[np.uint8]]:
    """A function giving the gray frame 4x4 to which FakeBackend answers as ``value`` says."""
    return _value_frame


def spread_scenes(samples: Path, count: int) -> list[npt.NDArray[np.uint8]]:
    """``count`` of the demo's test scenes, of all classes."""
    paths = find_images(samples / "demo" / "scenes" / "test")
    return [load_image(path) for path in paths[:: len(paths) // count][:count]]


@dataclass
class TimedBackend:
    """A FakeBackend whose stages take ``takes_ms`` on ``clock``, more or less by ``noise``."""

    inner: FakeBackend
    clock: HandClock
    takes_ms: npt.NDArray[np.float64] = field(default_factory=lambda: np.array(STAGE_MS))
    noise: float = 0.0
    """Relative standard deviation of the stages' times."""
    drift: float = 1.0
    """How much longer stages take after each one that ran."""
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    gpu: str | None = None
    stage_ms: float | None = None
    time_stages: bool = False
    take_frame: TakeFrame | None = None
    run_whole: RunWhole | None = None

    def __post_init__(self) -> None:
        self.name, self.max_batch = self.inner.name, self.inner.max_batch
        self.bytes_resident = self.inner.bytes_resident

    def image_buffer(self, count: int, slot: int = 0) -> npt.NDArray[np.float32]:
        return self.inner.image_buffer(count, slot)

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        self.clock.ms += self.takes_ms[stage] * max(0.1, self.rng.normal(1, self.noise))
        self.takes_ms = self.takes_ms * self.drift
        return self.inner.run_stage(stage, count, slot)

    def logits(self, stage: int, count: int) -> npt.NDArray[np.float32]:
        return self.inner.logits(stage, count)

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp], slot: int = 0) -> None:
        self.inner.keep_rows(stage, rows, slot)

    def set_aside(self, stage: int, row_at: int, slot: int) -> None:
        self.inner.set_aside(stage, row_at, slot)

    def close(self) -> None:
        self.inner.close()


@dataclass
class Batching(TimedBackend):
    """One that takes longer for several frames at a time."""

    more: float = 0.5
    """What each further frame takes of what one takes."""

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        self.clock.ms += self.takes_ms[stage] * self.more * (count - 1)
        return super().run_stage(stage, count, slot)


class FakeMeter(Meter):
    """Draws :attr:`idle_mw` all the time, and ``stage_mj`` for every stage that runs."""

    idle_mw = 2000.0
    stage_mj = (3.0, 5.0, 11.0)

    def __init__(self, clock: HandClock, backend: FakeBackend) -> None:
        self.clock, self.backend = clock, backend
        self.breaks_after = 10**9
        """The sensor vanishes in the window after so many."""
        self.windows = 0
        super().__init__("FAKE rail", ("rail",), clock=clock)

    def start(self) -> FakeCount:
        self.windows += 1
        return FakeCount(self)


class FakeCount:
    """One window."""

    def __init__(self, meter: FakeMeter) -> None:
        self._meter = meter
        self._start_s, self._runs = meter.clock.now(), len(meter.backend.runs)

    def stop(self) -> Counted:
        if self._meter.windows > self._meter.breaks_after:
            raise EnergyError("rail: the sensor has gone; look at the kernel's log")
        seconds = self._meter.clock.now() - self._start_s
        ran = (self._meter.stage_mj[stage] for stage, _ in self._meter.backend.runs[self._runs :])
        return Counted(seconds, {"rail": self._meter.idle_mw * seconds + sum(ran)})


@dataclass
class Timed:
    """A cascade whose stages take 1, 1 and 2 ms on a clock that the test can read."""

    loop: CascadeLoop
    bundle: Bundle
    backend: TimedBackend
    clock: HandClock
    meter: FakeMeter

    @property
    def exits(self) -> ForcedExits:
        return ForcedExits(self.loop, self.bundle.manifest)

    def slow_at_first(self, runs: int, factor: float = 3.0) -> None:
        """The first ``runs`` stages take ``factor`` times as long."""
        run_stage, usual = self.backend.inner.run_stage, self.backend.takes_ms

        def run(stage: int, count: int, slot: int = 0) -> StageAnswer:
            done = len(self.backend.inner.runs)
            self.backend.takes_ms = usual * (factor if done < runs else 1.0)
            return run_stage(stage, count, slot)

        self.backend.inner.run_stage = run  # type: ignore[method-assign]


@dataclass
class Live:
    """A Runtime, the backend under it, and what it reported."""

    runtime: Runtime
    backend: TimedBackend
    heard: list[Event]

    @staticmethod
    def frame(value: int) -> npt.NDArray[np.uint8]:
        return _value_frame(value)

    def classify(self, value: int, **arguments: Any) -> Prediction:
        return self.runtime.classify(self.frame(value), **arguments)

    def stream(self, count: int, seed: int = 0) -> list[Prediction]:
        """Answers to ``count`` frames drawn from the records."""
        values = np.random.default_rng(seed).integers(0, VALUES, count)
        return [self.classify(int(v)) for v in values]

    def stages_of(self, value: int, **arguments: Any) -> tuple[Prediction, list[int]]:
        """The answer, and the stages (from 1) that ran for it."""
        self.backend.inner.runs.clear()
        answer = self.classify(value, **arguments)
        return answer, [stage + 1 for stage, _ in self.backend.inner.runs]

    def value(self, exit_stage: int) -> int:
        """A frame that leaves at ``exit_stage`` by the thresholds in force."""
        leaves = self.runtime.records.confidence >= self.runtime.solution.thresholds
        return int(np.flatnonzero(leaves.argmax(axis=1) == exit_stage - 1)[0])


@pytest.fixture(scope="session")
def live_records() -> Records:
    """Of :data:`VALUES` frames."""
    return made_records(VALUES)


@pytest.fixture(scope="session")
def live_bundle(
    costed_bundle: Path,
    live_records: Records,
    known_costs: Callable[..., Costs],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The demo's bundle with 4x4 frames, records of our own, and tails of the latencies."""
    folder = Path(shutil.copytree(costed_bundle, tmp_path_factory.mktemp("live") / "bundle"))
    write_records(folder / RECORDS, live_records)

    def change(manifest: dict[str, Any]) -> None:
        manifest["input"] |= {"resize": 4, "crop": 4, "mean": [0.0], "std": [1.0]}
        manifest["files"][RECORDS] = file_sha256(folder / RECORDS)
        manifest["budget"] = {"latency_ms": 2.5}

    edit_manifest(folder, change)
    bundle = Bundle(folder)
    costs = known_costs(bundle)
    tails = tuple(
        cost.model_copy(update={"p99_ms": 1.5 * cost.mean_ms, "max_ms": 2 * cost.mean_ms})
        for cost in costs.exits
    )
    changes = {"exits": tails, "stage_p99_ms": (1.2, 1.2, 2.4), "frame_shape": (4, 4)}
    bundle.store(COSTS, costs.model_copy(update=changes))
    return folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """In place of the real clock wherever frames are timed."""
    made = HandClock()
    for module in ("cascade_loop", "runtime", "session", "regroup", "measuring.timing"):
        monkeypatch.setattr(f"dvt_edge.runtime.{module}.perf_counter", made)
    # The clock stands still while nothing runs, so nothing may run beside it.
    monkeypatch.setattr("dvt_edge.runtime.session.in_background", lambda work: work())
    return made


@pytest.fixture
def timed(live_bundle: Path, live_records: Records, clock: HandClock) -> Timed:
    """Stages that answer nothing, on the clock, with a meter that knows what they take."""
    inner = FakeBackend(live_records.confidence.copy(), live_records.prediction.copy())
    backend, bundle = TimedBackend(inner, clock), Bundle(live_bundle)
    return Timed(open_loop(bundle, backend), bundle, backend, clock, FakeMeter(clock, inner))


@pytest.fixture
def live(live_bundle: Path, live_records: Records, clock: HandClock) -> Iterator[Live]:
    """A Runtime on the clock, under a mean latency of 2.5 ms; its exits cost 1, 2 and 4 ms.

    The backend answers frame v as record v does, so that a stream of frames drawn from the records
    is exactly what the thresholds were solved for; each stage moves the clock by a given time.
    """
    inner = FakeBackend(live_records.confidence.copy(), live_records.prediction.copy())
    backend = TimedBackend(inner, clock)
    heard: list[Event] = []
    with Runtime(live_bundle, backend=backend) as runtime:
        runtime.watch(on_event=heard.append)
        clock.ms = 0.0
        inner.runs.clear()
        yield Live(runtime, backend, heard)
