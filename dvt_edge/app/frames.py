"""What the loop needs of a camera."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from dvt_edge.profile import ColorOrder


class Frame(Protocol):
    """A picture that a camera took."""

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """[H, W, 3], or [H, W] where it is gray."""

    @property
    def color_order(self) -> ColorOrder:
        """Layout of the pixels."""

    @property
    def captured_at(self) -> float:
        """Seconds of ``time.monotonic``."""

    @property
    def age_ms(self) -> float:
        """Since it was captured, when asked."""

    @property
    def seq(self) -> int:
        """Number of the frame."""

    @property
    def dropped_before(self) -> int:
        """Frames between the last one and this that nobody gets."""


class Source(Protocol):
    """Frames, the newest first; :meth:`close` from another thread ends them.

    It may have ``counts``, a :class:`~dvt_edge.camera.SourceCounts`.
    """

    def __iter__(self) -> Iterator[Frame]: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def close(self) -> None: ...


OnSourceEvent = Callable[[Any], None]
"""Called with what happens to a camera: an object with ``cause`` and ``reason``."""
OpenSource = Callable[[OnSourceEvent], Source]
"""Opens a camera; raises what says why not."""
