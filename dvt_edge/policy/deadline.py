"""Whether a stage may start: only if its p99 fits the time that is left.

What this bounds. Call D the deadline and q the largest share of runs in which a stage takes longer
than the p99 measured for it, 1 % where the machine behaves as when it was measured. The first stage
always runs, for without it there is no answer. A later stage starts only with its p99 (times the
slowdown handed in) left. A frame whose first stage ended in time is thus late only
if one of the K - 1 later stages outlasted its p99: for at most a share q (K - 1) of the frames, and
then by what that single stage took beyond its p99, for nothing starts after it. The paper's cascade
has no such bound: any frame may run all stages.

What this does not bound. Preprocessing and the first stage, which take the time they take; a stage
that is running, which nothing interrupts; the tail beyond p99, since the operating system, a clock
change or another process may hold any stage for any time; and a p99 that is out of date: hand in
the controller's ``slowdown``, or measure again. Waiting for another thread's frame counts only if
the caller takes it off the time left.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite


def refused(
    stage_p99_ms: Sequence[float | None],
    stage: int,
    left_ms: float,
    slowdown: Sequence[float] = (),
) -> str | None:
    """Why ``stage`` (from 1) may not start with ``left_ms`` left, or None if it may.

    The caller then returns the best answer so far, the one of exit ``stage - 1``, marked
    truncated, with this text as its reason. ``stage_p99_ms`` [K] is the p99 of each stage alone
    with its exit's decision. A figure that is missing (None), NaN, infinite or negative is unknown,
    and a stage after the first does not start without it. ``left_ms`` may be infinite (no
    deadline); NaN counts as no time. ``slowdown`` [K] multiplies the p99s, 1 where it is not known;
    what is faster than measured is not trusted, so values below 1 count as 1.
    """
    if stage == 1 or left_ms == float("inf"):
        return None
    p99 = stage_p99_ms[stage - 1]
    if p99 is None or not isfinite(p99) or p99 < 0:
        return (
            f"stage {stage} has no measured p99, so it is not started under a deadline "
            "(run 'dvt-edge profile')"
        )
    factor = slowdown[stage - 1] if len(slowdown) >= stage else 1.0
    need = p99 * (max(1.0, factor) if isfinite(factor) else 1.0)
    if need <= left_ms:
        return None
    left = "no" if not left_ms > 0 else f"only {left_ms:.3g} ms of"
    return f"stage {stage} needs {need:.3g} ms (p99) and {left} time is left"
