"""What a Runtime does from frame to frame beside running stages: adapt, audit, keep answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from math import inf, isfinite
from queue import SimpleQueue
from time import perf_counter

import numpy as np

from dvt_edge.bundle.costs import Costs
from dvt_edge.errors import BudgetError
from dvt_edge.policy import deadline
from dvt_edge.policy.budget import allowed_exits
from dvt_edge.policy.live.audit import Audit, early_agreement, outcome, raised
from dvt_edge.policy.live.controller import Change, Controller
from dvt_edge.policy.live.solving import Plan, Request, solve_again
from dvt_edge.policy.live.video import VideoPolicy, thumbnail
from dvt_edge.policy.records import Records
from dvt_edge.policy.solver import closed_before
from dvt_edge.policy.targets import find_targets, mean_latency_ms
from dvt_edge.profile import BudgetConfig, ColorOrder
from dvt_edge.runtime.cascade_loop import CascadeLoop, MayStart
from dvt_edge.runtime.events import Event, NotFinite
from dvt_edge.runtime.prediction import Prediction

TOLERATED_DISAGREEMENT = 0.02
"""How far the audited agreement may fall below that on the records before thresholds rise."""


AUDITED = "it was audited, which runs all stages"


def in_background(work: Callable[[], None]) -> None:
    """Run ``work``, which takes some milliseconds, in a thread of its own."""
    threading.Thread(target=work, name="dvt-edge solving", daemon=True).start()


class Session:
    """The thresholds in force, and everything in the budget that acts on single frames.

    One per budget; used under the Runtime's lock. Without a budget the thresholds stay as they
    are. Adapting and audits never run a stage that the budget forbids. ``report`` is called with
    every event.
    """

    def __init__(
        self,
        records: Records,
        costs: Costs,
        thresholds: tuple[float, ...],
        budget: BudgetConfig | None,
        report: Callable[[Event], None],
    ) -> None:
        self.thresholds = self._solved = thresholds
        self._report = report
        self._stage_p99_ms = costs.stage_p99_ms
        self._deadline_ms = budget.deadline_ms if budget else None
        self._controller: Controller | None = None
        self._audit: Audit | None = None
        self._video: VideoPolicy | None = None
        self.prepares_all = budget is None or not budget.video
        """Whether every frame is prepared: of consecutive ones it is not known before each is
        compared with the last."""
        self._last: Prediction | None = None
        self._solved_again: SimpleQueue[Plan] = SimpleQueue()
        self._learns = False
        self._own_ms = 0.0
        """What learning from the last frame took, which is part of the next one's price."""
        if budget is None:
            return
        exits = self._exits = allowed_exits(costs.latency, budget)
        self._all_allowed = tuple(closed_before(len(thresholds), exits - 1).tolist())
        """[K] thresholds with which every stage that the budget allows runs."""
        self._records, allowed = records.first_exits(exits), np.array(thresholds[:exits])
        mean_ms = mean_latency_ms(find_targets(costs.exit_costs, budget))
        if budget.adapt and mean_ms is not None:
            self._controller = Controller(
                self._records,
                costs.mean_ms[:exits],
                mean_ms,
                allowed,
                audit=budget.audit,
                solve_later=self._solve_later,
            )
        if budget.audit:
            promised = early_agreement(self._records, allowed) - TOLERATED_DISAGREEMENT
            self._audit = Audit(budget.audit, max(0.0, promised))
        if budget.video:
            self._video = VideoPolicy(costs.mean_ms)
        self._learns = self._controller is not None or self._audit is not None

    def classify(
        self,
        loop: CascadeLoop,
        frame: object,
        order: ColorOrder | None,
        preprocess_ms: float | None,
        deadline_ms: float | None,
    ) -> Prediction:
        """Answer one frame by all that is in force; ``preprocess_ms`` where it is prepared."""
        limit = self._deadline_ms if deadline_ms is None else deadline_ms
        if limit is not None and not limit > 0:  # NaN too
            raise BudgetError(
                f"a deadline is a positive number of milliseconds, found {limit}; leave it out to "
                "run without one"
            )
        audit = self._audit is not None and self._audit.due()
        video = None if audit else self._video
        started, look_ms = perf_counter(), 0.0
        before_ms = preprocess_ms or 0.0
        if video is not None:
            look = None
            if video.wants_thumbnail:
                look = thumbnail(loop.preprocess.picture(frame, order))
            now = perf_counter()
            look_ms = 1e3 * (now - started)
            reason = video.keep(look, 1e3 * now, look_ms)
            if reason is not None and self._last is not None:
                return replace(
                    self._last,
                    latency_ms=1e3 * (perf_counter() - started),
                    preprocess_ms=0.0,
                    stage_latency_ms=(),
                    truncated=False,
                    reason=reason,
                    energy_mj=None,
                )
        in_force = self.thresholds
        thresholds = self._all_allowed if audit else in_force
        may_start = None if limit is None else self._within(limit)
        if preprocess_ms is None:
            preprocess_ms = loop.prepare(frame, order)
        answer = loop.run_prepared(
            thresholds, preprocess_ms, before_ms=look_ms, may_start=may_start
        )
        if audit:
            answer = replace(answer, thresholds=in_force, reason=answer.reason or AUDITED)
        learning = perf_counter()
        self._learn(answer, audit)
        if self._learns:  # the caller waits for that as well, and the next frame is told
            now = perf_counter()
            self._own_ms = 1e3 * (now - learning)
            answer = replace(answer, latency_ms=before_ms + 1e3 * (now - started))
        if self._video is not None:
            if video is not None and not answer.truncated and isfinite(answer.confidence):
                video.observe(answer.class_id, answer.exit_stage, answer.latency_ms - look_ms)
            else:
                self._video.reset()
            self._last = answer
        return answer

    def _within(self, limit_ms: float) -> MayStart:
        slowdown = self._controller.slowdown if self._controller else ()
        p99 = self._stage_p99_ms
        return lambda stage, spent_ms: deadline.refused(p99, stage, limit_ms - spent_ms, slowdown)

    def _learn(self, answer: Prediction, audit: bool) -> None:
        for at, confidence in enumerate(answer.confidences):
            if not isfinite(confidence):
                went_on = at + 1 < len(answer.confidences)
                then = "the frame went on" if went_on else "do not rely on the answer"
                self._report(
                    NotFinite(at + 1, f"exit {at + 1} gave logits that are NaN or infinite; {then}")
                )
        if self._controller is not None:
            while not self._solved_again.empty():
                self._follow(self._controller.install(self._solved_again.get()))
            change = self._controller.observe(
                answer.exit_stage,
                answer.stage_latency_ms,
                answer.latency_ms + self._own_ms,
                answer.confidences,
                forced=answer.reason is not None,
            )
            self._follow(change)
        if audit and self._audit is not None and not answer.truncated:
            self._note_audit(self._audit, answer)

    def _solve_later(self, request: Request) -> None:
        """Off the thread that classifies; what is found is installed with a later frame."""
        done = self._solved_again
        in_background(lambda: done.put(solve_again(request)))

    def _follow(self, change: Change | None) -> None:
        """Put the controller's thresholds in force, and report a change of its plan."""
        assert self._controller is not None
        self._set(self._controller.thresholds)
        if change is None:
            return
        if self._audit is not None:
            promised = self._controller.expected_agreement - TOLERATED_DISAGREEMENT
            self._audit.restart(max(0.0, promised))
        self._report(change)

    def _note_audit(self, audit: Audit, answer: Prediction) -> None:
        event = audit.note(*outcome(answer.confidences, answer.classes, answer.thresholds))
        if event is not None:
            higher = raised(self._records, self.thresholds[: self._exits], event)
            self._report(event)
            if self._controller is None:
                self._set(higher)
            else:
                self._follow(self._controller.hold_at_least(higher, event.reason))
            return
        wanted = self._controller.wanted if self._controller else self._solved[: self._exits]
        again = audit.agrees_again(*outcome(answer.confidences, answer.classes, wanted))
        if again is None:
            return
        if self._controller is None:
            self.thresholds = self._solved
            self._report(Change(audit.frames, self.thresholds, again, certificate_holds=True))
        else:
            self._follow(self._controller.lift(again))

    def _set(self, thresholds: tuple[float, ...]) -> None:
        """Put those of the allowed exits in force; what comes after them stays closed.

        Where adapting lets everything leave, a confidence that is NaN still goes on: it reaches no
        threshold but -inf, and no confidence is below 0.
        """
        opened = (
            0.0 if new == -inf < old else new
            for new, old in zip(thresholds, self._solved, strict=False)
        )
        self.thresholds = (*opened, *self.thresholds[len(thresholds) :])
