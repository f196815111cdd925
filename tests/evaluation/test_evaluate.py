"""Evaluating a folder: every exit on every image, resumed where it was, damaged files counted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.errors import DataError
from dvt_edge.evaluation.evaluate import FINISHED, PARTIAL, Evaluation, evaluate
from dvt_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from dvt_edge.runtime.backends.opening import open_backend
from dvt_edge.runtime.runtime import Runtime

SCENES = Path(__file__).resolve().parents[2] / "samples/demo/scenes/test"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A hundred test scenes in their class folders."""
    folder = tmp_path / "images"
    for path in sorted(SCENES.rglob("000*.png")):
        target = folder / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def run(bundle: Path, data: Path, output: Path, **options: Any) -> Evaluation:
    """An evaluation with a backend of its own."""
    opened = Bundle(bundle)
    backend = open_backend(opened)
    try:
        return evaluate(opened, backend, data, output, workers=1, **options)
    finally:
        backend.close()


@pytest.mark.slow
def test_answers_are_those_of_the_runtime(
    demo_bundle: Path, demo_profile: Path, images: Path, tmp_path: Path
) -> None:
    """The last exit answers as ``classify`` does; labels are the folders'; top-5 contains top-1."""
    result = run(demo_bundle, images, tmp_path / "out")
    paths = sorted(images.rglob("*.png"))
    assert len(result.records) == len(paths)
    with Runtime(demo_profile) as runtime:
        names = runtime.bundle.manifest.class_names
        runtime.set_budget(latency_ms=None, max_stage=None, min_accuracy=1e-9)
        for row, path in enumerate(paths):
            answer = runtime.classify(np.asarray(Image.open(path)))
            at = answer.exit_stage - 1
            assert result.records.prediction[row, at] == answer.class_id
            assert names[result.records.truth[row]] == path.parent.name
    assert (result.top5 >= result.records.correct).all()
    assert (tmp_path / "out" / FINISHED).exists()
    assert not (tmp_path / "out" / PARTIAL).exists()


def test_unreadable_images_are_counted(demo_bundle: Path, images: Path, tmp_path: Path) -> None:
    """A damaged file is named and the others are judged."""
    damaged = next(images.rglob("*.png"))
    damaged.write_bytes(damaged.read_bytes()[:60])
    result = run(demo_bundle, images, tmp_path / "out")
    assert result.unreadable == [str(damaged)]
    assert len(result.records) == len(list(images.rglob("*.png"))) - 1


@pytest.mark.slow
def test_interrupted_run_resumes(
    demo_bundle: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interruption the remaining images are run, and the result is the same."""
    whole = run(demo_bundle, images, tmp_path / "whole")
    monkeypatch.setattr("dvt_edge.evaluation.evaluate.SAVE_EVERY_S", -1.0)
    seen: list[float] = []

    def interrupt(what: str, done: float, total: float, remark: str = "") -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(demo_bundle, images, tmp_path / "out", progress=interrupt)
    assert (tmp_path / "out" / PARTIAL).exists()
    counted = count_images(monkeypatch)
    resumed = run(demo_bundle, images, tmp_path / "out")
    assert 0 < counted[0] < len(whole.records)
    np.testing.assert_array_equal(resumed.records.prediction, whole.records.prediction)
    np.testing.assert_array_equal(resumed.records.label, whole.records.label)


def count_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the rows that the first stage runs on."""
    counted = [0]
    original = OnnxRuntimeBackend.run_stage

    def counting(self: OnnxRuntimeBackend, stage: int, count: int) -> object:
        counted[0] += count if stage == 0 else 0
        return original(self, stage, count)

    monkeypatch.setattr(OnnxRuntimeBackend, "run_stage", counting)
    return counted


def test_progress_of_other_images_is_not_used(
    demo_bundle: Path, images: Path, tmp_path: Path
) -> None:
    """What an evaluation of other images left behind, or a damaged file, is ignored."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PARTIAL).write_bytes(b"PK\x03\x04 damaged")
    result = run(demo_bundle, images, tmp_path / "out")
    assert len(result.records) == len(list(images.rglob("*.png")))


@pytest.mark.parametrize("layout", ["missing", "empty", "flat", "strange"])
def test_folders_that_cannot_be_evaluated(layout: str, demo_bundle: Path, tmp_path: Path) -> None:
    """Each error names the folder."""
    folder = tmp_path / "data"
    if layout != "missing":
        folder.mkdir()
    if layout in ("flat", "strange"):
        place = folder / ("zebra" if layout == "strange" else "")
        place.mkdir(exist_ok=True)
        shutil.copy(next(SCENES.rglob("*.png")), place)
    with pytest.raises(DataError, match="data"):
        run(demo_bundle, folder, tmp_path / "out")
