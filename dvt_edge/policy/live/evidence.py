"""Whether a limit on a mean is exceeded, judged frame by frame without end.

Each frame gives a value that is at most 1 on average while the limit is kept. Somebody who bets a
share of a capital on "more than 1" before every frame cannot expect to become rich while it is
kept, whatever the values' distribution is; so a capital that grew by a factor of a million is
evidence that it is not (testing by betting: Waudby-Smith and Ramdas, JRSS B 86, 2024). The bet is
begun anew whenever the capital falls below its start, as in a CUSUM (Page, 1954): an *e-detector*
(Shin, Ramdas and Rinaldo, New England Journal of Statistics in Data Science 2, 2024), which gives
one false alarm in a million frames at most. Nothing is to be known of exits or spikes. Several bets
run side by side, small ones for small excesses and large ones for large excesses.

That holds for values whose mean, given all before, is at most 1. Speeds wander: a clock, a
neighbour, the scene make frames in a row alike. So each bet pays for the variance that means of
:data:`BATCH` frames have beyond that of as many unrelated frames.

Bets find large excesses soon. What is small but lasts, or comes and goes, is found by looking back:
the mean of the last :data:`WINDOWS` frames is compared with what as many frames may have by chance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil, inf, log, log1p, sqrt
from statistics import fmean, median
from typing import NamedTuple

ENOUGH = log(1e6)
"""Logarithm of the capital that convinces."""
SLACK = 0.01
"""Share of the limit by which the mean may exceed it: what so little takes to prove is too much."""
BATCH = 256
"""Frames whose mean tells how far values wander."""
WANDER = 0.06
"""Variance per frame, in squared limits, that wandering adds, as long as little is known of it: the
demo's on an EPYC, where means of 256 frames scatter by 1.5 %."""
_PRIOR, _MEMORY = 8, 64  # in batches: what WANDER counts for, and how many are remembered
_TRIMMED = 0.62  # mean of the squares of standard normal numbers, without the largest tenth
_LOWEST = -0.9  # no single frame takes all of the capital
WINDOWS = (1024, 2048, 4096)
"""Frames whose mean is judged, whenever a batch is complete."""
OVER, SURE = 1.05, 3.6
"""By how much it must exceed the limit, and by how many standard errors the slack."""
UNSURE = 1.3
"""How far wandering may exceed what was learned of it."""
MOST_CLUSTERED = 0.5
"""Share of the variance by which wandering may excuse values of known chance: frames that are late
together are late."""
CLEARING_FRAMES, CLEARING_MOST = 256, 1024
"""Frames over which a limit that was broken must be kept, at first and when that failed often."""


class Chance(NamedTuple):
    """Of single values whose mean is 1, where these are known."""

    variance: float
    skewness: float


class Stretch(NamedTuple):
    """The last ``frames`` frames and the mean of their values."""

    frames: int
    mean: float


class Evidence:
    """Evidence that values exceed 1 on average; once accepted, that they no longer do.

    ``bets`` are shares of the capital, 0..1; the excess that a bet finds soonest is itself times
    the values' variance. Values are capped at ``highest`` where their wandering is estimated, so
    that single spikes do not pass for it. ``machine`` is evidence on the same frames from which
    what the scene does was taken out: how far that wanders is what chance may give over a window,
    for a scene that is hard for so long is no chance. Without ``chance`` the values tell how they
    scatter.
    """

    def __init__(
        self,
        bets: Sequence[float],
        highest: float = inf,
        *,
        machine: Evidence | None = None,
        chance: Chance | None = None,
    ) -> None:
        self.patience = 0
        """Frames that an excess must last, however large it is."""
        self.broken = False
        """Whether an excess was accepted, and has not been seen to be over."""
        self._bets, self._highest = tuple(bets), highest
        self._machine, self._chance = machine or self, chance
        self._capital = [0.0] * len(self._bets)  # logarithms
        self._from = [(0, 0.0)] * len(self._bets)  # frames and total when each bet was begun
        self._frames, self._total = 0, 0.0
        self._cleared_from, self._needed = (0, 0.0), 0
        self._in_batch = 0
        self._sum = self._squares = 0.0
        self._last_mean: float | None = None
        self._of_means: deque[float] = deque(maxlen=_MEMORY)
        self._of_values: deque[float] = deque(maxlen=_MEMORY)
        self._all_squares = 0.0
        self._ends = deque([(0, 0.0, 0.0)], maxlen=1 + WINDOWS[-1] // BATCH)
        # Frames, their total and their squares' at the ends of batches.
        self._seen_back: Stretch | None = None
        self._pay(WANDER)

    def add(self, value: float) -> bool:
        """One frame; whether there is enough evidence to :meth:`accept`."""
        self._frames += 1
        self._total += value
        self._all_squares += value * value
        self._seen_back = None
        excess = max(_LOWEST, value / (1 + SLACK) - 1)
        capped = min(excess, self._highest)
        self._sum += capped
        self._squares += capped * capped
        self._in_batch += 1
        if self._in_batch == BATCH:
            self._learn_wandering()
        if self.broken:
            self._look_for_the_end()
            return False
        if self._in_batch == 0:
            self._seen_back = self._look_back()
        capital, enough = self._capital, self._seen_back is not None
        for i, bet in enumerate(self._bets):
            before = capital[i]
            if before == 0:
                if excess <= 0:
                    continue
                self._from[i] = self._frames - 1, self._total - value
            now = min(before + log1p(bet * excess) - self._price[i], ENOUGH)
            capital[i] = max(0.0, now)
            if now == ENOUGH and self._frames - self._from[i][0] >= self.patience:
                enough = True
        return enough

    @property
    def since(self) -> Stretch:
        """The frames since the excess began, as far as can be told; ask when it is to be accepted.

        Where several tell, the largest excess of them.
        """
        all_ = zip(self._capital, self._from, strict=True)
        found = [self._since(then) for capital, then in all_ if capital == ENOUGH]
        lasted = [stretch for stretch in found if stretch.frames >= self.patience]
        if self._seen_back is not None:
            lasted.append(self._seen_back)
        return max(lasted, key=lambda stretch: stretch.mean)

    def accept(self) -> Stretch:
        """The limit is broken; returns :attr:`since`."""
        found, self.broken = self.since, True
        self._needed = max(CLEARING_FRAMES, found.frames)
        self._cleared_from = self._frames, self._total
        return found

    def restart(self) -> None:
        """Forget what was seen so far."""
        self._capital = [0.0] * len(self._bets)
        self._ends.clear()
        self._ends.append((self._frames, self._total, self._all_squares))

    @property
    def cleared(self) -> Stretch:
        """The frames that showed that the limit is kept again, right after they did."""
        return self._since(self._cleared_from)

    def _look_for_the_end(self) -> None:
        """What was found in so many frames needs as many frames without it to be over.

        Chance may have helped to find it soon, so every failure asks for more.
        """
        stretch = self._since(self._cleared_from)
        if stretch.frames < self._needed:
            return
        if stretch.mean <= 1 + SLACK:
            self.broken = False
            self.restart()
        else:
            self._cleared_from = self._frames, self._total
            self._needed = max(self._needed, min(2 * self._needed, CLEARING_MOST))

    def _since(self, then: tuple[int, float]) -> Stretch:
        frames = self._frames - then[0]
        return Stretch(frames, (self._total - then[1]) / max(1, frames))

    def _look_back(self) -> Stretch | None:
        """The shortest window in which the mean is too high for chance."""
        now = self._frames, self._total, self._all_squares
        self._ends.append(now)
        for window in WINDOWS:
            batches = window // BATCH
            if batches >= len(self._ends):
                break
            frames, total, squares = (
                a - b for a, b in zip(now, self._ends[-1 - batches], strict=True)
            )
            mean = total / frames
            if frames < self.patience or mean <= OVER:
                continue
            variance, sure = squares / frames - mean * mean, SURE
            wander = UNSURE * self._machine._wander
            if self._chance is not None:
                variance = self._chance.variance
                wander = min(wander, MOST_CLUSTERED * variance)
                # Of few rare values, many come together more often (Cornish and Fisher).
                sure += (SURE**2 - 1) / 6 * self._chance.skewness / sqrt(frames)
            if mean - 1 - SLACK > sure * sqrt((variance + wander) / frames):
                return Stretch(int(frames), mean)
        return None

    def _learn_wandering(self) -> None:
        """From one batch to the next, without the largest tenth: what begins or ends to be slow is
        a step, and no wandering."""
        mean = self._sum / BATCH
        if self._last_mean is not None:
            self._of_means.append(BATCH * (mean - self._last_mean) ** 2 / 2)
            self._of_values.append(self._squares / BATCH - mean * mean)
            seen = len(self._of_means)
            kept = sorted(self._of_means)[: seen - ceil(seen / 10)] or self._of_means
            alone = median(self._of_values)
            if self._chance is not None:
                alone = max(alone, self._chance.variance)
            beyond = fmean(kept) / _TRIMMED - alone
            self._pay(max(0.0, (_PRIOR * WANDER + seen * beyond) / (_PRIOR + seen)))
        self._last_mean = mean
        self._sum = self._squares = 0.0
        self._in_batch = 0

    def _pay(self, wander: float) -> None:
        self._wander = wander
        # By so much a bet's capital would grow in the mean for nothing but wandering.
        self._price = [bet * bet * wander / 2 for bet in self._bets]
