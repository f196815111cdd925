"""The Runtime: a bundle, ready to classify frames within its budget."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Any, NoReturn, SupportsIndex

import numpy.typing as npt
from typing_extensions import Self

from dvt_edge.bundle.bundle import open_source
from dvt_edge.bundle.costs import Costs
from dvt_edge.errors import ClosedError, ConfigError, DataError
from dvt_edge.policy.choose import choose_thresholds
from dvt_edge.policy.live.promise import Promise
from dvt_edge.policy.solver import Certificate, Solution, replay
from dvt_edge.profile import BudgetConfig, ColorOrder, Profile
from dvt_edge.progress import Progress, silent
from dvt_edge.runtime.arguments import check_budget, check_deadline, check_seconds, check_wait
from dvt_edge.runtime.backends.protocol import SLOTS, Backend
from dvt_edge.runtime.cascade_loop import CascadeLoop, open_loop
from dvt_edge.runtime.conditions_watch import ConditionsWatch
from dvt_edge.runtime.events import CostsRefused, Event, Regrouping, StandInsRun
from dvt_edge.runtime.measuring.measure import (
    QUICK_MEASUREMENT_S,
    costs_here,
    measure_costs,
    run_all_stages,
)
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.preprocess import Box, cut_box
from dvt_edge.runtime.regroup import Regroup
from dvt_edge.runtime.session import Session
from dvt_edge.runtime.slots import Lease, Shot, Slot

EVENTS_KEPT = 256
"""Events that a Runtime remembers."""

OnAnswer = Callable[[Prediction], None]
OnEvent = Callable[[Event], None]


class Runtime:
    """Classifies frames with the stages of a bundle, leaving early within the budget.

    ``source`` is a profile (a :class:`~dvt_edge.profile.Profile` or the path of its YAML file),
    whose ``output`` names the bundle and whose budget is kept, or the folder of a bundle, whose
    own budget is kept. ``backend`` executes the stages instead of the one that the bundle asks for.
    With ``regroup_ms``, for several cameras, a frame that goes on after stage 1 may wait so many
    milliseconds for those of other threads, to run the later stages together: see :attr:`regroup`.
    What happened is in :attr:`events`, also what happened while it opened; :meth:`watch` reports
    what comes. Safe to use from several threads: stages run for one frame at a time, and the next
    one is preprocessed meanwhile.

        with dvt_edge.Runtime("demo-cpu.yaml") as runtime:
            print(runtime.classify(frame).label)

    Raises :class:`~dvt_edge.errors.BundleError` for a bundle that is missing, changed or does not
    match the profile, :class:`~dvt_edge.errors.BackendError` where its stages cannot run here,
    :class:`~dvt_edge.errors.BudgetError` for a budget below the first exit's cost, and
    :class:`~dvt_edge.errors.ConfigError` for a ``source`` that is no path and no profile, and for a
    ``regroup_ms`` that is negative or no number.
    """

    def __init__(
        self,
        source: str | Path | Profile,
        *,
        backend: Backend | None = None,
        regroup_ms: float | None = None,
    ) -> None:
        self._lock = threading.Lock()
        """Held while stages run, and while thresholds change."""
        self._ahead = threading.Lock()
        """Held by the one :meth:`classify_each` that prepares a frame ahead."""
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        """What happened lately: a limit is broken or kept again, thresholds changed, an audit
        failed, logits were not finite, stored costs were not used, frames came otherwise or not at
        all, other stages stand in for the bundle's."""
        self._watchers: tuple[tuple[OnAnswer | None, OnEvent | None], ...] = ()
        self._unreported: deque[Event] = deque()
        self._slots: list[Slot] = []
        self.regroup: Regroup | None = None
        """How frames of several threads run their later stages together, where ``regroup_ms`` asks
        for it: whether that pays here (``most``, ``reason``), and how often it was done."""
        self.bundle, self.budget = open_source(source)
        self._loop: CascadeLoop | None = open_loop(
            self.bundle, backend, lambda reason: self._report(StandInsRun(reason))
        )
        try:
            check_wait(regroup_ms)
            self.records = self.bundle.records()
            """Answers of all exits to the calibration images."""
            self._unlabelled_records = self.bundle.unlabelled_records()
            self.costs = costs_here(self._loop, self.bundle, self._refuse)
            """Measured latency of leaving at each exit on this machine."""
            self._loop.energy_mj = self.costs.energy_mj
            order = self.bundle.manifest.input.color_order
            self._conditions = ConditionsWatch(self.costs, order)
            self._slots = [Slot(self._loop.at(slot)) for slot in range(SLOTS)]
            self._free: SimpleQueue[Slot] = SimpleQueue()
            for slot in self._slots:
                self._free.put(slot)
            self.set_budget(self.budget)
            for slot in self._slots:
                run_all_stages(slot.loop, self.bundle.manifest)
            if regroup_ms:
                loops, manifest = [slot.loop for slot in self._slots], self.bundle.manifest
                self.regroup = Regroup(loops, manifest, regroup_ms, self._lock)
                self._report(Regrouping(self.regroup.most, self.regroup.reason))
            self._unreported.clear()  # no one could listen yet; it stays in events
        except BaseException:
            self.close()
            raise

    @property
    def thresholds(self) -> tuple[float, ...]:
        """[K]: in force at this moment; the solution's, unless adapting or an audit moved them."""
        return self._session.thresholds

    @property
    def backend(self) -> Backend:
        """What executes the stages; use it only while no frame is classified."""
        return self._open_loop().backend

    @property
    def certificate(self) -> Certificate | None:
        """What holds for unseen frames, where the budget has a ``confidence_level``."""
        return self.solution.certificate

    @property
    def promise(self) -> Promise:
        """What is promised of the frames to come, what is measured, and whether it holds.

        ``print(runtime.promise.sentence)``. Ask at any time and from any thread; it waits for the
        frame that is being worked on.
        """
        with self._lock:
            promise, problems = self._session.look(), self._conditions.problems
            silent_s = self._conditions.silent_s(perf_counter())
        if silent_s is not None:
            problems += (f"no frame came for {silent_s:.3g} s",)
        return promise(problems)

    def set_budget(self, budget: BudgetConfig | None = None, /, **changes: Any) -> Solution:
        """Choose the thresholds for another budget; takes effect with the next frame.

        Give a whole budget, or the keys that change: ``set_budget(latency_ms=5)``. Solved from the
        stored records; nothing is rebuilt. Raises :class:`~dvt_edge.errors.BudgetError`, and keeps
        the old thresholds, for keys that do not exist and budgets that cannot be kept, and
        :class:`~dvt_edge.errors.ClosedError` after :meth:`close`.
        """
        self._open_loop()
        if budget is None:
            budget = self.budget
        check_budget(budget)
        config = budget.changed(**changes)
        self._put_in_force(self.solve(config), config)
        self.budget = config
        return self.solution

    def solve(self, budget: BudgetConfig) -> Solution:
        """What :meth:`set_budget` would put in force; nothing changes. Raises as it does."""
        check_budget(budget)
        recorded = self.bundle.manifest.recorded_thresholds
        return choose_thresholds(
            self.records, self.costs, budget, recorded, self._unlabelled_records
        )

    def _put_in_force(self, solution: Solution, budget: BudgetConfig | None) -> None:
        self._session = Session(self.records, self.costs, solution, budget, self._report)
        self.solution = solution
        """Thresholds in force and what they give on the calibration records."""

    def use(self, solution: Solution) -> None:
        """Leave by the thresholds of ``solution``, whatever the budget; from the next frame on."""
        self._open_loop()
        self._put_in_force(replace(solution, certificate=None), None)

    def replay(self, thresholds: Sequence[float], cost: Sequence[float] | None = None) -> Solution:
        """What ``thresholds`` [K] give on the stored records, without running anything.

        ``cost`` [K] is that of leaving at each exit elsewhere, such as another power mode's; this
        machine's where absent.
        """
        return replay(self.records, self.costs.mean_ms if cost is None else cost, thresholds)

    def classify(
        self,
        frame: object,
        *,
        color_order: ColorOrder | None = None,
        deadline_ms: float | None = None,
        box: Box | None = None,
    ) -> Prediction:
        """Classify one frame: a NumPy array uint8 [H, W, 3] or [H, W], or ``nv12`` or ``yuyv``.

        Its layout is the profile's (OpenCV's BGR by default) unless ``color_order`` says
        otherwise. Of a frame with a ``box`` (x, y, width, height in pixels), such as a detector's
        or a fixed part of the picture, only that is classified; nothing is copied, but of ``nv12``
        the box. ``latency_ms`` of the answer is counted from here, waiting for another thread's
        frame included. So is ``deadline_ms``: a stage is started only if its p99 fits the time
        left; otherwise the best answer so far is given, marked ``truncated``. Raises
        :class:`~dvt_edge.errors.FrameError` for anything that is not a frame,
        :class:`~dvt_edge.errors.BudgetError` for a deadline that is not positive and
        :class:`~dvt_edge.errors.ClosedError` after :meth:`close`.
        """
        entered = perf_counter()
        check_deadline(deadline_ms)
        with Lease(self._free, self.regroup) as lease:
            shot = self._prepare(lease.slot, frame, color_order, box)
            return self._answer(lease.slot, shot, deadline_ms, entered, lease)

    def classify_each(
        self,
        frames: Iterable[object],
        *,
        color_order: ColorOrder | None = None,
        deadline_ms: float | None = None,
    ) -> Iterator[Prediction]:
        """:meth:`classify` each of ``frames``, such as those that a camera gives; answers in order.

        While the stages run for one frame, the next is fetched from ``frames`` and preprocessed, in
        a thread of its own. Of several such loops at a time only the first works ahead.
        ``latency_ms`` is what preparing the frame and its own stages took, and waiting for other
        callers' frames between the two; lying ready is not counted. Raises as :meth:`classify`, at
        the frame in question, and whatever ``frames`` raises.
        """
        check_deadline(deadline_ms)
        coming = iter(frames)
        if not self._ahead.acquire(blocking=False):
            for frame in coming:
                yield self.classify(frame, color_order=color_order, deadline_ms=deadline_ms)
            return
        wanted: SimpleQueue[bool] = SimpleQueue()
        fetched: SimpleQueue[tuple[Slot, Shot] | BaseException | None] = SimpleQueue()

        def fetch() -> tuple[Slot, Shot] | BaseException | None:
            slot: Slot | None = None
            try:
                for frame in coming:
                    slot = self._free.get()
                    return slot, self._prepare(slot, frame, color_order)
            except BaseException as error:  # the caller's to raise
                if slot is not None:
                    self._free.put(slot)
                return error
            return None

        def work() -> None:
            while wanted.get():
                fetched.put(fetch())
            while not fetched.empty():  # the caller wants no more
                unused = fetched.get()
                if isinstance(unused, tuple):
                    self._free.put(unused[0])
            self._ahead.release()

        # Not waited for in the end: it may be in a camera's call that never returns.
        threading.Thread(target=work, name="dvt-edge ahead", daemon=True).start()
        try:
            wanted.put(True)
            while (found := fetched.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                slot, shot = found
                wanted.put(True)
                try:
                    answer = self._answer(slot, shot, deadline_ms)
                finally:
                    self._free.put(slot)
                yield answer
        finally:
            wanted.put(False)

    def classify_batch(
        self,
        frames: Sequence[object] | npt.NDArray[Any],
        *,
        color_order: ColorOrder | None = None,
        boxes: Sequence[Box] | None = None,
    ) -> list[Prediction]:
        """Classify several frames, each as :meth:`classify` takes it; answers in input order.

        With ``boxes``, ``frames`` is one frame, and each of its boxes is answered.
        Each stage runs on the frames that still need it. Deadlines, audits and adapting concern
        single frames and do not act here. More frames than the profile's largest
        batch size are worked on in parts. Raises as :meth:`classify`.
        """
        if boxes is not None:
            order = color_order or self.bundle.manifest.input.color_order
            frames = [cut_box(frames, box, order) for box in boxes]
        if not isinstance(frames, Sequence) and not hasattr(frames, "__len__"):
            raise DataError(f"frames must be a sequence of frames, found {type(frames).__name__}")
        if getattr(frames, "ndim", 4) == 2 or getattr(frames, "shape", (0,))[1:][1:] == (3,):
            raise DataError("classify_batch takes several frames; give one frame to classify()")
        answers: list[Prediction] = []
        size = self._open_loop().backend.max_batch
        slot = self._free.get()
        try:
            for start in range(0, len(frames), size):
                part = frames[start : start + size]
                with slot.writing:
                    self._open_loop()
                    preprocess_ms = slot.loop.prepare_many(part, color_order)
                with self._lock:
                    self._open_loop()
                    self._run_waiting()
                    thresholds = self._session.thresholds
                    answers += slot.loop.run_many_prepared(len(part), thresholds, preprocess_ms)
        finally:
            self._free.put(slot)
            self._notify(answers)
        return answers

    def watch(
        self, *, on_answer: OnAnswer | None = None, on_event: OnEvent | None = None
    ) -> Callable[[], None]:
        """Call ``on_answer`` and ``on_event`` with every answer and event from now on.

        The classifying thread calls them and waits; other threads may classify meanwhile, and they
        may use the Runtime themselves. The result ends that. A Runtime without
        watchers loses no time by it.
        """
        watcher = (on_answer, on_event)
        with self._lock:
            self._watchers = (*self._watchers, watcher)

        def stop() -> None:
            with self._lock:
                self._watchers = tuple(w for w in self._watchers if w is not watcher)

        return stop

    def measure(self, seconds: float, progress: Progress = silent) -> Costs:
        """Measure the costs again, for about ``seconds``; thresholds stay as they are.

        Raises :class:`~dvt_edge.errors.ConfigError` for anything but a positive number.
        """
        check_seconds(seconds)
        slot = self._free.get()
        try:
            with self._lock:
                self._open_loop()
                return measure_costs(slot.loop, self.bundle.manifest, seconds, progress)
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """Free the backend's memory, once no frame is being worked on; twice does nothing."""
        with ExitStack() as still:
            for slot in self._slots:  # no one writes into the memory that is about to go
                still.enter_context(slot.writing)
            still.enter_context(self._lock)
            if self._loop is not None:
                self._run_waiting()
                self._loop.backend.close()
                self._loop = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """A copy would share the backend, and closing one would close the other."""
        raise ConfigError("a Runtime cannot be copied or pickled; open another one")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _prepare(
        self, slot: Slot, frame: object, order: ColorOrder | None, box: Box | None = None
    ) -> Shot:
        """Preprocess ``frame`` in ``slot``, while stages may run for another frame."""
        with slot.writing:
            self._open_loop()
            if box is not None:
                frame = cut_box(frame, box, order or self.bundle.manifest.input.color_order)
            early = self._session.prepares_all
            took_ms = slot.loop.prepare(frame, order) if early else None
            return Shot(frame, order, took_ms, box is not None)

    def _answer(
        self,
        slot: Slot,
        shot: Shot,
        deadline_ms: float | None,
        entered: float | None = None,
        lease: Lease | None = None,
    ) -> Prediction:
        """Run the stages on what :meth:`_prepare` prepared, and report.

        ``entered`` is when the work on the frame began; None where it was prepared ahead. With a
        ``lease`` the frame may wait for those of other threads.
        """
        answers: list[Prediction] = []
        frame, order, preprocess_ms, is_part = shot
        before_ms = preprocess_ms or 0.0
        if entered is None:
            entered = perf_counter() - 1e-3 * before_ms
        run = None
        if self.regroup is not None and self.regroup.pays and lease is not None:
            run = partial(self.regroup.run, slot.loop, lease.give_back)
        try:
            with self._lock:
                self._open_loop()
                waited_ms = max(0.0, 1e3 * (perf_counter() - entered) - before_ms)
                answer = self._session.classify(
                    slot.loop, frame, order, preprocess_ms, deadline_ms, waited_ms, run
                )
                answers.append(answer)
                shape = None if is_part else frame.shape  # type: ignore[attr-defined]  # an array
                for event in self._conditions.note(shape, perf_counter(), answer.latency_ms):
                    self._report(event)
        finally:
            if self._watchers or self._unreported:  # else spare each frame the call
                self._notify(answers)
        self._session.returns()
        return answers[0]

    def _run_waiting(self) -> None:
        """Before the backend's rows are used otherwise; under the lock."""
        if self.regroup is not None:
            self.regroup.run_waiting()

    def _report(self, event: Event) -> None:
        self.events.append(event)
        self._unreported.append(event)

    def _notify(self, answers: Sequence[Prediction] = ()) -> None:
        """Call the watchers with ``answers`` and what was reported; without the lock, so that they
        may classify."""
        watchers = self._watchers
        for on_answer, _ in watchers:
            if on_answer is not None:
                for answer in answers:
                    on_answer(answer)
        while self._unreported:
            try:
                event = self._unreported.popleft()
            except IndexError:  # another thread was faster
                return
            for _, on_event in watchers:
                if on_event is not None:
                    on_event(event)

    def _refuse(self, problem: str) -> None:
        self._report(
            CostsRefused(
                f"{problem}; measured again for {QUICK_MEASUREMENT_S:g} s, which is rough: run "
                "'dvt-edge profile --profile FILE' here"
            )
        )

    def _open_loop(self) -> CascadeLoop:
        if self._loop is None:
            raise ClosedError("this Runtime is closed; open another one")
        return self._loop
