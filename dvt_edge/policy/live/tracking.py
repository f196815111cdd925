"""What the last frames say about the speed of the stages and the mix of images: bounded memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import isfinite, nan

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.records import Floats, Records

SPEED_FRAMES = 256
"""Frames whose latencies are kept."""
MIX_FRAMES = 4096
"""Frames whose exits and confidences are kept, two bytes each."""
BINS = 12
SPIKE = 4.0
"""A single latency counts at most as this multiple of its usual value."""
_FEW = 4.0  # observations of a segment that weigh as much as the speed common to all


class SpeedTracker:
    """Latency of each segment of a frame, robust to spikes.

    Segment k (from 0) is stage k + 1; the first also has all that belongs to none: preprocessing,
    decision, overhead. The estimate is the mean of the recent latencies after those above
    :data:`SPIKE` times their median are cut down to that (winsorised). A segment that ran rarely of
    late is drawn towards the speed common to all, since clocks and heat slow all of them.
    """

    def __init__(self, reference_ms: Floats) -> None:
        self.reference_ms = reference_ms
        self._usual: list[float] = reference_ms.tolist()
        self._ring = np.full((SPEED_FRAMES, len(reference_ms)), np.nan)  # ratio to the reference
        self._count = 0

    def add(self, latency_ms: float, stage_latency_ms: Sequence[float]) -> None:
        """One frame; latencies that are not finite or not positive are left out."""
        rest = latency_ms - sum(stage_latency_ms[1:])
        row = [
            took / usual if isfinite(took) and took > 0 else nan
            for took, usual in zip((rest, *stage_latency_ms[1:]), self._usual, strict=False)
        ]
        self._ring[self._count % SPEED_FRAMES] = row + [nan] * (len(self._usual) - len(row))
        self._count += 1

    def ratio(self, frames: int) -> tuple[Floats, Floats]:
        """Slowdown [K] of each segment over the last ``frames``, and its standard error [K]."""
        frames = min(frames, self._count, SPEED_FRAMES)
        if not frames:
            return np.ones(len(self.reference_ms)), np.zeros(len(self.reference_ms))
        kept = min(self._count, SPEED_FRAMES)
        ring = self._ring[(self._count - 1 - np.arange(kept)) % SPEED_FRAMES]
        usual, _, long_spread, _ = _winsorised(ring, None)
        middle, mean, spread, seen = _winsorised(ring[:frames], usual)
        common = float(np.average(middle, weights=seen)) if seen.any() else 1.0
        # Of a few latencies the spread is not known: take that of all kept, or 2 % if larger.
        spread = np.maximum(np.maximum(spread, long_spread), (0.02 * mean) ** 2)
        weight = seen / (seen + _FEW * (1 - seen / frames))
        return weight * mean + (1 - weight) * common, weight * np.sqrt(spread / np.maximum(seen, 1))

    def usual_ms(self, frames: int) -> Floats:
        """Cumulative latency [K] of leaving at each exit over the last ``frames``."""
        return np.cumsum(self.ratio(frames)[0] * self.reference_ms)


class MixTracker:
    """Which exits the last frames took, and how sure the first exit was of them."""

    def __init__(self, records: Records) -> None:
        first = records.confidence[:, 0].astype(float)
        inner = np.unique(np.quantile(first, np.arange(1, BINS) / BINS))
        self._edges = inner[inner > first.min()]  # so that no bin is empty
        self._edges_list: list[float] = self._edges.tolist()
        self.record_bin = np.searchsorted(self._edges, first, side="right")
        self.bins = len(self._edges) + 1
        self.reference = np.bincount(self.record_bin, minlength=self.bins) / len(records)
        self._exits = records.exits
        self._bin = np.zeros(MIX_FRAMES, np.uint8)
        self._exit = np.zeros(MIX_FRAMES, np.uint8)
        self._frames = 0
        self._free = 0

    def add(self, confidence: float, exit_index: int | None) -> None:
        """One frame: confidence at exit 1 and, where the thresholds decided, the exit from 0.

        A confidence that is not finite counts as the lowest, for the frame goes on like those.
        """
        at = bisect_right(self._edges_list, confidence) if isfinite(confidence) else 0
        self._bin[self._frames % MIX_FRAMES] = at
        self._frames += 1
        if exit_index is not None:
            self._exit[self._free % MIX_FRAMES] = exit_index
            self._free += 1

    def forget_exits(self) -> None:
        """Restart the count of exits, because the thresholds changed."""
        self._free = 0

    @property
    def frames(self) -> int:
        """Frames whose confidence is known, at most :data:`MIX_FRAMES`."""
        return min(self._frames, MIX_FRAMES)

    @property
    def free_frames(self) -> int:
        """Frames since :meth:`forget_exits` that the thresholds decided."""
        return min(self._free, MIX_FRAMES)

    def exit_share(self, frames: int) -> Floats:
        """[K]: share of the last ``frames`` that left at each exit."""
        at = (self._free - 1 - np.arange(min(frames, self.free_frames))) % MIX_FRAMES
        return np.bincount(self._exit[at], minlength=self._exits) / max(1, len(at))

    def share(self, frames: int) -> Floats:
        """[B]: share of the last ``frames`` in each bin of confidence at exit 1.

        As many frames as bins are added in the proportions of the records.
        """
        at = (self._frames - 1 - np.arange(min(frames, self.frames))) % MIX_FRAMES
        counts = np.bincount(self._bin[at], minlength=self.bins)
        result: Floats = (counts + self.bins * self.reference) / (len(at) + self.bins)
        return result

    def steady_frames(self, windows: Sequence[int]) -> int:
        """The longest of ``windows`` (shortest first) over which the mix was that of the first."""
        short = min(windows[0], self.frames)
        found, latest = short, self.share(short)
        for frames in windows[1:]:
            if frames > self.frames:
                break
            share = self.share(frames)
            chance = np.sqrt(share * (1 - share) / short).sum() * np.sqrt(2 / np.pi) / 2
            if np.abs(share - latest).sum() / 2 > 1.2 * chance:
                break
            found = frames
        return found

    def distance(self, frames: int) -> tuple[float, float]:
        """Total variation, 0..1, between the last ``frames`` and the records, and what chance
        alone would give (its mean plus five standard deviations)."""
        count = max(1, min(frames, self.frames))
        deviation = np.sqrt(self.reference * (1 - self.reference) / count)
        chance = deviation.sum() * np.sqrt(2 / np.pi) / 2
        return (
            float(np.abs(self.share(frames) - self.reference).sum() / 2),
            float(chance + 5 * np.sqrt((1 - 2 / np.pi) * (deviation**2).sum()) / 2),
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


def _winsorised(
    ratios: Floats, usual: Floats | None
) -> tuple[Floats, Floats, Floats, npt.NDArray[np.int64]]:
    """Median, mean, variance and number [K] of the known values in each column of ``ratios``.

    ``usual`` [K] sets what counts as a spike; where left out, the median does.
    """
    known = np.isfinite(ratios)
    seen = known.sum(axis=0)
    ordered, columns = np.sort(ratios, axis=0), np.arange(ratios.shape[1])  # NaN last
    low, high = np.maximum(seen - 1, 0) // 2, np.minimum(seen // 2, len(ratios) - 1)
    middle = np.where(seen > 0, (ordered[low, columns] + ordered[high, columns]) / 2, 1.0)
    limit = SPIKE * (middle if usual is None else usual)
    cut = np.where(known, np.minimum(ratios, limit), 0.0)
    mean = cut.sum(axis=0) / np.maximum(seen, 1)
    spread = np.where(known, (cut - mean) ** 2, 0.0).sum(axis=0) / np.maximum(seen - 1, 1)
    return middle, mean, spread, seen
