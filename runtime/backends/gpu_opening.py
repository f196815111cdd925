"""A GPU backend over TensorRT engines, or over ONNX Runtime's CUDA provider."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from dvt_edge.bundle.manifest import StageSpec
from dvt_edge.errors import BackendError
from dvt_edge.profile import EngineConfig
from dvt_edge.requirements import LIBRARIES
from dvt_edge.runtime.backends.conditional import ConditionalCascade
from dvt_edge.runtime.backends.cuda_device import CudaDevice
from dvt_edge.runtime.backends.gpu_backend import DeviceBackend, GatherKernel
from dvt_edge.runtime.backends.onnxruntime_cuda import (
    OnnxRuntimeCudaStage,
    check_provider,
    open_cuda_session,
)
from dvt_edge.runtime.backends.tensorrt_stage import (
    StageEngine,
    TensorRTStage,
    load_module,
    make_logger,
    make_runtime,
)
from dvt_edge.runtime.native.library import kernels, kernels_unavailable

_log = logging.getLogger(__name__)


def open_tensorrt(
    module: str,
    paths: Sequence[Path],
    specs: Sequence[StageSpec],
    engine: EngineConfig,
    *,
    preprocess: bool = False,
) -> DeviceBackend:
    """TensorRT engines on the first GPU, for the batch sizes of ``engine``.

    ``preprocess``: single frames become images on the device. Raises
    :class:`~dvt_edge.errors.BackendError`.
    """
    trt: Any = load_module(module)

    def stages(device: CudaDevice) -> Iterator[StageEngine]:
        logger = make_logger(trt)
        runtime = make_runtime(trt, logger)
        for path, spec in zip(paths, specs, strict=True):
            yield TensorRTStage(trt, runtime, logger, path.read_bytes(), str(path), spec)

    name = f"{LIBRARIES[module].name} {trt.__version__}"
    return _open(name, stages, specs, engine, preprocess)


def open_onnxruntime_cuda(
    paths: Sequence[Path],
    specs: Sequence[StageSpec],
    engine: EngineConfig,
    *,
    preprocess: bool = False,
) -> DeviceBackend:
    """Graphs in ONNX Runtime on the first GPU; otherwise as :func:`open_tensorrt`."""

    check_provider()

    def stages(device: CudaDevice) -> Iterator[StageEngine]:
        for path, spec in zip(paths, specs, strict=True):
            yield OnnxRuntimeCudaStage(open_cuda_session(path, device.stream), spec)

    return _open(f"ONNX Runtime {ort.__version__}", stages, specs, engine, preprocess)


def open_device(
    name: str,
    device: CudaDevice,
    stages: Sequence[StageEngine],
    specs: Sequence[StageSpec],
    engine: EngineConfig,
    *,
    preprocess: bool = False,
) -> DeviceBackend:
    """A backend over ``stages`` with all that ``engine`` asks for; it owns ``device``, which is
    closed where this fails."""
    backend = DeviceBackend(name, device, stages, specs, engine.batch_sizes)
    try:
        fatbin = kernels()
        if fatbin is not None:
            try:
                backend.gather = GatherKernel(device, fatbin)
            except BackendError as error:  # compiled for other GPUs than this one
                _log.warning("survivors move row by row, without a kernel: %s", error)
        if preprocess:
            backend.preprocess_here(_needed(fatbin, "input.preprocess: device"))
        if engine.graph == "conditional":
            backend.run_whole = ConditionalCascade(
                backend, _needed(fatbin, "engine.graph: conditional")
            )
    except BaseException:
        backend.close()
        raise
    return backend


def _open(
    name: str,
    stages: Callable[[CudaDevice], Iterator[StageEngine]],
    specs: Sequence[StageSpec],
    engine: EngineConfig,
    preprocess: bool,
) -> DeviceBackend:
    device = CudaDevice(engine.wait)
    opened: list[StageEngine] = []
    try:
        with device.current():
            opened.extend(stages(device))
    except BaseException:
        for stage in opened:
            stage.close()
        device.close()
        raise
    return open_device(name, device, opened, specs, engine, preprocess=preprocess)


def _needed(fatbin: bytes | None, what: str) -> bytes:
    if fatbin is None:
        raise BackendError(f"{what} needs the CUDA kernels; {kernels_unavailable()}")
    return fatbin
