"""Places for frames in flight, and what is in them."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import NamedTuple

from typing_extensions import Self

from dvt_edge.profile import ColorOrder
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.regroup import Regroup


class Slot:
    """Place for one frame or batch in flight."""

    def __init__(self, loop: CascadeLoop) -> None:
        self.loop = loop
        self.writing = threading.Lock()
        """Held while its images are written."""


class Lease:
    """A slot for the block, given back at its end or before; ``regroup`` counts who is within."""

    def __init__(self, free: SimpleQueue[Slot], regroup: Regroup | None) -> None:
        self._free, self._regroup = free, regroup
        self._slot: Slot | None = None

    def __enter__(self) -> Self:
        if self._regroup is not None:
            self._regroup.arrive()
        try:
            self._slot = self._free.get()
        except BaseException:  # Ctrl-C
            self.__exit__()
            raise
        return self

    @property
    def slot(self) -> Slot:
        assert self._slot is not None
        return self._slot

    def give_back(self) -> None:
        """Twice does nothing."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._free.put(slot)

    def __exit__(self, *error: object) -> None:
        self.give_back()
        if self._regroup is not None:
            self._regroup.leave()


class Shot(NamedTuple):
    """A frame on its way."""

    frame: object
    order: ColorOrder | None
    preprocess_ms: float | None
    """What preparing it took; None where it is to be compared with the last one first."""
    is_part: bool
    """Whether it is the box of a frame, whose size says nothing of the camera's."""
