"""A Runtime on simulated time takes what the traces say, and is the real one in all else."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from controller import images
from simulated import SIDE, SimulatedBackend, SimulatedClock, simulated_costs, simulated_time
from simulated import write_bundle as write
from traces import load_traces, save_traces

from dvt_edge import Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.runtime import session
from dvt_edge.runtime.cascade_loop import open_loop
from tests.benchmarks.made_traces import STAGES_US, made_trace, made_traces

FRAME = np.zeros((SIDE, SIDE), np.uint8)


def test_traces_come_back_as_they_were_saved(tmp_path: Path) -> None:
    path, traces = tmp_path / "traces.json", made_traces()
    save_traces(path, list(traces.values()), {"machine": "made", "load_average": [0.1, 0.2]})
    assert load_traces(path) == traces


def test_a_frame_takes_the_segments_of_its_turn() -> None:
    trace = made_trace(None, False, rounds=5)
    rows = 1e6 * trace.segments()
    assert rows.shape == (15, 4)
    np.testing.assert_allclose(rows[:, 0], 20)
    assert rows[4, 1:3].tolist() == [trace.stages_us[1][0][1], trace.stages_us[1][1][1]]
    assert rows[3, 1] == trace.stages_us[0][0][1]  # left at exit 1 ...
    assert rows[3, 3] == trace.stages_us[2][2][1]  # ... so its last stage is the next frame's


def test_costs_and_answers_are_those_of_traces_and_records(tmp_path: Path) -> None:
    records, clock, trace = images(1, 0.2, 400), SimulatedClock(), made_trace(30.0, False)
    folder = write(tmp_path / "bundle", records)
    backend = SimulatedBackend(clock, records, trace)
    began = time.perf_counter()
    with simulated_time(clock):
        bundle = Bundle(folder)
        costs = simulated_costs(open_loop(bundle, backend), bundle.manifest, clock, 30.0, 20.0)
        assert clock.now() == pytest.approx(20.0, abs=0.2)
        bundle.store(COSTS, costs)
        expected = (20 + np.cumsum(STAGES_US)) / 1e3
        np.testing.assert_allclose(costs.mean_ms, expected, rtol=0.02)
        with Runtime(folder, backend=backend) as runtime:
            assert not runtime.events
            thresholds = runtime.set_budget(latency_ms=0.6).thresholds
            at = records.exits_taken(thresholds)
            for row in range(50):
                backend.shown, before = row, clock.now()
                answer = runtime.classify(FRAME)
                assert answer.exit_stage == at[row] + 1
                assert answer.class_id == records.prediction[row, at[row]]
                assert answer.latency_ms == pytest.approx(1e3 * (clock.now() - before))
            backend.factor, before = 3.0, clock.now()
            runtime.classify(FRAME)
            assert 1e3 * (clock.now() - before) > 2.5 * expected[at[49]]
    assert time.perf_counter() - began < 20.0
    assert vars(session)["perf_counter"] is time.perf_counter
