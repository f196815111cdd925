"""Frames of several cameras, whose later stages run together.

Stage 1 runs for each frame alone. One that goes on is set aside in the backend, and its thread lets
others run theirs: for a given time at most, and only while another thread is within ``classify``.
Then the later stages run once for all that were set aside, and each thread goes on with its own
answer. Whether that pays is measured as the Runtime opens; where it does not, nothing waits.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import inf
from time import perf_counter

import numpy as np

from dvt_edge.bundle.manifest import Manifest
from dvt_edge.errors import BackendError
from dvt_edge.machine.clock import Clock, RealClock
from dvt_edge.runtime.backends.protocol import ASIDE, Backend
from dvt_edge.runtime.cascade_loop import CascadeLoop, MayStart
from dvt_edge.runtime.measuring.together import LEAST_GAIN, LEVEL, measure_together
from dvt_edge.runtime.prediction import Prediction

SHORT_MS = 10.0
"""Where the later stages take less, what threads lose by waiting for one another is measured."""
TRIED_FRAMES, TRIED_ROUNDS = 4, 6
"""By each of two threads, and how often."""


@dataclass(eq=False)
class _Frame:
    """One on its way, and what its stages said so far."""

    thresholds: tuple[float, ...]
    started: float
    may_start: MayStart | None
    confidences: list[float] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    refused: str | None = None
    since: float = 0.0
    """When it was set aside."""
    waited_ms: float = 0.0

    def goes_on(self, now: float) -> bool:
        """Whether the next stage is to run, by the thresholds and the deadline."""
        ran = len(self.classes)
        if self.confidences[-1] >= self.thresholds[ran - 1] or self.thresholds[ran - 1] == -inf:
            return False
        if self.may_start is not None:
            self.refused = self.may_start(ran + 1, 1e3 * (now - self.started))
        return self.refused is None


class _Group:
    """Frames that wait, in rows 1, 2, ... of what was set aside."""

    def __init__(self, closes_at: float) -> None:
        self.frames: list[_Frame] = []
        self.closes_at = closes_at
        self.look = threading.Event()
        """Set when there may be nothing to wait for any more."""
        self.ran = False
        self.error: Exception | None = None


class Regroup:
    """Runs frames for the threads that are within ``Runtime.classify``.

    ``lock`` is the one that is held while stages run; ``loops`` are two, whose slots hold an image,
    to measure with.
    """

    def __init__(
        self,
        loops: Sequence[CascadeLoop],
        manifest: Manifest,
        wait_ms: float,
        lock: threading.Lock,
    ) -> None:
        self.wait_ms = wait_ms
        self.sizes: Counter[int] = Counter()
        """How often so many frames ran their later stages together."""
        self._lock, self._backend = lock, loops[0].backend
        self._group: _Group | None = None
        self._counting = threading.Lock()
        self._active = 0
        """Threads within ``classify`` that do not wait here."""
        self._alone_ms: Sequence[float] = ()
        self._together_ms: Sequence[float] = ()
        self.most = 1
        """Frames that run together, at most; 1 where that does not pay."""
        why = _unfit(self._backend, len(manifest.stages))
        if why is None:
            clock = RealClock()
            found = measure_together(loops[0], manifest, clock)
            self.most, why = found.most, found.said
            self._alone_ms, self._together_ms = found.alone_ms, found.together_ms
            if self.pays and sum(found.alone_ms) < SHORT_MS:
                why += self._try_threads(loops[:2], clock)
        waits = f"frames of several cameras wait up to {wait_ms:g} ms for one another"
        self.reason = f"{waits if self.pays else 'no frame waits for others'}: {why}"
        """For people: what was measured, and what follows."""

    @property
    def pays(self) -> bool:
        return self.most > 1

    def arrive(self) -> None:
        """A thread enters ``classify``."""
        with self._counting:
            self._active += 1

    def leave(self) -> None:
        """It has its answer, or an error."""
        with self._counting:
            self._active -= 1
            group = None if self._active else self._group
        if group is not None:
            group.look.set()

    def run(
        self,
        loop: CascadeLoop,
        give_back: Callable[[], None],
        thresholds: tuple[float, ...],
        preprocess_ms: float,
        *,
        before_ms: float,
        may_start: MayStart | None,
    ) -> Prediction:
        """As :meth:`~dvt_edge.runtime.cascade_loop.CascadeLoop.run_prepared`, perhaps together with
        other threads' frames; under the lock, which is released while the frame waits.

        ``give_back`` is called once the slot of ``loop`` is free for another frame.
        """
        now = perf_counter()
        frame = _Frame(thresholds, now - 1e-3 * (preprocess_ms + before_ms), may_start)
        now = self._run_stage(0, [frame], loop.slot, now)
        if frame.goes_on(now):
            group = self._group
            alone = group is None and self._active <= 1
            if alone or not self._may_wait(frame, now):
                self._run_later([frame], loop.slot, now)
            else:
                self._run_with_others(frame, loop.slot, give_back)
        return loop.answer(
            frame.thresholds,
            frame.started,
            preprocess_ms,
            frame.times,
            frame.confidences,
            frame.classes,
            frame.refused,
            frame.waited_ms,
        )

    def run_waiting(self) -> None:
        """Run what waits at once, before the backend does anything else than frames one by one;
        under the lock. Errors are the waiting threads' own."""
        if self._group is not None:
            self._run_group(self._group, None)

    def _may_wait(self, frame: _Frame, now: float) -> bool:
        """Whether no stage misses the frame's deadline because it waits."""
        if frame.may_start is None:
            return True
        spent_ms = 1e3 * (now - frame.started) + self.wait_ms
        times = zip(self._alone_ms, self._together_ms, strict=True)
        for stage, (alone_ms, together_ms) in enumerate(times, start=2):
            if frame.may_start(stage, spent_ms + max(0.0, together_ms - alone_ms)):
                return False
            spent_ms += together_ms
        return True

    def _run_with_others(self, frame: _Frame, slot: int, give_back: Callable[[], None]) -> None:
        now = perf_counter()
        if self._group is None:
            self._group = _Group(now + 1e-3 * self.wait_ms)
        group = self._group
        waiting = len(group.frames)
        if waiting + 1 == self.most or now >= group.closes_at or self._active <= 1:
            self._backend.set_aside(0, 0, slot)
            give_back()
            self._run_group(group, frame)
        else:
            self._backend.set_aside(0, waiting + 1, slot)
            frame.since = now
            group.frames.append(frame)
            give_back()
            self._wait(group)
        if group.error is not None:
            raise group.error

    def _wait(self, group: _Group) -> None:
        """Until ``group`` has run, which is up to this thread if no other does it."""
        self.leave()  # until the group runs
        while not group.ran:
            group.look.clear()
            left_s = group.closes_at - perf_counter()
            if left_s <= 0 or not self._active:
                self._run_group(group, None)
                return
            self._lock.release()
            try:
                group.look.wait(left_s)
            finally:
                self._lock.acquire()

    def _run_group(self, group: _Group, last: _Frame | None) -> None:
        """The later stages for all that wait, and for the ``last`` one, which is in row 0."""
        self._group = None
        now = perf_counter()
        for frame in group.frames:
            frame.waited_ms = 1e3 * (now - frame.since)
        frames = group.frames if last is None else [last, *group.frames]
        self.sizes[len(frames)] += 1
        group.error = BackendError(
            "the thread that ran this frame together with its own was interrupted; give the frame "
            "again"
        )
        try:
            if last is None:
                self._backend.keep_rows(0, np.arange(1, len(frames) + 1), ASIDE)
            self._run_later(frames, ASIDE, now)
            group.error = None
        except Exception as error:  # every thread's whose frame it was
            group.error = error
        finally:
            with self._counting:  # at once, or the next frame would find nobody to wait for
                self._active += len(group.frames)
            group.ran = True
            group.look.set()

    def _run_later(self, running: Sequence[_Frame], slot: int, now: float) -> None:
        """All stages after the first; ``running`` want the second and are in the first rows."""
        for stage in range(1, len(running[0].thresholds)):
            if stage > 1 or slot == ASIDE:  # those that waited may have missed their deadline
                stays = [frame.goes_on(now) for frame in running]
                if not all(stays):
                    rows = np.flatnonzero(stays)
                    if not len(rows):
                        return
                    self._backend.keep_rows(stage - 1, rows, slot)
                    running = [running[row] for row in rows.tolist()]
            now = self._run_stage(stage, running, slot, now)

    def _run_stage(self, stage: int, frames: Sequence[_Frame], slot: int, before: float) -> float:
        """Returns when it ended."""
        found = self._backend.run_stage(stage, len(frames), slot)
        answers = zip(frames, found.confidence.tolist(), found.class_id.tolist(), strict=True)
        now = perf_counter()
        for frame, confidence, class_id in answers:
            frame.confidences.append(confidence)
            frame.classes.append(class_id)
            frame.times.append(1e3 * (now - before))
        return now

    def _try_threads(self, loops: Sequence[CascadeLoop], clock: Clock) -> str:
        """Two threads whose frames all go on, waiting for one another and not, in turn: handing
        over may cost more than is saved. Sets :attr:`most`; says what was found."""
        thresholds = (*[inf] * len(self._alone_ms), -inf)

        def work(loop: CascadeLoop, together: bool) -> None:
            run = partial(self.run, loop, lambda: None) if together else loop.run_prepared
            try:
                for _ in range(TRIED_FRAMES):
                    with self._lock:
                        run(thresholds, 0.0, before_ms=0.0, may_start=None)
            finally:
                self.leave()

        def took_ms(pool: ThreadPoolExecutor, together: bool) -> float:
            started = clock.now()
            for _ in loops:
                self.arrive()
            deque(pool.map(work, loops, [together] * len(loops)), maxlen=0)
            return 1e3 * (clock.now() - started)

        with ThreadPoolExecutor(len(loops)) as pool:
            times = [
                [took_ms(pool, together) for together in (True, False)] for _ in range(TRIED_ROUNDS)
            ]
        self.sizes.clear()
        waiting, alone = np.percentile(times, LEVEL, axis=0).tolist()
        if waiting > (1 - LEAST_GAIN) * alone:
            self.most = 1
        count = TRIED_FRAMES * len(loops)
        return (
            f"; from two threads {count} frames take {waiting:.3g} ms if they wait for one another "
            f"and {alone:.3g} ms if not"
        )


def _unfit(backend: Backend, stages: int) -> str | None:
    """Why frames cannot run together here, or None."""
    if stages < 2:
        return "the cascade has a single stage; leave regroup_ms out"
    if backend.run_whole is not None:
        return "engine.graph: conditional runs the whole cascade at once; set it to stages"
    if backend.max_batch < 2:
        return "the bundle takes one frame at a time; add 2 to engine.batch_sizes and build again"
    return None
