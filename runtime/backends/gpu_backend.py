"""Stages on a GPU: every tensor stays where it is written.

All memory is allocated once. A stage's output address *is* the next stage's input address, one
scratch buffer serves all stages, and each stage and batch size runs as one CUDA graph. Confidence
and class, 8 bytes per image and stage, are written by the engine into mapped host memory; nothing
else goes to the host. Each byte that crosses is counted in ``device.transfers``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.manifest import (
    HANDED_ON,
    StageSpec,
    TensorSpec,
    check_handed_on,
    handed_on,
)
from dvt_edge.errors import BackendError, ClosedError
from dvt_edge.runtime.backends.cuda_device import CudaDevice, MappedArray
from dvt_edge.runtime.backends.device_preprocess import DevicePreprocess
from dvt_edge.runtime.backends.protocol import ASIDE, SLOTS, RunWhole, StageAnswer
from dvt_edge.runtime.backends.tensorrt_stage import StageEngine
from dvt_edge.runtime.native.calls import TakeFrame, gather_plan
from dvt_edge.runtime.native.library import PreprocessPlan

ANSWERS = ("confidence", "class_id")
GATHER_THREADS = 256
GATHER_BLOCKS = 1024
"""Blocks per tensor, at most."""

_log = logging.getLogger(__name__)


Rows = tuple[int, int]
"""Address of a tensor in device memory, and bytes of each of its rows."""


Gather = Callable[[Sequence[Rows], npt.NDArray[np.intp]], None]
"""Moves chosen rows, increasing, of tensors in device memory to their fronts."""


@dataclass(frozen=True)
class _Prepared:
    """One stage, bound for one batch size and one image."""

    enqueue: Callable[[], None]
    graph: int | None
    """The same as a CUDA graph; None where it cannot be captured."""


class DeviceBackend:
    """A :class:`~dvt_edge.runtime.backends.protocol.Backend` over engines, on a device it owns.

    Raises :class:`~dvt_edge.errors.BundleError` for stages that do not fit one another.
    """

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
        self.gather: Gather | None = None
        """The kernel that moves survivors' rows; without it, each row is a copy."""
        self._preprocess: DevicePreprocess | None = None
        self._taken = [False] * SLOTS
        """Whether the slot's image is still to be made of the frame that was taken for it."""
        self._prepared: dict[tuple[int, int, int], _Prepared] = {}
        self._images: list[MappedArray] = []
        self._answers: list[dict[str, MappedArray]] = []
        self._addresses: list[dict[str, int]] = []
        self.run_whole: RunWhole | None = None
        self.time_stages = False
        self.stage_ms: float | None = None
        # What was captured and bound goes before engines do, engines before memory.
        device.on_close(self._prepared.clear)
        for stage in stages:
            device.on_close(stage.close)
        try:
            check_handed_on(specs)
            with device.current():
                self._allocate()
        except BaseException:
            self.close()
            raise

    def image_buffer(self, count: int, slot: int = 0) -> npt.NDArray[Any]:
        if not self._images:
            raise ClosedError("this GPU backend is closed; open another Runtime")
        self._taken[slot] = False
        rows: npt.NDArray[Any] = self._images[slot].array[:count]
        return rows

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        batch = next(size for size in self._batch_sizes if size >= count)
        device = self.device
        with device.current():
            if stage == 0:
                self.send(count, slot)
            prepared = self._prepare(stage, batch, slot)
            if self.time_stages:
                self.stage_ms = device.timed(prepared.enqueue)
            elif prepared.graph is not None:
                device.run(prepared.graph, batch)
            else:
                prepared.enqueue()
                device.synchronize(batch)
        return self.answer(stage, count)

    def answer(self, stage: int, count: int) -> StageAnswer:
        """What ``stage``, which ran last, answered; counted as sent to the host."""
        answers = {name: mapped.array[:count] for name, mapped in self._answers[stage].items()}
        self.device.transfers.to_host += sum(array.nbytes for array in answers.values())
        return StageAnswer(answers["confidence"], answers["class_id"])

    def captured(self, stage: int, batch: int, slot: int = 0) -> bool:
        """Whether ``stage`` runs as a CUDA graph at ``batch`` images; it was prepared before."""
        return self._prepared[self._key(stage, batch, slot)].graph is not None

    def addresses(self, stage: int, slot: int = 0) -> Mapping[str, int]:
        """Where ``stage`` finds the image of ``slot``, its other inputs and its outputs."""
        return {**self._addresses[stage], "image": self.image_address(slot)}

    def logits(self, stage: int, count: int) -> npt.NDArray[np.float32]:
        spec = next(t for t in self._specs[stage].outputs if t.name == "logits")
        values = np.empty(spec.shape_at(count), np.float32)
        with self.device.current():
            self.device.download(values, self._addresses[stage]["logits"])
        return values

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp], slot: int = 0) -> None:
        with self.device.current():
            (self.gather or self._copy_rows)(self._going_on(stage, slot), rows)

    def set_aside(self, stage: int, row_at: int, slot: int) -> None:
        device = self.device
        with device.current():
            if device.integrated and len(self._images) == ASIDE:  # few ever need it
                self._images.append(self._map(self._specs[0].inputs[0]))
            pairs = zip(self._going_on(stage, slot), self._going_on(stage, ASIDE), strict=True)
            for (source, size), (target, _) in pairs:
                if target + row_at * size != source:
                    device.copy(target + row_at * size, source, size)
            if device.integrated:  # the host writes the slot's next image where it was read
                device.synchronize()

    def close(self) -> None:
        """Free everything, users before what they use; nothing in a process forked since."""
        if self.device.forked:
            return
        self.run_whole = None
        self._images.clear()
        self._stages.clear()
        self._addresses.clear()
        self._answers.clear()
        self.device.close()

    def send(self, count: int, slot: int) -> None:
        """Bring the images of ``slot`` to the device, in stream order."""
        if self._taken[slot] and self._preprocess is not None:
            self._preprocess.make_image(slot, self.image_address(slot))
        elif not self.device.integrated:
            self.device.upload(self.image_address(slot), self._images[slot].array[:count])

    def enqueue(self, stage: int, slot: int) -> Callable[[], None]:
        """What puts ``stage`` at batch 1 on the stream; warmed up."""
        return self._prepare(stage, 1, slot).enqueue

    def preprocess_here(self, fatbin: bytes) -> None:
        """From now on :attr:`take_frame` takes frames, which become images on the device.

        ``fatbin`` are the compiled kernels. Raises :class:`~dvt_edge.errors.BackendError` where
        they are for other GPUs than this one.
        """
        self._preprocess = DevicePreprocess(self.device, fatbin)

    @property
    def stage_count(self) -> int:
        return len(self._stages)

    @property
    def take_frame(self) -> TakeFrame | None:
        return None if self._preprocess is None else self._take

    def _take(self, plan: PreprocessPlan, frame: npt.NDArray[np.uint8], slot: int) -> bool:
        assert self._preprocess is not None
        self._taken[slot] = self._preprocess.take(plan, frame, slot)
        return self._taken[slot]

    def image_address(self, slot: int) -> int:
        """Where stages find the image of ``slot``."""
        # Where memory is shared the device reads frames where preprocessing writes them.
        return self._images[slot].address if self.device.integrated else self._on_device

    def _allocate(self) -> None:
        """Every buffer of every stage, at the largest batch."""
        image = self._specs[0].inputs[0]
        self._images += [self._map(image) for _ in range(SLOTS)]
        self._on_device = 0 if self.device.integrated else self._reserve(image)
        for spec in self._specs:
            before = handed_on(self._addresses[-1]) if self._addresses else {}
            addresses = dict(before)
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

    def _prepare(self, stage: int, batch: int, slot: int) -> _Prepared:
        """Bind, warm up, and capture as a graph where the engine allows it; once."""
        key = self._key(stage, batch, slot)
        found = self._prepared.get(key)
        if found is not None:
            return found
        device, engine, spec = self.device, self._stages[stage], self._specs[stage]
        every = self.addresses(stage, slot)
        addresses = {t.name: every[t.name] for t in (*spec.inputs, *spec.outputs)}
        enqueue = engine.prepare(batch, addresses, self._scratch, device.stream)
        enqueue()
        device.synchronize()
        engine.warmed_up()
        graph = None
        if engine.capturable:
            try:
                graph = device.capture(enqueue)
            except BackendError as error:
                _log.warning(
                    "stage %d at batch %d runs without a graph: %s", stage + 1, batch, error
                )
        prepared = self._prepared[key] = _Prepared(enqueue, graph)
        return prepared

    def _key(self, stage: int, batch: int, slot: int) -> tuple[int, int, int]:
        """All slots share one image where it is sent to the device."""
        return stage, batch, slot if self.device.integrated else 0

    def _going_on(self, stage: int, slot: int) -> list[Rows]:
        """The image of ``slot``, and what ``stage`` hands on."""
        image, outputs = self._specs[0].inputs[0], self._specs[stage].outputs
        going_on = (image, *(t for t in outputs if t.name.startswith(HANDED_ON)))
        addresses = self.addresses(stage, slot)
        return [(addresses[t.name], t.bytes_per_image) for t in going_on]

    def _copy_rows(self, tensors: Sequence[Rows], rows: npt.NDArray[np.intp]) -> None:
        """Row by row, in order: rows increase, so none is overwritten before it has moved."""
        moved = [(target, int(source)) for target, source in enumerate(rows) if target != source]
        for address, size in tensors:
            for target, source in moved:
                self.device.copy(address + target * size, address + source * size, size)


class GatherKernel:
    """Rows of all tensors moved by one launch, instead of one copy per row and tensor."""

    def __init__(self, device: CudaDevice, fatbin: bytes) -> None:
        self._device = device
        with device.current():
            device.load_kernel(fatbin, "dvt_gather_kernel")

    def __call__(self, tensors: Sequence[Rows], rows: npt.NDArray[np.intp]) -> None:
        words = max(size // 16 if size % 16 == 0 else size for _, size in tensors)
        blocks = min(GATHER_BLOCKS, -(-words // GATHER_THREADS))
        plan = gather_plan(tensors, rows)
        self._device.launch("dvt_gather_kernel", (blocks, len(tensors)), GATHER_THREADS, plan)
