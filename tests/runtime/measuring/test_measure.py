"""One whole measurement, on a clock that takes no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import MEASUREMENT
from dvt_edge.bundle.measurement import Measurement
from dvt_edge.energy import UnavailableMeter
from dvt_edge.errors import BundleError, EnergyError
from dvt_edge.runtime.measuring.costs import costs_of, machine_name
from dvt_edge.runtime.measuring.measure import (
    Plan,
    declared_watts,
    load_measurement,
    measure,
    save_measurement,
)

if TYPE_CHECKING:
    from tests.runtime.conftest import Timed

QUIET = Plan(duration_s=6.0, pace_fps=30.0)


def run(timed: Timed, plan: Plan = QUIET, **changes: Any) -> Measurement:
    """A measurement without the machine's own conditions."""
    arguments = {"meter": timed.meter, "clock": timed.clock, "root": "/nonexistent"} | changes
    return measure(timed.loop, timed.bundle, plan=plan, **arguments)


def test_everything(timed: Timed) -> None:
    """Each part is there, takes the time it was given, and the order is told as it goes."""
    told: list[str] = []

    def note(what: str, share: float) -> None:
        assert 0 <= share <= 1
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
    assert found.machine == machine_name(timed.bundle.manifest)
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

    def throttle(what: str, share: float) -> None:
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
    found = run(timed, Plan(6.0, None))
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
    plan = Plan(1.0, None, (10.0, 10.0, 10.0))
    assert not run(timed, plan).energy.declared
    found = run(timed, plan, meter=UnavailableMeter("no sensor"))
    assert found.energy.declared
    assert found.energy.gross_mj == pytest.approx((10, 20, 40))
    assert "energy is declared, not measured" in found.warnings
    costs = costs_of(found)
    assert costs.energy_declared
    assert costs.energy_source is not None
    assert costs.energy_source.startswith("declared: energy.watts 10 W")


def test_slow_frames_at_the_cameras_pace(timed: Timed) -> None:
    """Clocks that fall while nothing runs: seen, warned of, and to be solved for."""
    run_stage = timed.backend.inner.run_stage

    def run_one(stage: int, count: int):  # type: ignore[no-untyped-def]
        rested = len(timed.clock.slept_s)
        timed.backend.stage_ms[:] = (1, 1, 2) if rested == before[0] else (3, 3, 6)
        before[0] = rested if stage == 2 else before[0]
        return run_stage(stage, count)

    before = [0]
    timed.backend.inner.run_stage = run_one  # type: ignore[method-assign]
    found = run(timed, meter=UnavailableMeter("no sensor"))
    assert found.paced is not None
    assert found.paced.exits[2].latency.mean_ms > 2 * found.back_to_back.exits[2].latency.mean_ms
    assert any("--solve-for paced" in warning for warning in found.warnings)
    assert costs_of(found).paced_fps is None
    paced = costs_of(found, paced=True)
    assert paced.paced_fps == 30
    assert paced.mean_ms[2] == pytest.approx(found.paced.exits[2].latency.mean_ms)


def test_warnings_of_missed_frames_and_few_runs(timed: Timed) -> None:
    """A camera faster than the last exit."""
    found = run(timed, Plan(0.5, 300.0), meter=UnavailableMeter("no sensor"))
    assert any("frames were not finished before the next was due" in w for w in found.warnings)
    assert any(w.startswith("only ") and "at 300 fps" in w for w in found.warnings)


def test_not_settled(timed: Timed) -> None:
    """Said in the result and as a warning; the measurement goes on."""
    run_stage = timed.backend.inner.run_stage

    def slower(stage: int, count: int):  # type: ignore[no-untyped-def]
        timed.backend.stage_ms = timed.backend.stage_ms * 1.002
        return run_stage(stage, count)

    timed.backend.inner.run_stage = slower  # type: ignore[method-assign]
    found = run(timed, Plan(0.5, None), meter=UnavailableMeter("no sensor"))
    assert not found.settled
    assert found.warm_up_runs > 100
    assert any("had not settled after 10 s" in warning for warning in found.warnings)


def test_costs(timed: Timed) -> None:
    """What the solver reads: the distribution's figures, gross energy, the last exit's p99s."""
    timed.backend.noise = 0.1
    found = run(timed)
    costs = costs_of(found)
    assert costs.machine == found.machine
    assert costs.measured_at == found.measured_at
    assert costs.energy_mj == found.energy.gross_mj
    assert costs.energy_source == "FAKE rail"
    assert not costs.energy_declared
    for cost, timing in zip(costs.exits, found.back_to_back.exits, strict=True):
        latency = timing.latency
        assert (cost.p50_ms, cost.p95_ms, cost.p99_ms, cost.max_ms) == (
            latency.p50_ms,
            latency.p95_ms,
            latency.p99_ms,
            latency.max_ms,
        )
        assert cost.stage_ms == tuple(stage.mean_ms for stage in timing.stages)
    last = found.back_to_back.exits[-1]
    assert costs.stage_p99_ms == tuple(stage.p99_ms for stage in last.stages)
    with pytest.raises(BundleError, match="--pace"):
        costs_of(run(timed, Plan(0.5, None)), paced=True)


def test_energy_is_made_to_increase(timed: Timed) -> None:
    """The solver wants it so; noise may reverse two exits."""
    found = run(timed)
    energy = found.energy.model_copy(update={"gross_mj": (5.0, 4.0, 9.0)})
    costs = costs_of(found.model_copy(update={"energy": energy}))
    assert costs.energy_mj is not None
    assert costs.energy_mj[0] < costs.energy_mj[1] < costs.energy_mj[2]
    assert costs.energy_mj == pytest.approx((5, 5, 9), rel=1e-4)


def test_round_trip(timed: Timed, own_bundle: Path) -> None:
    """Kept in the bundle, which stays whole; not taken for one of other stages."""
    found = run(timed)
    bundle = Bundle(own_bundle)
    assert load_measurement(bundle) is None
    save_measurement(bundle, found)
    assert load_measurement(Bundle(own_bundle)) == found
    save_measurement(bundle, found.model_copy(update={"content_hash": "0"}))
    assert load_measurement(bundle) is None
    (own_bundle / MEASUREMENT).write_text("{")
    assert load_measurement(bundle) is None


@pytest.mark.parametrize(("watts", "expected"), [(5, (5.0, 5.0)), ((1.0, 2.0), (1.0, 2.0))])
def test_watts(watts: Any, expected: tuple[float, ...]) -> None:
    """One figure stands for all stages."""
    assert declared_watts(watts, 2) == expected
    with pytest.raises(EnergyError, match=r"energy\.watts .* expected 2, found 3"):
        declared_watts((1.0, 2.0, 3.0), 2)
