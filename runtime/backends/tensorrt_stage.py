"""One TensorRT engine: contexts for its batch sizes, with addresses bound once.

Serves ``tensorrt`` from 10.3 on and ``tensorrt_rtx``.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol

from dvt_edge.bundle.manifest import StageSpec
from dvt_edge.errors import BackendError
from dvt_edge.runtime.backends.rtx_cache import RtxCache

_REBUILD = "rebuild it here with 'dvt-edge build --phase device --profile FILE'"


class StageEngine(Protocol):
    """A stage that enqueues itself on a stream."""

    @property
    def scratch_bytes(self) -> int:
        """Device memory for intermediate tensors, which stages may share: they run in turn."""

    @property
    def capturable(self) -> bool:
        """Whether what was prepared last may be captured as a graph."""

    def prepare(
        self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int
    ) -> Callable[[], None]:
        """Bind all tensors and the scratch memory for ``batch`` images; the result enqueues one
        run on ``stream``."""

    def warmed_up(self) -> None:
        """What was prepared last has run once: whatever it compiled can be kept."""

    def close(self) -> None:
        """Free everything; what :meth:`prepare` returned is gone by then."""


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


_TYPES = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32"}
"""TensorRT's names of the types of tensors."""


class TensorRTStage:
    """:class:`StageEngine` over a serialised engine.

    Raises :class:`~dvt_edge.errors.BackendError` with TensorRT's words where it refuses the plan,
    and where a tensor of the plan is not what ``spec`` says: memory is laid out by ``spec``.
    """

    def __init__(
        self, trt: Any, runtime: Any, logger: Any, plan: bytes, name: str, spec: StageSpec
    ) -> None:
        self._trt, self._logger, self._name = trt, logger, name
        self._runtime = runtime  # which must outlive the engine
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"{name}: {trt.__name__} {trt.__version__} refused it: {self._why()}; {_REBUILD}"
            )
        self._check_tensors(spec)
        self._contexts: list[Any] = []
        self.capturable = True
        self._cache: RtxCache | None = None
        # What contexts are made with: memory for intermediate tensors is the caller's.
        self._how = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._rtx = trt.__name__ == "tensorrt_rtx"
        if self._rtx:
            self._how = self._runtime_config(self._how, plan)

    @property
    def scratch_bytes(self) -> int:
        return int(self._engine.device_memory_size_v2)

    def prepare(
        self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int
    ) -> Callable[[], None]:
        context = self._engine.create_execution_context(self._how)
        if context is None:
            raise BackendError(f"{self._name}: no execution context: {self._why()}")
        try:  # the bindings raise where the profile is refused, and return False for the rest
            done = context.set_optimization_profile_async(self._profile(batch), stream)
        except RuntimeError as error:
            self._logger.errors.append(str(error))
            done = False
        for name, address in addresses.items():
            if self._is_input(name):
                shape = tuple(self._engine.get_tensor_shape(name))
                done = done and context.set_input_shape(name, (batch, *shape[1:]))
            done = done and context.set_tensor_address(name, address)
        if not done:
            raise BackendError(f"{self._name}: cannot be prepared for batch {batch}: {self._why()}")
        context.set_device_memory(scratch, self.scratch_bytes)
        if self._rtx:
            self.capturable = context.is_stream_capturable(stream)
        self._contexts.append(context)

        def enqueue() -> None:
            if not context.execute_async_v3(stream):
                raise BackendError(f"{self._name}: failed at batch {batch}: {self._why()}")

        return enqueue

    def warmed_up(self) -> None:
        if self._cache is not None:
            self._cache.store()

    def close(self) -> None:
        self._contexts.clear()
        self._how = self._cache = None
        self._engine = None
        self._runtime = None

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT)

    def _profile(self, batch: int) -> int:
        """The first optimization profile whose range has ``batch``; a build makes one per size."""
        for index in range(self._engine.num_optimization_profiles):
            least, _, most = self._engine.get_tensor_profile_shape("image", index)
            if least[0] <= batch <= most[0]:
                return index
        raise BackendError(f"{self._name}: was not built for batch {batch}; {_REBUILD}")

    def _check_tensors(self, spec: StageSpec) -> None:
        for tensor in (*spec.inputs, *spec.outputs):
            found = self._engine.get_tensor_dtype(tensor.name)
            shape = tuple(self._engine.get_tensor_shape(tensor.name))
            if found.name != _TYPES[tensor.dtype] or shape[1:] != tensor.shape[1:]:
                raise BackendError(
                    f"{self._name}: its tensor '{tensor.name}' is {found.name} {list(shape)}, the "
                    f"manifest says {tensor.dtype} {list(tensor.shape)}; {_REBUILD}"
                )

    def _runtime_config(self, strategy: Any, plan: bytes) -> Any:
        """For TensorRT-RTX, which compiles kernels for the shapes that it meets: all of them before
        the first run ends, so that no captured graph and no timing holds a makeshift one."""
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        kinds = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        self._cache = RtxCache(config, plan, self._trt.__version__)
        return config

    def _why(self) -> str:
        """The last errors, each reported once."""
        reasons = "; ".join(self._logger.errors)
        self._logger.errors.clear()
        return reasons or "TensorRT gave no reason"
