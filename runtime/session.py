"""What a Runtime does from frame to frame beside running stages: adapt, audit, keep answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from queue import SimpleQueue
from time import perf_counter
from typing import Protocol

import numpy as np

from dvt_edge.bundle.costs import Costs
from dvt_edge.policy import deadline
from dvt_edge.policy.budget import allowed_exits
from dvt_edge.policy.exit_costs import with_audit
from dvt_edge.policy.live.audit import Audit, early_agreement, outcome, raised
from dvt_edge.policy.live.controller import Change, Controller
from dvt_edge.policy.live.promise import Promise, Terms, describe, make_terms
from dvt_edge.policy.live.promise_watch import ADAPTING_FRAMES, BudgetBroken, Look, PromiseWatch
from dvt_edge.policy.live.solving import Plan, Request, solve_again
from dvt_edge.policy.live.video import VideoPolicy, thumbnail
from dvt_edge.policy.records import Records
from dvt_edge.policy.solver import Solution, closed_before
from dvt_edge.policy.targets import Target, find_targets, mean_latency_ms
from dvt_edge.profile import BudgetConfig, ColorOrder
from dvt_edge.runtime.cascade_loop import CascadeLoop, MayStart
from dvt_edge.runtime.events import Event, NotFinite, SolvingFailed
from dvt_edge.runtime.prediction import Prediction

TOLERATED_DISAGREEMENT = 0.02
"""How far the audited agreement may fall below that on the records before thresholds rise."""


AUDITED = "it was audited, which runs all stages"


class RunPrepared(Protocol):
    """:meth:`~dvt_edge.runtime.cascade_loop.CascadeLoop.run_prepared`, or what stands for it."""

    def __call__(
        self,
        thresholds: tuple[float, ...],
        preprocess_ms: float,
        *,
        before_ms: float,
        may_start: MayStart | None,
    ) -> Prediction: ...


def in_background(work: Callable[[], None]) -> None:
    """Run ``work``, which takes some milliseconds, in a thread of its own."""
    threading.Thread(target=work, name="dvt-edge solving", daemon=True).start()


@dataclass(frozen=True)
class _Failed:
    """Solving again failed."""

    request: Request
    error: Exception


class Session:
    """The thresholds in force, and everything in the budget that acts on single frames.

    One per budget, with the ``solution`` that keeps it; used under the Runtime's lock. Without a
    budget the thresholds stay as they are. Adapting and audits never run a stage that the budget
    forbids. ``report`` is called with every event.
    """

    def __init__(
        self,
        records: Records,
        costs: Costs,
        solution: Solution,
        budget: BudgetConfig | None,
        report: Callable[[Event], None],
    ) -> None:
        thresholds: tuple[float, ...] = tuple(solution.thresholds.tolist())
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
        self._solved_again: SimpleQueue[Plan | _Failed] = SimpleQueue()
        self._solving_failed = False
        self._watch: PromiseWatch | None = None
        self._targets: tuple[Target, ...] = ()
        self._terms = Terms("", "", "")
        self._hopeless = False
        """Whether no thresholds keep the mean, so that adapting is not to be waited for."""
        self._learns = False
        self._own_ms = 0.0
        """What the last frame took beside its stages, mostly learning from it, which is part of the
        next one's price."""
        self._answered, self._after_ms = 0.0, 0.0
        """When the last frame's latency was taken (0: it has returned), and what its caller waited
        for after that."""
        if budget is None:
            return
        exits = self._exits = allowed_exits(costs.latency, budget)
        self._all_allowed = tuple(closed_before(len(thresholds), exits - 1).tolist())
        """[K] thresholds with which every stage that the budget allows runs."""
        self._records, allowed = records.first_exits(exits), np.array(thresholds[:exits])
        self._targets = find_targets(costs.exit_costs, budget)
        self._terms = make_terms(
            self._targets,
            budget.min_accuracy,
            solution.certificate,
            costs.paced_fps,
            costs.frame_shape,
        )
        mean_ms = mean_latency_ms(self._targets)
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
        if self._targets:
            planned_ms = float(
                self._records.exit_shares(self._records.exits_taken(allowed))
                @ with_audit(costs.mean_ms[:exits], budget.audit)
            )
            self._watch = PromiseWatch(
                self._targets,
                costs.mean_ms,
                planned_ms,
                adapting=self._controller is not None,
            )
        self._learns = any((self._controller, self._audit, self._watch))

    def classify(
        self,
        loop: CascadeLoop,
        frame: object,
        order: ColorOrder | None,
        preprocess_ms: float | None,
        deadline_ms: float | None,
        waited_ms: float = 0.0,
        run: RunPrepared | None = None,
    ) -> Prediction:
        """Answer one frame by all that is in force; ``preprocess_ms`` where it is prepared.

        ``waited_ms``, for another thread's frame, is part of its latency. ``run`` is called instead
        of the loop's ``run_prepared``, but for video, whose kept answers follow one another; other
        frames may be answered meanwhile.
        """
        limit = self._deadline_ms if deadline_ms is None else deadline_ms
        audit = self._audit is not None and self._audit.due()
        video = None if audit else self._video
        started, look_ms = perf_counter(), 0.0
        before_ms = (preprocess_ms or 0.0) + waited_ms
        if video is not None:
            look = None
            if video.wants_thumbnail:
                look = thumbnail(loop.preprocess.picture(frame, order))
            now = perf_counter()
            look_ms = 1e3 * (now - started)
            reason = video.keep(look, 1e3 * now, look_ms)
            if reason is not None and self._last is not None:
                kept_ms = waited_ms + 1e3 * (perf_counter() - started)
                self._keep_promise(self._last.exit_stage, kept_ms, ran=False)
                return replace(
                    self._last,
                    latency_ms=waited_ms + 1e3 * (perf_counter() - started),
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
        if run is None or self._video is not None:
            run = loop.run_prepared
        answer = run(thresholds, preprocess_ms, before_ms=waited_ms + look_ms, may_start=may_start)
        if audit:
            answer = replace(answer, thresholds=in_force, reason=answer.reason or AUDITED)
        self._learn(answer, audit)
        if self._learns:  # the caller waits for that as well, and the next frame is told
            now = perf_counter()
            took_ms = before_ms + 1e3 * (now - started)
            self._own_ms = took_ms - answer.latency_ms
            answer = replace(answer, latency_ms=took_ms)
            self._answered = now
        if self._video is not None:
            if video is not None and not answer.truncated and isfinite(answer.confidence):
                own_ms = answer.latency_ms - look_ms - waited_ms
                video.observe(answer.class_id, answer.exit_stage, own_ms)
            else:
                self._video.reset()
            self._last = answer
        return answer

    def returns(self) -> None:
        """The answer is about to be returned: what it took since its latency was taken is part of
        the next one's price."""
        answered, self._answered = self._answered, 0.0
        if answered:
            self._after_ms = 1e3 * max(0.0, perf_counter() - answered)

    def look(self) -> Callable[[Sequence[str]], Promise]:
        """How the promise stands at this moment, as a function of what else suspends it.

        The function takes some tenths of a millisecond and may be called without the lock.
        """
        look = Look() if self._watch is None else self._watch.look()
        targets, terms, controller = self._targets, self._terms, self._controller
        agreement = self._audit.agreement if self._audit else None
        certified = self.thresholds == self._solved
        suspended: tuple[str, ...] = ()
        if controller is not None:
            certified = controller.certificate_holds
            if not controller.feasible:
                suspended = ("even leaving at exit 1 takes more than the budget",)
        if controller.held if controller is not None else not certified:
            suspended += ("an audit raised the thresholds, and latency comes second",)

        def promise(also: Sequence[str]) -> Promise:
            return describe(
                look,
                targets,
                terms,
                suspended=(*suspended, *also),
                agreement=agreement,
                certified=certified,
            )

        return promise

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
        took_ms = answer.latency_ms + self._own_ms + self._after_ms
        if self._controller is not None:
            self._install(self._controller)
            change = self._controller.observe(
                answer.exit_stage,
                answer.stage_latency_ms,
                took_ms - answer.regroup_wait_ms,  # which says nothing of a stage's speed
                answer.confidences,
                forced=answer.reason is not None,
            )
            self._follow(change)
        self._keep_promise(answer.exit_stage, took_ms)
        if audit and self._audit is not None and not answer.truncated:
            self._note_audit(self._audit, answer)

    def _keep_promise(self, exit_stage: int, took_ms: float, *, ran: bool = True) -> None:
        if self._watch is None:
            return
        controller = self._controller
        for verdict in self._watch.observe(exit_stage, took_ms, ran=ran):
            self._report(verdict)
            if controller is not None and isinstance(verdict, BudgetBroken):
                self._follow(controller.adapt(verdict.reason))

    def _solve_later(self, request: Request) -> None:
        """Off the thread that classifies; what is found is installed with a later frame."""
        done = self._solved_again

        def work() -> None:
            try:
                done.put(solve_again(request))
            except Exception as error:  # else no one would hear of it, and wait for ever
                done.put(_Failed(request, error))

        try:
            in_background(work)
        except RuntimeError as error:  # no thread can be started
            done.put(_Failed(request, error))

    def _install(self, controller: Controller) -> None:
        """What was solved since the last frame."""
        while not self._solved_again.empty():
            found = self._solved_again.get()
            if isinstance(found, Plan):
                self._solving_failed = False
                self._follow(controller.install(found))
                continue
            controller.abandon(found.request)
            if not self._solving_failed:
                self._solving_failed = True
                error = f"{type(found.error).__name__}: {found.error}"
                why = (
                    f"thresholds could not be solved again ({error}); those in force stay, and it "
                    "will be tried again"
                )
                self._report(SolvingFailed(why))

    def _follow(self, change: Change | None) -> None:
        """Put the controller's thresholds in force, and report a change of its plan."""
        assert self._controller is not None
        self._set(self._controller.thresholds)
        hopeless = not self._controller.feasible
        if self._watch is not None and hopeless != self._hopeless:
            self._hopeless = hopeless
            self._watch.wait(0 if hopeless else ADAPTING_FRAMES)
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
