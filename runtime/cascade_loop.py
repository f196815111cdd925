"""The cascade at run time: preprocess, run a stage, leave or go on."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from dvt_edge.profile import ColorOrder
from dvt_edge.runtime.backend import Backend
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.preprocess import Preprocessor


class CascadeLoop:
    """Runs frames through a backend's stages until their confidence reaches a threshold.

    A confidence that is NaN reaches no threshold, so such a frame goes on to the last stage. Not
    safe to use from several threads at once; :class:`~dvt_edge.runtime.runtime.Runtime` is.
    """

    def __init__(
        self, backend: Backend, preprocess: Preprocessor, class_names: Sequence[str]
    ) -> None:
        self.backend = backend
        self._preprocess = preprocess
        self._names = tuple(class_names)

    def run_one(
        self, frame: object, thresholds: tuple[float, ...], order: ColorOrder | None = None
    ) -> Prediction:
        """Classify one frame; ``thresholds`` [K], the last one -inf.

        Raises :class:`~dvt_edge.errors.FrameError` for a frame that is no image.
        """
        backend, last = self.backend, len(thresholds) - 1
        started = perf_counter()
        self._preprocess(frame, backend.image_buffer(1)[0], order)
        ready = before = perf_counter()
        times = []
        for stage, threshold in enumerate(thresholds):
            answer = backend.run_stage(stage, 1)
            confidence = float(answer.confidence[0])
            now = perf_counter()
            times.append(1e3 * (now - before))
            before = now
            if confidence >= threshold or stage == last:
                break
        class_id = int(answer.class_id[0])
        return Prediction(
            class_id,
            self._names[class_id],
            confidence,
            stage + 1,
            1e3 * (perf_counter() - started),
            1e3 * (ready - started),
            tuple(times),
            thresholds,
        )

    def run_many(
        self,
        frames: Sequence[object],
        thresholds: tuple[float, ...],
        order: ColorOrder | None = None,
    ) -> list[Prediction]:
        """Classify at most ``backend.max_batch`` frames together; answers in input order.

        After each stage the frames that leave are answered and the others move together, so a
        later stage runs on as many frames as still need it.
        """
        backend, last = self.backend, len(thresholds) - 1
        started = perf_counter()
        buffer = backend.image_buffer(len(frames))
        for row, frame in enumerate(frames):
            self._preprocess(frame, buffer[row], order)
        ready = before = perf_counter()
        answers: dict[int, Prediction] = {}
        waiting = np.arange(len(frames))
        times: list[float] = []
        for stage, threshold in enumerate(thresholds):
            answer = backend.run_stage(stage, len(waiting))
            # In float64 as run_one: a threshold may lie between two neighbouring float32 values.
            leaves = answer.confidence.astype(np.float64) >= threshold
            if stage == last:
                leaves[:] = True
            now = perf_counter()
            times.append(1e3 * (now - before))
            before = now
            for row in np.flatnonzero(leaves).tolist():
                class_id = int(answer.class_id[row])
                answers[int(waiting[row])] = Prediction(
                    class_id,
                    self._names[class_id],
                    float(answer.confidence[row]),
                    stage + 1,
                    1e3 * (now - started),
                    1e3 * (ready - started),
                    tuple(times),
                    thresholds,
                )
            stays = np.flatnonzero(~leaves)
            if not len(stays):
                break
            if len(stays) < len(waiting):
                backend.keep_rows(stage, stays)
                waiting = waiting[stays]
        return [answers[i] for i in range(len(frames))]
