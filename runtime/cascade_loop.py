"""The cascade at run time: preprocess, run a stage, leave or go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from math import inf
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.machine.board import available_cores
from dvt_edge.profile import ColorOrder
from dvt_edge.runtime.backends.opening import open_backend
from dvt_edge.runtime.backends.protocol import Backend
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.preprocess import Preprocessor

MayStart = Callable[[int, float], str | None]
"""Asked with a stage, from 1, and the milliseconds spent on the frame so far: why the stage may not
start, or None if it may. The first one always may."""


class CascadeLoop:
    """Runs frames through a backend's stages until their confidence reaches a threshold.

    No stage runs after the first whose threshold is -inf. A confidence that is NaN reaches no other
    threshold. One thread at a time may run stages, whichever loop's; meanwhile another may prepare
    the frame of another loop. :class:`~dvt_edge.runtime.runtime.Runtime` sees to that.
    """

    def __init__(
        self, backend: Backend, preprocess: Preprocessor, class_names: Sequence[str]
    ) -> None:
        self.backend = backend
        self.preprocess = preprocess
        self.slot = 0
        """Of the backend's images, the one that this loop's frames use."""
        self._names = tuple(class_names)
        self.energy_mj: Sequence[float] | None = None
        """[K]: what leaving at each exit takes, for predictions to estimate their energy by."""

    def at(self, slot: int) -> CascadeLoop:
        """The same cascade for the frames of another slot."""
        other = copy(self)
        other.slot = slot
        return other

    def run_one(
        self,
        frame: object,
        thresholds: tuple[float, ...],
        order: ColorOrder | None = None,
    ) -> Prediction:
        """Classify one frame; ``thresholds`` [K], the last one -inf.

        Raises :class:`~dvt_edge.errors.FrameError` for a frame that is not an image.
        """
        return self.run_prepared(thresholds, self.prepare(frame, order))

    def prepare(self, frame: object, order: ColorOrder | None = None) -> float:
        """Make a frame the image of this loop's slot; returns the milliseconds that took here.

        Stages may run meanwhile, for another slot. Raises as :meth:`run_one`.
        """
        started = perf_counter()
        backend, slot = self.backend, self.slot
        image, take = backend.image_buffer(1, slot)[0], backend.take_frame
        if take is None or not self.preprocess.hand_over(frame, order, take, slot, image.dtype):
            self.preprocess(frame, image, order)
        return 1e3 * (perf_counter() - started)

    def run_prepared(
        self,
        thresholds: tuple[float, ...],
        preprocess_ms: float,
        *,
        before_ms: float = 0.0,
        may_start: MayStart | None = None,
    ) -> Prediction:
        """Run the stages on the prepared frame.

        ``before_ms`` is what the frame took beside ``preprocess_ms`` so far. ``may_start`` is asked
        before every stage.
        """
        backend, slot = self.backend, self.slot
        before = perf_counter()
        started = before - 1e-3 * (preprocess_ms + before_ms)
        times: list[float] = []
        confidences: list[float] = []
        classes: list[int] = []
        refused: str | None = None
        if backend.run_whole is not None and may_start is None:
            answers, later_ms = backend.run_whole(thresholds, slot)
            confidences = [float(answer.confidence[0]) for answer in answers]
            classes = [int(answer.class_id[0]) for answer in answers]
            times = [1e3 * (perf_counter() - before) - sum(later_ms), *later_ms]
        else:
            for stage in range(thresholds.index(-inf) + 1):
                if may_start is not None:
                    refused = may_start(stage + 1, 1e3 * (before - started))
                    if refused:
                        break
                answer = backend.run_stage(stage, 1, slot)
                confidences.append(float(answer.confidence[0]))
                classes.append(int(answer.class_id[0]))
                now = perf_counter()
                times.append(1e3 * (now - before))
                before = now
                if confidences[-1] >= thresholds[stage]:
                    break
        return self.answer(thresholds, started, preprocess_ms, times, confidences, classes, refused)

    def answer(
        self,
        thresholds: tuple[float, ...],
        started: float,
        preprocess_ms: float,
        times: Sequence[float],
        confidences: Sequence[float],
        classes: Sequence[int],
        refused: str | None,
        regroup_wait_ms: float = 0.0,
    ) -> Prediction:
        """Of one frame, now: what the stages that ran took and answered, and why no other ran."""
        class_id, energy_mj = classes[-1], self.energy_mj
        return Prediction(
            class_id=class_id,
            label=self._names[class_id],
            confidence=confidences[-1],
            exit_stage=len(classes),
            latency_ms=1e3 * (perf_counter() - started),
            preprocess_ms=preprocess_ms,
            stage_latency_ms=tuple(times),
            thresholds=thresholds,
            confidences=tuple(confidences),
            classes=tuple(classes),
            truncated=refused is not None,
            reason=refused,
            energy_mj=None if energy_mj is None else energy_mj[len(classes) - 1],
            regroup_wait_ms=regroup_wait_ms,
        )

    def prepare_many(
        self, frames: Sequence[object] | npt.NDArray[Any], order: ColorOrder | None = None
    ) -> float:
        """:meth:`prepare` for at most ``backend.max_batch`` frames."""
        started = perf_counter()
        buffer = self.backend.image_buffer(len(frames), self.slot)
        for row, frame in enumerate(frames):
            self.preprocess(frame, buffer[row], order)
        return 1e3 * (perf_counter() - started)

    def run_many_prepared(
        self, count: int, thresholds: tuple[float, ...], preprocess_ms: float
    ) -> list[Prediction]:
        """Run the stages on ``count`` prepared frames together; answers in their order.

        After each stage the frames that leave are answered and the others move together, so a
        later stage runs on as many frames as still need it.
        """
        backend, slot, last = self.backend, self.slot, thresholds.index(-inf)
        before = perf_counter()
        started = before - 1e-3 * preprocess_ms
        answers: dict[int, Prediction] = {}
        energy_mj = self.energy_mj
        waiting = np.arange(count)
        times: list[float] = []
        confidences: list[list[float]] = [[] for _ in range(count)]
        classes: list[list[int]] = [[] for _ in range(count)]
        for stage, threshold in enumerate(thresholds[: last + 1]):
            answer = backend.run_stage(stage, len(waiting), slot)
            # In float64 as run_one: a threshold may lie between two neighbouring float32 values.
            confidence = answer.confidence.astype(np.float64)
            leaves = confidence >= threshold
            if stage == last:
                leaves[:] = True
            now = perf_counter()
            times.append(1e3 * (now - before))
            before = now
            for row, frame_at in enumerate(waiting.tolist()):
                confidences[frame_at].append(float(confidence[row]))
                classes[frame_at].append(int(answer.class_id[row]))
                if leaves[row]:
                    class_id = classes[frame_at][-1]
                    answers[frame_at] = Prediction(
                        class_id=class_id,
                        label=self._names[class_id],
                        confidence=confidences[frame_at][-1],
                        exit_stage=stage + 1,
                        latency_ms=1e3 * (now - started),
                        preprocess_ms=preprocess_ms,
                        stage_latency_ms=tuple(times),
                        thresholds=thresholds,
                        confidences=tuple(confidences[frame_at]),
                        classes=tuple(classes[frame_at]),
                        energy_mj=None if energy_mj is None else energy_mj[stage],
                    )
            stays = np.flatnonzero(~leaves)
            if not len(stays):
                break
            if len(stays) < len(waiting):
                backend.keep_rows(stage, stays, slot)
                waiting = waiting[stays]
        return [answers[i] for i in range(count)]


def open_loop(
    bundle: Bundle,
    backend: Backend | None = None,
    tell: Callable[[str], object] | None = None,
) -> CascadeLoop:
    """The cascade of ``bundle``, on ``backend`` or, without one, on what ``open_backend`` finds."""
    manifest = bundle.manifest
    return CascadeLoop(
        backend or open_backend(bundle, tell),
        Preprocessor(manifest.input, manifest.engine.threads or available_cores()),
        manifest.class_names,
    )
