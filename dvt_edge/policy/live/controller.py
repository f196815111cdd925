"""Keeps the mean latency at its budget while the scene, the clocks and the temperature change.

Two states. *As certified*: the thresholds chosen offline are in force, untouched; every few frames
the controller asks whether stage latencies, the exits taken or the confidences at exit 1 have
become different beyond what chance explains. *Adapted*: thresholds were solved again for the
latencies and the mix of images seen lately, and from frame to frame they are moved a little along
the accuracy/cost curve, so that the running mean stays at the budget (integral feedback, see
:mod:`dvt_edge.policy.live.pacing`). A certificate holds for fixed thresholds and images like the
records, so it holds in the first state only, and every :class:`Change` says so.

The records are reweighted to the mix by their confidence at exit 1 (importance weighting under
covariate shift: Shimodaira, 2000): what later exits do is taken to depend on that confidence as in
the records. Where that is wrong the mean is still kept, by the feedback; the accuracy expected is
wrong then, which the audit (:mod:`dvt_edge.policy.live.audit`) notices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BudgetError
from dvt_edge.policy.live.pacing import MIDDLE, Ladder, Pacer, highest_step
from dvt_edge.policy.live.tracking import SPEED_FRAMES, MixTracker, SpeedTracker, resample
from dvt_edge.policy.records import Floats, Records
from dvt_edge.policy.solver import Solution, replay, solve

TOLERANCE = 0.03
"""Share of the planned mean by which the expected one may differ before anything is done."""
SURE = 4.5
"""Standard errors beyond the tolerance that make it certain: a false alarm in 1e5 windows."""
CHECK_FRAMES = 8
"""Frames between two checks."""
WINDOWS = (32, 64, 256, 1024, 4096)
"""Frames that a check looks back: short ones find large changes soon, long ones small changes."""
DWELL_FRAMES = 64
"""Least number of frames between two changes, at first; it doubles with every change up to
:data:`MAX_DWELL_FRAMES` and halves again in quiet."""
MAX_DWELL_FRAMES = 4096
QUIET_DWELLS = 4
STEADY_FRAMES = 1024
"""Frames as profiled after which the certified thresholds return; doubles with every return."""
FAR = ((64, 0.5), (256, 0.25), (1024, 0.12))
"""Frames, and the share of the budget that the feedback may make up for on their mean before the
thresholds are solved again."""
LIVE_RECORDS = 1000
"""Records that a solve during operation uses."""


@dataclass(frozen=True)
class Change:
    """Other thresholds are in force from the next frame on."""

    frame: int
    """Number of the frame, from 1, after which this was decided."""
    thresholds: tuple[float, ...]
    """[K]; the last one -inf."""
    reason: str
    """One or two sentences with the figures that led to it."""
    certificate_holds: bool
    """Whether the offline certificate speaks about these thresholds and what is seen now."""


class Controller:
    """Watches the frames and changes the thresholds when the promise is about to break.

    ``costs`` [K] is the mean latency of leaving at each exit as profiled, ``thresholds`` [K] those
    of the certified solution. Times are handed in; memory is bounded (about 20 kB and the records).
    Not safe to use from several threads at once.

        controller = Controller(records, costs, 5, solve(records, costs, 5).thresholds)
        for frame in frames:
            p = run(frame, controller.thresholds)
            change = controller.observe(
                p.exit_stage, p.stage_latency_ms, p.latency_ms, p.confidences
            )

    The promise is about mean latency; single spikes count as at most :data:`SPIKE` times the usual
    latency of their stage. Raises :class:`~dvt_edge.errors.DataError` for costs or thresholds that
    do not fit the records.
    """

    def __init__(
        self,
        records: Records,
        costs: npt.ArrayLike,
        budget_ms: float,
        thresholds: npt.ArrayLike,
    ) -> None:
        self.budget_ms = budget_ms
        self._records = records
        self._certified = replay(records, costs, thresholds)
        self._speed = SpeedTracker(np.diff(np.asarray(costs, float), prepend=0.0))
        self._mix = MixTracker(records)
        self._floor = np.full(records.exits, -np.inf)
        self._frame = self._changed = self._strange = 0
        self._dwell, self._steady = DWELL_FRAMES, STEADY_FRAMES
        self._pacer: Pacer | None = None
        self._feasible = True  # False where even leaving at exit 1 costs more than the budget
        self.thresholds: tuple[float, ...] = tuple(self._certified.thresholds.tolist())
        """[K]: for the next frame."""

    @property
    def slowdown(self) -> tuple[float, ...]:
        """[K]: latency of each stage over the last frames relative to the profiled one."""
        return tuple(float(r) for r in self._speed.ratio(WINDOWS[0])[0])

    def observe(
        self,
        exit_stage: int,
        stage_latency_ms: Sequence[float],
        latency_ms: float,
        confidences: Sequence[float],
        *,
        forced: bool = False,
    ) -> Change | None:
        """Take note of one frame; a :class:`Change` when other thresholds are in force now.

        ``exit_stage``, from 1, is the exit that answered; ``stage_latency_ms`` and ``confidences``
        have one value for each stage that ran, in order (0..1, NaN where unknown); ``latency_ms``
        is all that the budget covers. ``forced`` says that not the thresholds decided where to
        leave: an audited frame, a deadline, a start stage. Do not call it for answers that ran no
        stage. Latencies that are not finite or not positive are ignored.
        """
        self._frame += 1
        self._speed.add(latency_ms, stage_latency_ms)
        self._mix.add(float(confidences[0]), None if forced else exit_stage - 1)
        check = self._frame % CHECK_FRAMES == 0
        if self._pacer is not None:
            if isfinite(latency_ms) and latency_ms > 0:
                self._pacer.spend(latency_ms, len(stage_latency_ms))
            if check:
                self._pacer.reprice(self._speed.usual_ms(WINDOWS[0]))
            if self._feasible:
                self.thresholds = self._pacer.choose()
        return self._check() if check else None

    def hold_at_least(self, thresholds: npt.ArrayLike, reason: str) -> Change:
        """Never again go below ``thresholds`` [K], as after an audit; latency comes second then.

        ``reason`` goes into the change.
        """
        self._floor = np.maximum(self._floor, thresholds)
        self._floor[-1] = -np.inf
        return self._adapt(reason)

    def _check(self) -> Change | None:
        waited = self._frame - self._changed
        if self._pacer is None:
            ready = waited >= DWELL_FRAMES or not self._changed
            why = self._drift(waited) if ready else None
            return self._adapt(why) if why else None
        if not self._speeds_as_profiled():
            self._strange = self._frame
        if self._frame - max(self._strange, self._changed) >= self._steady and (
            self._images_as_profiled(self._pacer)
        ):
            return self._return()
        if waited < self._dwell:
            return None
        why = self._far_off(self._pacer)
        if why:
            return self._adapt(why)
        if waited >= QUIET_DWELLS * self._dwell:
            self._dwell = max(DWELL_FRAMES, self._dwell // 2)
        return None

    def _drift(self, waited: int) -> str | None:
        """As certified: what is different beyond chance, or None."""
        planned, plan = self._certified.cost, self._certified.exit_fraction
        for frames in WINDOWS:
            if min(waited, self._mix.free_frames) < frames:
                break
            if self._frame % max(CHECK_FRAMES, frames // 8):
                continue  # long windows change slowly
            ratio, ratio_error = self._speed.ratio(frames)
            cost = np.cumsum(ratio * self._speed.reference_ms)
            share = self._mix.exit_share(frames)
            # Speeds alone, with the exits as planned: known better than together with the exits.
            error = SURE * self._speed_error(plan, ratio_error)
            now = float(plan @ cost)
            if abs(now - planned) > planned * TOLERANCE + error:
                return f"frames take {now / planned:.2f} times as long as profiled"
            # Together: the variance of the exits under the plan or as seen, whichever is larger.
            spread = max(float(s @ cost**2 - (s @ cost) ** 2) for s in (share, plan))
            by_chance = np.hypot(
                np.sqrt(max(0.0, spread) / frames), self._speed_error(share, ratio_error)
            )
            now = float(share @ cost)
            if abs(now - planned) > planned * TOLERANCE + SURE * by_chance:
                more = "more" if now > planned else "fewer"
                return (
                    f"{more} images than planned need the later exits: the mean of the last "
                    f"{frames} frames is {now:.3g} ms, planned were {planned:.3g} ms"
                )
            distance, chance = self._mix.distance(frames)
            if frames >= WINDOWS[1] and distance > 0.05 + chance:
                return (
                    f"confidences at exit 1 are spread unlike those of the records (total "
                    f"variation {distance:.2f}, chance gives at most {chance:.2f})"
                )
        return None

    def _speed_error(self, share: Floats, ratio_error: Floats) -> float:
        """Standard error of the mean cost from that of the speeds."""
        reach = np.cumsum(share[::-1])[::-1]
        return float(np.sqrt(((reach * ratio_error * self._speed.reference_ms) ** 2).sum()))

    def _far_off(self, pacer: Pacer) -> str | None:
        """Adapted: why the thresholds should be solved again, or None."""
        first = float(self._speed.usual_ms(WINDOWS[1])[0])
        if not self._feasible:
            return (
                f"leaving at exit 1 takes {first:.3g} ms again"
                if first < self.budget_ms * (1 - TOLERANCE)
                else None
            )
        if first > self.budget_ms * (1 + TOLERANCE):
            return f"leaving at exit 1 takes {first:.3g} ms now"
        for frames, limit in FAR:
            made_up = pacer.made_up(frames)
            if abs(made_up) > limit:
                return (
                    f"latencies or images changed further: the feedback made up for "
                    f"{abs(made_up):.0%} of the budget over the last {frames} frames"
                )
        return None

    def _adapt(self, why: str) -> Change:
        """Solve for what is seen now and pace from here on."""
        cost = self._speed.usual_ms(WINDOWS[0])
        share = self._mix.share(self._mix.steady_frames(WINDOWS[1:]))
        live = resample(self._records, self._mix.record_bin, share, LIVE_RECORDS)
        try:
            thresholds = solve(live, cost, self.budget_ms).thresholds
            self._feasible = True
        except BudgetError:
            thresholds = np.full(live.exits, -np.inf)
            self._feasible = False
        ladder = Ladder(live, thresholds, self._floor)
        found = replay(live, cost, ladder.thresholds[MIDDLE])
        # Accuracy on few records is flat near its top: what is left of the budget is spent there,
        # unless that costs more accuracy than chance explains.
        target = self.budget_ms
        if self._feasible:
            step = highest_step(ladder.exit_share @ cost, target)
            full = replay(live, cost, ladder.thresholds[step])
            error = np.sqrt(found.accuracy * (1 - found.accuracy) / len(live))
            if full.accuracy < found.accuracy - error:
                target = found.cost
        self._pacer = Pacer(ladder, target, cost)
        if not self._feasible:
            after = (
                f"even leaving at exit 1 takes {cost[0]:.3g} ms, over the budget of "
                f"{self.budget_ms:.3g} ms, so everything leaves as early as it may"
            )
        elif found.cost > self.budget_ms * (1 + TOLERANCE):
            after = f"the raised thresholds go before the budget of {self.budget_ms:.3g} ms"
        else:
            after = f"thresholds were solved again for {self.budget_ms:.3g} ms"
        reason = f"{why}; {after}. The certificate does not hold."
        self._dwell = min(2 * self._dwell, MAX_DWELL_FRAMES)
        return self._change(found, reason)

    def _speeds_as_profiled(self) -> bool:
        now = float(self._certified.exit_fraction @ self._speed.usual_ms(SPEED_FRAMES))
        return abs(now / self._certified.cost - 1) < TOLERANCE

    def _images_as_profiled(self, pacer: Pacer) -> bool:
        """Whether confidences at exit 1 are those of the records, and so is what follows."""
        distance, chance = self._mix.distance(STEADY_FRAMES)
        return (
            not np.isfinite(self._floor).any()
            and distance < chance
            and abs(pacer.model_bias()) < TOLERANCE
        )

    def _return(self) -> Change:
        """The certified thresholds again."""
        self._pacer, self._feasible = None, True
        self._steady *= 2
        return self._change(
            self._certified,
            "latencies and images are again as profiled; the certified thresholds are back and "
            "the certificate holds.",
        )

    def _change(self, found: Solution, reason: str) -> Change:
        self._changed = self._frame
        self._mix.forget_exits()
        self.thresholds = tuple(found.thresholds.tolist())
        return Change(self._frame, self.thresholds, reason, certificate_holds=self._pacer is None)
