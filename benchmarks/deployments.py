"""Deployments drawn by chance, for ``benchmarks/promise_audit.py``.

Deployment N is what seed N draws (:func:`draw`), every choice with equal chances where none are
given:

calibration   500, 1,000 or 3,000 records of the *normal* scene (a fifth of the images are hard)
profile       costs measured for 2, 5, 20 or 60 s of the undisturbed trace at the deployment's pace
              (back to back for 2 s at most); in 1 of 10 deployments at another pace
pace          back to back, 60, 30 or 10 fps
budget        mean 70 %, p95 15 %, p99 15 %; 10 to 90 % of the way from exit 1's figure to the most
              accurate thresholds' (for percentiles: the last exit's), raised to the next possible
adapt         half of the mean budgets
certificate   a fifth of the budgets without ``adapt`` ask for ``confidence_level: 0.95``; where
              that is not possible within 1.5 times the limit, they do without
audit         none 70 %, 1 % of the frames 15 %, 5 % 15 %
deadline      none 75 %, else 1.5 to 4 budgets
scene         normal 50 %; else from a frame in the first half on: easy, hard, night, a drift to
              hard, or hard and easy in turn, 500 frames each
neighbour     none 60 %, from the start 20 %, from one frame to another 20 %: the traces beside a
              busy process
speed         as measured 60 %; else all takes 1.1 to 2 times as long: from a frame on, from one
              frame to another, or more and more from one to another
spikes        none 80 %; else 1 % of the frames take 20 times as long
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from controller import Floats, images

from dvt_edge.policy import Records
from dvt_edge.policy.statistic import Statistic

PACES = (None, 60.0, 30.0, 10.0)
SCENES = ("easy", "hard", "night", "drift", "in turn")
SPIKES, SPIKE = 0.01, 20.0


@dataclass(frozen=True)
class Deployment:
    """What one seed draws."""

    seed: int
    frames: int
    records: int
    fps: float | None
    profiled_fps: float | None
    profiled_s: float
    statistic: Statistic
    way: float
    """Of the way from the cheapest to the most expensive budget that means something."""
    adapt: bool
    certify: bool
    """Whether to ask for a ``confidence_level``."""
    audit: float
    deadline: float | None
    """In budgets."""
    scene: str
    scene_from: int
    neighbour: tuple[int, int] | None
    """Frames from, to."""
    speed: str
    """``as measured``, ``throttled``, ``throttled for a while`` or ``slower and slower``."""
    factor: float
    speed_from: int
    speed_to: int
    spikes: bool

    def conditions(self, certified: bool) -> Iterator[str]:
        """What it is counted under; ``certified``: whether its budget is."""
        yield "all"
        yield f"budget: {self.statistic}" + (
            ", adapt" if self.adapt else ", certified" if certified else ""
        )
        other = self.profiled_fps != self.fps
        pace = "back to back" if self.fps is None else f"{self.fps:g} fps"
        yield f"pace: {'another than profiled' if other else pace}"
        yield f"scene: {self.scene}"
        busy = "for a while" if self.neighbour and self.neighbour[0] else "from the start"
        yield f"neighbour: {busy if self.neighbour else 'none'}"
        yield f"speed: {self.speed}"
        yield f"spikes: {'1 % of the frames' if self.spikes else 'none'}"
        yield f"audit: {self.audit:g}"
        yield f"deadline: {'none' if self.deadline is None else 'yes'}"
        steady = self.scene == "normal" and self.speed == "as measured"
        if steady and not (other or self.neighbour or self.spikes):
            yield "nothing disturbs"

    def slowness(self) -> Floats:
        """[N]: what all of a frame takes, relative to the trace."""
        t, rng = np.arange(self.frames), np.random.default_rng((self.seed, 1))
        since, until = self.speed_from, self.speed_to
        result = np.ones(self.frames)
        if self.speed == "slower and slower":
            result += (self.factor - 1) * np.clip((t - since) / (until - since), 0, 1)
        elif self.speed != "as measured":
            result[since : until if self.speed == "throttled for a while" else None] = self.factor
        if self.spikes:
            result[rng.random(self.frames) < SPIKES] *= SPIKE
        return result

    def live(self) -> Records:
        """The frames' records."""
        t, since = np.arange(self.frames), self.scene_from
        hard = np.full(self.frames, 0.2)
        if self.scene in ("easy", "hard"):
            hard[since:] = 0.8 if self.scene == "hard" else 0.0
        elif self.scene == "drift":
            hard += 0.6 * np.clip((t - since) / (self.frames - since), 0, 1)
        elif self.scene == "in turn":
            hard[since:] = np.where((t[since:] - since) // 500 % 2, 0.0, 0.8)
        seed = 2 * self.seed + 100_000
        day = images(seed, hard)
        if self.scene != "night":
            return day
        night = images(seed + 1, 0.0, self.frames, night=True)
        return Records(
            *(
                np.concatenate([getattr(day, name)[:since], getattr(night, name)[since:]])
                for name in ("confidence", "prediction", "label")
            )
        )


def draw(seed: int, frames: int) -> Deployment:
    """The deployment number ``seed``; the module says with which chances."""
    rng = np.random.default_rng(seed)

    def one_of(*options: Any, p: Sequence[float] | None = None) -> Any:
        return options[rng.choice(len(options), p=p)]

    fps = one_of(*PACES)
    statistic = one_of("mean", "p95", "p99", p=(0.7, 0.15, 0.15))
    adapt = bool(statistic == "mean" and rng.random() < 0.5)
    others = [pace for pace in PACES if pace != fps]
    busy_from, busy_to = sorted(rng.integers(1, frames, 2).tolist())
    slow_from, slow_to = sorted(rng.choice(frames, 2, replace=False).tolist())
    return Deployment(
        seed=seed,
        frames=frames,
        records=one_of(500, 1000, 3000),
        fps=fps,
        profiled_fps=one_of(*others) if rng.random() < 0.1 else fps,
        profiled_s=one_of(2.0, 5.0, 20.0, 60.0),
        statistic=statistic,
        way=float(rng.uniform(0.1, 0.9)),
        adapt=adapt,
        certify=bool(not adapt and rng.random() < 0.2),
        audit=one_of(0.0, 0.01, 0.05, p=(0.7, 0.15, 0.15)),
        deadline=float(rng.uniform(1.5, 4)) if rng.random() < 0.25 else None,
        scene="normal" if rng.random() < 0.5 else one_of(*SCENES),
        scene_from=int(rng.integers(frames // 2)),
        neighbour=one_of(None, (0, frames), (busy_from, busy_to), p=(0.6, 0.2, 0.2)),
        speed=(
            "as measured"
            if rng.random() < 0.6
            else one_of("throttled", "throttled for a while", "slower and slower")
        ),
        factor=float(rng.uniform(1.1, 2.0)),
        speed_from=slow_from,
        speed_to=slow_to,
        spikes=bool(rng.random() < 0.2),
    )
