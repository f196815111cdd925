"""Stages on the CPU with ONNX Runtime.

All tensors live in arrays that are allocated once. They are bound to the sessions through
IOBinding as OrtValues that share the arrays' memory: a stage reads its reuse tensors where the
stage before wrote them, and no frame copies anything.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from dvt_edge.bundle.manifest import HANDED_ON, StageSpec, check_handed_on, handed_on
from dvt_edge.errors import BackendError
from dvt_edge.machine.board import available_cores
from dvt_edge.runtime.backends.protocol import ASIDE, SLOTS, RunWhole, StageAnswer
from dvt_edge.runtime.native import operator_library
from dvt_edge.runtime.native.calls import TakeFrame


def open_session(
    model: str | bytes, threads: int, *, shared_scratch: bool = False, native: bool = False
) -> ort.InferenceSession:
    """A CPU session over a file or a serialised model; 0 threads are one per core.

    With ``shared_scratch`` intermediate tensors lie in memory that all such sessions of the process
    use in turn, so a stage finds in the caches what the stage before left there: at batch 64 the
    demo's cascade takes 14 % less time. Batch 1 fits the caches anyway. ``native``: the graph has
    operators of the project's own.

    Raises :class:`~dvt_edge.errors.BackendError`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails raises
    # Each stage has its own pool: threads that spin after one stage would slow the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if shared_scratch and _register_scratch():
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.enable_mem_pattern = False  # one block per session again, which shares nothing
    if native and (reason := operator_library.unavailable()):
        raise BackendError(f"a stage needs the native operators: {reason}")
    try:
        if native:
            options.register_custom_ops_library(str(operator_library.path()))
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own types derive from RuntimeError and others
        raise BackendError(f"ONNX Runtime {ort.__version__} refused a stage: {error}") from None


def backend_name(*, native: bool) -> str:
    """What executes stages with or without native operators, which costs depend on."""
    name = f"ONNX Runtime {ort.__version__}"
    if native:
        name += f" with native operators ({operator_library.instruction_set()})"
    return name


@functools.cache
def _register_scratch() -> bool:
    """Make ONNX Runtime's arena, which lasts as the process does; whether there is one."""
    where = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    try:
        ort.create_and_register_allocator(where, ort.OrtArenaCfg(0, -1, -1, -1))
    except Exception:  # the program has one of its own, or this build has none
        return False
    return True


class OnnxRuntimeBackend:
    """:class:`~dvt_edge.runtime.backends.protocol.Backend` on ONNX Runtime's CPU provider."""

    def __init__(
        self, paths: Sequence[Path], specs: Sequence[StageSpec], max_batch: int, threads: int
    ) -> None:
        self.name = backend_name(native=any(spec.native for spec in specs))
        self.gpu: str | None = None
        self.time_stages = False
        self.stage_ms: float | None = None
        self.take_frame: TakeFrame | None = None
        self.run_whole: RunWhole | None = None
        self.max_batch = max_batch
        batches = max_batch > 1
        self._sessions = [
            open_session(str(path), threads, shared_scratch=batches, native=spec.native)
            for path, spec in zip(paths, specs, strict=True)
        ]
        check_handed_on(specs)
        image = specs[0].inputs[0]
        self._images = [np.zeros(image.shape_at(max_batch), image.dtype) for _ in range(SLOTS)]
        self.tensors: list[dict[str, npt.NDArray[Any]]] = []
        """All inputs but the image and all outputs of every stage, at full batch."""
        shared: dict[str, npt.NDArray[Any]] = {}
        for spec in specs:
            tensors = dict(shared)
            for t in (*spec.inputs, *spec.outputs):
                if t.name not in shared and t.name != "image":
                    tensors[t.name] = np.zeros(t.shape_at(max_batch), t.dtype)
            self.tensors.append(tensors)
            shared = handed_on(tensors)
        arrays = {id(a): a.nbytes for tensors in self.tensors for a in tensors.values()}
        self.bytes_resident = sum(arrays.values()) + sum(a.nbytes for a in self._images)
        self._specs = list(specs)
        self._bindings: dict[tuple[int, int, int], ort.IOBinding] = {}

    def image_buffer(self, count: int, slot: int = 0) -> npt.NDArray[np.float32]:
        image: npt.NDArray[np.float32] = self._images[slot][:count]
        return image

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        key = (stage, count, slot)
        binding = self._bindings.get(key) or self._bind(*key)
        try:
            self._sessions[stage].run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(f"stage {stage + 1} failed in ONNX Runtime: {error}") from None
        tensors = self.tensors[stage]
        return StageAnswer(tensors["confidence"][:count], tensors["class_id"][:count])

    def logits(self, stage: int, count: int) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = self.tensors[stage]["logits"][:count]
        return values

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp], slot: int = 0) -> None:
        for array in (self._images[slot], *self._going_on(stage)):
            for target, source in enumerate(rows):
                if target != source:
                    array[target] = array[source]

    def set_aside(self, stage: int, row_at: int, slot: int) -> None:
        if len(self._images) == ASIDE:  # few ever need it
            image = self._specs[0].inputs[0]
            self._images.append(np.zeros(image.shape_at(self.max_batch), image.dtype))
            self.bytes_resident += self._images[ASIDE].nbytes
        self._images[ASIDE][row_at] = self._images[slot][0]
        for array in self._going_on(stage):
            array[row_at] = array[0]

    def close(self) -> None:
        self._bindings.clear()
        self._sessions.clear()
        self._images.clear()
        self.tensors.clear()
        self.bytes_resident = 0

    def _going_on(self, stage: int) -> list[npt.NDArray[Any]]:
        """What ``stage`` hands on."""
        tensors = self.tensors[stage]
        return [array for name, array in tensors.items() if name.startswith(HANDED_ON)]

    def _bind(self, stage: int, count: int, slot: int) -> ort.IOBinding:
        """A binding of the first ``count`` rows, made once per stage, count and slot."""
        tensors = {**self.tensors[stage], "image": self._images[slot]}
        binding = self._sessions[stage].io_binding()
        for specs, bind in (
            (self._specs[stage].inputs, binding.bind_ortvalue_input),
            (self._specs[stage].outputs, binding.bind_ortvalue_output),
        ):
            for spec in specs:
                rows = tensors[spec.name][:count]
                bind(spec.name, ort.OrtValue.ortvalue_from_numpy(rows))
        self._bindings[stage, count, slot] = binding
        return binding
