"""Without labels: do the early answers still agree with the last exit as often as promised?

A small share of the frames runs all stages. Of those that the thresholds would have let leave
early, one notes whether the early answer is the last exit's. The interval for the true share is
anytime-valid: it may be looked at after every frame, and still the chance that it ever misses,
within one run of a counter, is at most 1 - confidence. It holds all shares p that a beta-binomial
mixture does not refute: mixture likelihood < (1 / delta) x likelihood of p (Robbins, 1970; Howard
et al., Annals of Statistics 49, 2021; a betting confidence sequence after Waudby-Smith and Ramdas,
JRSS B 86, 2024). Frames need not be independent: it is enough that each audited frame agrees with
at least the promised chance, given those before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, lgamma, log

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.live.pacing import STEPS, Ranks
from dvt_edge.policy.records import Records

GOLDEN = (5**0.5 - 1) / 2
CONFIDENCE_LEVEL = 0.95
_COUNTER_LEVEL = 1 - (1 - CONFIDENCE_LEVEL) / 2  # of each of the two counters
LIFT = log(20.0)
"""Logarithm of the odds at which agreement counts as restored; see :meth:`Audit.agrees_again`."""
MAX_LIFT = log(160.0)
MUCH = 3.0
"""So many times the promised disagreement is certainly bad."""


def evenly(count: int, share: float) -> bool:
    """Whether the event number ``count``, from 1, is one of a ``share``, 0..1, of all.

    Multiples of the golden ratio modulo 1 below ``share``: evenly spread over any stretch, in step
    with no period of the scene, the same in every run.
    """
    return (count * GOLDEN) % 1.0 < share


def outcome(
    confidences: Sequence[float], classes: Sequence[int], thresholds: Sequence[float]
) -> tuple[bool, bool]:
    """Of a frame that ran all stages: would ``thresholds`` have let it leave early, and is that
    answer the last exit's? All have one value for each stage that ran."""
    last = len(classes) - 1
    at = next((k for k in range(last) if confidences[k] >= thresholds[k]), last)
    return at < last, classes[at] == classes[last]


@dataclass(frozen=True)
class Agreement:
    """How often early answers were the last exit's, 0..1."""

    agreed: int
    audited: int
    """Early answers that were audited, the base of all shares here."""
    lower: float
    upper: float
    """Anytime-valid interval for the true share; 0 and 1 before the first."""


@dataclass(frozen=True)
class AuditEvent:
    """Early answers agree with the last exit less often than promised."""

    agreement: Agreement
    promised: float
    reason: str


class Audit:
    """Chooses the frames to audit and watches the agreement of early answers with the last exit.

    ``share`` of the frames is audited, 0..1; ``promised`` is the agreement, 0..1, of early answers
    with the last exit, such as :func:`early_agreement` on the records less what is tolerated. Two
    counters run, each starting over after ``window`` audited early answers, staggered by half, so
    that old good answers do not hide a fall for long. While the promise is kept, the chance of an
    event in any ``window`` audited early answers is at most 1 - :data:`CONFIDENCE_LEVEL`, half of
    it for each counter. Memory is a few numbers.
    """

    def __init__(self, share: float, promised: float, *, window: int = 1000) -> None:
        self.share, self.promised, self.window = share, promised, window
        self._frame = 0
        self._bad: float | None = None  # agreement while thresholds had to rise
        self._evidence, self._needed = 0.0, LIFT
        self._lowered = False
        self.restart()

    def restart(self, promised: float | None = None) -> None:
        """Forget the answers so far, because the thresholds changed; what is ``promised`` of the
        new ones, where given."""
        if promised is not None:
            self.promised = promised
        self._counts = [[0, 0], [0, 0]]  # agreed, audited
        self._age = [0, self.window // 2]  # the second counter's first run is a short one

    def due(self) -> bool:
        """Whether the next frame is to be audited, :func:`evenly`; call it once for each frame."""
        self._frame += 1
        return evenly(self._frame, self.share)

    @property
    def frames(self) -> int:
        """Frames that :meth:`due` was asked about."""
        return self._frame

    def note(self, early: bool, agrees: bool) -> AuditEvent | None:
        """Take note of one audited frame; an event where the promise is refuted.

        ``early``: whether the thresholds would have let it leave before the last exit (others
        agree by definition and are not counted); ``agrees``: whether that exit's class is the last
        exit's. After an event the counters start over.
        """
        if not early:
            return None
        for i, count in enumerate(self._counts):
            if self._age[i] >= self.window:
                count[0] = count[1] = self._age[i] = 0
                if self._bad is None:
                    self._needed, self._lowered = LIFT, False
            self._age[i] += 1
            count[0] += agrees
            count[1] += 1
        for agreed, audited in self._counts:
            # The same question as whether the upper bound is below the promise, at less work.
            if agreed < self.promised * audited and _refuted(
                self.promised, agreed, audited, _COUNTER_LEVEL
            ):
                found = _agreement(agreed, audited)
                self._now_bad(agreed / audited)
                self.restart()
                return AuditEvent(
                    found,
                    self.promised,
                    f"{agreed} of {audited} audited early answers agree with the last exit, with "
                    f"certainty less than {found.upper:.1%}, promised were {self.promised:.1%}",
                )
        return None

    def agrees_again(self, early: bool, agrees: bool) -> str | None:
        """After an event: take note of what the thresholds *wanted* would have done on an audited
        frame, those that would be in force had none been raised (:func:`outcome`).

        Returns the reason to lower them again, once. That is when the answers since some moment
        are 20 times as likely if the promise is kept as at the agreement seen when it was broken
        (CUSUM, Page 1954). An event soon after that doubles the odds asked for the next time, up to
        160. Without an event before it, None.
        """
        if self._bad is None or not early:
            return None
        good = min(max(self.promised, 1e-3), 1 - 1e-3)
        bad = max(1e-4, min(self._bad, 1 - MUCH * (1 - good)))
        self._evidence += log(good / bad) if agrees else log((1 - good) / (1 - bad))
        self._evidence = max(0.0, self._evidence)
        if self._evidence < self._needed:
            return None
        self._bad, self._evidence, self._lowered = None, 0.0, True
        self.restart()
        return (
            f"audited answers agree with the last exit again as often as promised, "
            f"{self.promised:.1%}, at the thresholds wanted"
        )

    def _now_bad(self, agreement: float) -> None:
        if self._lowered:  # too early
            self._needed = min(self._needed + log(2), MAX_LIFT)
            self._lowered = False
        self._bad = agreement if self._bad is None else min(self._bad, agreement)
        self._evidence = 0.0

    @property
    def agreement(self) -> Agreement:
        """The counter with more answers, and its interval."""
        agreed, audited = max(self._counts, key=lambda count: count[1])
        return _agreement(agreed, audited)


def _agreement(agreed: int, audited: int) -> Agreement:
    return Agreement(agreed, audited, *agreement_interval(agreed, audited, _COUNTER_LEVEL))


def agreement_interval(agreed: int, audited: int, confidence_level: float) -> tuple[float, float]:
    """Lower and upper bound of the true share, 0..1, valid at every look (see the module)."""
    if not audited:
        return 0.0, 1.0
    centre = agreed / audited
    bounds = []
    for end in (0.0, 1.0):
        inside, outside = centre, end
        if not _refuted(end, agreed, audited, confidence_level):
            inside = end
        else:
            for _ in range(50):
                middle = (inside + outside) / 2
                if _refuted(middle, agreed, audited, confidence_level):
                    outside = middle
                else:
                    inside = middle
        bounds.append(inside)
    return bounds[0], bounds[1]


def early_agreement(records: Records, thresholds: npt.ArrayLike) -> float:
    """Share of the early answers, 0..1, that are the last exit's; 1 where none leaves early."""
    at = records.exits_taken(thresholds)
    early = np.flatnonzero(at < records.exits - 1)
    answers = records.prediction[early, at[early]]
    return float((answers == records.prediction[early, -1]).mean()) if len(early) else 1.0


def raised(records: Records, thresholds: npt.ArrayLike, event: AuditEvent) -> tuple[float, ...]:
    """Higher thresholds [K] that should restore the agreement promised.

    All are moved up by the same rank, as little as makes the disagreement of early answers on the
    records smaller by the factor by which the audited one is too large. None falls, and at least
    one rises unless none leaves early already. A rule of thumb, not a bound: the audit goes on, and
    the next event raises them further, in the end so far that nothing leaves early.
    """
    start = np.array(thresholds, float)
    observed = 1 - event.agreement.agreed / max(1, event.agreement.audited)
    factor = (1 - event.promised) / observed if observed > 0 else 1.0
    wanted = (1 - early_agreement(records, start)) * min(1.0, factor)
    chosen, ranks = start, Ranks(records)
    for shift in STEPS[STEPS > 0]:
        chosen = ranks.shifted(start, float(shift))
        moved = bool((chosen > start).any())
        if moved and 1 - early_agreement(records, chosen) <= wanted:
            break
    return tuple(float(t) for t in np.maximum(chosen, start))


def _refuted(p: float, agreed: int, audited: int, confidence_level: float) -> bool:
    """Whether the mixture is at least 1 / delta times as likely as the share ``p``."""
    missed = audited - agreed
    # Jeffreys' Beta(1/2, 1/2) mixture of all shares.
    mixture = lgamma(agreed + 0.5) + lgamma(missed + 0.5) - lgamma(audited + 1) - 2 * lgamma(0.5)
    if (p <= 0 and agreed) or (p >= 1 and missed):
        likelihood = -inf
    else:
        likelihood = (agreed * log(p) if agreed else 0.0) + (missed * log(1 - p) if missed else 0.0)
    return not isfinite(likelihood) or mixture - likelihood >= -log(1 - confidence_level)
