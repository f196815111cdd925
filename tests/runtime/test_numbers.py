"""The same frame gets the same answer, however and how often it is asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge import Prediction, Runtime
from tests.conftest import edit_manifest
from tests.runtime.conftest import spread_scenes

Frame = npt.NDArray[np.uint8]

TOLERANCE = 1e-4
"""Of confidences, between batch sizes and numbers of threads: sums in another order round
differently, and an INT8 code may then be its neighbour."""


@pytest.fixture(scope="module")
def frames(samples: Path) -> list[Frame]:
    return spread_scenes(samples, 32)


def _answers(folder: Path, frames: list[Frame], batch: int) -> list[Prediction]:
    """Of all exits, in batches of that size."""
    with Runtime(folder) as runtime:
        runtime.use(runtime.replay((np.inf,) * (runtime.records.exits - 1) + (-np.inf,)))
        if batch == 1:
            return [runtime.classify(frame) for frame in frames]
        answers: list[Prediction] = []
        for start in range(0, len(frames), batch):
            answers += runtime.classify_batch(frames[start : start + batch])
        return answers


def _with_threads(bundle: Path, folder: Path, threads: int) -> Path:
    def change(manifest: dict[str, Any]) -> None:
        manifest["engine"]["threads"] = threads

    shutil.copytree(bundle, folder)
    edit_manifest(folder, change)
    return folder


def _check_alike(answers: list[Prediction], expected: list[Prediction]) -> None:
    assert [p.classes for p in answers] == [p.classes for p in expected]
    for found, wanted in zip(answers, expected, strict=True):
        assert found.confidences == pytest.approx(wanted.confidences, abs=TOLERANCE)


def test_two_runs(costed_bundle: Path, frames: list[Frame]) -> None:
    """Bit for bit."""
    first, second = (_answers(costed_bundle, frames, 1) for _ in range(2))
    assert [p.classes for p in first] == [p.classes for p in second]
    assert [p.confidences for p in first] == [p.confidences for p in second]


def test_batch_sizes(costed_bundle: Path, frames: list[Frame]) -> None:
    expected = _answers(costed_bundle, frames, 1)
    for batch in (2, 7, 32):
        _check_alike(_answers(costed_bundle, frames, batch), expected)


def test_thread_counts(costed_bundle: Path, frames: list[Frame], tmp_path: Path) -> None:
    """Preprocessing and stages take as many threads as the profile says."""
    expected = _answers(costed_bundle, frames, 1)
    for threads in (2, 3):
        folder = _with_threads(costed_bundle, tmp_path / str(threads), threads)
        for batch in (1, 32):
            _check_alike(_answers(folder, frames, batch), expected)
