"""Every exit's answer to every image of a folder: streamed from disk, resumable.

An evaluation runs *all* stages on all images, so that any thresholds can be judged afterwards
without running anything again. Images are decoded and cropped by worker processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.measurement import DataFigures
from dvt_edge.errors import DataError
from dvt_edge.files.datasets import FolderDataset, load_image, open_folder, printable
from dvt_edge.files.replacing import replaced_file
from dvt_edge.policy import Records
from dvt_edge.profile import InputConfig
from dvt_edge.progress import Progress, silent
from dvt_edge.runtime.backends.protocol import Backend
from dvt_edge.runtime.preprocess import Pixels, Preprocessor

PARTIAL = "evaluation.partial.npz"
FINISHED = "evaluation.npz"
SAVE_EVERY_S = 30.0
WORKERS = 2
_AHEAD = 4  # batches that each worker prepares in advance


@dataclass
class Evaluation:
    """What all K exits answered to the N readable images, so far or in the end."""

    batches: list[dict[str, npt.NDArray[Any]]] = field(default_factory=list)
    """``confidence`` and ``prediction`` [n, K]; with labels ``top5`` [n, K] and ``label`` [n]."""
    unreadable: list[str] = field(default_factory=list)
    """Paths of images that could not be decoded; they are counted, not judged."""
    done: int = 0
    """Images taken from the list, unreadable ones included."""
    images_per_second: float = 0.0
    """Of this run."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All batches as one."""
        names = self.batches[0] if self.batches else ()
        return {name: np.concatenate([batch[name] for batch in self.batches]) for name in names}

    @cached_property
    def records(self) -> Records:
        """Of the whole evaluation."""
        arrays = self.arrays()
        return Records(arrays["confidence"], arrays["prediction"], arrays.get("label"))

    @cached_property
    def top5(self) -> npt.NDArray[np.bool_]:
        """[N, K]: whether the label is among the five most likely classes."""
        return self.arrays()["top5"]


def evaluate(
    bundle: Bundle,
    backend: Backend,
    data: Path,
    output: Path,
    *,
    workers: int = WORKERS,
    progress: Progress = silent,
) -> Evaluation:
    """Run all stages on the images below ``data``, a folder with one subfolder per class.

    Answers are kept in ``output`` while it runs; an interrupted evaluation of the same bundle and
    images continues where it stopped. Raises :class:`~dvt_edge.errors.DataError` for a folder
    without labelled images, or where none can be read, and :class:`OSError`, which names the file,
    where ``output`` cannot be written.
    """
    images = open_folder(data, bundle.manifest.class_names)
    if images.labels is None:
        raise DataError(f"{data}: has no subfolders named like classes; evaluation needs labels")
    listing = "\n".join(f"{path} {path.stat().st_size}" for path in images.paths)
    text = bundle.manifest.content_hash + listing
    key = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    output.mkdir(parents=True, exist_ok=True)
    state, saved = _load(output / PARTIAL, key), time.monotonic()
    for _ in _run_stages(state, bundle, backend, images, data, workers, progress):
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save(output / PARTIAL, key, state)
            saved = time.monotonic()
    _save(output / FINISHED, key, state)
    (output / PARTIAL).unlink(missing_ok=True)
    return state


def judge(
    bundle: Bundle,
    backend: Backend,
    images: FolderDataset,
    folder: Path,
    thresholds: npt.ArrayLike,
    *,
    progress: Progress = silent,
) -> DataFigures:
    """What ``thresholds`` [K] do on ``images``, labelled or not: exits, accuracy, exits by class.

    Raises :class:`~dvt_edge.errors.DataError` where no image can be read.
    """
    state = Evaluation()
    for _ in _run_stages(state, bundle, backend, images, folder, WORKERS, progress):
        pass
    records = state.records
    at, label = records.exits_taken(thresholds), records.label
    by_class = {}
    if label is not None and images.class_names is not None:
        by_class = {
            images.class_names[c]: tuple(records.exit_shares(at[label == c]).tolist())
            for c in np.unique(label)
        }
    return DataFigures(
        folder=printable(folder),
        images=len(records),
        unreadable=len(state.unreadable),
        labelled=label is not None,
        exit_fraction=tuple(records.exit_shares(at).tolist()),
        accuracy=float(records.correct_at(at).mean()) if label is not None else None,
        exit_accuracy=tuple(records.accuracy.tolist()) if label is not None else None,
        class_exit_fraction=by_class,
    )


def _run_stages(
    state: Evaluation,
    bundle: Bundle,
    backend: Backend,
    images: FolderDataset,
    folder: Path,
    workers: int,
    progress: Progress,
) -> Iterator[None]:
    """Add to ``state`` the answers that it lacks; yields after each batch."""
    preprocess = Preprocessor(bundle.manifest.input)
    before, started = state.done, time.monotonic()
    for chunk, crops in _prepared(images, preprocess.config, state.done, backend, workers):
        readable = {i: crop for i, crop in zip(chunk, crops, strict=True) if crop is not None}
        state.unreadable += [str(images.paths[i]) for i in chunk if i not in readable]
        state.done = chunk.stop
        if readable:
            buffer = backend.image_buffer(len(readable))
            for row, crop in enumerate(readable.values()):
                preprocess.normalise(crop, buffer[row])
            label = None
            if images.labels is not None:
                label = np.asarray([images.labels[i] for i in readable], np.int32)
            stages = range(len(bundle.manifest.stages))
            state.batches.append(_answers(backend, stages, len(readable), label))
        state.images_per_second = (state.done - before) / max(time.monotonic() - started, 1e-9)
        progress("images", state.done, len(images), f"{state.images_per_second:.1f}/s")
        yield
    if not state.batches:
        raise DataError(f"{folder}: none of the {len(images)} images could be read")


def _prepared(
    images: FolderDataset, config: InputConfig, first: int, backend: Backend, workers: int
) -> Iterator[tuple[range, list[Pixels | None]]]:
    """Index ranges with their cropped images, None for those that cannot be read."""
    chunks = (
        range(start, min(start + backend.max_batch, len(images)))
        for start in range(first, len(images), backend.max_batch)
    )
    # Spawned, not forked: the engine's threads are running already.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: list[tuple[range, Future[list[Pixels | None]]]] = []
        try:
            while True:
                for chunk in islice(chunks, _AHEAD * workers - len(waiting)):
                    paths = [images.paths[i] for i in chunk]
                    with _without_interrupts():
                        waiting.append((chunk, pool.submit(_crop_files, paths, config)))
                if not waiting:
                    return
                chunk, future = waiting.pop(0)
                yield chunk, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that start here never see Ctrl-C, which is this one's to answer: each would print a
    traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _crop_files(paths: list[Path], config: InputConfig) -> list[Pixels | None]:
    """In a worker: decoded, resized and cropped images, None for those that cannot be read."""
    preprocess = Preprocessor(config)
    result: list[Pixels | None] = []
    for path in paths:
        try:
            result.append(preprocess.crop(load_image(path), "rgb").copy())
        except DataError:
            result.append(None)
    return result


def _answers(
    backend: Backend, stages: range, count: int, label: npt.NDArray[np.int32] | None
) -> dict[str, npt.NDArray[Any]]:
    """What all stages answer to the ``count`` images in the backend's buffer."""
    found: dict[str, list[npt.NDArray[Any]]] = {"confidence": [], "prediction": [], "top5": []}
    for stage in stages:
        answer = backend.run_stage(stage, count)
        found["confidence"].append(answer.confidence.copy())
        found["prediction"].append(answer.class_id.copy())
        if label is not None:
            best = np.argsort(-backend.logits(stage, count), axis=1)[:, :5]
            found["top5"].append((best == label[:, None]).any(axis=1))
    arrays = {name: np.stack(rows, axis=1) for name, rows in found.items() if rows}
    return arrays if label is None else arrays | {"label": label}


def _save(path: Path, key: str, state: Evaluation) -> None:
    header = {"key": key, "done": state.done, "unreadable": state.unreadable}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, header=text, **state.arrays())


def _load(path: Path, key: str) -> Evaluation:
    """Progress of an interrupted run, or none where there is none for this key."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
            header = json.loads(arrays.pop("header").tobytes())
        if header["key"] == key:
            return Evaluation([arrays] if arrays else [], header["unreadable"], header["done"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        pass
    return Evaluation()
