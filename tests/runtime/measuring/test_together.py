"""Whether later stages pay together: on a clock that takes no time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.policy import Records
from dvt_edge.runtime.cascade_loop import open_loop
from dvt_edge.runtime.measuring.together import MEASURE_S, ROUNDS, Together, measure_together
from tests.conftest import HandClock
from tests.runtime.conftest import STAGE_MS, Batching, FakeBackend


def _measure(
    folder: Path,
    records: Records,
    clock: HandClock,
    *,
    slower: float = 1.0,
    more: float = 0.5,
    noise: float = 0.0,
    max_batch: int = 8,
) -> tuple[Together, FakeBackend, float]:
    """What is found, the backend, and the seconds that it took."""
    inner = FakeBackend(records.confidence, records.prediction, max_batch=max_batch)
    takes_ms = slower * np.array(STAGE_MS)
    backend = Batching(inner, clock, takes_ms, noise=noise, more=more)
    bundle = Bundle(folder)
    started = clock.now()
    found = measure_together(open_loop(bundle, backend), bundle.manifest, clock)
    return found, inner, clock.now() - started


@pytest.mark.parametrize(
    ("more", "most"), [(0.0, 8), (0.5, 8), (0.79, 8), (0.81, 1), (1.0, 1), (2.0, 1)]
)
def test_a_tenth_must_be_saved(
    live_bundle: Path, live_records: Records, clock: HandClock, more: float, most: int
) -> None:
    """Two frames together may take nine tenths of what they take alone."""
    found, _, _ = _measure(live_bundle, live_records, clock, slower=0.5, more=more)
    assert found.most == most
    frames = max(most, 2)
    assert found.alone_ms == pytest.approx((0.5, 1.0))
    assert found.together_ms == pytest.approx(np.array((0.5, 1.0)) * (1 + more * (frames - 1)))
    assert (
        f"for {frames} frames together and {1.5 * frames:.3g} ms for {frames} alone" in found.said
    )


@pytest.mark.parametrize(("max_batch", "most"), [(2, 2), (3, 2), (4, 4), (7, 4), (32, 8)])
def test_as_many_as_the_backend_takes(
    live_bundle: Path, live_records: Records, clock: HandClock, max_batch: int, most: int
) -> None:
    found, backend, _ = _measure(live_bundle, live_records, clock, slower=0.5, max_batch=max_batch)
    assert found.most == most
    assert max(count for _, count in backend.runs) == most


@pytest.mark.parametrize(
    ("slower", "sizes"), [(0.5, {1, 2, 4, 8}), (1.0, {1, 2, 4}), (20.0, {1, 2})]
)
def test_it_takes_little_time(
    live_bundle: Path, live_records: Records, clock: HandClock, slower: float, sizes: set[int]
) -> None:
    """Of slow stages fewer numbers are measured, in few rounds."""
    _, backend, seconds = _measure(live_bundle, live_records, clock, slower=slower)
    assert {count for _, count in backend.runs} == sizes
    rounds = sum(run == (1, 2) for run in backend.runs)
    assert ROUNDS[0] < rounds <= ROUNDS[1] + 1
    assert seconds < 2 * MEASURE_S or rounds == ROUNDS[0] + 1


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_noise(live_bundle: Path, live_records: Records, clock: HandClock, noise: float) -> None:
    """What saves half and more is found."""
    found, _, _ = _measure(live_bundle, live_records, clock, slower=0.5, more=0.1, noise=noise)
    assert found.most == 8
