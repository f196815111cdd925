"""The paces, disturbances and sums of the table; small runs on whatever machine there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import wall_clock
from controller import images
from rich.console import Console
from simulated import SIDE, SimulatedBackend, SimulatedClock, write_bundle
from traces import Camera, busy_neighbour, load_traces, record_traces
from wall_clock import Row, SpikingBackend

from dvt_edge import Profile, Runtime
from dvt_edge.runtime.backends.protocol import Backend
from tests.benchmarks.made_traces import made_trace

SCENES = [np.zeros((SIDE, SIDE), np.uint8)]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    """Stages that do nothing, in real time."""
    records = images(1, 0.2, 300)
    folder = write_bundle(tmp_path / "bundle", records)
    backend = SimulatedBackend(SimulatedClock(), records, made_trace(None, False))
    with Runtime(folder, backend=backend) as opened:
        yield opened


def test_frames_come_at_their_pace_and_late_ones_are_skipped() -> None:
    camera, started = Camera(200.0), perf_counter()
    for _ in range(4):
        camera.wait()
    assert 0.019 < perf_counter() - started < 0.2
    while perf_counter() - started < 0.03:
        pass  # longer than a frame: the ones in between are gone
    camera.wait()
    since = (perf_counter() - started) * 200
    assert since >= 7
    started = perf_counter()
    Camera(None).wait()
    assert perf_counter() - started < 0.01


def test_one_frame_in_a_hundred_takes_twenty_times_as_long() -> None:
    def run_stage(stage: int, count: int, slot: int) -> str:
        until = perf_counter() + 5e-5
        while perf_counter() < until:
            pass
        return "answer"

    backend = SpikingBackend(cast(Backend, SimpleNamespace(run_stage=run_stage, name="fake")))
    assert backend.name == "fake"
    took = np.zeros((2, 400))
    for spikes in (False, True):
        backend.spikes = spikes
        for frame in range(400):
            started = perf_counter()
            assert cast(Any, backend).run_stage(0, 1, 0) == "answer"
            took[int(spikes), frame] = perf_counter() - started
    slow = np.sort(took[1])[::-1]
    assert slow[3] >= 20 * 5e-5
    assert np.median(took[1]) < 10 * 5e-5


def test_a_run_counts_what_it_judges(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wall_clock, "SETTLE", 30)
    row, runs = Row(None, frames=60, budgets=(0,)), []
    for adapt in (False, True):
        run = wall_clock.one_run(runtime, SCENES, row, 1e3, adapt)
        assert 0 < run.own <= run.wall < 0.5
        assert sum(run.exits) == pytest.approx(1.0)
        assert (run.frames, run.deadline_frames, run.late) == (60, 20, 0)
        runs.append(asdict(run))
    found: list[dict[str, Any]] = [
        {"row": row.name, "runs": runs, "refused": []},
        {"row": "too small", "runs": [], "refused": ["the smallest possible is 0.7 ms"]},
    ]
    console = Console(width=100, record=True)
    console.print(wall_clock.show(found, [1e3]))
    text = console.export_text()
    assert "back to back" in text
    assert "0.0 / 0.0" in text
    assert "too small, 1 refused" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_whole_table_is_said_to_take_less_than_25_minutes() -> None:
    assert sum(row.seconds for row in wall_clock.rows_to_run(400, quick=False)) < 25 * 60
    assert sum(row.seconds for row in wall_clock.rows_to_run(400, quick=True)) < 90
    assert Row(30.0, "busy").name == "30 fps, busy neighbour"


def test_without_the_demo_the_error_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = SimpleNamespace(output=tmp_path / "nothing")
    monkeypatch.setattr(wall_clock, "Profile", SimpleNamespace(from_yaml=lambda path: missing))
    with pytest.raises(SystemExit, match="run 'make demo' first"):
        wall_clock.bundle_copy(tmp_path)


@pytest.mark.slow
def test_a_small_row_on_the_demo(
    demo_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measure, choose budgets, run a row beside a neighbour, record traces; the bundle stays."""
    monkeypatch.setattr(wall_clock, "PROFILE", demo_profile)
    monkeypatch.setattr(wall_clock, "SETTLE", 40)
    said: list[str] = []
    costs = Profile.from_yaml(demo_profile).output / "costs.json"
    before = costs.read_bytes() if costs.is_file() else b""
    profile = wall_clock.bundle_copy(tmp_path)
    rows = [Row(None, "busy", 100, measure_s=0.2), Row(60.0, "alone", 5, (0,), measure_s=0.2)]
    budgets = wall_clock.choose_budgets(profile, rows)
    assert budgets == sorted(budgets)
    scenes = wall_clock.scenes_in_order(profile, "even")
    assert len(scenes) == 2000
    kept = [4 * budget for budget in budgets]  # whatever else runs beside the test
    found = wall_clock.run_row(profile, rows[0], kept, scenes, said.append)
    assert [run["adapt"] for run in found["runs"]] == [False, True] * 5
    assert len(said) == 6
    record_traces(profile.output, tmp_path / "traces.json", 6, said.append)
    assert len(load_traces(tmp_path / "traces.json")) == 8
    assert (costs.read_bytes() if costs.is_file() else b"") == before


def test_a_neighbour_ends_with_its_row() -> None:
    with busy_neighbour(False):
        pass
    with busy_neighbour(True):
        pass
