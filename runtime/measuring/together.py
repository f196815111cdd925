"""What the later stages take for several frames together, against as many alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.manifest import Manifest
from dvt_edge.machine.clock import Clock
from dvt_edge.runtime.backends.protocol import ASIDE
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.measuring.timing import ForcedExits

SIZES = (2, 4, 8)
"""Frames together that are measured; from 4 on where the backend takes them and there is time."""
LEAST_GAIN = 0.1
"""Share of what so many frames take alone, from which on running them together pays."""
MEASURE_S = 0.15
ROUNDS = (3, 30)
"""Fewest, however long they take, and most."""
LEVEL = 25
"""Percentile of the rounds that counts: what disturbs only ever adds time."""


class Together(NamedTuple):
    """What was measured."""

    most: int
    """Frames together up to which every number of :data:`SIZES` pays; 1 where 2 do not."""
    alone_ms: tuple[float, ...]
    """[K - 1]: each stage after the first, for one frame."""
    together_ms: tuple[float, ...]
    """[K - 1]: the same for ``most`` frames, or for 2 where that does not pay; the first with
    setting them aside."""
    said: str
    """For people."""


def measure_together(loop: CascadeLoop, manifest: Manifest, clock: Clock) -> Together:
    """Run the stages after the first for 2, 4 and 8 frames together, and for as many one by one, in
    turn, for about :data:`MEASURE_S`. The backend takes two frames at least."""
    backend, stages = loop.backend, len(manifest.stages)
    ForcedExits(loop, manifest).run(stages - 1)

    def timed(count: int) -> npt.NDArray[np.float64]:
        at = [clock.now()]
        for row in range(count if count > 1 else 0):
            backend.set_aside(0, row, loop.slot)
        for stage in range(1, stages):
            backend.run_stage(stage, count, ASIDE if count > 1 else loop.slot)
            at.append(clock.now())
        return 1e3 * np.diff(at)

    sizes = [SIZES[0]]
    for size in SIZES[1:]:
        round_ms = timed(1).sum() * (sum(sizes) + 2 * size)
        if size <= backend.max_batch and (ROUNDS[0] + 1) * round_ms < 1e3 * MEASURE_S:
            sizes.append(size)
    for size in sizes:
        timed(size)  # what is made on first use
    singles: list[list[npt.NDArray[np.float64]]] = []
    groups: list[list[npt.NDArray[np.float64]]] = []
    until = clock.now() + MEASURE_S
    while len(groups) < ROUNDS[0] or (len(groups) < ROUNDS[1] and clock.now() < until):
        groups.append([timed(size) for size in sizes])
        singles.append([timed(1) for _ in range(sizes[-1])])
    # As many singles in a row take as long, so that what disturbs meets both alike.
    in_a_row = np.cumsum(np.sum(singles, axis=2), axis=1)
    together = dict(zip(sizes, np.percentile(groups, LEVEL, axis=0).tolist(), strict=True))
    alone = np.percentile(in_a_row, LEVEL, axis=0).tolist()
    most = 1
    for size in sizes:
        if sum(together[size]) > (1 - LEAST_GAIN) * alone[size - 1]:
            break
        most = size
    shown = max(most, SIZES[0])
    said = (
        f"the later stages take {sum(together[shown]):.3g} ms for {shown} frames together and "
        f"{alone[shown - 1]:.3g} ms for {shown} alone"
    )
    alone_ms = np.percentile(singles, LEVEL, axis=(0, 1)).tolist()
    return Together(most, tuple(alone_ms), tuple(together[shown]), said)
