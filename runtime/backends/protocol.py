"""The seam between the cascade loop and what executes the stages."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dvt_edge.machine.board import processor_name, read_power_mode


class StageAnswer(NamedTuple):
    """One stage's answers; views into the backend's memory, valid until the stage runs again."""

    confidence: npt.NDArray[np.float32]
    """[n], largest softmax probability."""
    class_id: npt.NDArray[np.int32]
    """[n]."""


class Backend(Protocol):
    """Executes stages on one device and owns all memory that they touch.

    The images, features and relations of the current frames stay in that memory from stage to
    stage; only confidence and class come out. A backend knows nothing of thresholds or budgets. It
    is used by one thread at a time.
    """

    @property
    def name(self) -> str:
        """What executes the stages, with its version, such as ``ONNX Runtime 1.32.0``."""

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that it runs on; None where that is the CPU."""

    @property
    def stage_ms(self) -> float | None:
        """How long the device itself was busy with the stage that ran last, by its own events; None
        where there is no device but the CPU, whose time the caller's clock measures."""

    @property
    def max_batch(self) -> int:
        """Most frames at a time."""

    @property
    def bytes_resident(self) -> int:
        """Bytes of images and reuse tensors that the backend holds."""

    def image_buffer(self, count: int) -> npt.NDArray[np.float32]:
        """Where to write ``count`` normalised images [count, C, S, S] before stage 0 runs."""

    def run_stage(self, stage: int, count: int) -> StageAnswer:
        """Run ``stage`` (from 0) on the first ``count`` rows; the stages before must have run."""

    def logits(self, stage: int, count: int) -> npt.NDArray[np.float32]:
        """Logits [count, classes] of the stage that ran last, for evaluation; :meth:`run_stage`
        alone sends only confidence and class."""

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp]) -> None:
        """Move ``rows`` (increasing) of the images and of ``stage``'s reuse tensors to the front.

        The next stage then runs on ``len(rows)`` rows.
        """

    def close(self) -> None:
        """Free everything; the backend is not used afterwards."""


def machine_name(backend: Backend) -> str:
    """What timings on ``backend`` depend on: processor, cores, GPU, engine, power mode."""
    parts = [processor_name(), backend.gpu, backend.name]
    mode = read_power_mode()  # the one in force, not the one that engines were built in
    if mode:
        parts.append(f"power mode {mode}")
    return ", ".join(filter(None, parts))
