"""A backend that executes nothing and remembers everything, and a bundle with known costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.bundle import Bundle
from dvt_edge.runtime.backend import StageAnswer
from dvt_edge.runtime.costs import Costs, ExitCost, machine_name, save_costs

CLASSES = 10


class FakeBackend:
    """:class:`~dvt_edge.runtime.backend.Backend` whose answers can be read off the frame.

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
        self.runs: list[tuple[int, int]] = []
        """(stage, count) of every run, in order."""
        self.kept: list[tuple[int, list[int]]] = []
        """(stage, rows) of every keep_rows, in order."""
        self.closed = 0
        self._images = np.zeros((max_batch, *shape), np.float32)
        self._handed = np.zeros(max_batch, np.intp)
        self._out = [
            (np.zeros(max_batch, np.float32), np.zeros(max_batch, np.int32)) for _ in range(stages)
        ]

    @property
    def bytes_resident(self) -> int:
        return self._images.nbytes + self._handed.nbytes

    def image_buffer(self, count: int) -> npt.NDArray[np.float32]:
        assert not self.closed
        assert 1 <= count <= self.max_batch
        return self._images[:count]

    def run_stage(self, stage: int, count: int) -> StageAnswer:
        assert not self.closed
        self.runs.append((stage, count))
        levels = np.rint(255 * self._images[:count, 0, 0, 0])
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

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp]) -> None:
        assert stage == self.runs[-1][0]
        assert (np.diff(rows) > 0).all()
        self.kept.append((stage, rows.tolist()))
        self._images[: len(rows)] = self._images[rows]
        self._handed[: len(rows)] = self._handed[rows]

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


@pytest.fixture(scope="session")
def known_costs() -> Callable[..., Costs]:
    """A function ``(bundle, mean_ms=(1, 2, 4))`` giving costs as if measured on this machine."""

    def make(bundle: Bundle, mean_ms: tuple[float, ...] = (1.0, 2.0, 4.0)) -> Costs:
        exits = tuple(
            ExitCost(
                mean_ms=ms,
                p50_ms=ms,
                p95_ms=ms,
                p99_ms=ms,
                max_ms=ms,
                preprocess_ms=0.1,
                stage_ms=(ms / (k + 1),) * (k + 1),
            )
            for k, ms in enumerate(mean_ms)
        )
        return Costs(
            machine=machine_name(),
            content_hash=bundle.manifest.content_hash,
            measured_at="2025-01-01T00:00:00+00:00",
            runs_per_exit=10,
            frame_shape=bundle.manifest.frame_shape,
            exits=exits,
            stage_p99_ms=tuple(ms / (k + 1) for k, ms in enumerate(mean_ms)),
        )

    return make


@pytest.fixture(scope="session")
def costed_bundle(
    demo_bundle: Path,
    known_costs: Callable[..., Costs],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A copy of the demo bundle whose exits cost 1, 2 and 4 ms: nothing has to be measured."""
    folder = tmp_path_factory.mktemp("costed") / "bundle"
    shutil.copytree(demo_bundle, folder)
    bundle = Bundle(folder)
    save_costs(bundle, known_costs(bundle))
    return folder


@pytest.fixture
def own_bundle(costed_bundle: Path, tmp_path: Path) -> Path:
    """A copy of :func:`costed_bundle` that the test may change."""
    return Path(shutil.copytree(costed_bundle, tmp_path / "bundle"))
