"""Stages on a GPU: every tensor stays where it is written.

All memory is allocated once. A stage's output address *is* the next stage's input address, one
scratch buffer serves all stages, and each stage and batch size runs as one CUDA graph. Confidence
and class, 8 bytes per image and stage, are written by the engine into mapped host memory; nothing
else goes to the host. Each byte that crosses is counted in ``device.transfers``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from dvt_edge.bundle.manifest import HANDED_ON, StageSpec, TensorSpec, handed_on
from dvt_edge.errors import BackendError, ClosedError
from dvt_edge.requirements import LIBRARIES
from dvt_edge.runtime.backends.cuda_device import CudaDevice, MappedArray
from dvt_edge.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaStage, open_cuda_session
from dvt_edge.runtime.backends.protocol import StageAnswer
from dvt_edge.runtime.backends.tensorrt_stage import (
    StageEngine,
    TensorRTStage,
    load_module,
    make_logger,
    make_runtime,
)
from dvt_edge.runtime.native.library import kernels

ANSWERS = ("confidence", "class_id")
GATHER_THREADS = 256

_log = logging.getLogger(__name__)


Rows = tuple[int, int]
"""Address of a tensor in device memory, and bytes of each of its rows."""


Gather = Callable[[Sequence[Rows], npt.NDArray[np.intp]], None]
"""Moves chosen rows, increasing, of tensors in device memory to their fronts."""


class DeviceBackend:
    """A :class:`~dvt_edge.runtime.backends.protocol.Backend` over engines, on a device it owns."""

    def __init__(
        self,
        name: str,
        device: CudaDevice,
        stages: Sequence[StageEngine],
        specs: Sequence[StageSpec],
        batch_sizes: Sequence[int],
    ) -> None:
        self.name = name
        self.device = device
        self.gpu: str | None = device.name
        self._stages, self._specs = list(stages), list(specs)
        self._batch_sizes = sorted(batch_sizes)
        self.max_batch = max(batch_sizes)
        self.bytes_resident = 0
        self.gather: Gather = self._copy_rows
        """How survivors' rows are moved; a kernel where there is one."""
        self._graphs: dict[tuple[int, int], int | None] = {}
        self._answers: list[dict[str, MappedArray]] = []
        self._addresses: list[dict[str, int]] = []
        self._closed = False
        self.stage_ms: float | None = 0.0
        try:
            with device.current():
                self._allocate()
        except BaseException:
            self.close()
            raise

    def image_buffer(self, count: int) -> npt.NDArray[Any]:
        if not self._addresses:
            raise ClosedError("this GPU backend is closed; open another Runtime")
        rows: npt.NDArray[Any] = self._image.array[:count]
        return rows

    def run_stage(self, stage: int, count: int) -> StageAnswer:
        batch = next(size for size in self._batch_sizes if size >= count)
        device = self.device
        with device.current():
            if stage == 0 and not device.integrated:
                device.upload(self._addresses[0]["image"], self._image.array[:count])
            if (stage, batch) not in self._graphs:
                self._graphs[stage, batch] = self._prepare(stage, batch)
            graph = self._graphs[stage, batch]
            if graph is None:
                device.timed(lambda: self._stages[stage].enqueue(batch, device.stream))
            else:
                device.timed(lambda: device.replay(graph))
            device.synchronize()
            self.stage_ms = device.elapsed_ms()
        answers = {name: mapped.array[:count] for name, mapped in self._answers[stage].items()}
        device.transfers.to_host += sum(array.nbytes for array in answers.values())
        return StageAnswer(answers["confidence"], answers["class_id"])

    def logits(self, stage: int, count: int) -> npt.NDArray[np.float32]:
        spec = next(t for t in self._specs[stage].outputs if t.name == "logits")
        values = np.empty(spec.shape_at(count), np.float32)
        with self.device.current():
            self.device.download(values, self._addresses[stage]["logits"])
        return values

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp]) -> None:
        image, outputs = self._specs[0].inputs[0], self._specs[stage].outputs
        going_on = (image, *(t for t in outputs if t.name.startswith(HANDED_ON)))
        addresses = self._addresses[stage]
        tensors = [(addresses[t.name], t.bytes_per_image) for t in going_on]
        with self.device.current():
            self.gather(tensors, rows)

    def close(self) -> None:
        """Free everything, users before what they use; nothing in a process forked since."""
        if self.device.forked or self._closed:
            return
        self._closed = True
        self.device.drop_graphs()
        self.gather = self._copy_rows  # a kernel's module is unloaded with the device's memory
        self._graphs.clear()
        with self.device.current():
            for stage in self._stages:
                stage.close()
        self._stages.clear()
        self._addresses.clear()
        self._answers.clear()
        self.device.close()

    def _allocate(self) -> None:
        """Every buffer of every stage, at the largest batch."""
        image = self._specs[0].inputs[0]
        self._image = self._map(image)
        # Where memory is shared the device reads frames where preprocessing writes them.
        at = self._image.address if self.device.integrated else self._reserve(image)
        for spec in self._specs:
            before = handed_on(self._addresses[-1]) if self._addresses else {}
            addresses = {"image": at, **before}
            answers = {}
            for tensor in spec.outputs:
                if tensor.name in ANSWERS:
                    mapped = answers[tensor.name] = self._map(tensor)
                    addresses[tensor.name] = mapped.address
                else:
                    addresses[tensor.name] = self._reserve(tensor)
            self._addresses.append(addresses)
            self._answers.append(answers)
        scratch = max(stage.scratch_bytes for stage in self._stages)
        self._scratch = self.device.allocate(scratch)
        self.bytes_resident += scratch

    def _map(self, tensor: TensorSpec) -> MappedArray:
        mapped = self.device.allocate_mapped(tensor.shape_at(self.max_batch), tensor.dtype)
        self.bytes_resident += mapped.array.nbytes
        return mapped

    def _reserve(self, tensor: TensorSpec) -> int:
        size = tensor.bytes_per_image * self.max_batch
        self.bytes_resident += size
        return self.device.allocate(size)

    def _prepare(self, stage: int, batch: int) -> int | None:
        """Bind, warm up, and capture as a graph where the engine allows it."""
        device, engine = self.device, self._stages[stage]
        spec = self._specs[stage]
        names = [t.name for t in (*spec.inputs, *spec.outputs)]
        addresses = {name: self._addresses[stage][name] for name in names}
        engine.prepare(batch, addresses, self._scratch, device.stream)
        engine.enqueue(batch, device.stream)
        device.synchronize()
        if not engine.capturable:
            return None
        try:
            return device.capture(lambda: engine.enqueue(batch, device.stream))
        except BackendError as error:
            _log.warning("stage %d at batch %d runs without a graph: %s", stage + 1, batch, error)
            return None

    def _copy_rows(self, tensors: Sequence[Rows], rows: npt.NDArray[np.intp]) -> None:
        """Row by row, in order: rows increase, so none is overwritten before it has moved."""
        moved = [(target, int(source)) for target, source in enumerate(rows) if target != source]
        for address, size in tensors:
            for target, source in moved:
                self.device.copy(address + target * size, address + source * size, size)


class GatherKernel:
    """Rows moved by one kernel per tensor instead of one copy per row."""

    def __init__(self, device: CudaDevice, fatbin: bytes, max_batch: int) -> None:
        self._device = device
        with device.current():
            self._kernel = device.load_kernel(fatbin, "dvt_gather_kernel")
            self._rows = device.allocate_mapped((max_batch + 1,), np.int32)

    def __call__(self, tensors: Sequence[Rows], rows: npt.NDArray[np.intp]) -> None:
        self.choose(rows)
        for address, row_bytes in tensors:
            self.move(address, row_bytes)

    def choose(self, rows: npt.NDArray[np.intp]) -> None:
        """Which rows :meth:`move` moves."""
        self._device.synchronize()  # the last move may still read its rows
        self._rows.array[0] = len(rows)
        self._rows.array[1 : len(rows) + 1] = rows
        self._device.transfers.to_device += self._rows.array.itemsize * (len(rows) + 1)

    def move(self, address: int, row_bytes: int) -> None:
        """Move the chosen rows, in stream order."""
        words = row_bytes // 16 if row_bytes % 16 == 0 else row_bytes
        blocks = min(1024, -(-words // GATHER_THREADS))
        at = self._rows.address
        arguments = (np.uintp(address), np.int64(row_bytes), np.uintp(at + 4), np.uintp(at))
        self._device.launch(self._kernel, (blocks, 1), GATHER_THREADS, *arguments)


def open_tensorrt(
    module: str, paths: Sequence[Path], specs: Sequence[StageSpec], batch_sizes: Sequence[int]
) -> DeviceBackend:
    """TensorRT engines on the first GPU; raises :class:`~dvt_edge.errors.BackendError`."""
    trt: Any = load_module(module)

    def stages(device: CudaDevice) -> Iterator[StageEngine]:
        logger = make_logger(trt)
        runtime = make_runtime(trt, logger)
        for path in paths:
            yield TensorRTStage(trt, runtime, logger, path.read_bytes(), str(path))

    return _open(f"{LIBRARIES[module].name} {trt.__version__}", stages, specs, batch_sizes)


def open_onnxruntime_cuda(
    paths: Sequence[Path], specs: Sequence[StageSpec], batch_sizes: Sequence[int]
) -> DeviceBackend:
    """Graphs in ONNX Runtime on the first GPU; raises :class:`~dvt_edge.errors.BackendError`."""

    def stages(device: CudaDevice) -> Iterator[StageEngine]:
        for path, spec in zip(paths, specs, strict=True):
            yield OnnxRuntimeCudaStage(open_cuda_session(path, device.stream), spec)

    return _open(f"ONNX Runtime {ort.__version__}", stages, specs, batch_sizes)


def _open(
    name: str,
    stages: Callable[[CudaDevice], Iterator[StageEngine]],
    specs: Sequence[StageSpec],
    batch_sizes: Sequence[int],
) -> DeviceBackend:
    device = CudaDevice()
    opened: list[StageEngine] = []
    try:
        with device.current():
            opened.extend(stages(device))
    except BaseException:
        for stage in opened:
            stage.close()
        device.close()
        raise
    backend = DeviceBackend(name, device, opened, specs, batch_sizes)
    fatbin = kernels()
    if fatbin is not None:
        try:
            backend.gather = GatherKernel(device, fatbin, backend.max_batch)
        except BackendError as error:  # compiled for other GPUs than this one
            _log.warning("survivors move row by row, without a kernel: %s", error)
        except BaseException:
            backend.close()
            raise
    return backend
