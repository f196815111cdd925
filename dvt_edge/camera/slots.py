"""Memory that the decoder's process fills and this one reads, without names that could be left
behind: each piece is an anonymous file that goes with the last process and array that use it."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dvt_edge.camera.frame import Pixels

SLOTS = 4
TALLY = ("received", "given", "superseded", "late", "held", "damaged")
"""What the decoder's process counts, in the order of the counters."""

Counters = npt.NDArray[np.int64]


def new_tally() -> int:
    """Descriptor of zeroed counters."""
    tally = os.memfd_create("dvt-edge-tally")
    os.ftruncate(tally, mmap.PAGESIZE)
    return tally


def map_tally(descriptor: int) -> Counters:
    """The counters, [len(TALLY)], shared by both processes; the decoder's alone writes."""
    return np.frombuffer(mmap.mmap(descriptor, mmap.PAGESIZE), np.int64, len(TALLY))


class Slots:
    """The side that reads: which slots are free, and what lies in them.

    A slot handed out by :meth:`take` is free again when no array looks at it any more. The last
    free one is copied instead, so there is always one to fill.
    """

    def __init__(self, count: int = SLOTS) -> None:
        self.descriptors = [os.memfd_create(f"dvt-edge-slot-{k}") for k in range(count)]
        self._maps: dict[int, mmap.mmap] = {}
        self._free = list(range(count))
        self._leases: dict[int, weakref.ref[object]] = {}

    def next_free(self) -> int:
        """Number of a slot that may be filled; it stays free until :meth:`take`."""
        return self._free[-1]

    def take(self, slot: int, shape: Sequence[int]) -> Pixels:
        """What was filled into ``slot``, uint8 of ``shape``."""
        size = math.prod(shape)
        mapped = self._maps.get(slot)
        if mapped is None or len(mapped) < size:
            whole = os.fstat(self.descriptors[slot]).st_size
            mapped = self._maps[slot] = mmap.mmap(self.descriptors[slot], whole)
        if len(self._free) == 1:
            return np.frombuffer(mapped, np.uint8, size).reshape(shape).copy()
        # NumPy lets views of views refer to the memory's owner, so that is what is watched.
        memory = (ctypes.c_ubyte * size).from_buffer(mapped)
        free = self._free
        free.remove(slot)
        self._leases[slot] = weakref.ref(memory, lambda _: free.append(slot))
        return np.frombuffer(memoryview(memory), np.uint8).reshape(shape)

    def close(self) -> None:
        """Arrays handed out stay valid."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
        self._maps.clear()
        self._leases.clear()


class FilledSlots:
    """The side that writes."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors
        self._maps: dict[int, mmap.mmap] = {}

    def fill(self, slot: int, pixels: Pixels) -> None:
        """Copy ``pixels`` into ``slot``, which grows where it has to."""
        mapped = self._maps.get(slot)
        if mapped is None or len(mapped) < pixels.size:
            descriptor = self._descriptors[slot]
            pages = -(-pixels.size // mmap.PAGESIZE) * mmap.PAGESIZE
            if os.fstat(descriptor).st_size < pages:  # never less: the reader maps all of it
                os.ftruncate(descriptor, pages)
            mapped = self._maps[slot] = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        target = np.frombuffer(mapped, np.uint8, pixels.size).reshape(pixels.shape)
        np.copyto(target, pixels)
