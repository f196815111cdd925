"""Exits and latencies of frames to come, drawn without a camera: fast, for millions of frames.

    python -m tests.policy.live.made_frames [--frames 5e6] [--runs 100]

prints how often a watch says that a limit is broken which is not, and how soon one that is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.live.promise_watch import BudgetBroken, PromiseWatch, Verdict
from dvt_edge.policy.statistic import Statistic
from dvt_edge.policy.targets import Target

COSTS = np.array([0.3232, 0.7158, 2.9378])
"""[K] ms of leaving at each exit: the demo's."""
SHARES = np.array([0.5, 0.2, 0.3])
MEAN_MS = float(SHARES @ COSTS)
"""With a standard deviation of 0.98 of it."""
CHUNK = 100_000


@dataclass(frozen=True)
class Frames:
    """How frames come."""

    slower: float = 1.0
    """What they take, relative to what was measured."""
    harder: float = 1.0
    """Mean of what the exits taken cost, relative to the plan, by more images at the last exit."""
    jitter: float = 0.08
    """Standard deviation of the logarithm of the latency at an exit."""
    alike: float = 0.0
    """Correlation of that with the next frame's, 0..1."""
    spikes: float = 0.0
    """Share of the frames that take 20 times as long; they are part of the costs."""

    def draw(self, rng: np.random.Generator, count: int) -> list[tuple[int, float]]:
        """Exit, from 1, and milliseconds of each frame."""
        normal = rng.standard_normal(count)
        if self.alike:
            rest, last = np.sqrt(1 - self.alike**2), float(rng.standard_normal())
            for n, value in enumerate((rest * normal).tolist()):
                normal[n] = last = self.alike * last + value
        factor = np.where(rng.random(count) < self.spikes, 20.0, 1.0) / (1 + 19 * self.spikes)
        noise = np.exp(self.jitter * normal - self.jitter**2 / 2)
        at = rng.choice(len(COSTS), count, p=self.shares)
        took = COSTS[at] * noise * factor * self.slower
        return list(zip((at + 1).tolist(), took.tolist(), strict=True))

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """[K]: of the exits."""
        more = (self.harder - 1) * MEAN_MS / (COSTS[-1] - MEAN_MS)
        return SHARES * (1 - more) + [0, 0, more]

    def but(self, **changes: float) -> Frames:
        return replace(self, **changes)


def target(statistic: Statistic = "mean", most: float = MEAN_MS) -> Target:
    """A limit on the latency."""
    return Target("latency_ms", f"{statistic} latency", statistic, most, "ms", COSTS)


def energy(most: float) -> Target:
    """A limit on the mean energy; an exit takes as many millijoules as milliseconds."""
    return Target("energy_mj", "mean energy", "mean", most, "mJ", COSTS)


def watch(*targets: Target, adapting: bool = False) -> PromiseWatch:
    """For the exits of :data:`SHARES`; the mean latency at its limit where none is given."""
    return PromiseWatch(targets or (target(),), COSTS, MEAN_MS, adapting=adapting)


def show(
    watched: PromiseWatch, frames: Frames, count: int, rng: np.random.Generator
) -> list[Verdict]:
    """What a watch says of so many frames."""
    return list(_verdicts(watched, frames, count, rng))


def frames_until(watched: PromiseWatch, frames: Frames, most: int, rng: np.random.Generator) -> int:
    """Frames up to the next verdict; ``most`` where there is none."""
    before = watched.look().frames
    found = next(_verdicts(watched, frames, most, rng), None)
    return most if found is None else found.frame - before


def _verdicts(
    watched: PromiseWatch, frames: Frames, count: int, rng: np.random.Generator
) -> Iterator[Verdict]:
    for start in range(0, count, CHUNK):
        for exit_stage, took in frames.draw(rng, min(CHUNK, count - start)):
            yield from watched.observe(exit_stage, took)


NOISE = {
    "8 % jitter": Frames(),
    "30 % jitter": Frames(jitter=0.3),
    "1 % take 20 times as long": Frames(spikes=0.01),
    "1 % take 20 times as long, 30 % jitter": Frames(spikes=0.01, jitter=0.3),
    "1 % take 20 times as long, alike for 10 frames": Frames(spikes=0.01, alike=0.9),
    "8 % jitter, alike for 10 frames": Frames(alike=0.9),
    "8 % jitter, alike for 50 frames": Frames(alike=0.98),
    "20 % jitter, alike for 10 frames": Frames(alike=0.9, jitter=0.2),
    "5 % jitter, alike for 200 frames": Frames(alike=0.995, jitter=0.05),
}
BREACHES = {
    **{f"{by - 1:.0%} slower, 8 % jitter": Frames(slower=by) for by in (1.03, 1.05, 1.1, 1.2, 1.3)},
    "10% slower, 30 % jitter": Frames(slower=1.1, jitter=0.3),
    "10% slower, 8 % jitter, alike for 10 frames": Frames(slower=1.1, alike=0.9),
    **{
        f"{by - 1:.0%} slower, 1 % take 20 times as long": Frames(slower=by, spikes=0.01)
        for by in (1.1, 1.2, 1.3)
    },
    **{f"{by - 1:.0%} more by the scene": Frames(harder=by) for by in (1.05, 1.1, 1.2, 1.3, 1.5)},
}
KEPT_BEFORE, LONGEST = 3000, 100_000
"""Frames before a breach, and those within which it must be found."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=float, default=5e6)
    parser.add_argument("--runs", type=int, default=100)
    given = parser.parse_args()
    print(f"false alarms in {given.frames:.3g} frames, with the mean at 1.00 and 0.97 of its limit")
    for name, frames in NOISE.items():
        found = []
        for level in (1.0, 0.97):
            said = show(
                watch(), frames.but(slower=level), int(given.frames), np.random.default_rng(7)
            )
            found.append(sum(isinstance(verdict, BudgetBroken) for verdict in said))
        print(f"{name:48s} {found[0]:4d} {found[1]:4d}", flush=True)
    print(f"frames until it is found, {given.runs} runs: median, 9 of 10, all; share within 300")
    for name, frames in BREACHES.items():
        delays = []
        for run in range(given.runs):
            watched, rng = watch(), np.random.default_rng(1000 + run)
            show(watched, frames.but(slower=1.0, harder=1.0), KEPT_BEFORE, rng)
            delays.append(frames_until(watched, frames, LONGEST, rng))
        percent = np.percentile(delays, [50, 90, 100])
        share = np.mean(np.array(delays) <= 300)
        print(f"{name:48s} {percent[0]:6.0f} {percent[1]:6.0f} {percent[2]:6.0f} {share:5.2f}")


if __name__ == "__main__":
    main()
