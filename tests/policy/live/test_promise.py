"""What is said of a promise, in figures and in words."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest

from dvt_edge.policy.live.audit import Agreement
from dvt_edge.policy.live.promise import (
    FEW_FRAMES,
    Measured,
    Promise,
    describe,
    make_terms,
    mean_interval,
    measure,
    quantile_interval,
)
from dvt_edge.policy.live.promise_watch import Look
from dvt_edge.policy.solver import Certificate
from dvt_edge.policy.targets import Target
from tests.policy.live.made_frames import COSTS, energy, target

MEAN = target(most=1.5)
AGREEMENT = Agreement(400, 412, 0.95, 0.986)
CERTIFICATE = Certificate(
    n=1000,
    groups=None,
    delta=0.05,
    cost_bound=1.5,
    accuracy_gap_bound=0.01,
    accuracy_bound=None,
    method="learn-then-test",
)


def _promise(
    *targets: Target,
    latency_ms: float = 1.43,
    frames: int = 2000,
    broken: tuple[tuple[int, str], ...] = (),
    min_accuracy: float | None = None,
    certificate: Certificate | None = None,
    fps: float | None = 30.0,
    **given: Any,
) -> Promise:
    latencies = np.tile([latency_ms - 0.2, latency_ms + 0.2], min(frames, 1024) // 2)
    look = Look(frames, tuple(latencies), (1,) * len(latencies), broken)
    terms = make_terms(targets, min_accuracy, certificate, fps, (480, 640))
    return describe(look, targets, terms, **given)


def test_a_promise_that_holds() -> None:
    promise = _promise(MEAN, certificate=CERTIFICATE)
    assert promise.state == "HOLDS"
    assert promise.sentence == (
        "Promised: mean latency of 1.5 ms, with probability 0.95 from 1000 records, at 30 fps with "
        "frames of 640x480. Measured over the last 1024 frames: 1.43 ms (1.42 to 1.44). HOLDS."
    )
    (measured,) = promise.measured
    assert (measured.target, measured.frames) == (MEAN, 1024)
    assert measured.low < measured.measured < measured.high
    assert (promise.why, promise.since, promise.agreement, promise.frames) == ("", None, None, 2000)


def test_a_certificate_that_speaks_of_other_thresholds() -> None:
    promise = _promise(MEAN, certificate=replace(CERTIFICATE, groups=40))
    assert "with probability 0.95 from 1000 records in 40 groups, at" in promise.sentence
    promise = _promise(MEAN, certificate=CERTIFICATE, fps=None, certified=False)
    assert promise.sentence.startswith(
        "Promised: mean latency of 1.5 ms, not certified for the thresholds in force now, back to "
        "back with frames of 640x480."
    )


@pytest.mark.parametrize(
    ("given", "state", "end"),
    [
        ({}, "HOLDS", "HOLDS."),
        ({"frames": FEW_FRAMES - 2}, "UNKNOWN", "UNKNOWN: 126 frames are too few, 128 suffice."),
        ({"latency_ms": 1.55}, "UNKNOWN", "at the moment, by no more than chance may give."),
        ({"broken": ((812, "slow"),)}, "BROKEN", "BROKEN since frame 812."),
        ({"broken": ((812, "slow"), (90, "hot"))}, "BROKEN", "BROKEN since frame 90."),
        ({"suspended": ("a", "b")}, "SUSPENDED", "SUSPENDED because a; b."),
        ({"suspended": ("a",), "frames": 10}, "SUSPENDED", "SUSPENDED because a."),
        (
            {"suspended": ("a",), "broken": ((812, "slow"),)},
            "BROKEN",
            "BROKEN since frame 812; a.",
        ),
    ],
)
def test_states(given: dict[str, Any], state: str, end: str) -> None:
    """What is broken goes first, then what is suspended."""
    promise = _promise(MEAN, **given)
    assert promise.state == state
    assert promise.sentence.endswith(end)
    assert bool(promise.why) == (state != "HOLDS")
    if state == "BROKEN":
        assert promise.since == min(frame for frame, _ in given["broken"])
        assert "slow" in promise.why
    assert len(promise.measured) == (given.get("frames", 2000) >= FEW_FRAMES)


@pytest.mark.parametrize(
    ("agreement", "state", "words"),
    [
        (None, "UNKNOWN", "UNKNOWN: accuracy cannot be seen without labels; set audit."),
        (Agreement(9, 10, 0.3, 1.0), "UNKNOWN", "10 audited early answers are too few"),
        (
            AGREEMENT,
            "HOLDS",
            "97.1% of 412 audited early answers agree with the last exit (95.0% to 98.6%). HOLDS.",
        ),
    ],
)
def test_an_accuracy_alone(agreement: Agreement | None, state: str, words: str) -> None:
    promise = _promise(min_accuracy=0.8, agreement=agreement)
    assert promise.state == state
    assert words in promise.sentence
    assert "accuracy of at least 0.8 on the calibration images" in promise.sentence
    assert promise.agreement is agreement


def test_nothing_is_promised() -> None:
    promise = _promise()
    assert promise.state == "UNKNOWN"
    assert promise.sentence == "UNKNOWN: the budget has no limit that can be measured."


def test_several_limits() -> None:
    """Each in its unit; what is measured alike is said once."""
    fps = Target("fps", "mean latency", "mean", 26.7, "ms", COSTS, " (30 fps at 80 % utilisation)")
    promise = _promise(MEAN, fps, energy(0.5), agreement=AGREEMENT)
    assert promise.sentence.startswith(
        "Promised: mean latency of 1.5 ms and mean latency of 26.7 ms (30 fps at 80 % utilisation) "
        "and mean energy of 0.5 mJ, at 30 fps with frames of 640x480. Measured over the last 1024 "
        "frames: mean latency 1.43 ms (1.42 to 1.44), mean energy 0.716 mJ. 97.1% of"
    )
    assert [m.target.key for m in promise.measured] == ["latency_ms", "fps", "energy_mj"]
    assert promise.state == "UNKNOWN"  # energy is over its limit, and nothing has been proved


def test_measured_by_what_ran() -> None:
    """Answers that were kept have a latency and no energy."""
    at = np.tile([2, -1], 500)
    look = Look(1000, (1.0,) * 1000, tuple(at.tolist()))
    found = measure(energy(3.0), look)
    assert found is not None
    assert found.measured == pytest.approx(COSTS[2])
    assert found.frames == 500


def test_maximum_and_percentiles() -> None:
    latencies = tuple(np.random.default_rng(0).permutation(np.arange(1.0, 1001.0)).tolist())
    look = Look(1000, latencies, (0,) * 1000)
    longest = measure(target("max", 5.0), look)
    assert longest is not None
    assert (longest.measured, longest.interval) == (1000.0, "")
    p95 = measure(target("p95", 5.0), look)
    assert p95 is not None
    assert p95.measured == pytest.approx(950, abs=1)
    assert 930 <= p95.low < 950 < p95.high <= 970
    few = measure(target("p99", 5.0), Look(130, latencies[:130], (0,) * 130))
    assert few is not None
    assert few.high == inf
    assert few.interval.endswith(" or more)")


@pytest.mark.parametrize("alike", [0.0, 0.8])
@pytest.mark.parametrize("count", [FEW_FRAMES, 200, 1024])
def test_intervals_cover_the_mean(count: int, alike: float) -> None:
    """19 times of 20, also where neighbouring frames are alike."""
    rng, inside, runs = np.random.default_rng(1), 0, 400
    for _ in range(runs):
        noise, last, values = rng.standard_normal(count), rng.standard_normal(), []
        for value in noise.tolist():
            last = alike * last + (1 - alike**2) ** 0.5 * value
            values.append(3 + last)
        mean, low, high = mean_interval(np.array(values))
        assert low < mean < high
        inside += low <= 3 <= high
    assert inside / runs >= (0.92 if not alike or count > 500 else 0.8)


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_intervals_cover_the_quantile(share: float) -> None:
    rng, inside, runs = np.random.default_rng(2), 0, 400
    for _ in range(runs):
        _, low, high = quantile_interval(rng.random(1024), share)
        inside += low <= share <= high
    assert inside / runs >= 0.92


def test_equal_values() -> None:
    """A machine without any noise."""
    assert mean_interval(np.full(1024, 2.0)) == (2.0, 2.0, 2.0)
    assert Measured(MEAN, 2.0, 2.0, 2.0, 1024).interval == ""
