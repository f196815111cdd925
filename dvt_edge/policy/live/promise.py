"""What is promised, what is measured, and how the promise stands, in figures and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Literal

import numpy as np

from dvt_edge.policy.live.audit import Agreement
from dvt_edge.policy.live.promise_watch import Look
from dvt_edge.policy.records import Floats
from dvt_edge.policy.solver import Certificate
from dvt_edge.policy.statistic import PERCENTILES
from dvt_edge.policy.targets import Target

State = Literal["HOLDS", "BROKEN", "SUSPENDED", "UNKNOWN"]

FEW_FRAMES = 128
"""Frames, and audited early answers, below which nothing is said."""


@dataclass(frozen=True)
class Measured:
    """What the last frames say about one limit, in its unit."""

    target: Target
    measured: float
    """The statistic over the frames."""
    low: float
    high: float
    """95 % confidence interval; infinite where frames are too few for a bound. Of a maximum, both
    are the longest frame."""
    frames: int

    @property
    def interval(self) -> str:
        if self.low == self.high:
            return ""
        if self.high == inf:
            return f" ({self.low:.3g} or more)"
        return f" ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Promise:
    """What is promised of the frames to come, and how it stands; see ``docs/budgets.md``."""

    state: State
    """``HOLDS``: measured, and nothing speaks against it. ``BROKEN``: the evidence does.
    ``SUSPENDED``: what it rests on is not given, and it is not refuted. ``UNKNOWN``: too little was
    seen, or nothing that could be."""
    sentence: str
    """All of this for people."""
    why: str
    """The reason for the state; empty where it holds."""
    since: int | None
    """Where broken: number of the frame, from 1, since about when."""
    measured: tuple[Measured, ...]
    """One for each limit, in the budget's order; none before :data:`FEW_FRAMES`."""
    agreement: Agreement | None
    """Of audited early answers with the last exit, where the budget audits."""
    frames: int
    """Frames answered under this budget."""


@dataclass(frozen=True)
class Terms:
    """What is promised, in words."""

    limits: str
    """``mean latency of 1.5 ms``; empty where nothing is."""
    certified: str
    """``with probability 0.95 from 1000 records``; empty without a certificate."""
    conditions: str
    """Pace and size of the frames that costs were measured with."""


def make_terms(
    targets: Sequence[Target],
    min_accuracy: float | None,
    certificate: Certificate | None,
    fps: float | None,
    frame_shape: tuple[int, int],
) -> Terms:
    """``frame_shape`` is height and width in pixels, ``fps`` None for back to back."""
    limits = [str(target) for target in targets]
    if min_accuracy is not None:
        limits.append(f"accuracy of at least {min_accuracy:g} on the calibration images")
    certified = ""
    if certificate is not None:
        groups = "" if certificate.groups is None else f" in {certificate.groups} groups"
        certified = (
            f"with probability {1 - certificate.delta:g} from {certificate.n} records{groups}"
        )
    pace = "back to back" if fps is None else f"at {fps:g} fps"
    height, width = frame_shape
    return Terms(" and ".join(limits), certified, f"{pace} with frames of {width}x{height}")


def describe(
    look: Look,
    targets: Sequence[Target],
    terms: Terms,
    *,
    suspended: Sequence[str] = (),
    agreement: Agreement | None = None,
    certified: bool = True,
) -> Promise:
    """The promise at the moment of ``look``.

    ``suspended``: everything that it rests on and that is not given. ``certified``: whether the
    certificate speaks about the thresholds in force.
    """
    measured = tuple(found for target in targets if (found := measure(target, look)) is not None)
    state: State
    if look.broken:
        state, why = "BROKEN", "; ".join(reason for _, reason in look.broken)
    elif not terms.limits:
        state, why = "UNKNOWN", "the budget has no limit that can be measured"
    elif suspended:
        state, why = "SUSPENDED", "; ".join(suspended)
    else:
        why = _unknown(look, targets, measured, agreement)
        state = "UNKNOWN" if why else "HOLDS"
    since = min((frame for frame, _ in look.broken), default=None)
    parts = []
    if terms.limits:
        chance = terms.certified
        if chance and not certified:
            chance = "not certified for the thresholds in force now"
        promised = ", ".join(part for part in (terms.limits, chance, terms.conditions) if part)
        parts.append(f"Promised: {promised}.")
    said = _said(measured, agreement)
    if said:
        parts.append(said)
    if state == "BROKEN":
        also = f"; {'; '.join(suspended)}" if suspended else ""
        parts.append(f"BROKEN since frame {since}{also}.")
    elif state == "SUSPENDED":
        parts.append(f"SUSPENDED because {why}.")
    else:
        parts.append(f"UNKNOWN: {why}." if why else "HOLDS.")
    return Promise(state, " ".join(parts), why, since, measured, agreement, look.frames)


def _unknown(
    look: Look,
    targets: Sequence[Target],
    measured: Sequence[Measured],
    agreement: Agreement | None,
) -> str:
    """Why nothing can be said; empty where it can."""
    if not targets:
        if agreement is None:
            return "accuracy cannot be seen without labels; set audit"
        if agreement.audited < FEW_FRAMES:
            return f"{agreement.audited} audited early answers are too few, {FEW_FRAMES} suffice"
    if len(measured) < len(targets):
        return f"{look.frames} frames are too few, {FEW_FRAMES} suffice"
    for found in measured:
        if found.low > found.target.most:
            return (
                f"the {found.target.what} is above {found.target.most:.4g} {found.target.unit} "
                "at the moment, by no more than chance may give"
            )
    return ""


def _said(measured: Sequence[Measured], agreement: Agreement | None) -> str:
    told = {(found.target.what, found.measured): found for found in measured}  # limits on one thing
    parts = [
        (f"{what} " if len(told) > 1 else "") + f"{value:.3g} {found.target.unit}{found.interval}"
        for (what, value), found in told.items()
    ]
    said = ""
    if parts:
        frames = max(found.frames for found in measured)
        said = f"Measured over the last {frames} frames: {', '.join(parts)}."
    if agreement is not None and agreement.audited:
        share = agreement.agreed / agreement.audited
        said += (
            f"{' ' if said else ''}{share:.1%} of {agreement.audited} audited early answers agree "
            f"with the last exit ({agreement.lower:.1%} to {agreement.upper:.1%})."
        )
    return said


def measure(target: Target, look: Look) -> Measured | None:
    """The statistic of ``target`` over the frames of ``look``; None where they are too few."""
    if target.of_latency:
        values = np.array(look.latencies_ms, float)
    else:
        at = np.array(look.exits, int)
        values = target.cost[at[at >= 0]]
    if len(values) < FEW_FRAMES:
        return None
    if target.statistic == "mean":
        return Measured(target, *mean_interval(values), len(values))
    if target.statistic == "max":
        longest = float(values.max())
        return Measured(target, longest, longest, longest, len(values))
    share = PERCENTILES[target.statistic] / 100
    return Measured(target, *quantile_interval(values, share), len(values))


def mean_interval(values: Floats) -> tuple[float, float, float]:
    """Mean of at least :data:`FEW_FRAMES` values in their order, and its 95 % confidence interval
    by the means of 8 to 32 batches, for neighbouring frames are alike (Student's t)."""
    count = len(values)
    batches = min(32, max(8, count // 32))
    size = count // batches
    means = values[count - batches * size :].reshape(batches, size).mean(axis=1)
    error = max(float(means.std(ddof=1)) / sqrt(batches), float(values.std()) / sqrt(count))
    free = batches - 1
    width = error * (1.96 + 2.37 / free + 2.82 / free**2)  # Cornish and Fisher
    mean = float(values.mean())
    return mean, mean - width, mean + width


def quantile_interval(values: Floats, share: float) -> tuple[float, float, float]:
    """The value that a ``share``, 0..1, of the frames does not exceed, and its 95 % confidence
    interval between two of the values, as if frames were independent."""
    ordered, count = np.sort(values), len(values)
    spread = 1.96 * sqrt(count * share * (1 - share))
    low, high = int(count * share - spread) - 1, int(np.ceil(count * share + spread))
    return (
        float(np.quantile(ordered, share)),
        float(ordered[max(0, low)]),
        float(ordered[high]) if high < count else inf,
    )
