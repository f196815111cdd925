"""One cascade on one backend, and what is done to it to try claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gpu_cascades import BATCH, CPU, Prepared

from dvt_edge.bundle.manifest import HANDED_ON, TensorSpec
from dvt_edge.runtime.backends.gpu_backend import DeviceBackend
from dvt_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from dvt_edge.runtime.backends.protocol import Backend
from dvt_edge.runtime.runtime import Runtime

Array = npt.NDArray[Any]
Values = dict[str, Any]

REHEARSED = 8
"""Images in a rehearsal, in place of a whole batch: the CPU is slow."""


@dataclass(frozen=True)
class Outcome:
    """How trying a claim went."""

    state: Literal["holds", "fails", "not tried"]
    detail: str
    values: Values = field(default_factory=dict)


def judged(holds: bool, detail: str, **values: Any) -> Outcome:
    return Outcome("holds" if holds else "fails", detail, values)


def not_tried(reason: str) -> Outcome:
    return Outcome("not tried", reason)


@dataclass
class Case:
    """One cascade on one backend."""

    backend_name: str
    precision: str
    prepared: Prepared
    open: Callable[..., Backend]
    """``(preprocess=False, graph="stages")``: once more."""
    backend: Backend

    @property
    def stages(self) -> int:
        return len(self.prepared.specs)

    @property
    def count(self) -> int:
        """Images of a batch, and frames, that most claims are tried on."""
        return REHEARSED if self.backend_name == CPU else BATCH

    def run(self, count: int | None = None) -> list[Array]:
        """Logits [count, classes] of every stage for the first images."""
        count = count or self.count
        self.backend.image_buffer(count)[:] = self.prepared.images[:count]
        return [self.logits_of(k, count) for k in range(self.stages)]

    def logits_of(self, stage: int, count: int) -> Array:
        self.backend.run_stage(stage, count)
        return self.backend.logits(stage, count).copy()

    @contextmanager
    def runtime(self, **how: Any) -> Iterator[Runtime]:
        """A Runtime on a backend of its own, half of whose frames leave at each exit."""
        with Runtime(self.prepared.folder, backend=self.open(**how)) as runtime:
            runtime.use(runtime.replay(self.prepared.median_thresholds))
            yield runtime


def spread(logits: Array) -> float:
    """How far images' logits are apart: root mean square around the mean image."""
    return float((logits - logits.mean(axis=0)).std())


def change(found: Array, expected: Array) -> float:
    """Root mean square of the difference, as a share of the spread of ``expected``."""
    return float(np.sqrt(((found - expected) ** 2).mean())) / max(spread(expected), 1e-12)


def read_tensor(backend: Backend, stage: int, tensor: TensorSpec, count: int) -> Array:
    """What ``stage`` handed on for ``count`` images as the next stage's input ``tensor``."""
    if isinstance(backend, OnnxRuntimeBackend):
        return backend.tensors[stage][HANDED_ON + tensor.name][:count].copy()
    assert isinstance(backend, DeviceBackend)
    values = np.empty(tensor.shape_at(count), tensor.dtype)
    with backend.device.current():
        backend.device.download(values, backend.addresses(stage)[HANDED_ON + tensor.name])
    return values


def write_tensor(backend: Backend, stage: int, tensor: TensorSpec, values: Array) -> None:
    """Replace it."""
    if isinstance(backend, OnnxRuntimeBackend):
        backend.tensors[stage][HANDED_ON + tensor.name][: len(values)] = values
        return
    assert isinstance(backend, DeviceBackend)
    device = backend.device
    with device.current():
        mapped = device.allocate_mapped(values.shape, values.dtype)
        mapped.array[...] = values
        device.upload(backend.addresses(stage)[HANDED_ON + tensor.name], mapped.array)
        device.synchronize()
        device.free(mapped.address)
