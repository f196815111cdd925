"""The Runtime: a bundle, ready to classify frames within its budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from dvt_edge.bundle import Bundle
from dvt_edge.errors import BackendError, BundleError, ClosedError, DataError
from dvt_edge.policy import Solution, solve
from dvt_edge.profile import BudgetConfig, ColorOrder, Profile
from dvt_edge.runtime.backend import Backend
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.costs import Costs, load_costs, measure_costs
from dvt_edge.runtime.onnxruntime_backend import OnnxRuntimeBackend
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.preprocess import Preprocessor

QUICK_MEASUREMENT_S = 0.5
"""Spent at start-up where ``dvt-edge profile`` has not measured this bundle on this machine."""


class Runtime:
    """Classifies frames with the stages of a bundle, leaving early within the budget.

    ``source`` is a profile (a :class:`~dvt_edge.profile.Profile` or the path of its YAML file),
    whose ``output`` names the bundle and whose budget is kept, or the folder of a bundle, whose
    own budget is kept. Safe to use from several threads; frames are then worked on in turn.

        with dvt_edge.Runtime("demo-cpu.yaml") as runtime:
            print(runtime.classify(frame).label)

    Raises :class:`~dvt_edge.errors.BundleError` for a bundle that is missing, changed or does not
    match the profile, :class:`~dvt_edge.errors.BackendError` where its stages cannot run here, and
    :class:`~dvt_edge.errors.BudgetError` for a budget below the first exit's cost.
    """

    def __init__(self, source: str | Path | Profile, *, backend: Backend | None = None) -> None:
        self._lock = threading.Lock()
        self.bundle, budget = _open(source)
        manifest = self.bundle.manifest
        self._loop: CascadeLoop | None = CascadeLoop(
            backend or _open_backend(self.bundle),
            Preprocessor(manifest.input),
            manifest.class_names,
        )
        try:
            self._records = self.bundle.records()
            self._costs = load_costs(self.bundle) or measure_costs(
                self._loop, self.bundle, QUICK_MEASUREMENT_S
            )
            self.set_budget(budget)
        except BaseException:
            self.close()
            raise

    @property
    def solution(self) -> Solution:
        """Thresholds in force and what they give on the calibration records."""
        return self._solution

    @property
    def costs(self) -> Costs:
        """Measured latency of leaving at each exit on this machine."""
        return self._costs

    def set_budget(self, budget: BudgetConfig) -> Solution:
        """Choose the thresholds for another budget; takes effect with the next frame.

        Raises :class:`~dvt_edge.errors.BudgetError`, and keeps the old thresholds, for a budget
        below the first exit's cost.
        """
        solution = solve(self._records, self._costs.mean_ms, budget.latency_ms)
        self.use(solution)
        return solution

    def use(self, solution: Solution) -> None:
        """Leave by the thresholds of ``solution``, whatever the budget; from the next frame on."""
        self._solution = solution
        self._thresholds = tuple(float(t) for t in solution.thresholds)

    def classify(self, frame: object, *, color_order: ColorOrder | None = None) -> Prediction:
        """Classify one frame: a NumPy array uint8 [H, W, 3] or [H, W].

        Channels are in the profile's order (OpenCV's BGR by default) unless ``color_order`` says
        otherwise. Raises :class:`~dvt_edge.errors.FrameError` for anything that is no frame and
        :class:`~dvt_edge.errors.ClosedError` after :meth:`close`.
        """
        with self._lock:
            return self._open_loop().run_one(frame, self._thresholds, color_order)

    def classify_batch(
        self, frames: Sequence[object], *, color_order: ColorOrder | None = None
    ) -> list[Prediction]:
        """Classify several frames, each as :meth:`classify` takes it; answers in input order.

        Each stage runs on the frames that still need it. More frames than the profile's largest
        batch size are worked on in parts. Raises as :meth:`classify`.
        """
        if not isinstance(frames, Sequence) and not hasattr(frames, "__len__"):
            raise DataError(f"frames must be a sequence of frames, found {type(frames).__name__}")
        answers: list[Prediction] = []
        with self._lock:
            loop = self._open_loop()
            size = loop.backend.max_batch
            for start in range(0, len(frames), size):
                part = frames[start : start + size]
                answers += loop.run_many(part, self._thresholds, color_order)
        return answers

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

    def _open_loop(self) -> CascadeLoop:
        if self._loop is None:
            raise ClosedError("this Runtime is closed; open another one")
        return self._loop


def _open(source: str | Path | Profile) -> tuple[Bundle, BudgetConfig]:
    if not isinstance(source, Profile):
        path = Path(source)
        if path.is_dir():
            bundle = Bundle(path)
            return bundle, bundle.manifest.budget
        source = Profile.from_yaml(path)
    bundle = Bundle(source.output)
    for name in ("input", "engine"):
        if getattr(bundle.manifest, name) != getattr(source, name):
            raise BundleError(
                f"{bundle.folder}: was built with another '{name}' than the profile has; rebuild "
                "with 'dvt-edge build --profile FILE'"
            )
    return bundle, source.budget


def _open_backend(bundle: Bundle) -> Backend:
    manifest = bundle.manifest
    if manifest.engine.backend != "onnxruntime":
        raise BackendError(
            f"{bundle.folder}: holds ONNX stages quantized for {manifest.engine.backend}, which "
            "this version cannot run yet; build with engine.backend: onnxruntime"
        )
    paths = [bundle.stage_path(i) for i in range(len(manifest.stages))]
    return OnnxRuntimeBackend(
        paths, manifest.stages, max(manifest.engine.batch_sizes), manifest.engine.threads
    )
