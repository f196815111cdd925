"""Energy where nothing measures it: a declared power, multiplied by measured time.

It is as good as the declared figure, and tells nothing about what the software does but how long it
takes; so every result says ``declared``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import EnergyError


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
    power = np.asarray(watts, float)
    if not np.isfinite(power).all() or (power <= 0).any():
        raise EnergyError(f"declared powers are positive numbers of watts, found {list(watts)}")
    spent = power * np.asarray(stage_ms, float)  # W * ms = mJ
    spent[0] += power[0] * preprocess_ms
    return np.cumsum(spent)
