"""One whole measurement, on a clock that takes no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import costs_from_measurement
from dvt_edge.bundle.measurement import Measurement
from dvt_edge.energy import UnavailableMeter
from dvt_edge.errors import BundleError, EnergyError
from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.backends.protocol import StageAnswer, machine_name
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.measuring.measure import (
    HowToMeasure,
    declared_watts,
    measure,
    measure_costs,
)
from dvt_edge.runtime.measuring.timing import MIN_PACED_ROUNDS
from dvt_edge.runtime.preprocess import Preprocessor
from tests.runtime.conftest import FakeBackend, Timed

QUIET = HowToMeasure(duration_s=6.0, pace_fps=30.0)


def run(timed: Timed, how: HowToMeasure = QUIET, **changes: Any) -> Measurement:
    """A measurement without the machine's own conditions."""
    arguments: dict[str, Any] = {
        "meter": timed.meter,
        "clock": timed.clock,
        "root": "/nonexistent",
    } | changes
    return measure(timed.loop, timed.bundle.manifest, how=how, **arguments)


def test_everything(timed: Timed) -> None:
    """Each part is there, takes the time it was given, and the order is told as it goes."""
    told: list[str] = []

    def note(what: str, done: float, total: float, remark: str = "") -> None:
        assert 0 <= done <= total
        if what not in told:
            told.append(what)

    found = run(timed, progress=note)
    assert told == [
        "energy, idle",
        "warming up",
        "at 30 fps",
        "back to back",
        "energy, exits",
    ]
    assert found.machine == machine_name(timed.backend)
    assert found.content_hash == timed.bundle.manifest.content_hash
    assert found.settled
    assert found.seconds == pytest.approx(6.0, abs=0.1)
    assert found.bytes_resident == timed.backend.bytes_resident
    assert found.process_bytes is None or found.process_bytes > 1e6
    assert found.paced is not None
    for timing, fps, runs in ((found.paced, 30, 30), (found.back_to_back, None, 429)):
        assert timing.fps == fps
        assert [exit_.latency.mean_ms for exit_ in timing.exits] == pytest.approx([1, 2, 4])
        assert timing.exits[0].latency.runs == runs
    assert found.energy.net_mj == pytest.approx((3, 8, 19))
    assert found.warnings == ()
    assert Measurement.model_validate_json(found.model_dump_json()) == found


def test_what_moved_meanwhile(timed: Timed, board_root: Callable[..., Path]) -> None:
    """Conditions right after the warm-up and after the last frame; the change is a warning."""
    core, zone = "sys/devices/system/cpu/cpu0/cpufreq", "sys/class/thermal/thermal_zone0"
    root = board_root(
        "orin-nano",
        {
            f"{core}/scaling_governor": "schedutil",
            f"{core}/scaling_cur_freq": "1510000",
            f"{zone}/type": "tj-thermal",
            f"{zone}/temp": "45000",
        },
    )

    def throttle(what: str, done: float, total: float, remark: str = "") -> None:
        if what == "energy, exits":
            (root / core / "scaling_cur_freq").write_text("729000")
            (root / zone / "temp").write_text("70000")

    found = run(timed, root=root, progress=throttle)
    assert (found.before.power_mode, found.before.governor) == ("MAXN_SUPER", "schedutil")
    assert (found.before.cpu_mhz, found.after.cpu_mhz) == ((1510,), (729,))
    assert [warning[:40] for warning in found.warnings] == [
        "the CPU clock went from 1510 to 729 MHz;",
        "tj-thermal rose from 45 to 70 degC; warm",
    ]


def test_without_a_pace(timed: Timed) -> None:
    """All of the time goes to frames back to back."""
    found = run(timed, HowToMeasure(6.0, None))
    assert found.paced is None
    assert found.back_to_back.exits[0].latency.runs == 858
    assert found.warnings == ()


def test_without_a_meter_no_time_is_spent(timed: Timed) -> None:
    """The reason stands in the result."""
    found = run(timed, meter=UnavailableMeter("no sensor"))
    assert found.energy.unavailable == "no sensor"
    assert timed.clock.now() < 8


def test_declared_power_stands_in(timed: Timed) -> None:
    """Only where no meter works; it is labelled, and a warning says so."""
    plan = HowToMeasure(1.0, None, (10.0, 10.0, 10.0))
    assert not run(timed, plan).energy.declared
    found = run(timed, plan, meter=UnavailableMeter("no sensor"))
    assert found.energy.declared
    assert found.energy.gross_mj == pytest.approx((10, 20, 40))
    assert "energy is declared, not measured" in found.warnings
    costs = costs_from_measurement(found, paced=False)
    assert costs.energy_declared
    assert costs.energy_source is not None
    assert costs.energy_source.startswith("declared: energy.watts 10 W")


def test_slow_frames_at_the_cameras_pace(timed: Timed) -> None:
    """Clocks that fall while nothing runs: seen, warned of, and to be solved for."""
    run_stage = timed.backend.inner.run_stage

    def run_one(stage: int, count: int, slot: int = 0) -> StageAnswer:
        rested = len(timed.clock.slept_s)
        timed.backend.takes_ms[:] = (1, 1, 2) if rested == before[0] else (3, 3, 6)
        before[0] = rested if stage == 2 else before[0]
        return run_stage(stage, count, slot)

    before = [0]
    timed.backend.inner.run_stage = run_one  # type: ignore[method-assign]
    found = run(timed, meter=UnavailableMeter("no sensor"))
    assert found.paced is not None
    assert found.paced.exits[2].latency.mean_ms > 2 * found.back_to_back.exits[2].latency.mean_ms
    assert any("times as long as back to back" in warning for warning in found.warnings)
    assert costs_from_measurement(found, paced=False).paced_fps is None
    paced = costs_from_measurement(found)
    assert paced.paced_fps == 30
    assert paced.mean_ms[2] == pytest.approx(found.paced.exits[2].latency.mean_ms)


def test_warning_of_missed_frames(timed: Timed) -> None:
    """A camera faster than the last exit."""
    found = run(timed, HowToMeasure(0.5, 300.0), meter=UnavailableMeter("no sensor"))
    assert any("frames were not finished before the next was due" in w for w in found.warnings)


def test_not_settled(timed: Timed) -> None:
    """Said in the result and as a warning; the measurement goes on."""
    timed.backend.drift = 1.002
    found = run(timed, HowToMeasure(0.5, None), meter=UnavailableMeter("no sensor"))
    assert not found.settled
    assert found.warm_up_runs > 100
    assert any("had not settled after 10 s" in warning for warning in found.warnings)


def test_costs(timed: Timed) -> None:
    """What the solver reads: the distribution's figures, gross energy, the last exit's p99s."""
    timed.backend.noise = 0.1
    found = run(timed)
    costs = costs_from_measurement(found)
    assert found.paced is not None
    assert costs.machine == found.machine
    assert costs.measured_at == found.measured_at
    assert costs.energy_mj == found.energy.gross_mj
    assert costs.energy_source == "FAKE rail"
    assert not costs.energy_declared
    for cost, timing in zip(costs.exits, found.paced.exits, strict=True):
        latency = timing.latency
        assert (cost.p50_ms, cost.p95_ms, cost.p99_ms, cost.max_ms) == (
            latency.p50_ms,
            latency.p95_ms,
            latency.p99_ms,
            latency.max_ms,
        )
        assert cost.stage_ms == tuple(stage.mean_ms for stage in timing.stages)
    last = found.paced.exits[-1]
    assert costs.stage_p99_ms == tuple(stage.p99_ms for stage in last.stages)
    with pytest.raises(BundleError, match="--pace"):
        costs_from_measurement(run(timed, HowToMeasure(0.5, None)))


def test_energy_is_made_to_increase(timed: Timed) -> None:
    """The solver wants it so; noise may reverse two exits."""
    found = run(timed)
    energy = found.energy.model_copy(update={"gross_mj": (5.0, 4.0, 9.0)})
    costs = costs_from_measurement(found.model_copy(update={"energy": energy}))
    assert costs.energy_mj is not None
    assert costs.energy_mj[0] < costs.energy_mj[1] < costs.energy_mj[2]
    assert costs.energy_mj == pytest.approx((5, 5, 9), rel=1e-4)


@pytest.mark.parametrize(("watts", "expected"), [(5, (5.0, 5.0)), ((1.0, 2.0), (1.0, 2.0))])
def test_watts(watts: Any, expected: tuple[float, ...]) -> None:
    """One figure stands for all stages."""
    assert declared_watts(watts, 2) == expected
    with pytest.raises(EnergyError, match=r"energy\.watts .* expected 2, found 3"):
        declared_watts((1.0, 2.0, 3.0), 2)


@pytest.mark.parametrize("order", ["bgr", "nv12", "yuyv"])
def test_measures_with_frames_of_the_layout(
    own_bundle: Path, fake_backend: type[FakeBackend], order: ColorOrder
) -> None:
    """The noise that is timed is laid out as the profile says that frames are."""
    bundle = Bundle(own_bundle)
    config = bundle.manifest.input.model_copy(
        update={"color_order": order, "mean": (0.0,), "std": (1.0,)}
    )
    bundle.manifest = bundle.manifest.model_copy(update={"input": config})
    backend = fake_backend(np.zeros((256, 3)))
    small = config.model_copy(update={"resize": 4, "crop": 4})
    loop = CascadeLoop(backend, Preprocessor(small), [str(i) for i in range(10)])
    assert len(measure_costs(loop, bundle.manifest, 1e-9).exits) == 3


def test_measuring_forces_every_exit(
    own_bundle: Path,
    fake_backend: type[FakeBackend],
    value_frame: Callable[[int], npt.NDArray[np.uint8]],
) -> None:
    """Each exit is timed as often as the others, whatever the confidences say."""
    bundle = Bundle(own_bundle)
    assert len(bundle.manifest.stages) == 3
    config = InputConfig(resize=4, crop=4, mean=(0,), std=(1,), color_order="gray")
    confidence = np.random.default_rng(0).random((256, 3))
    backend = fake_backend(confidence)
    loop = CascadeLoop(backend, Preprocessor(config), [str(i) for i in range(10)])
    shares: list[float] = []

    def seen(what: str, done: float, total: float, remark: str = "") -> None:
        shares.append(done / total)

    costs = measure_costs(loop, bundle.manifest, 1e-9, seen)
    assert [len(exit_.stage_ms) for exit_ in costs.exits] == [1, 2, 3]
    assert costs.runs_per_exit == MIN_PACED_ROUNDS
    assert costs.paced_fps == bundle.manifest.camera.fps
    runs = [sum(stage == k for stage, _ in backend.runs) for k in range(3)]
    assert runs == [3 * runs[2], 2 * runs[2], runs[2]]
    assert costs.content_hash == bundle.manifest.content_hash
    assert all(0 <= share <= 1 for share in shares)
    for exit_ in costs.exits:
        assert exit_.p50_ms <= exit_.p95_ms <= exit_.p99_ms <= exit_.max_ms
        assert exit_.preprocess_ms + sum(exit_.stage_ms) <= exit_.mean_ms + 1e-9
