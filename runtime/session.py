"""What a Runtime does from frame to frame beside running stages: adapt, audit, keep answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isfinite
from time import perf_counter
from typing import TypeAlias

import numpy as np

from dvt_edge.policy import Records, Solution
from dvt_edge.policy.deadline import Deadline, check_deadline
from dvt_edge.policy.live.audit import Audit, AuditEvent, early_agreement, raised
from dvt_edge.policy.live.controller import Change, Controller
from dvt_edge.policy.live.video import VideoPolicy, thumbnail
from dvt_edge.profile import BudgetConfig, ColorOrder
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.measuring.costs import Costs, CostsRefused
from dvt_edge.runtime.prediction import Prediction

TOLERATED_DISAGREEMENT = 0.02
"""How far the audited agreement may fall below that on the records before thresholds rise."""


@dataclass(frozen=True)
class NotFinite:
    """A stage's logits were NaN or infinite; the frame could not leave there."""

    exit_stage: int
    reason: str


Event: TypeAlias = Change | AuditEvent | NotFinite | CostsRefused
"""What a Runtime reports: other thresholds, an audit that failed, a stage that broke down, stored
costs that it does not use."""


class LivePolicy:
    """The thresholds in force, and everything in the budget that acts on single frames.

    One per budget; used under the Runtime's lock. Without a budget the thresholds stay as they
    are. Adapting and audits never run a stage that the budget forbids. ``report`` is called with
    every event.
    """

    def __init__(
        self,
        records: Records,
        costs: Costs,
        solution: Solution,
        budget: BudgetConfig | None,
        report: Callable[[Event], None],
    ) -> None:
        self.thresholds = tuple(float(t) for t in solution.thresholds)
        self._report = report
        self._deadline = Deadline(costs.stage_p99_ms)
        self._deadline_ms = budget.deadline_ms if budget else None
        self._controller: Controller | None = None
        self._audit: Audit | None = None
        self._video: VideoPolicy | None = None
        self._last: Prediction | None = None
        if budget is None:
            return
        exits = self._exits = _allowed_exits(costs, budget)
        self._records, allowed = _first_exits(records, exits), solution.thresholds[:exits]
        if budget.adapt and budget.latency_ms is not None:
            self._controller = Controller(
                self._records, costs.mean_ms[:exits], budget.latency_ms, allowed
            )
        if budget.audit:
            promised = early_agreement(self._records, allowed) - TOLERATED_DISAGREEMENT
            self._audit = Audit(budget.audit, max(0.0, promised))
        if budget.video:
            # Every stage reads the reuse tensors of the one before, so none can be left out; what
            # not asking an exit saves here, two numbers read from memory, is next to nothing.
            self._video = VideoPolicy(costs.mean_ms, np.zeros(len(costs.exits) - 1))

    def classify(
        self,
        loop: CascadeLoop,
        frame: object,
        order: ColorOrder | None,
        deadline_ms: float | None,
    ) -> Prediction:
        """Answer one frame by all that is in force."""
        limit = self._deadline_ms if deadline_ms is None else check_deadline(deadline_ms)
        audit = self._audit is not None and self._audit.due()
        plan, started, look_ms = None, perf_counter(), 0.0
        if self._video is not None and not audit:
            look = thumbnail(loop.picture(frame, order)) if self._video.wants_thumbnail else None
            now = perf_counter()
            look_ms = 1e3 * (now - started)
            plan = self._video.plan(look, 1e3 * now, look_ms)
            if plan.keep_answer and self._last is not None:
                return replace(
                    self._last,
                    latency_ms=1e3 * (perf_counter() - started),
                    preprocess_ms=0.0,
                    stage_latency_ms=(),
                    truncated=False,
                    reason=plan.reason,
                    energy_mj=None,
                )
        answer = loop.run_one(
            frame,
            self.thresholds,
            order,
            deadline=None if limit is None else self._deadline,
            deadline_ms=inf if limit is None else limit,
            slowdown=self._controller.slowdown if self._controller and limit is not None else (),
            audit=self._exits if audit else 0,
            start_stage=plan.start_stage if plan else 1,
            started=started,
        )
        if plan and plan.reason and answer.reason is None and plan.start_stage > 1:
            answer = replace(answer, reason=plan.reason)
        self._learn(answer, audit)
        if self._video is not None:
            if plan and not answer.truncated and isfinite(answer.confidence):
                run_ms = answer.latency_ms - look_ms
                self._video.observe(plan, answer.class_id, answer.exit_stage, run_ms)
            else:
                self._video.reset()
            self._last = answer
        return answer

    def _learn(self, answer: Prediction, audit: bool) -> None:
        for at, confidence in enumerate(answer.confidences):
            if not isfinite(confidence):
                went_on = at + 1 < len(answer.confidences)
                then = "the frame went on" if went_on else "do not rely on the answer"
                self._report(
                    NotFinite(at + 1, f"exit {at + 1} gave logits that are NaN or infinite; {then}")
                )
        if self._controller is not None:
            change = self._controller.observe(
                answer.exit_stage,
                answer.stage_latency_ms,
                answer.latency_ms,
                answer.confidences,
                forced=answer.reason is not None,
            )
            self._set(self._controller.thresholds)
            if change:
                if self._audit is not None:
                    self._audit.restart()
                self._report(change)
        if audit and self._audit is not None and not answer.truncated:
            self._note_audit(self._audit, answer)

    def _note_audit(self, audit: Audit, answer: Prediction) -> None:
        at = next(
            (
                k
                for k, (confidence, threshold) in enumerate(
                    zip(answer.confidences, answer.thresholds, strict=False)
                )
                if confidence >= threshold
            ),
            len(answer.classes) - 1,
        )
        early = at + 1 < len(answer.classes)
        event = audit.note(early, answer.classes[at] == answer.class_id)
        if event is None:
            return
        higher = raised(self._records, self.thresholds[: self._exits], event)
        change = self._controller and self._controller.hold_at_least(higher, event.reason)
        self._set(self._controller.thresholds if self._controller else higher)
        self._report(event)
        if change:
            self._report(change)

    def _set(self, thresholds: tuple[float, ...]) -> None:
        """Put those of the allowed exits in force; what comes after them stays closed."""
        self.thresholds = (*thresholds, *self.thresholds[len(thresholds) :])


def _allowed_exits(costs: Costs, budget: BudgetConfig) -> int:
    """How many exits the budget leaves open, whatever the frames are."""
    exits = min(len(costs.exits), budget.max_stage or len(costs.exits))
    if budget.latency_ms is not None and budget.statistic == "max":
        exits = min(exits, int((costs.latency.exceeding(budget.latency_ms) == 0).sum()))
    return exits


def _first_exits(records: Records, exits: int) -> Records:
    """The records of the first ``exits`` only; what is right stays what it was."""
    label = records.prediction[:, -1] if records.label is None else records.label
    return Records(records.confidence[:, :exits], records.prediction[:, :exits], label)
