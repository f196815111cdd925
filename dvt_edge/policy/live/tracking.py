"""What the last frames say about the speed of the stages and the mix of images: bounded memory.

Frames are summed in blocks, and running totals of the blocks are kept, so that looking back over
any number of frames is one subtraction.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import inf, isfinite, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.records import Exits, Floats, Records

BLOCK = 8
"""Frames that are summed before they are seen."""
SPEED_FRAMES = MIX_FRAMES = 4096
"""Frames whose latencies, exits and confidences are remembered."""
BINS = 12
SPIKE = 4.0
"""What a latency has above this multiple of its usual value is its *tail*."""
HALT = 128.0
"""Multiple of its usual value that a latency counts for at most, however long it took: after a
suspend, or with a clock that jumped, an hour would be all that is seen in the sums."""
_FEW = 4.0  # observations of a segment that weigh as much as the speed common to all
_STEP = 1.02  # by which the usual latency moves with every frame


class History:
    """Sums of ``width`` figures over the last frames, whole blocks of :data:`BLOCK` only.

    Add to ``total`` and call :meth:`count` after each frame.
    """

    def __init__(self, width: int, frames: int) -> None:
        self.total = [0.0] * width  # a list: adding to single elements is what is done most
        self._size = frames // BLOCK + 1
        self._kept = np.zeros((self._size, width))
        self._blocks = self._open = 0

    def count(self) -> None:
        """A frame is complete."""
        self._open += 1
        if self._open == BLOCK:
            self._open = 0
            self._blocks += 1
            self._kept[self._blocks % self._size] = self.total

    @property
    def frames(self) -> int:
        """Frames that can be looked back over."""
        return BLOCK * min(self._blocks, self._size - 1)

    @property
    def now(self) -> int:
        """Number of the last block that is complete or has begun; for ``since``."""
        return self._blocks + (self._open > 0)

    def since(self, block: int) -> int:
        """Frames after ``block``, as far as they are remembered."""
        return max(0, min(BLOCK * (self._blocks - block), self.frames))

    def sums(self, frames: int) -> Floats:
        """[width]: over the last ``frames``, rounded down to blocks, or all that are remembered."""
        blocks = min(frames, self.frames) // BLOCK
        last = self._blocks % self._size
        found: Floats = self._kept[last] - self._kept[(self._blocks - blocks) % self._size]
        return found


class Tail(NamedTuple):
    """What spikes added to the latency, as a share of the rest."""

    share: float
    error: float
    """Standard error; as large as ``share`` where it is all from one spike."""


class SpeedTracker:
    """Latency of each segment of a frame, and the tail apart from it.

    Segment k (from 0) is stage k + 1; the first also has all that belongs to none: preprocessing,
    decision, overhead. What exceeds :data:`SPIKE` times the usual is booked as tail (winsorising
    that loses nothing). The usual is a running median (stochastic approximation, Robbins and Monro,
    1951). A segment that ran rarely of late is drawn towards the speed common to all, since clocks
    and heat slow all of them.
    """

    def __init__(self, reference_ms: Floats) -> None:
        self.reference_ms = reference_ms
        self._reference: list[float] = reference_ms.tolist()
        self._exits = len(reference_ms)
        self._usual = [1.0] * self._exits  # ratio to the reference
        # Of each segment: times seen, sum and sum of squares of its ratio; then the milliseconds
        # of the rest, of the tail, and the sum of the tail's squares.
        self._history = History(3 * self._exits + 3, SPEED_FRAMES)

    def add(self, latency_ms: float, stage_latency_ms: Sequence[float]) -> tuple[float, float]:
        """One frame; returns its milliseconds without tail, and the tail.

        Latencies that are not finite or not positive are left out.
        """
        total, exits, usual = self._history.total, self._exits, self._usual
        body = tail = 0.0
        took = latency_ms - sum(stage_latency_ms[1:])
        for k, reference in enumerate(self._reference[: len(stage_latency_ms)]):
            if k:
                took = stage_latency_ms[k]
            if not 0 < took < inf:
                continue
            ratio = took / reference
            # A stage that ran rarely knows little of its own: the first always runs.
            limit = SPIKE * max(usual[k], usual[0])
            usual[k] *= _STEP if ratio > usual[k] else 1 / _STEP
            if ratio > limit:
                ratio = min(ratio, HALT / SPIKE * limit)
                tail += (ratio - limit) * reference
                ratio = limit
            total[k] += 1
            total[exits + k] += ratio
            total[2 * exits + k] += ratio * ratio
            body += ratio * reference
        if tail:
            total[-2] += tail
            total[-1] += tail * tail
        total[-3] += body
        self._history.count()
        return body, tail

    def ratio(self, frames: int) -> tuple[list[float], list[float]]:
        """Slowdown [K] of each segment over the last ``frames``, and its standard error [K].

        Without the tail.
        """
        exits, frames = self._exits, min(frames, self._history.frames)
        if not frames:
            return [1.0] * exits, [0.0] * exits
        sums, long = self._history.sums(frames).tolist(), self._history.sums(256).tolist()
        seen = sum(sums[:exits])
        common = sum(sums[exits : 2 * exits]) / seen if seen else 1.0
        ratios, errors = [], []
        for k in range(exits):
            count, mean, spread = _moments(sums[k::exits])
            # Of a few latencies the spread is not known: that of 256 frames, or 2 % if larger.
            spread = max(spread, _moments(long[k::exits])[2], (0.02 * mean) ** 2)
            weight = count / (count + _FEW * (1 - min(1.0, count / frames)))
            ratios.append(weight * mean + (1 - weight) * common)
            errors.append(weight * sqrt(spread / max(count, 1)))
        return ratios, errors

    def tail(self, frames: int) -> Tail:
        """What the spikes of the last ``frames`` added."""
        body, tail, squares = self._history.sums(frames)[-3:].tolist()
        return Tail(tail / body, sqrt(max(0.0, squares)) / body) if body > 0 else Tail(0.0, 0.0)

    def usual_ms(self, frames: int) -> Floats:
        """Cumulative latency [K] of leaving at each exit over the last ``frames``, no tail."""
        return np.cumsum(np.multiply(self.ratio(frames)[0], self.reference_ms))

    def mean_ms(self, frames: int) -> Floats:
        """The same with the tail of all frames remembered, in proportion; less what may be chance,
        all of a single spike."""
        tail = self.tail(SPEED_FRAMES)
        sure = tail.share - tail.error**2 / tail.share if tail.share else 0.0
        return self.usual_ms(frames) * (1 + sure)


def _moments(sums: Sequence[float]) -> tuple[float, float, float]:
    """Count, mean and variance from count, sum and sum of squares."""
    count, total, squares = sums[:3]
    if count < 1:
        return 0.0, 1.0, 0.0
    mean = total / count
    return count, mean, max(0.0, squares - total * mean) / max(count - 1, 1.0)


class MixTracker:
    """Which exits the last frames took, and how sure the first exit was of them."""

    def __init__(self, records: Records) -> None:
        first = records.confidence[:, 0].astype(float)
        inner = np.unique(np.quantile(first, np.arange(1, BINS) / BINS))
        edges = inner[inner > first.min()]  # so that no bin is empty
        self._edges: list[float] = edges.tolist()
        self.record_bin = np.searchsorted(edges, first, side="right")
        self.bins = len(edges) + 1
        self.reference = np.bincount(self.record_bin, minlength=self.bins) / len(records)
        self._exits = records.exits
        self._history = History(self.bins + self._exits, MIX_FRAMES)
        self._from = 0

    def add(self, confidence: float, exit_index: int | None) -> None:
        """One frame: confidence at exit 1 and, where known, the exit by the thresholds, from 0.

        A confidence that is not finite counts as the lowest, for the frame goes on like those.
        """
        total = self._history.total
        total[bisect_right(self._edges, confidence) if isfinite(confidence) else 0] += 1
        if exit_index is not None:
            total[self.bins + exit_index] += 1
        self._history.count()

    def exits_by_bin(self, exits: Exits) -> Floats:
        """[B, K]: share of each bin's records that leave at each exit, by ``exits`` [N] from 0."""
        counts = np.zeros((self.bins, self._exits))
        np.add.at(counts, (self.record_bin, exits), 1)
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))

    def forget_exits(self) -> None:
        """Restart the count of exits, because the thresholds changed."""
        self._from = self._history.now

    @property
    def frames(self) -> int:
        """Frames whose confidence is known, at most :data:`MIX_FRAMES`."""
        return self._history.frames

    @property
    def exit_frames(self) -> int:
        """Frames since :meth:`forget_exits`, at most :data:`MIX_FRAMES`."""
        return self._history.since(self._from)

    def exit_share(self, frames: int) -> Floats:
        """[K]: share of the last ``frames`` that left at each exit."""
        counts = self._history.sums(min(frames, self.exit_frames))[self.bins :]
        return np.asarray(counts / max(1.0, counts.sum()))

    def share(self, frames: int) -> Floats:
        """[B]: share of the last ``frames`` in each bin of confidence at exit 1.

        As many frames as bins are added in the proportions of the records.
        """
        counts = self._history.sums(frames)[: self.bins]
        return np.asarray((counts + self.bins * self.reference) / (counts.sum() + self.bins))

    def steady_frames(self, windows: Sequence[int]) -> int:
        """The longest of ``windows`` (shortest first) over which the mix was that of the first."""
        short = min(windows[0], self.frames)
        found, latest = short, self.share(short)
        for frames in windows[1:]:
            if frames > self.frames:
                break
            share = self.share(frames)
            chance = np.sqrt(share * (1 - share) / max(1, short)).sum() * sqrt(2 / np.pi) / 2
            if np.abs(share - latest).sum() / 2 > 1.2 * chance:
                break
            found = frames
        return found

    def distance(self, frames: int, share: Floats | None = None) -> tuple[float, float]:
        """Total variation, 0..1, between the last ``frames`` and ``share`` [B] (the records'), and
        what chance alone would give (its mean plus five standard deviations)."""
        expected = self.reference if share is None else share
        counts = self._history.sums(frames)[: self.bins]
        variance = expected * (1 - expected) / max(1.0, counts.sum())
        chance = np.sqrt(variance).sum() * sqrt(2 / np.pi) / 2
        seen = (counts + self.bins * expected) / (counts.sum() + self.bins)
        return (
            float(np.abs(seen - expected).sum() / 2),
            float(chance + 5 * sqrt((1 - 2 / np.pi) * variance.sum()) / 2),
        )


def resample(records: Records, bins: npt.NDArray[np.int64], share: Floats, count: int) -> Records:
    """About ``count`` records, ``share[b]`` of them from bin b, without chance.

    Within a bin they are taken evenly over the confidence at the first exit (systematic
    sampling); a bin with too few records repeats them.
    """
    order = np.lexsort((np.arange(len(records)), records.confidence[:, 0]))
    chosen = []
    for index, part in enumerate(share):
        members = order[bins[order] == index]
        wanted = round(part * count)
        at = ((np.arange(wanted) + 0.5) * len(members) / max(1, wanted)).astype(np.int64)
        chosen.append(members[at])
    return records.take(np.concatenate(chosen))
