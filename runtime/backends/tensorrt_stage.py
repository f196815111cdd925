"""One TensorRT engine: contexts for its batch sizes, with addresses bound once.

Serves ``tensorrt`` from 10.3 on and ``tensorrt_rtx``.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

from dvt_edge.errors import BackendError


class StageEngine(Protocol):
    """A stage that enqueues itself on a stream."""

    @property
    def scratch_bytes(self) -> int:
        """Device memory for intermediate tensors, which stages may share: they run in turn."""

    @property
    def capturable(self) -> bool:
        """Whether what it enqueues may be captured as a graph."""

    def prepare(self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int) -> None:
        """Bind all tensors and the scratch memory for ``batch`` images, once per batch size."""

    def enqueue(self, batch: int, stream: int) -> None:
        """Run on ``stream``; :meth:`prepare` was called for ``batch``."""

    def close(self) -> None:
        """Free contexts and engine."""


def load_module(name: str) -> ModuleType:
    """``tensorrt`` or ``tensorrt_rtx``; raises :class:`~dvt_edge.errors.BackendError`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError(
            f"these engines need the Python module '{name}' ({error}); 'dvt-edge doctor' says how "
            "to install it"
        ) from None


def make_logger(trt: Any) -> Any:
    """A logger that keeps the last errors in ``.errors``."""

    class Kept(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg)

    return Kept()


def make_runtime(trt: Any, logger: Any) -> Any:
    """What deserialises engines; raises :class:`~dvt_edge.errors.BackendError`."""
    try:
        return trt.Runtime(logger)
    except (TypeError, RuntimeError) as error:  # pybind's words for a constructor that gave nothing
        reason = "; ".join(logger.errors) or str(error)
        raise BackendError(
            f"{trt.__name__} {trt.__version__} does not start: {reason}; 'dvt-edge doctor' "
            "checks driver and libraries"
        ) from None


class TensorRTStage:
    """:class:`StageEngine` over a serialised engine.

    Raises :class:`~dvt_edge.errors.BackendError` with TensorRT's words where it refuses the plan.
    """

    def __init__(self, trt: Any, runtime: Any, logger: Any, plan: bytes, name: str) -> None:
        self._trt, self._logger, self._name = trt, logger, name
        self._runtime = runtime  # which must outlive the engine
        self._rtx = trt.__name__ == "tensorrt_rtx"
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"{name}: {trt.__name__} {trt.__version__} refused it: {self._why()}; rebuild it "
                "here with 'dvt-edge build --phase device --profile FILE'"
            )
        self._contexts: dict[int, Any] = {}
        # What contexts are made with: memory for intermediate tensors is the caller's.
        self._how = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._rtx:
            self._how = self._runtime_config(self._how)

    @property
    def scratch_bytes(self) -> int:
        return int(self._engine.device_memory_size_v2)

    @property
    def capturable(self) -> bool:
        """TensorRT-RTX captures by itself, once its kernels are specialised for the shapes."""
        return not self._rtx

    def prepare(self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int) -> None:
        if batch in self._contexts:
            return
        context = self._engine.create_execution_context(self._how)
        if context is None:
            raise BackendError(f"{self._name}: no execution context: {self._why()}")
        try:  # the bindings raise where the profile is refused, and return False for the rest
            done = context.set_optimization_profile_async(0 if batch == 1 else 1, stream)
        except RuntimeError as error:
            self._logger.errors.append(str(error))
            done = False
        for name, address in addresses.items():
            if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT:
                shape = tuple(self._engine.get_tensor_shape(name))
                done = done and context.set_input_shape(name, (batch, *shape[1:]))
            done = done and context.set_tensor_address(name, address)
        if not done:
            raise BackendError(f"{self._name}: cannot be prepared for batch {batch}: {self._why()}")
        context.set_device_memory(scratch, self.scratch_bytes)
        self._contexts[batch] = context

    def enqueue(self, batch: int, stream: int) -> None:
        if not self._contexts[batch].execute_async_v3(stream):
            raise BackendError(f"{self._name}: failed at batch {batch}: {self._why()}")

    def close(self) -> None:
        self._contexts.clear()
        self._how = None
        self._engine = None
        self._runtime = None

    def _runtime_config(self, strategy: Any) -> Any:
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        graphs = getattr(self._trt, "CudaGraphStrategy", None)  # early releases lack it
        if graphs is not None:
            config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE
        config.set_runtime_cache(config.create_runtime_cache())
        return config

    def _why(self) -> str:
        """The last errors, each reported once."""
        reasons = "; ".join(self._logger.errors)
        self._logger.errors.clear()
        return reasons or "TensorRT gave no reason"
