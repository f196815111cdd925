"""One engine behind stand-ins for TensorRT and TensorRT-RTX."""

from __future__ import annotations

import enum
import errno
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dvt_edge.bundle.manifest import StageSpec, TensorSpec
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
TYPES = {"image": "HALF", "features": "HALF", "confidence": "FLOAT"}
SPEC = StageSpec(
    file="stage2.plan",
    inputs=(
        TensorSpec(name="image", shape=("N", 3, 8, 8), dtype="float16"),
        TensorSpec(name="features", shape=("N", 4, 16), dtype="float16"),
    ),
    outputs=(TensorSpec(name="confidence", shape=("N",), dtype="float32"),),
    parameters=0,
    macs=0,
)
PROFILES = [(1, 1), (4, 4), (32, 32)]
"""Batches of each optimization profile."""
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

    class Kernels(enum.Enum):
        LAZY = 0
        EAGER = 1

    DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT32"])

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

        def is_stream_capturable(self, stream: int) -> bool:
            assert rtx
            assert stream == STREAM
            return "capture" not in trt.fails

        def execute_async_v3(self, stream: int) -> bool:
            trt.calls.append(("execute", stream))
            if "execute" in trt.fails:
                self.logger.log(Severity.ERROR, "Cask convolution execution")
                return False
            return True

    class Cache(Part):
        def __init__(self) -> None:
            super().__init__(trt, "cache")
            self.made = b""

        def deserialize(self, stored: bytes) -> bool:
            trt.calls.append(("cache", stored))
            if stored.startswith(b"other machine"):
                return False
            self.made = stored
            return True

        def serialize(self) -> bytes:
            return self.made

    class Config(Part):
        dynamic_shapes_kernel_specialization_strategy = Kernels.LAZY
        strategy = Strategy.STATIC
        cache: Any = None

        def __init__(self) -> None:
            super().__init__(trt, "config")

        def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
            self.strategy = strategy

        def create_runtime_cache(self) -> Cache:
            return Cache()

        def set_runtime_cache(self, cache: Cache) -> bool:
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

        def get_tensor_dtype(self, name: str) -> Any:
            return DataType[trt.types[name]]

        num_optimization_profiles = len(PROFILES)

        def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
            assert name == "image"
            least, most = PROFILES[index]
            return [(n, *SHAPES[name][1:]) for n in (least, most, most)]

        def create_execution_context(self, how: Any) -> Context | None:
            if rtx:
                assert how.cache.kind == "cache"
                how.cache.made += b" and kernels"
                how = (how.strategy.name, how.dynamic_shapes_kernel_specialization_strategy.name)
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
    trt.types = dict(TYPES)
    if rtx:
        trt.DynamicShapesKernelSpecializationStrategy = Kernels
    return trt


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dvt-edge" / "tensorrt-rtx"


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> Any:
    return _fake(request.param)


def _open(trt: Any) -> TensorRTStage:
    logger = make_logger(trt)
    return TensorRTStage(trt, make_runtime(trt, logger), logger, PLAN, "stage2.plan", SPEC)


@pytest.fixture
def stage(trt: Any) -> TensorRTStage:
    return _open(trt)


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (4, 1), (32, 2)])
def test_bound_once(trt: Any, stage: TensorRTStage, batch: int, profile: int) -> None:
    """Each batch size has a profile of its own; all is set before the first run."""
    enqueue = stage.prepare(batch, ADDRESSES, SCRATCH, STREAM)
    calls = [call for call in trt.calls if call[0] not in ("context", "memory")]
    assert calls == [
        ("profile", profile, STREAM),
        ("shape", "image", (batch, 3, 8, 8)),
        ("address", "image", 1 << 40),
        ("shape", "features", (batch, 4, 16)),
        ("address", "features", 2 << 40),
        ("address", "confidence", 3 << 40),
    ]
    trt.calls.clear()
    enqueue()
    enqueue()
    assert trt.calls == [("execute", STREAM)] * 2


def test_batch_that_no_profile_has(trt: Any, stage: TensorRTStage) -> None:
    with pytest.raises(BackendError, match=r"stage2\.plan: was not built for batch 8; rebuild it"):
        stage.prepare(8, ADDRESSES, SCRATCH, STREAM)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": "FLOAT"}, r"'features' is FLOAT \[-1, 4, 16\], .* float16 \['N', 4, 16\]"),
        ({"confidence": "HALF"}, "'confidence' is HALF"),
        ({"image": "INT32"}, "'image' is INT32"),
    ],
)
def test_a_plan_whose_tensors_are_others(trt: Any, change: dict[str, str], words: str) -> None:
    """Memory is laid out by the manifest: float32 in place of float16 would read past the end."""
    trt.types.update(change)
    with pytest.raises(BackendError, match=rf"stage2\.plan: its tensor {words}.*; rebuild it"):
        _open(trt)


def test_scratch_is_what_the_backend_gives(trt: Any, stage: TensorRTStage) -> None:
    assert stage.scratch_bytes == 8192
    stage.prepare(1, ADDRESSES, SCRATCH, STREAM)
    assert [call for call in trt.calls if call[0] == "memory"] == [("memory", SCRATCH, 8192)]


def test_how_contexts_are_made(trt: Any, stage: TensorRTStage) -> None:
    """Without memory of their own; one for each batch size and image, since a graph freezes its
    state. TensorRT-RTX compiles its kernels before the first run ends."""
    for batch in (1, 4, 1, 32):
        stage.prepare(batch, ADDRESSES, SCRATCH, STREAM)
    made = [call[1] for call in trt.calls if call[0] == "context"]
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    rtx = trt.__name__ == "tensorrt_rtx"
    assert made == [("USER_MANAGED", "EAGER") if rtx else strategy] * 4
    assert stage.capturable


def test_rtx_says_whether_it_can_be_captured() -> None:
    trt = _fake("tensorrt_rtx")
    stage = _open(trt)
    trt.fails.add("capture")
    stage.prepare(1, ADDRESSES, SCRATCH, STREAM)
    assert not stage.capturable


def test_rtx_keeps_its_kernels(cache: Path) -> None:
    """From one process to the next, once something ran."""
    for expected in ([], [b" and kernels"]):
        trt = _fake("tensorrt_rtx")
        stage = _open(trt)
        assert [call[1] for call in trt.calls if call[0] == "cache"] == expected
        stage.prepare(1, ADDRESSES, SCRATCH, STREAM)
        assert len(list(cache.glob("*"))) == len(expected)
        stage.warmed_up()
        (file,) = cache.iterdir()
    assert file.read_bytes() == b" and kernels and kernels"
    assert file.name.endswith("-1.7.1.cache")


def test_rtx_cache_of_another_machine(cache: Path) -> None:
    """Compiled again, and replaced."""
    _open(_fake("tensorrt_rtx"))
    stage = _open(_fake("tensorrt_rtx"))
    stage.prepare(1, ADDRESSES, SCRATCH, STREAM)
    stage.warmed_up()
    (file,) = cache.iterdir()
    file.write_bytes(b"other machine")
    trt = _fake("tensorrt_rtx")
    stage = _open(trt)
    stage.prepare(1, ADDRESSES, SCRATCH, STREAM)()
    stage.warmed_up()
    assert file.read_bytes() == b" and kernels"


def test_rtx_cache_on_a_full_disk(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning, once, and the old cache stays whole."""
    stage = _open(_fake("tensorrt_rtx"))
    stage.prepare(1, ADDRESSES, SCRATCH, STREAM)
    stage.warmed_up()
    (file,) = cache.iterdir()

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for batch in (4, 32):
        enqueue = stage.prepare(batch, ADDRESSES, SCRATCH, STREAM)
        stage.warmed_up()
        enqueue()
    (warning,) = caplog.records
    assert f"{file}: cannot be written (No space left on device)" in warning.getMessage()
    assert [path.name for path in cache.iterdir()] == [file.name]
    assert file.read_bytes() == b" and kernels"


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
    stage.prepare(4, ADDRESSES, SCRATCH, STREAM)()


def test_no_context(trt: Any, stage: TensorRTStage) -> None:
    trt.fails.add("context")
    with pytest.raises(BackendError, match=r"stage2\.plan: no execution context: out of memory"):
        stage.prepare(1, ADDRESSES, SCRATCH, STREAM)


def test_a_run_fails(trt: Any, stage: TensorRTStage) -> None:
    """An error is reported with the run that it belongs to, not with later ones."""
    enqueue = stage.prepare(1, ADDRESSES, SCRATCH, STREAM)
    trt.fails.add("execute")
    for _ in range(3):
        with pytest.raises(BackendError, match=r"failed at batch 1: Cask convolution execution$"):
            enqueue()
    trt.fails = {"address"}
    with pytest.raises(BackendError, match="gave no reason"):
        stage.prepare(4, ADDRESSES, SCRATCH, STREAM)


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
    for batch in (1, 4):
        stage.prepare(batch, ADDRESSES, SCRATCH, STREAM)
    trt.calls.clear()
    stage.close()
    rtx = [("freed", "config"), ("freed", "cache")] if trt.__name__ == "tensorrt_rtx" else []
    assert trt.calls == [
        ("freed", "context"),
        ("freed", "context"),
        *rtx,
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
        lambda trt: trt.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy,
        lambda trt: trt.IRuntimeCache.deserialize,
        lambda trt: trt.IRuntimeCache.serialize,
        lambda trt: trt.ICudaEngine.get_tensor_dtype,
        lambda trt: trt.ICudaEngine.get_tensor_profile_shape,
        lambda trt: trt.ICudaEngine.num_optimization_profiles,
        lambda trt: trt.IExecutionContext.is_stream_capturable,
        lambda trt: trt.DynamicShapesKernelSpecializationStrategy.__members__["EAGER"],
        lambda trt: [trt.DataType.__members__[name] for name in ("FLOAT", "HALF", "INT32")],
        lambda trt: trt.IRuntimeConfig.create_runtime_cache,
        lambda trt: trt.IRuntimeConfig.set_runtime_cache,
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
        TensorRTStage(trt, make_runtime(trt, logger), logger, b"no plan" * 100, "stage1.plan", SPEC)
