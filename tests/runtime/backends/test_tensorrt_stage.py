"""One engine behind stand-ins for TensorRT and TensorRT-RTX."""

from __future__ import annotations

import enum
import gc
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from dvt_edge.errors import BackendError
from dvt_edge.runtime.backends.tensorrt_stage import (
    TensorRTStage,
    load_module,
    make_logger,
    make_runtime,
)

PLAN = b"a plan"
SHAPES = {"image": (-1, 3, 8, 8), "features": (-1, 4, 16), "confidence": (-1,)}
INPUTS = ("image", "features")
ADDRESSES = {"image": 1 << 40, "features": 2 << 40, "confidence": 3 << 40}
STREAM, SCRATCH = 5 << 40, 6 << 40
VERSIONS = ("tensorrt 10", "tensorrt_rtx")


class Fake(ModuleType):
    """A TensorRT: ``fails`` names the calls that shall fail, ``calls`` those that were made."""

    def __init__(self, version: str) -> None:
        super().__init__(version.split(" ", maxsplit=1)[0])
        self.__version__ = "1.7.1" if version == "tensorrt_rtx" else version.split(" ")[1] + ".0"
        self.fails: set[str] = set()
        self.calls: list[tuple[Any, ...]] = []
        self.alive: list[str] = []


class Part:
    """Something of TensorRT's that is alive until nobody refers to it."""

    def __init__(self, trt: Fake, kind: str) -> None:
        self.trt, self.kind = trt, kind
        trt.alive.append(kind)

    def __del__(self) -> None:
        self.trt.alive.remove(self.kind)
        self.trt.calls.append(("freed", self.kind))


def _fake(version: str) -> Any:
    trt: Any = Fake(version)
    rtx = version == "tensorrt_rtx"

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2

        def __init__(self) -> None:
            self.started = True

    Severity = ILogger.Severity

    class TensorIOMode(enum.Enum):
        INPUT = 1
        OUTPUT = 2

    class Strategy(enum.Enum):
        STATIC = 0
        USER_MANAGED = 2

    class Graphs(enum.Enum):
        DISABLED = 0
        WHOLE_GRAPH_CAPTURE = 1

    class Context(Part):
        def __init__(self, logger: Any) -> None:
            super().__init__(trt, "context")
            self.logger = logger

        def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
            if "profile" in trt.fails:
                self.logger.log(Severity.ERROR, "Profile 1 has been chosen by another context")
                raise RuntimeError("Error in set optimization profile async.")
            trt.calls.append(("profile", profile, stream))
            return True

        def set_device_memory(self, memory: int, size: int) -> None:
            trt.calls.append(("memory", memory, size))

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            trt.calls.append(("shape", name, shape))
            return "shape" not in trt.fails

        def set_tensor_address(self, name: str, address: int) -> bool:
            trt.calls.append(("address", name, address))
            return "address" not in trt.fails

        def execute_async_v3(self, stream: int) -> bool:
            trt.calls.append(("execute", stream))
            if "execute" in trt.fails:
                self.logger.log(Severity.ERROR, "Cask convolution execution")
                return False
            return True

    class Config(Part):
        cuda_graph_strategy = Graphs.DISABLED
        strategy = Strategy.STATIC
        cache: Any = None

        def __init__(self) -> None:
            super().__init__(trt, "config")

        def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
            self.strategy = strategy

        def create_runtime_cache(self) -> str:
            return "cache"

        def set_runtime_cache(self, cache: str) -> bool:
            self.cache = cache
            return True

    class Engine(Part):
        device_memory_size = 1
        device_memory_size_v2 = 8192

        def __init__(self, logger: Any) -> None:
            super().__init__(trt, "engine")
            self.logger = logger

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in INPUTS else TensorIOMode.OUTPUT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return SHAPES[name]

        def create_execution_context(self, how: Any) -> Context | None:
            if rtx:
                how = (how.strategy, how.cuda_graph_strategy, how.cache)
            trt.calls.append(("context", how))
            if "context" in trt.fails:
                self.logger.log(Severity.INTERNAL_ERROR, "out of memory")
                return None
            return Context(self.logger)

        def create_runtime_config(self) -> Config:
            return Config()

    class Runtime(Part):
        def __init__(self, logger: Any) -> None:
            super().__init__(trt, "runtime")
            if "runtime" in trt.fails:
                logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            assert plan == PLAN
            if "plan" in trt.fails:
                self.logger.log(Severity.WARNING, "a warning")
                self.logger.log(Severity.ERROR, "magicTag == kEXPECTED_MAGIC_TAG failed")
                self.logger.log(Severity.INTERNAL_ERROR, "version 8 != 10")
                return None
            return Engine(self.logger)

    trt.ILogger, trt.TensorIOMode, trt.Runtime = ILogger, TensorIOMode, Runtime
    trt.ExecutionContextAllocationStrategy = Strategy
    if rtx:
        trt.CudaGraphStrategy = Graphs
    return trt


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> Any:
    return _fake(request.param)


def _open(trt: Any) -> TensorRTStage:
    logger = make_logger(trt)
    return TensorRTStage(trt, make_runtime(trt, logger), logger, PLAN, "stage2.plan")


@pytest.fixture
def stage(trt: Any) -> TensorRTStage:
    return _open(trt)


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_bound_once(trt: Any, stage: TensorRTStage, batch: int) -> None:
    """Batch 1 has a profile of its own; all addresses and shapes are set before the first run."""
    stage.prepare(batch, ADDRESSES, SCRATCH, STREAM)
    stage.prepare(batch, ADDRESSES, SCRATCH, STREAM)
    calls = [call for call in trt.calls if call[0] not in ("context", "memory")]
    assert calls == [
        ("profile", 0 if batch == 1 else 1, STREAM),
        ("shape", "image", (batch, 3, 8, 8)),
        ("address", "image", 1 << 40),
        ("shape", "features", (batch, 4, 16)),
        ("address", "features", 2 << 40),
        ("address", "confidence", 3 << 40),
    ]
    trt.calls.clear()
    stage.enqueue(batch, STREAM)
    stage.enqueue(batch, STREAM)
    assert trt.calls == [("execute", STREAM)] * 2


def test_scratch_is_what_the_backend_gives(trt: Any, stage: TensorRTStage) -> None:
    assert stage.scratch_bytes == 8192
    stage.prepare(1, ADDRESSES, SCRATCH, STREAM)
    assert [call for call in trt.calls if call[0] == "memory"] == [("memory", SCRATCH, 8192)]


def test_how_contexts_are_made() -> None:
    """Without memory of their own; one for each batch size, since a graph freezes its state."""
    trt = _fake("tensorrt 10")
    stage = _open(trt)
    assert stage.capturable
    for batch in (1, 8, 1, 32, 8):
        stage.prepare(batch, ADDRESSES, SCRATCH, STREAM)
    made = [call[1].name for call in trt.calls if call[0] == "context"]
    assert made == ["USER_MANAGED"] * 3


def test_rtx_captures_by_itself() -> None:
    trt = _fake("tensorrt_rtx")
    stage = _open(trt)
    assert not stage.capturable
    for batch in (1, 8):
        stage.prepare(batch, ADDRESSES, SCRATCH, STREAM)
    strategy, graphs = trt.ExecutionContextAllocationStrategy, trt.CudaGraphStrategy
    how = (strategy.USER_MANAGED, graphs.WHOLE_GRAPH_CAPTURE, "cache")
    assert [call[1] for call in trt.calls if call[0] == "context"] == [how] * 2


def test_rtx_without_graphs_of_its_own() -> None:
    """Early releases lack them; the rest works."""
    trt = _fake("tensorrt_rtx")
    graphs = trt.CudaGraphStrategy
    del trt.CudaGraphStrategy
    stage = _open(trt)
    stage.prepare(1, ADDRESSES, SCRATCH, STREAM)
    (made,) = [call[1] for call in trt.calls if call[0] == "context"]
    assert made[1] is graphs.DISABLED


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        ("profile", "Profile 1 has been chosen by another context; Error in set optimization"),
        ("shape", "TensorRT gave no reason"),
        ("address", "TensorRT gave no reason"),
    ],
)
def test_what_cannot_be_bound(trt: Any, stage: TensorRTStage, fails: str, reason: str) -> None:
    """The context is given up, and the next attempt starts afresh."""
    trt.fails.add(fails)
    with pytest.raises(BackendError, match=rf"stage2\.plan: .* for batch 4: {reason}"):
        stage.prepare(4, ADDRESSES, SCRATCH, STREAM)
    gc.collect()
    assert "context" not in trt.alive
    trt.fails.clear()
    stage.prepare(4, ADDRESSES, SCRATCH, STREAM)
    stage.enqueue(4, STREAM)


def test_no_context(trt: Any, stage: TensorRTStage) -> None:
    trt.fails.add("context")
    with pytest.raises(BackendError, match=r"stage2\.plan: no execution context: out of memory"):
        stage.prepare(1, ADDRESSES, SCRATCH, STREAM)


def test_a_run_fails(trt: Any, stage: TensorRTStage) -> None:
    """An error is reported with the run that it belongs to, not with later ones."""
    stage.prepare(1, ADDRESSES, SCRATCH, STREAM)
    trt.fails.add("execute")
    for _ in range(3):
        with pytest.raises(BackendError, match=r"failed at batch 1: Cask convolution execution$"):
            stage.enqueue(1, STREAM)
    trt.fails = {"address"}
    with pytest.raises(BackendError, match="gave no reason"):
        stage.prepare(2, ADDRESSES, SCRATCH, STREAM)


def test_refused_plan(trt: Any) -> None:
    """TensorRT's words, without warnings, its version and what to do."""
    trt.fails.add("plan")
    words = (
        rf"^stage2\.plan: {trt.__name__} {trt.__version__} refused it: magicTag == "
        r"kEXPECTED_MAGIC_TAG failed; version 8 != 10; rebuild it here with 'dvt-edge build"
    )
    with pytest.raises(BackendError, match=words):
        _open(trt)


def test_no_runtime(trt: Any) -> None:
    trt.fails.add("runtime")
    with pytest.raises(BackendError, match=r"does not start: CUDA init.* 35; 'dvt-edge doctor'"):
        _open(trt)


def test_close_frees_what_depends_on_others_first(trt: Any, stage: TensorRTStage) -> None:
    for batch in (1, 8):
        stage.prepare(batch, ADDRESSES, SCRATCH, STREAM)
    trt.calls.clear()
    stage.close()
    config = [("freed", "config")] if trt.__name__ == "tensorrt_rtx" else []
    assert trt.calls == [
        ("freed", "context"),
        ("freed", "context"),
        *config,
        ("freed", "engine"),
        ("freed", "runtime"),
    ]
    assert not trt.alive
    stage.close()


def test_errors_are_not_kept_forever(trt: Any) -> None:
    logger = make_logger(trt)
    for number in range(1000):
        logger.log(trt.ILogger.Severity.ERROR, f"error {number}")
    assert list(logger.errors) == ["error 997", "error 998", "error 999"]


def test_module(monkeypatch: pytest.MonkeyPatch, trt: Any) -> None:
    monkeypatch.setitem(sys.modules, trt.__name__, trt)
    assert load_module(trt.__name__) is trt
    monkeypatch.setitem(sys.modules, trt.__name__, None)
    with pytest.raises(BackendError, match=rf"'{trt.__name__}' .*dvt-edge doctor"):
        load_module(trt.__name__)


def _real() -> Any:
    return pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize(
    "part",
    [
        lambda trt: trt.ILogger.Severity.INTERNAL_ERROR,
        lambda trt: trt.ICudaEngine.device_memory_size_v2,
        lambda trt: trt.ICudaEngine.create_runtime_config,
        lambda trt: trt.ICudaEngine.get_tensor_mode,
        lambda trt: trt.ICudaEngine.get_tensor_shape,
        lambda trt: trt.IExecutionContext.set_optimization_profile_async,
        lambda trt: trt.IExecutionContext.set_input_shape,
        lambda trt: trt.IExecutionContext.set_tensor_address,
        lambda trt: trt.IExecutionContext.set_device_memory,
        lambda trt: trt.IExecutionContext.execute_async_v3,
        lambda trt: trt.IRuntimeConfig.set_execution_context_allocation_strategy,
        lambda trt: trt.IRuntimeConfig.cuda_graph_strategy,
        lambda trt: trt.IRuntimeConfig.create_runtime_cache,
        lambda trt: trt.IRuntimeConfig.set_runtime_cache,
        lambda trt: trt.CudaGraphStrategy.__members__["WHOLE_GRAPH_CAPTURE"],
        lambda trt: trt.ExecutionContextAllocationStrategy.__members__["USER_MANAGED"],
        lambda trt: trt.TensorIOMode.INPUT,
    ],
)
def test_the_stand_in_has_the_names_of_tensorrt_rtx(part: Callable[[Any], Any]) -> None:
    part(_real())


def test_tensorrt_rtx_refuses_what_is_no_plan() -> None:
    """Through the real bindings, where they are installed; no GPU is needed for that."""
    trt = _real()
    logger = make_logger(trt)
    with pytest.raises(
        BackendError, match=r"stage1\.plan: tensorrt_rtx .* refused it: .+; rebuild"
    ):
        TensorRTStage(trt, make_runtime(trt, logger), logger, b"no plan" * 100, "stage1.plan")
