"""The Runtime: a bundle, ready to classify frames within its budget."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pydantic import ValidationError
from typing_extensions import Self

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.errors import BudgetError, BundleError, ClosedError, DataError
from dvt_edge.policy import Solution, replay
from dvt_edge.policy.budget import solve_budget
from dvt_edge.policy.certificate import Certificate, solve_certified
from dvt_edge.policy.curve import recorded_point, recorded_thresholds
from dvt_edge.profile import BudgetConfig, ColorOrder, Profile
from dvt_edge.runtime.backends.opening import open_loop
from dvt_edge.runtime.backends.protocol import Backend
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.measuring.costs import Costs, CostsRefused, load_costs, measure_costs
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.session import Event, LivePolicy

QUICK_MEASUREMENT_S = 0.5
"""Spent at start-up where ``dvt-edge profile`` has not measured this bundle on this machine."""


EVENTS_KEPT = 256
"""Events that a Runtime remembers."""


class Watcher(Protocol):
    """Sees what a Runtime does; called by the classifying thread, which waits for it.

    Other threads may classify meanwhile, and it may use the Runtime itself.
    """

    def answered(self, prediction: Prediction) -> None:
        """A frame was answered."""

    def happened(self, event: Event) -> None:
        """Something was reported."""


class Runtime:
    """Classifies frames with the stages of a bundle, leaving early within the budget.

    ``source`` is a profile (a :class:`~dvt_edge.profile.Profile` or the path of its YAML file),
    whose ``output`` names the bundle and whose budget is kept, or the folder of a bundle, whose
    own budget is kept. ``on_event`` is called, from the classifying thread, when thresholds change,
    an audit fails or logits are not finite, and at the start where stored costs belong to another
    machine or other engines. Safe to use from several threads; frames are then worked on in turn.

        with dvt_edge.Runtime("demo-cpu.yaml") as runtime:
            print(runtime.classify(frame).label)

    Raises :class:`~dvt_edge.errors.BundleError` for a bundle that is missing, changed or does not
    match the profile, :class:`~dvt_edge.errors.BackendError` where its stages cannot run here, and
    :class:`~dvt_edge.errors.BudgetError` for a budget below the first exit's cost.
    """

    def __init__(
        self,
        source: str | Path | Profile,
        *,
        backend: Backend | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._on_event = on_event
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        """What happened lately: thresholds changed, an audit failed, logits were not finite, stored
        costs were not used."""
        self._watchers: tuple[Watcher, ...] = ()
        self._untold: deque[Event] = deque()
        self.bundle, self.budget = open_source(source)
        self._loop: CascadeLoop | None = open_loop(self.bundle, backend)
        try:
            self.records = self.bundle.records()
            """Answers of all exits to the calibration images."""
            self._costs = load_costs(self.bundle, self._refuse) or measure_costs(
                self._loop, self.bundle, QUICK_MEASUREMENT_S
            )
            self._loop.energy_mj = self._costs.energy_mj
            self.set_budget(self.budget)
        except BaseException:
            self.close()
            raise

    @property
    def solution(self) -> Solution:
        """Thresholds in force and what they give on the calibration records."""
        return self._solution

    @property
    def thresholds(self) -> tuple[float, ...]:
        """[K]: in force at this moment; the solution's, unless adapting or an audit moved them."""
        return self._live.thresholds

    @property
    def costs(self) -> Costs:
        """Measured latency of leaving at each exit on this machine."""
        return self._costs

    @property
    def backend(self) -> Backend:
        """What executes the stages; use it only while no frame is classified."""
        return self._open_loop().backend

    @property
    def certificate(self) -> Certificate | None:
        """What holds for unseen frames, where the budget has a ``confidence_level``."""
        return self._certificate

    def set_budget(self, budget: BudgetConfig | None = None, /, **changes: Any) -> Solution:
        """Choose the thresholds for another budget; takes effect with the next frame.

        Give a whole budget, or the keys that change: ``set_budget(latency_ms=5)``. Solved from the
        stored records; nothing is rebuilt. Raises :class:`~dvt_edge.errors.BudgetError`, and keeps
        the old thresholds, for keys that do not exist and budgets that cannot be kept.
        """
        config = _changed(budget or self.budget, changes)
        if config.point is not None:
            return self._use_recorded(config, config.point)
        certificate = None
        arguments = (self.records, self._costs.latency, self._costs.energy_mj, config.limits)
        if config.confidence_level is None:
            solution = solve_budget(*arguments)
        else:
            solution, certificate = solve_certified(*arguments, config.confidence_level)
        self._live = LivePolicy(self.records, self._costs, solution, config, self._report)
        self.budget, self._solution, self._certificate = config, solution, certificate
        return solution

    def _use_recorded(self, config: BudgetConfig, point: int) -> Solution:
        table = self.bundle.manifest.recorded_thresholds
        if table is None:
            raise BudgetError(
                "thresholds: recorded needs a model imported with recorded thresholds, and this "
                "one carries none; give a limit such as latency_ms"
            )
        solution = self.replay(recorded_point(recorded_thresholds(table), point).tolist())
        self._live = LivePolicy(self.records, self._costs, solution, config, self._report)
        self.budget, self._solution, self._certificate = config, solution, None
        return solution

    def use(self, solution: Solution) -> None:
        """Leave by the thresholds of ``solution``, whatever the budget; from the next frame on."""
        self._live = LivePolicy(self.records, self._costs, solution, None, self._report)
        self._solution, self._certificate = solution, None

    def replay(self, thresholds: Sequence[float], cost: Sequence[float] | None = None) -> Solution:
        """What ``thresholds`` [K] give on the stored records, without running anything.

        ``cost`` [K] is that of leaving at each exit elsewhere, such as another power mode's; this
        machine's where absent.
        """
        return replay(self.records, self._costs.mean_ms if cost is None else cost, thresholds)

    def classify(
        self,
        frame: object,
        *,
        color_order: ColorOrder | None = None,
        deadline_ms: float | None = None,
    ) -> Prediction:
        """Classify one frame: a NumPy array uint8 [H, W, 3] or [H, W], or ``nv12`` or ``yuyv``.

        Its layout is the profile's (OpenCV's BGR by default) unless ``color_order`` says
        otherwise. With ``deadline_ms``, counted from this call's start of work, a stage is started
        only if its p99 fits the time left; otherwise the best answer so far is given, marked
        ``truncated``. Raises :class:`~dvt_edge.errors.FrameError` for anything that is no frame,
        :class:`~dvt_edge.errors.BudgetError` for a deadline that is not positive and
        :class:`~dvt_edge.errors.ClosedError` after :meth:`close`.
        """
        answers: list[Prediction] = []
        try:
            with self._lock:
                loop = self._open_loop()
                answers.append(self._live.classify(loop, frame, color_order, deadline_ms))
        finally:
            self._tell(answers)
        return answers[0]

    def classify_batch(
        self, frames: Sequence[object], *, color_order: ColorOrder | None = None
    ) -> list[Prediction]:
        """Classify several frames, each as :meth:`classify` takes it; answers in input order.

        Each stage runs on the frames that still need it. Deadlines, audits and adapting concern
        single frames and do not act here. More frames than the profile's largest
        batch size are worked on in parts. Raises as :meth:`classify`.
        """
        if not isinstance(frames, Sequence) and not hasattr(frames, "__len__"):
            raise DataError(f"frames must be a sequence of frames, found {type(frames).__name__}")
        if getattr(frames, "ndim", 4) == 2 or getattr(frames, "shape", (0,))[1:][1:] == (3,):
            raise DataError("classify_batch takes several frames; give one frame to classify()")
        answers: list[Prediction] = []
        try:
            with self._lock:
                loop = self._open_loop()
                size = loop.backend.max_batch
                for start in range(0, len(frames), size):
                    part = frames[start : start + size]
                    answers += loop.run_many(part, self._live.thresholds, color_order)
        finally:
            self._tell(answers)
        return answers

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Let ``watcher`` see every answer and event from now on; the result ends that.

        A Runtime that nobody watches loses no time by it.
        """
        with self._lock:
            self._watchers = (*self._watchers, watcher)

        def stop() -> None:
            with self._lock:
                self._watchers = tuple(w for w in self._watchers if w is not watcher)

        return stop

    def measure(self, seconds: float, progress: Callable[[float], None] | None = None) -> Costs:
        """Measure the costs anew, for about ``seconds``; thresholds stay as they are.

        ``progress`` is called with the share done, 0..1.
        """
        with self._lock:
            return measure_costs(self._open_loop(), self.bundle, seconds, progress)

    def close(self) -> None:
        """Free the backend's memory; closing twice does nothing."""
        with self._lock:
            if self._loop is not None:
                self._loop.backend.close()
                self._loop = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _report(self, event: Event) -> None:
        self.events.append(event)
        self._untold.append(event)

    def _tell(self, answers: Sequence[Prediction] = ()) -> None:
        """Tell of ``answers`` and of what was reported; without the lock, so that whoever is told
        may classify."""
        watchers = self._watchers
        for watcher in watchers:
            for answer in answers:
                watcher.answered(answer)
        while self._untold:
            try:
                event = self._untold.popleft()
            except IndexError:  # another thread told of it
                return
            if self._on_event is not None:
                self._on_event(event)
            for watcher in watchers:
                watcher.happened(event)

    def _refuse(self, problem: str) -> None:
        self._report(
            CostsRefused(
                f"{problem}; measured anew for {QUICK_MEASUREMENT_S:g} s, which is rough: run "
                "'dvt-edge profile --profile FILE' here"
            )
        )
        self._tell()

    def _open_loop(self) -> CascadeLoop:
        if self._loop is None:
            raise ClosedError("this Runtime is closed; open another one")
        return self._loop


def _changed(budget: BudgetConfig, changes: dict[str, Any]) -> BudgetConfig:
    try:
        return BudgetConfig.model_validate({**budget.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "budget"
        keys = ", ".join(BudgetConfig.model_fields)
        raise BudgetError(f"{where}: {first['msg']}; the keys of a budget are {keys}") from None


def open_source(source: str | Path | Profile) -> tuple[Bundle, BudgetConfig]:
    """The bundle that a profile, its YAML file or a folder stands for, and the budget to keep.

    Raises :class:`~dvt_edge.errors.BundleError` for a bundle that was built with another input,
    engine or exits than the profile has.
    """
    if not isinstance(source, Profile):
        path = Path(source)
        if path.is_dir():
            bundle = Bundle(path)
            return bundle, bundle.manifest.budget
        source = Profile.from_yaml(path)
    bundle = Bundle(source.output)
    for name in ("input", "engine", "exits"):
        if getattr(bundle.manifest, name) != getattr(source, name):
            raise BundleError(
                f"{bundle.folder}: was built with another '{name}' than the profile has; rebuild "
                "with 'dvt-edge build --profile FILE'"
            )
    return bundle, source.budget
