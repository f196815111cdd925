"""Energy where nothing measures it: a declared power, multiplied by measured time.

Every result says ``declared``. It is as good as the declared figure, and tells nothing about what
the software does but how long it takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dvt_edge.energy.meter import Counted, Meter
from dvt_edge.energy.timer import Timer
from dvt_edge.errors import EnergyError

MW_PER_W = 1000.0


class DeclaredMeter(Meter):
    """Power in watts as declared, the same all the time; its only rail is ``declared``."""

    declared = True

    def __init__(self, watts: float, not_measured: str = "", timer: Timer | None = None) -> None:
        """Raises EnergyError unless ``watts`` is positive and finite."""
        self.watts = _positive(watts)
        super().__init__(f"declared {watts:g} W", ("declared",), timer=timer)
        self.not_measured = not_measured
        """Why no sensor is read instead."""

    def start(self) -> DeclaredCount:
        return DeclaredCount(self)


class DeclaredCount:
    """One window: only time is measured."""

    def __init__(self, meter: DeclaredMeter) -> None:
        self._meter = meter
        self._start_ns = meter.timer.now_ns()

    def stop(self) -> Counted:
        seconds = (self._meter.timer.now_ns() - self._start_ns) / 1e9
        return Counted(seconds, {"declared": self._meter.watts * MW_PER_W * seconds})


def declared_exit_mj(
    watts: Sequence[float], stage_ms: Sequence[float], preprocess_ms: float = 0.0
) -> npt.NDArray[np.float64]:
    """[K]: millijoules of leaving at each exit, with stage k drawing ``watts[k]``.

    ``stage_ms`` [K] is the mean time of each stage; preprocessing draws what the first stage does.
    Raises EnergyError unless there is one positive, finite power per stage.
    """
    if len(watts) != len(stage_ms):
        raise EnergyError(
            f"energy.watts needs one figure per stage: expected {len(stage_ms)}, found {len(watts)}"
        )
    power = np.array([_positive(value) for value in watts])
    spent = power * np.asarray(stage_ms, float)  # W * ms = mJ
    spent[0] += power[0] * preprocess_ms
    return np.cumsum(spent)


def _positive(watts: float) -> float:
    if not np.isfinite(watts) or watts <= 0:
        raise EnergyError(f"a declared power is a positive number of watts, found {watts:g}")
    return float(watts)
