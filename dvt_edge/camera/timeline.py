"""When a stream's pictures were captured, from its time stamps and from when they came in."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0
"""Camera clocks run apart by some milliseconds a minute; older arrivals say nothing any more."""


class Timeline:
    """The smallest delay seen lately counts as none, so what comes later than that is older.

    So a picture that lay in a buffer is known to be old, whatever the camera's clock says.
    """

    def __init__(self) -> None:
        self._last_pts = float("-inf")
        self._smallest: deque[tuple[float, float]] = deque()
        """(arrived, arrived - pts), the second rising: the first is the window's smallest."""

    def captured_at(self, pts: float | None, arrived: float) -> float:
        """Of a picture with time stamp ``pts`` that came in at ``arrived``, both in seconds; at
        most ``arrived``. Time stamps that go back start the reckoning afresh."""
        if pts is None:
            return arrived
        if pts < self._last_pts - 1.0:  # reordered pictures go back by less
            self._smallest.clear()
        self._last_pts = pts
        delay = arrived - pts
        while self._smallest and self._smallest[-1][1] >= delay:
            self._smallest.pop()
        self._smallest.append((arrived, delay))
        while self._smallest[0][0] < arrived - WINDOW_S:
            self._smallest.popleft()
        return min(arrived, pts + self._smallest[0][1])
