"""Every exit's answer to every image of a folder: streamed from disk, resumable.

An evaluation runs *all* stages on all images, so that any thresholds can be judged afterwards
without running anything again. Images are decoded and cropped by worker processes.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.measurement import DataFigures
from dvt_edge.errors import DataError
from dvt_edge.files.datasets import FolderDataset, load_image, open_folder
from dvt_edge.files.replacing import replaced_file
from dvt_edge.policy import Records
from dvt_edge.profile import InputConfig
from dvt_edge.progress import Progress, silent
from dvt_edge.runtime.backends.protocol import Backend
from dvt_edge.runtime.preprocess import Pixels, Preprocessor

PARTIAL = "evaluation.partial.npz"
FINISHED = "evaluation.npz"
SAVE_EVERY_S = 30.0
_AHEAD = 4  # batches that the workers prepare in advance


@dataclass(frozen=True)
class Evaluation:
    """What all K exits answered to the N readable images."""

    records: Records
    """With labels."""
    top5: npt.NDArray[np.bool_]
    """[N, K]: whether the label is among the five most likely classes."""
    unreadable: tuple[str, ...]
    """Paths of images that could not be decoded; they are counted, not judged."""
    images_per_second: float
    """Of the run that finished the evaluation."""


@dataclass
class _Answers:
    """Answers so far: one array per batch in each list."""

    confidence: list[npt.NDArray[np.float32]] = field(default_factory=list)
    prediction: list[npt.NDArray[np.int32]] = field(default_factory=list)
    top5: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    label: list[npt.NDArray[np.int32]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    done: int = 0
    """Images taken from the list, unreadable ones included."""


def evaluate(
    bundle: Bundle,
    backend: Backend,
    data: Path,
    output: Path,
    *,
    workers: int = 2,
    progress: Progress = silent,
) -> Evaluation:
    """Run all stages on the images below ``data``, a folder with one subfolder per class.

    Answers are kept in ``output`` while it runs; an interrupted evaluation of the same bundle and
    images goes on where it was. Raises :class:`~dvt_edge.errors.DataError` for a folder without
    labelled images, or where none can be read.
    """
    images = open_folder(data, bundle.manifest.class_names)
    if images.labels is None:
        raise DataError(f"{data}: has no subfolders named like classes; evaluation needs labels")
    key = _key(bundle, images)
    output.mkdir(parents=True, exist_ok=True)
    state = _load(output / PARTIAL, key)
    before, started, saved = state.done, time.monotonic(), time.monotonic()
    preprocess = Preprocessor(bundle.manifest.input)
    for chunk, crops in _prepared(images, bundle.manifest.input, state.done, backend, workers):
        _run_batch(state, backend, preprocess, images, chunk, crops, len(bundle.manifest.stages))
        now = time.monotonic()
        rate = (state.done - before) / max(now - started, 1e-9)
        progress("images", state.done, len(images), f"{rate:.1f}/s")
        if now - saved > SAVE_EVERY_S:
            _save(output / PARTIAL, key, state)
            saved = now
    if not state.label:
        raise DataError(f"{data}: none of the {len(images)} images could be read")
    _save(output / FINISHED, key, state)
    (output / PARTIAL).unlink(missing_ok=True)
    arrays = _arrays(state)
    return Evaluation(
        Records(arrays["confidence"], arrays["prediction"], arrays["label"]),
        arrays["top5"],
        tuple(state.unreadable),
        (state.done - before) / max(time.monotonic() - started, 1e-9),
    )


def judge(
    bundle: Bundle,
    backend: Backend,
    images: FolderDataset,
    folder: Path,
    thresholds: npt.ArrayLike,
    *,
    workers: int = 2,
    progress: Progress = silent,
) -> DataFigures:
    """What ``thresholds`` [K] do on ``images``, labelled or not: exits, accuracy, exits by class.

    Raises :class:`~dvt_edge.errors.DataError` where no image can be read.
    """
    state, started = _Answers(), time.monotonic()
    preprocess = Preprocessor(bundle.manifest.input)
    stages = len(bundle.manifest.stages)
    for chunk, crops in _prepared(images, bundle.manifest.input, 0, backend, workers):
        _run_batch(state, backend, preprocess, images, chunk, crops, stages)
        rate = state.done / max(time.monotonic() - started, 1e-9)
        progress("images", state.done, len(images), f"{rate:.1f}/s")
    if not state.confidence:
        raise DataError(f"{folder}: none of the {len(images)} images could be read")
    label = np.concatenate(state.label) if images.labels is not None else None
    records = Records(np.concatenate(state.confidence), np.concatenate(state.prediction), label)
    at = records.exits_taken(thresholds)
    by_class = {}
    if label is not None and images.class_names is not None:
        by_class = {
            images.class_names[c]: tuple(records.exit_shares(at[label == c]).tolist())
            for c in np.unique(label)
        }
    return DataFigures(
        folder=str(folder),
        images=len(records),
        unreadable=len(state.unreadable),
        labelled=label is not None,
        exit_fraction=tuple(records.exit_shares(at).tolist()),
        accuracy=float(records.correct_at(at).mean()) if label is not None else None,
        exit_accuracy=tuple(records.accuracy.tolist()) if label is not None else None,
        class_exit_fraction=by_class,
    )


def _prepared(
    images: FolderDataset, config: InputConfig, first: int, backend: Backend, workers: int
) -> Iterator[tuple[range, list[Pixels | str]]]:
    """Index ranges with their cropped images, or the reason why one cannot be read."""
    chunks = (
        range(start, min(start + backend.max_batch, len(images)))
        for start in range(first, len(images), backend.max_batch)
    )
    # Spawned, not forked: the engine's threads are running already.
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool:
        waiting: list[tuple[range, Any]] = []
        while True:
            for chunk in islice(chunks, max(0, _AHEAD * max(1, workers) - len(waiting))):
                paths = [images.paths[i] for i in chunk]
                waiting.append((chunk, pool.submit(_crop_files, paths, config)))
            if not waiting:
                return
            chunk, future = waiting.pop(0)
            yield chunk, future.result()


def _crop_files(paths: list[Path], config: InputConfig) -> list[Pixels | str]:
    """In a worker: decoded, resized and cropped images, or the error's text."""
    preprocess = Preprocessor(config)
    result: list[Pixels | str] = []
    for path in paths:
        try:
            result.append(preprocess.crop(load_image(path), "rgb").copy())
        except DataError as error:
            result.append(str(error))
    return result


def _run_batch(
    state: _Answers,
    backend: Backend,
    preprocess: Preprocessor,
    images: FolderDataset,
    chunk: range,
    crops: list[Pixels | str],
    stages: int,
) -> None:
    state.done = chunk.stop
    readable = [
        (i, crop) for i, crop in zip(chunk, crops, strict=True) if not isinstance(crop, str)
    ]
    state.unreadable += [
        str(images.paths[i]) for i, c in zip(chunk, crops, strict=True) if isinstance(c, str)
    ]
    if not readable:
        return
    buffer = backend.image_buffer(len(readable))
    for row, (_, crop) in enumerate(readable):
        preprocess.normalise(crop, buffer[row])
    labels = images.labels
    label = None if labels is None else np.asarray([labels[i] for i, _ in readable], np.int32)
    confidence, prediction, top5 = [], [], []
    for stage in range(stages):
        answer = backend.run_stage(stage, len(readable))
        confidence.append(answer.confidence.copy())
        prediction.append(answer.class_id.copy())
        if label is not None:
            best = np.argsort(-backend.logits(stage, len(readable)), axis=1)[:, :5]
            top5.append((best == label[:, None]).any(axis=1))
    state.confidence.append(np.stack(confidence, axis=1))
    state.prediction.append(np.stack(prediction, axis=1))
    if label is not None:
        state.top5.append(np.stack(top5, axis=1))
        state.label.append(label)


def _key(bundle: Bundle, images: FolderDataset) -> str:
    listing = "\n".join(f"{p} {p.stat().st_size}" for p in images.paths)
    return hashlib.sha256((bundle.manifest.content_hash + listing).encode()).hexdigest()


def _arrays(state: _Answers) -> dict[str, npt.NDArray[Any]]:
    names = ("confidence", "prediction", "top5", "label")
    return {name: np.concatenate(getattr(state, name)) for name in names}


def _save(path: Path, key: str, state: _Answers) -> None:
    header = {"key": key, "done": state.done, "unreadable": state.unreadable}
    arrays = _arrays(state) if state.label else {}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, header=text, **arrays)


def _load(path: Path, key: str) -> _Answers:
    """Progress of an interrupted run, or none where there is none for this key."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            if header["key"] != key:
                return _Answers()
            lists = {
                name: [archive[name]] if name in archive.files else []
                for name in ("confidence", "prediction", "top5", "label")
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return _Answers()
    return _Answers(**lists, unreadable=list(header["unreadable"]), done=int(header["done"]))
