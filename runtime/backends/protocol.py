"""The seam between the cascade loop and what executes the stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dvt_edge.machine.board import processor_name, read_power_mode
from dvt_edge.runtime.native.calls import TakeFrame

SLOTS = 2
"""Frames in flight: while the stages run for one, the other is preprocessed."""
ASIDE = SLOTS
"""The slot of frames that were set aside: stages after the first run on it, no frame is written to
it."""


class StageAnswer(NamedTuple):
    """One stage's answers; views into the backend's memory, valid until the stage runs again."""

    confidence: npt.NDArray[np.float32]
    """[n], largest softmax probability."""
    class_id: npt.NDArray[np.int32]
    """[n]."""


RunWhole = Callable[[Sequence[float], int], tuple[list[StageAnswer], list[float]]]
"""Runs the image of a slot through the cascade until its confidence reaches one of the thresholds
[K]: the answers of the stages that ran and, from the second on, the milliseconds each took."""


class Backend(Protocol):
    """Executes stages on one device and owns all memory that they touch.

    The images, features and relations of the current frames stay in that memory from stage to
    stage; only confidence and class come out. A backend knows nothing of thresholds or budgets. One
    thread at a time runs stages; meanwhile another may write the images of another slot, of which
    there are :data:`SLOTS`.
    """

    @property
    def name(self) -> str:
        """What executes the stages, with its version, such as ``ONNX Runtime 1.32.0``."""

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that it runs on; None where that is the CPU."""

    time_stages: bool
    """Whether a GPU shall time each stage by its own events, which costs time."""

    @property
    def stage_ms(self) -> float | None:
        """How long the GPU was busy with the stage that ran last; None where it was not timed."""

    @property
    def max_batch(self) -> int:
        """Most frames at a time."""

    @property
    def bytes_resident(self) -> int:
        """Bytes of images and reuse tensors that the backend holds."""

    def image_buffer(self, count: int, slot: int = 0) -> npt.NDArray[np.float32]:
        """Where to write ``count`` normalised images [count, C, S, S] before stage 0 runs."""

    @property
    def take_frame(self) -> TakeFrame | None:
        """Instead of :meth:`image_buffer`, where single frames become images on the device."""

    @property
    def run_whole(self) -> RunWhole | None:
        """Instead of :meth:`run_stage`, where the device decides on exits itself."""

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        """Run ``stage`` (from 0) on the first ``count`` rows of ``slot``'s images; the stages
        before must have run, for the same slot."""

    def logits(self, stage: int, count: int) -> npt.NDArray[np.float32]:
        """Logits [count, classes] of the stage that ran last, for evaluation; :meth:`run_stage`
        alone sends only confidence and class."""

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp], slot: int = 0) -> None:
        """Move ``rows`` (increasing) of the slot's images and of ``stage``'s reuse tensors to the
        front.

        The next stage then runs on ``len(rows)`` rows.
        """

    def set_aside(self, stage: int, row_at: int, slot: int) -> None:
        """Copy row 0 of the slot's images to row ``row_at`` of the slot :data:`ASIDE`, and row 0 of
        ``stage``'s reuse tensors to their row ``row_at``.

        Of what ran last, ``stage`` ran for the frame in ``slot``, which may be written to again
        afterwards. The rows stay as long as stages run for single frames of other slots; the next
        stage runs on them as rows of :data:`ASIDE`.
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
