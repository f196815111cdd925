"""Frames to the model's input on the GPU, bit for bit what the host would make of them.

On a board whose memory is shared, the kernel reads the frame where it was put for it and nothing is
sent; elsewhere the whole frame goes up instead of the much smaller image. So it depends on the
machine which is faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dvt_edge.runtime.backends.cuda_device import CudaDevice, MappedArray
from dvt_edge.runtime.backends.protocol import SLOTS
from dvt_edge.runtime.native.calls import axis_table, tile
from dvt_edge.runtime.native.library import PreprocessPlan

KERNEL = "dvt_preprocess_kernel"
THREADS = 256
SHARED_BYTES = 48 << 10
"""Shared memory of a block that every GPU gives without being asked."""


class _Buffer:
    """Memory that the host fills and the device reads; grows as needed."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._host: MappedArray | None = None
        self._own = 0

    def fill(self, values: npt.NDArray[Any]) -> None:
        """Take a copy of ``values``; what the device still reads here must be done."""
        if self._host is None or self._host.array.nbytes < values.nbytes:
            with self._device.current():
                for address in (self._host.address if self._host else 0, self._own):
                    if address:
                        self._device.free(address)
                self._host, self._own = None, 0
                self._host = self._device.allocate_mapped((values.nbytes,), np.uint8)
                if not self._device.integrated:
                    self._own = self._device.allocate(values.nbytes)
        self._used = self._host.array[: values.nbytes]
        self._used[...] = values.reshape(-1).view(np.uint8)

    @property
    def address(self) -> int:
        """Where a kernel reads it."""
        assert self._host is not None
        return self._own or self._host.address

    def send(self) -> None:
        """Bring it to a device with memory of its own, in stream order."""
        if self._own:
            self._device.upload(self._own, self._used)


class _Slot:
    """One frame in flight."""

    def __init__(self, device: CudaDevice) -> None:
        self.frame, self.tables = _Buffer(device), _Buffer(device)
        self.plan: PreprocessPlan | None = None
        self.key = b""
        self.taps = (0, 0)
        self.tile: tuple[int, int, int] | None = None
        """Width and height in pixels, bytes of shared memory."""
        self.tables_changed = False

    def cut(self, plan: PreprocessPlan) -> None:
        """Work out what the kernel needs for frames of another size or layout."""
        key = bytes(plan)
        if key == self.key:
            return
        self.key, self.plan, self.tile = key, plan, tile(plan, SHARED_BYTES)
        columns, rows = (axis_table(plan, axis) for axis in (0, 1))
        self.taps = columns.shape[1] - 2, rows.shape[1] - 2
        self.tables.fill(np.concatenate([columns.ravel(), rows.ravel()]))
        self.tables_changed = True


class DevicePreprocess:
    """The preprocessing kernel, and for each slot a place for its frame.

    Raises :class:`~dvt_edge.errors.BackendError` where ``fatbin`` holds no code for this GPU.
    """

    def __init__(self, device: CudaDevice, fatbin: bytes) -> None:
        self._device = device
        self._slots = [_Slot(device) for _ in range(SLOTS)]
        with device.current():
            device.load_kernel(fatbin, KERNEL)

    def take(self, plan: PreprocessPlan, frame: npt.NDArray[np.uint8], slot: int) -> bool:
        """Put ``frame``, uint8 of the size and layout in ``plan``, where the device finds it; the
        device may work for another slot meanwhile.

        False where the kernel cannot make its image: where the rows of a single pixel's window do
        not fit into a block's memory, or the frame is a view with gaps.
        """
        if not frame.flags.c_contiguous:
            return False
        here = self._slots[slot]
        here.cut(plan)
        if here.tile is None:
            return False
        here.frame.fill(frame)
        return True

    def make_image(self, slot: int, address: int) -> None:
        """Put the image of the frame taken for ``slot`` at ``address``, in stream order."""
        here = self._slots[slot]
        if here.tables_changed:
            here.tables.send()
            here.tables_changed = False
        here.frame.send()
        self.launch(slot, address)

    def launch(self, slot: int, address: int) -> None:
        """The same of what was sent before."""
        here = self._slots[slot]
        assert here.plan is not None
        assert here.tile is not None
        width, height, shared = here.tile
        crop, columns = here.plan.crop, here.tables.address
        rows = columns + 4 * crop * (2 + here.taps[0])
        self._device.launch(
            KERNEL,
            (-(-crop // width), -(-crop // height)),
            THREADS,
            here.plan,
            np.uintp(here.frame.address),
            np.uintp(columns),
            np.int32(here.taps[0]),
            np.uintp(rows),
            np.int32(here.taps[1]),
            np.int32(width),
            np.int32(height),
            np.uintp(address),
            shared_bytes=shared,
        )
