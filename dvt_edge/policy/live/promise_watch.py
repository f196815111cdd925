"""Watches every limit of a budget while frames come: is it kept?

Each limit is a series of values whose mean is at most 1 while it is kept, and one
:class:`~dvt_edge.policy.live.evidence.Evidence` that it is not: a mean latency or energy in limits;
for a percentile, whether a frame took longer than the limit, over the share that may. A breach by
slowness hides in the exits: which exit a frame takes varies far more than how long it takes there.
So a mean latency has a second series, in which the frame's exit counts for what it costs on
average, and only the difference to that for what was seen (a control variate).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.live.evidence import WINDOWS, Chance, Evidence, Stretch
from dvt_edge.policy.live.tracking import HALT
from dvt_edge.policy.statistic import PERCENTILES, TAIL_SHARE
from dvt_edge.policy.targets import Target, mean_latency_ms

MEASURED_FRAMES = 1024
"""Frames that are shown one by one."""
QUIET_FRAMES = 1000
"""Frames without one that breaks a maximum after which it is kept again."""
ADAPTING_FRAMES = 1024
"""Frames that the mean must be over its limit while thresholds are moved to keep it."""
SPREAD_BETS = (0.03, 0.1, 0.3, 1.0)
"""For means over exits that differ, whose variance is about the limit's square."""
SPEED_BETS = (0.1, 0.3, 1.0)
RARE_BETS = (0.3, 1.0, 3.0)
"""Times the share of the frames that may be late."""
HIGHEST = 3.0
"""In limits; see :class:`~dvt_edge.policy.live.evidence.Evidence`."""
MIX_FRAMES = 4096.0
"""Frames over which the mix of exits is learned."""
_MIX_PRIOR = 1024.0  # frames that the planned mix counts for
_NEXT_LOOK = 32  # frames


@dataclass(frozen=True)
class BudgetBroken:
    """The evidence says that a statistic exceeds its limit."""

    frame: int
    """Number of the frame, from 1, that completed the evidence."""
    measured: float
    """The statistic since it is exceeded, in the limit's unit."""
    limit: float
    """In milliseconds or millijoules."""
    reason: str


@dataclass(frozen=True)
class BudgetKept:
    """A limit that was broken is kept again."""

    frame: int
    measured: float
    limit: float
    reason: str


Verdict = BudgetBroken | BudgetKept


@dataclass(frozen=True)
class Look:
    """What a watch knows at one moment; nothing in it changes later."""

    frames: int = 0
    latencies_ms: Sequence[float] = ()
    exits: Sequence[int] = ()
    """From 0; -1 for an answer that was kept."""
    broken: Sequence[tuple[int, str]] = ()
    """Frame since when, and why, of every limit that is broken."""


class PromiseWatch:
    """Watches the limits of a budget; some microseconds per frame.

    ``cost_ms`` [K] is the mean latency of leaving at each exit as measured, ``planned_ms`` that of
    all frames with the exits as planned, audited frames included. With ``adapting``, thresholds are
    moved to keep the mean latency, and it must be over its limit for :data:`ADAPTING_FRAMES`.
    Of several limits on the mean latency the lowest is watched. Not safe to use from several
    threads at once.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        cost_ms: npt.ArrayLike,
        planned_ms: float,
        *,
        adapting: bool = False,
    ) -> None:
        self.targets = tuple(targets)
        self._frame = 0
        self._latencies: deque[float] = deque(maxlen=WINDOWS[-1])
        self._exits: deque[int] = deque(maxlen=MEASURED_FRAMES)
        of_latency = [target.most for target in targets if target.of_latency]
        self._longest_ms = HALT * min(of_latency, default=inf)
        self._judges: list[_Judge] = []
        least = mean_latency_ms(self.targets)
        for target in self.targets:
            if target.statistic == "max":
                self._judges.append(_Longest(target))
            elif target.statistic != "mean":
                self._judges.append(_Percentile(target, self._latencies))
            elif not target.of_latency:
                self._judges.append(_MeanEnergy(target))
            elif target.most == least:
                mix = None if adapting else _Mix(cost_ms, planned_ms)
                self._judges.append(_MeanLatency(target, self._latencies, mix))
                least = None
        if adapting:
            self.wait(ADAPTING_FRAMES)

    def wait(self, frames: int) -> None:
        """Call nothing broken before it has been so for ``frames``."""
        for judge in self._judges:
            judge.evidence.patience = frames

    def observe(self, exit_stage: int, latency_ms: float, *, ran: bool = True) -> list[Verdict]:
        """One frame: the exit that answered, from 1, and all that the budget covers; what is
        different now.

        ``ran``: whether any stage did, or an answer was kept. Latencies that are not finite or not
        positive say nothing; longer ones than
        :data:`~dvt_edge.policy.live.tracking.HALT` limits count as that.
        """
        self._frame += 1
        if not 0 < latency_ms < inf:
            return []
        latency_ms = min(float(latency_ms), self._longest_ms)
        at = exit_stage - 1 if ran else -1
        self._latencies.append(latency_ms)
        self._exits.append(at)
        found = []
        for judge in self._judges:
            verdict = judge.add(self._frame, at, latency_ms)
            if verdict is not None:
                found.append(verdict)
        return found

    def look(self) -> Look:
        broken = [(judge.since, judge.why) for judge in self._judges if judge.broken]
        latencies_ms = tuple(self._latencies)[-MEASURED_FRAMES:]
        return Look(self._frame, latencies_ms, tuple(self._exits), tuple(broken))


class _Judge(ABC):
    """One limit that is watched."""

    def __init__(
        self,
        target: Target,
        bets: Sequence[float],
        highest: float = inf,
        *,
        machine: Evidence | None = None,
        chance: Chance | None = None,
    ) -> None:
        self.target = target
        self.evidence = Evidence(bets, highest, machine=machine, chance=chance)
        self.since, self.why = 0, ""

    @property
    def broken(self) -> bool:
        return self.evidence.broken

    @abstractmethod
    def add(self, frame: int, at: int, latency_ms: float) -> Verdict | None:
        """``at``: the exit from 0, or -1 for an answer that was kept."""

    def _judge(self, frame: int, value: float) -> Verdict | None:
        evidence = self.evidence
        was = evidence.broken
        if evidence.add(value):
            return self._now_broken(frame, evidence.accept())
        return self._now_kept(frame, evidence.cleared) if was and not evidence.broken else None

    def _now_broken(self, frame: int, stretch: Stretch) -> BudgetBroken:
        measured, why = self._say(stretch)
        return self._broken(frame, stretch.frames, measured, f"{why}, over the limit of {self}")

    def _now_kept(self, frame: int, stretch: Stretch) -> BudgetKept:
        measured, why = self._say(stretch)
        return self._kept(frame, measured, f"{why}, within the limit of {self} again")

    def _broken(self, frame: int, frames: int, measured: float, why: str) -> BudgetBroken:
        self.since, self.why = frame - frames + 1, why
        return BudgetBroken(frame, measured, self.target.most, why)

    def _kept(self, frame: int, measured: float, why: str) -> BudgetKept:
        return BudgetKept(frame, measured, self.target.most, why)

    def _say(self, stretch: Stretch) -> tuple[float, str]:
        measured, target = stretch.mean * self.target.most, self.target
        said = f"{measured:.4g} {target.unit}"
        return measured, f"the {target.what} of the last {stretch.frames} frames is {said}"

    def __str__(self) -> str:
        return f"{self.target.most:.4g} {self.target.unit}"


class _MeanEnergy(_Judge):
    """From the exits taken; what keeping an answer takes was not measured, and is left out."""

    def __init__(self, target: Target) -> None:
        super().__init__(target, SPREAD_BETS, HIGHEST)
        self._values: list[float] = (target.cost / target.most).tolist()

    def add(self, frame: int, at: int, latency_ms: float) -> Verdict | None:
        return self._judge(frame, self._values[at]) if at >= 0 else None


class _Percentile(_Judge):
    def __init__(self, target: Target, latencies_ms: deque[float]) -> None:
        share = self._share = TAIL_SHARE[target.statistic]
        # Of 1 / share where a frame is late, and 0 where it is not.
        chance = Chance((1 - share) / share, (1 - 2 * share) / sqrt(share * (1 - share)))
        super().__init__(target, [min(1.0, bet * share) for bet in RARE_BETS], chance=chance)
        self._latencies = latencies_ms

    def add(self, frame: int, at: int, latency_ms: float) -> Verdict | None:
        return self._judge(frame, (latency_ms > self.target.most) / self._share)

    def _say(self, stretch: Stretch) -> tuple[float, str]:
        seen = np.array(self._latencies)[-stretch.frames :]
        share = f"{stretch.mean * self._share:.2%} of the last {stretch.frames} frames"
        measured = float(np.percentile(seen, PERCENTILES[self.target.statistic]))
        return measured, f"{share} took longer than {self}, {self._share:.0%} may"

    def _now_broken(self, frame: int, stretch: Stretch) -> BudgetBroken:
        return self._broken(frame, stretch.frames, *self._say(stretch))

    def _now_kept(self, frame: int, stretch: Stretch) -> BudgetKept:
        measured, why = self._say(stretch)
        return self._kept(frame, measured, f"{why}: the {self.target.what} is kept again")


class _Longest(_Judge):
    """One frame beyond a maximum breaks it."""

    def __init__(self, target: Target) -> None:
        super().__init__(target, ())
        self._last = -QUIET_FRAMES
        self._broken_now = False

    @property
    def broken(self) -> bool:
        return self._broken_now

    def add(self, frame: int, at: int, latency_ms: float) -> Verdict | None:
        if latency_ms > self.target.most:
            self._last = frame
            if self._broken_now:
                return None
            self._broken_now = True
            why = f"a frame took {latency_ms:.4g} ms, over the maximum of {self}"
            return self._broken(frame, 1, latency_ms, why)
        if not self._broken_now or frame - self._last < QUIET_FRAMES:
            return None
        self._broken_now = False
        why = f"no frame of the last {QUIET_FRAMES} took longer than the maximum of {self}"
        return self._kept(frame, latency_ms, why)


class _Mix:
    """What the exits would cost on average if frames were as fast as measured."""

    def __init__(self, cost_ms: npt.ArrayLike, planned_ms: float) -> None:
        self._planned_ms = self.mean_ms = planned_ms
        self._cost_ms: list[float] = np.asarray(cost_ms, float).tolist()
        self._seen_ms, self._frames = 0.0, 0.0

    def adjusted_ms(self, at: int, latency_ms: float) -> float:
        """The latency of a frame at exit ``at``, from 0, with the exit's cost replaced."""
        if at < 0:  # kept: no exit of the plan
            return latency_ms
        cost = self._cost_ms[at]
        self._frames = min(self._frames + 1, MIX_FRAMES)
        self._seen_ms += (cost - self._seen_ms) / self._frames
        # Where frames are easier than planned, slowness may cost that much. Where they are harder,
        # the other series tells: this one would take chance for it.
        known = _MIX_PRIOR * self._planned_ms + self._frames * self._seen_ms
        self.mean_ms = min(self._planned_ms, known / (_MIX_PRIOR + self._frames))
        return latency_ms - cost + self.mean_ms


class _MeanLatency(_Judge):
    def __init__(self, target: Target, latencies_ms: deque[float], mix: _Mix | None) -> None:
        self._speed = Evidence(SPEED_BETS, HIGHEST)
        machine = None if mix is None else self._speed
        super().__init__(target, SPREAD_BETS, HIGHEST, machine=machine)
        self._latencies, self._mix = latencies_ms, mix
        self._next_look = 0

    @property
    def broken(self) -> bool:
        return self.evidence.broken or self._speed.broken

    def add(self, frame: int, at: int, latency_ms: float) -> Verdict | None:
        """What the two series say; which of them is first speaks until it is over, for slowness
        shows in both, and in the mean of all frames for long."""
        overall, speed = self.evidence, self._speed
        was = self.broken
        value = latency_ms / self.target.most
        verdict = None
        if speed.broken:
            overall.add(value)
        else:
            verdict = self._judge(frame, value)
        if self._mix is not None:
            adjusted = self._mix.adjusted_ms(at, latency_ms) / self.target.most
            if overall.broken:
                speed.add(adjusted)
            else:
                verdict = self._judge_speed(frame, adjusted) or verdict
        if was and not self.broken:
            overall.restart()
            speed.restart()
        return verdict

    def _judge_speed(self, frame: int, adjusted: float) -> Verdict | None:
        """Whether frames are too slow for the exits planned."""
        speed, most = self._speed, self.target.most
        was = speed.broken
        if speed.add(adjusted):
            if frame < self._next_look:
                return None
            self._next_look = frame + _NEXT_LOOK
            frames = speed.since.frames
            seen = float(np.array(self._latencies)[-frames:].mean())
            if seen <= most:  # frames are easier than planned, at least of late
                return None
            planned = self._planned(speed.accept())
            why = f"frames take longer than measured: {planned}, over the limit of {self}"
            return self._broken(frame, frames, seen, why)
        if not was or speed.broken:
            return None
        why = f"frames are fast enough: {self._planned(speed.cleared)}, within the limit of {self}"
        return self._kept(frame, speed.cleared.mean * most, f"{why} again")

    def _planned(self, stretch: Stretch) -> str:
        mean = f"{stretch.mean * self.target.most:.4g} {self.target.unit}"
        frames = f"the last {stretch.frames} frames"
        return f"with the exits as planned, the {self.target.what} of {frames} is {mean}"
