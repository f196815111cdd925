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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.exit_costs import with_audit
from dvt_edge.policy.live.audit import GOLDEN, early_agreement
from dvt_edge.policy.live.drift import CHECK_FRAMES, TOLERANCE, UNLIKE, WINDOWS, Drift
from dvt_edge.policy.live.pacing import Pacer
from dvt_edge.policy.live.solving import Plan, Request, solve_again
from dvt_edge.policy.live.tracking import MixTracker, SpeedTracker
from dvt_edge.policy.records import Records
from dvt_edge.policy.solver import Solution, replay

DWELL_FRAMES = 64
"""Least number of frames between two changes, at first; it doubles with every change up to
:data:`MAX_DWELL_FRAMES` and halves again in quiet."""
MAX_DWELL_FRAMES = 1024
QUIET_DWELLS = 4
STEADY_FRAMES = 1024
"""Frames as profiled after which the certified thresholds return; doubles with every return."""
STRANGE_FRAMES = 256
"""Frames whose speed says whether it is the profiled one."""
RETURN = 2 / 3
"""Share of the tolerance that the certified thresholds must keep to return: hysteresis."""
FAR = ((64, 0.5), (256, 0.25), (1024, 0.12))
"""Frames, and the share of the budget that the feedback may make up for on their mean before the
thresholds are solved again."""


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
    of the certified solution. ``audit`` is the share of the frames, 0..1, that runs all stages
    whatever the thresholds say; the mean is kept with them included. Times are handed in; memory is
    bounded (about 120 kB and the records). Not safe to use from several threads at once.

        controller = Controller(records, costs, 5, solve(records, costs, 5).thresholds)
        for frame in frames:
            p = run(frame, controller.thresholds)
            change = controller.observe(
                p.exit_stage, p.stage_latency_ms, p.latency_ms, p.confidences
            )

    Solving takes milliseconds. With ``solve_later``, :meth:`observe` hands every
    :class:`~dvt_edge.policy.live.solving.Request` to it and goes on; let another thread call
    :func:`~dvt_edge.policy.live.solving.solve_again` and give the result to :meth:`install`, where
    no ``observe`` runs at the same time. Without it, everything happens in ``observe``.

    The promise is about mean latency, spikes included; what a single spike costs is made up for
    over some hundred frames. Raises :class:`~dvt_edge.errors.DataError` for costs or thresholds
    that do not fit the records.
    """

    def __init__(
        self,
        records: Records,
        costs: npt.ArrayLike,
        budget_ms: float,
        thresholds: npt.ArrayLike,
        *,
        audit: float = 0.0,
        solve_later: Callable[[Request], None] | None = None,
    ) -> None:
        self.budget_ms, self.audit = budget_ms, audit
        self._records, self._solve_later = records, solve_later
        self._certified = replay(records, costs, thresholds)
        self._agreement = early_agreement(records, thresholds)
        self._speed = SpeedTracker(np.diff(np.asarray(costs, float), prepend=0.0))
        self._mix = MixTracker(records)
        self._drift = Drift(self._certified, self._speed, self._mix)
        self._exits_by_bin = self._mix.exits_by_bin(records.exits_taken(thresholds))
        self._floor = np.full(records.exits, -np.inf)
        self._frame = self._changed = self._strange = self._cut = 0
        self._dwell, self._steady = DWELL_FRAMES, STEADY_FRAMES
        self._requests, self._pending = 0, False
        self._feasible, self._failed = True, ""
        self._plan: Plan | None = None
        self._pacer: Pacer | None = None
        self._cost_ms: list[float] = np.asarray(costs, float).tolist()
        with_audits = float(self._certified.exit_fraction @ with_audit(costs, audit))
        self._unplanned = ""
        if with_audits > budget_ms * (1 + TOLERANCE):
            self._unplanned = (
                f"with {audit:.3g} of the frames audited the mean is {with_audits:.3g} ms"
            )
        self.thresholds: tuple[float, ...] = tuple(self._certified.thresholds.tolist())
        """[K]: for the next frame."""

    @property
    def slowdown(self) -> tuple[float, ...]:
        """[K]: latency of each stage over the last frames relative to the profiled one."""
        return tuple(self._speed.ratio(WINDOWS[0])[0])

    @property
    def wanted(self) -> tuple[float, ...]:
        """[K]: what would be in force now had no audit raised thresholds."""
        return self._plan.wanted if self._plan else tuple(self._certified.thresholds.tolist())

    @property
    def feasible(self) -> bool:
        """False while even leaving at exit 1 costs more than the budget."""
        return self._feasible

    @property
    def held(self) -> bool:
        """Whether thresholds are held up, and latency comes second: :meth:`hold_at_least`."""
        return bool((self._floor > -np.inf).any())

    @property
    def certificate_holds(self) -> bool:
        """Whether the thresholds chosen offline are in force."""
        certified: tuple[float, ...] = tuple(self._certified.thresholds.tolist())
        return self._plan is None and self.thresholds == certified

    @property
    def expected_agreement(self) -> float:
        """Share, 0..1, of early answers that the records expect to be the last exit's, for the
        thresholds and images of now: what an audit can ask for."""
        return self._plan.agreement if self._plan else self._agreement

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
        leave: an audited frame, or one that a deadline cut short. Do not call it for answers that
        ran no stage. Latencies that are not finite or not positive are ignored.
        """
        self._frame += 1
        body, tail = self._speed.add(latency_ms, stage_latency_ms)
        at = exit_stage - 1
        if forced:
            at = self._would_leave(confidences)
            if at >= len(stage_latency_ms):
                # Cut short, and no cheaper for that: taken as cheap, thresholds would rise and more
                # frames be cut, without end.
                body = max(body, self._cost_ms[at])
        self._mix.add(float(confidences[0]), at)
        check = self._frame % CHECK_FRAMES == 0
        if self._pacer is not None:
            if 0 < latency_ms < inf:
                self._pacer.spend(body, tail)
            if check:
                self._reprice(self._pacer)
            if self._feasible:
                self.thresholds = self._pacer.choose()
        return self._check() if check and not self._pending else None

    def hold_at_least(self, thresholds: npt.ArrayLike, reason: str) -> Change:
        """Do not go below ``thresholds`` [K], as after an audit, until :meth:`lift`; latency comes
        second then. They rise at once; ``reason`` goes into the change."""
        self._floor = np.maximum(self._floor, thresholds)
        self._floor[-1] = -np.inf
        change = self._adapt(reason)
        if change is None:
            raised = tuple(np.maximum(self.thresholds, self._floor).tolist())
            if self._pacer is not None:
                self._pacer.hold(self._floor)
            self.thresholds = raised
            change = Change(self._frame, raised, f"{reason}; thresholds were raised.", False)
        return change

    def lift(self, reason: str) -> Change | None:
        """Undo every :meth:`hold_at_least`, as when audits agree again.

        The change, or None where it comes with :meth:`install` or nothing was held.
        """
        if not self.held:
            return None
        self._floor = np.full(len(self._floor), -np.inf)
        return self._adapt(reason)

    def adapt(self, reason: str) -> Change | None:
        """Solve for what is seen now although no check found cause, because the mean is over its
        limit; nothing where that was done before or is under way."""
        if self._plan is not None or self._pending:
            return None
        return self._adapt(reason)

    def abandon(self, request: Request) -> None:
        """``request`` will not be answered: go on with what is in force, and ask again later."""
        if not self._pending or request.number != self._requests:
            return
        self._pending, self._failed = False, request.why
        self._changed = self._frame
        self._dwell = min(2 * self._dwell, MAX_DWELL_FRAMES)

    def install(self, plan: Plan) -> Change | None:
        """Put what :func:`~dvt_edge.policy.live.solving.solve_again` found in force.

        None where it answers another request than the last; then nothing happens.
        """
        request = plan.request
        if not self._pending or request.number != self._requests:
            return None
        self._pending = False
        self._plan, before = plan, self._pacer
        if before is not None and not self._feasible:
            before = None  # what could not be kept is not made up for
        cost = with_audit(request.cost_ms, self.audit)
        self._pacer = Pacer(plan.ladder, self.budget_ms, cost, before)
        budget = f"{self.budget_ms:.3g} ms"
        self._feasible = plan.feasible
        if not plan.feasible:
            after = (
                f"even leaving at exit 1 takes {cost[0]:.3g} ms, over the budget of {budget}, so "
                f"everything leaves as early as it may"
            )
        elif plan.found.cost > self.budget_ms * (1 + TOLERANCE):
            after = f"the raised thresholds go before the budget of {budget}"
        else:
            after = f"thresholds were solved again for {budget}"
        self._dwell = min(2 * self._dwell, MAX_DWELL_FRAMES)
        return self._change(plan.found, f"{request.why}; {after}. The certificate does not hold.")

    def _would_leave(self, confidences: Sequence[float]) -> int:
        """The exit, from 0, at which a forced frame would have left by the thresholds.

        Of a frame cut short before that, one of the later exits, as often as planned.
        """
        last = len(self.thresholds) - 1
        for at, confidence in enumerate(confidences[:last]):
            if confidence >= self.thresholds[at]:
                return at
        ran = len(confidences)
        if ran > last:
            return last
        shares = (self._plan.found if self._plan else self._certified).exit_fraction[ran:].tolist()
        self._cut += 1
        point = (self._cut * GOLDEN) % 1.0 * sum(shares)
        for at, share in enumerate(shares, ran):
            point -= share
            if point < 0:
                return at
        return ran

    def _reprice(self, pacer: Pacer) -> None:
        cost = with_audit(self._speed.mean_ms(WINDOWS[0]), self.audit)
        self._cost_ms = cost.tolist()
        pacer.reprice(cost)

    def _check(self) -> Change | None:
        waited = self._frame - self._changed
        if self._failed:
            return self._adapt(self._failed) if waited >= self._dwell else None
        if self._pacer is None or self._plan is None:
            ready = waited >= DWELL_FRAMES or not self._changed
            why = (self._unplanned or self._drift.reason(self._frame, waited)) if ready else None
            return self._adapt(why) if why else None
        if not self._speeds_as_profiled():
            self._strange = self._frame
        if self._frame - max(self._strange, self._changed) >= self._steady and (
            self._images_as_profiled(self._pacer)
        ):
            return self._return()
        if waited < self._dwell:
            return None
        why = self._far_off(self._pacer, self._plan, waited)
        if why:
            return self._adapt(why)
        if waited >= QUIET_DWELLS * self._dwell:
            self._dwell = max(DWELL_FRAMES, self._dwell // 2)
        return None

    def _far_off(self, pacer: Pacer, plan: Plan, waited: int) -> str | None:
        """Adapted: why the thresholds should be solved again, or None."""
        cost = with_audit(self._speed.mean_ms(WINDOWS[1]), self.audit)
        first = float(cost[0])
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
        # The mix solved for counts as exact: where few frames told it, more tell it better.
        for frames in WINDOWS[1:]:
            if frames > waited or self._frame % max(CHECK_FRAMES, frames // 8):
                continue
            distance, chance = self._mix.distance(frames, plan.request.share)
            if distance > UNLIKE + chance:
                return (
                    f"images are unlike those that the thresholds were solved for (total variation "
                    f"{distance:.2f} of the confidences at exit 1)"
                )
        return None

    def _adapt(self, why: str) -> Change | None:
        """Solve for what is seen now; the change, or None where it comes later."""
        self._requests += 1
        self._pending, self._failed = True, ""
        request = Request(
            self._requests,
            why,
            self._records,
            self._mix.record_bin,
            self._mix.share(self._mix.steady_frames(WINDOWS[1:])),
            self._speed.mean_ms(WINDOWS[0]),
            self._floor,  # replaced as a whole, never written to
            self.audit,
            self.budget_ms,
        )
        if self._solve_later is None:
            return self.install(solve_again(request))
        self._solve_later(request)
        return None

    def _speeds_as_profiled(self) -> bool:
        now = float(self._certified.exit_fraction @ self._speed.mean_ms(STRANGE_FRAMES))
        return abs(now / self._certified.cost - 1) < TOLERANCE

    def _images_as_profiled(self, pacer: Pacer) -> bool:
        """Whether confidences at exit 1 are those of the records, and so is what follows."""
        waited = self._frame - self._changed
        distance, chance = self._mix.distance(STEADY_FRAMES)
        # What the certified thresholds would cost now: else they would soon be left again.
        exits = self._mix.share(waited) @ self._exits_by_bin
        cost = float(exits @ self._speed.mean_ms(STRANGE_FRAMES))
        return (
            not self._unplanned
            and not self.held
            and distance < chance
            and abs(pacer.model_bias()) < TOLERANCE
            and abs(cost / self._certified.cost - 1) < TOLERANCE * RETURN
        )

    def _return(self) -> Change:
        """The certified thresholds again."""
        self._plan, self._pacer, self._feasible = None, None, True
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
