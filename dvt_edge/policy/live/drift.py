"""Are latencies and images as the thresholds in force were solved for?"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, sqrt

import numpy as np

from dvt_edge.policy.live.tracking import BLOCK, MixTracker, SpeedTracker, Tail
from dvt_edge.policy.records import Floats
from dvt_edge.policy.solver import Solution

TOLERANCE = 0.03
"""Share of the planned mean by which the expected one may differ before anything is done."""
SURE = 4.5
"""Standard errors beyond the tolerance that make it certain: a false alarm in 1e5 windows."""
SURE_LONG, LONG_FRAMES = 3.0, 1024
"""The same in windows from so many frames on, of which few are independent."""
SURE_TAIL = 3.0
"""The same of what spikes add; where none are planned, three are no reason and five are."""
UNSEEN_SPIKE = 16.0
"""In frames, what one spike that has not come yet may add: nobody is in haste to spend more."""
CHECK_FRAMES = BLOCK
"""Frames between two checks."""
WINDOWS = (32, 64, 256, 1024, 4096)
"""Frames that a check looks back: short ones find large changes soon, long ones small changes."""
UNLIKE = 0.05
"""Total variation between two mixes, 0..1, beyond chance, that is a reason to act."""


class Drift:
    """Compares what ``speed`` and ``mix`` saw with what ``certified`` was planned for.

    A check looks back over several windows, and asks whether the mean latency differs from the
    planned one by more than :data:`TOLERANCE` and chance, or the confidences from the records'.
    """

    def __init__(self, certified: Solution, speed: SpeedTracker, mix: MixTracker) -> None:
        self._certified, self._speed, self._mix = certified, speed, mix

    def reason(self, frame: int, waited: int) -> str | None:
        """What is different beyond chance after ``frame`` frames, or None.

        Thresholds have been in force for ``waited`` frames.
        """
        planned, plan = self._certified.cost, self._certified.exit_fraction
        tail = self._speed.tail(waited)
        for frames in WINDOWS:
            if min(waited, self._mix.exit_frames) < frames:
                break
            if frame % max(CHECK_FRAMES, frames // 8):
                continue  # long windows change slowly
            sure = SURE if frames < LONG_FRAMES else SURE_LONG
            ratio, ratio_error = self._speed.ratio(frames)
            cost = np.cumsum(np.multiply(ratio, self._speed.reference_ms))
            share = self._mix.exit_share(frames)
            # Speeds alone, with the exits as planned: known better than together with the exits.
            now, error = float(plan @ cost), self._speed_error(plan, ratio_error)
            if self._differs(now, sure * error, tail, waited):
                now *= 1 + tail.share
                spikes = f", spikes {tail.share:.0%} of that" if tail.share > TOLERANCE else ""
                return f"frames take {now / planned:.2f} times as long as profiled{spikes}"
            # Together: the variance of the exits under the plan or as seen, whichever is larger.
            now = float(share @ cost)
            spread = max(float(s @ cost**2 - (s @ cost) ** 2) for s in (share, plan))
            error = hypot(sqrt(max(0.0, spread) / frames), self._speed_error(share, ratio_error))
            if self._differs(now, sure * error, tail, waited):
                now *= 1 + tail.share
                more = "more" if now > planned else "fewer"
                return (
                    f"{more} images than planned need the later exits: the mean of the last "
                    f"{frames} frames is {now:.3g} ms, planned were {planned:.3g} ms"
                )
            distance, chance = self._mix.distance(frames)
            if frames >= WINDOWS[1] and distance > UNLIKE + chance:
                return (
                    f"confidences at exit 1 are spread unlike those of the records (total "
                    f"variation {distance:.2f}, chance gives at most {chance:.2f})"
                )
        return None

    def _differs(self, now: float, error: float, tail: Tail, waited: int) -> bool:
        """Whether the mean ``now`` without tail, known to +-``error``, is not the planned one."""
        planned = self._certified.cost
        beyond = now * (1 + tail.share) - planned
        margin = planned * TOLERANCE + error
        if tail.share:
            # Spikes come by chance as often as planned: what the plan has above the rest is theirs.
            planned_part = min(1.0, max(0.0, planned / now - 1) / tail.share)
            single = (tail.error / tail.share) ** 2  # one spike's part of the tail
            margin += SURE_TAIL * now * tail.error * sqrt(planned_part + single)
        return beyond > margin or -beyond > margin + planned * UNSEEN_SPIKE / max(1, waited)

    def _speed_error(self, share: Floats, ratio_error: Sequence[float]) -> float:
        """Standard error of the mean cost from that of the speeds."""
        reach = np.cumsum(share[::-1])[::-1]
        return float(np.sqrt(((reach * ratio_error * self._speed.reference_ms) ** 2).sum()))
