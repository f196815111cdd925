from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest

from dvt_edge.energy.ina3221 import open_ina3221
from dvt_edge.errors import EnergyError

SECONDS = 10.0


def measure(meter, clock, seconds: float = SECONDS):
    with meter.window() as w:
        clock.advance(seconds)
    assert w.unavailable is None
    return w


@pytest.mark.parametrize("hwmon", [0, 1, 7, 12])
def test_orin_nano(trees, clock, sensors, tmp_path, hwmon):
    """The module's input is the total; it contains the others, which are not added to it."""
    trees.orin_nano(hwmon)
    meter = open_ina3221(tmp_path, clock)
    assert meter.source == "INA3221 VDD_IN (module total)"
    w = measure(meter, clock)
    assert w.energy_mj == pytest.approx(48_240, rel=0.01)
    expected = {"VDD_IN": 48_240, "VDD_CPU_GPU_CV": 5_186, "VDD_SOC": 14_460}
    assert w.rails_mj == pytest.approx(expected, rel=0.01)


def test_agx_orin(trees, clock, sensors, tmp_path):
    """No total rail: a labelled sum, in which the memory's rail is not counted a second time."""
    trees.agx_orin()
    meter = open_ina3221(tmp_path, clock)
    assert meter.source == (
        "INA3221 sum of VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 (no total rail on this board)"
    )
    w = measure(meter, clock)
    assert w.energy_mj == pytest.approx(31_600 + 143_200 + 49_680, rel=0.01)
    assert w.rails_mj["VDDQ_VDD2_1V8AO"] == pytest.approx(10_912, rel=0.01)
    assert len(w.rails_mj) == 4  # neither NC nor the sums of shunt voltages


def test_agx_orin_with_slow_registers(trees, clock, sensors, tmp_path):
    """0.55 ms a register, eight registers a sample."""
    trees.agx_orin()
    sensors.read_ns = 550_000
    w = measure(open_ina3221(tmp_path, clock), clock)
    assert w.energy_mj / w.seconds == pytest.approx(22_448, rel=0.01)
    assert sensors.reads > 8 * 450


def test_jetpack_4(trees, clock, sensors, tmp_path):
    trees.xavier_nx_jetpack4()
    meter = open_ina3221(tmp_path, clock)
    assert meter.source == "INA3221 VDD_IN (module total)"
    w = measure(meter, clock)
    expected = {"VDD_IN": 36_550, "VDD_CPU_GPU_CV": 6_540, "VDD_SOC": 10_630}
    assert w.rails_mj == pytest.approx(expected, rel=0.01)
    assert w.energy_mj == w.rails_mj["VDD_IN"]


def test_load_that_comes_and_goes(trees, clock, sensors, tmp_path):
    """Bursts of 100 ms, as of single frames, on top of a slow rise: 1 % of the true integral."""
    folder = trees.orin_nano()

    def power_mw(t: float) -> float:
        return 4000 + 100 * t + (6000 if t % 0.4 < 0.1 else 0)

    def record(t: float) -> None:
        (folder / "in1_input").write_text("5000\n", encoding="utf-8")
        (folder / "curr1_input").write_text(f"{power_mw(t) / 5:.0f}\n", encoding="utf-8")

    clock.on_time = record
    record(0)
    w = measure(open_ina3221(tmp_path, clock), clock, 20)
    true_mj = 4000 * 20 + 100 * 20**2 / 2 + 6000 * 0.1 * math.ceil(20 / 0.4)
    assert w.energy_mj == pytest.approx(true_mj, rel=0.01)


def test_disabled_channel(trees, clock, sensors, tmp_path):
    """It is left out."""
    folder = trees.orin_nano()
    sensors.errors[folder / "curr3_input"] = errno.ENODATA
    w = measure(open_ina3221(tmp_path, clock), clock)
    assert list(w.rails_mj) == ["VDD_IN", "VDD_CPU_GPU_CV"]
    assert w.energy_mj == pytest.approx(48_240, rel=0.01)


def test_disabled_total(trees, clock, sensors, tmp_path):
    """What is left does not pass for the total."""
    folder = trees.orin_nano()
    sensors.errors[folder / "in1_input"] = errno.ENODATA
    with pytest.raises(EnergyError, match=r"VDD_IN: .*in1_input cannot be read"):
        open_ina3221(tmp_path, clock)


def test_disabled_summand(trees, clock, sensors, tmp_path):
    """The label of the sum names what was added: the memory's rail, when its supplier is off."""
    first, _ = trees.agx_orin()
    sensors.errors[first / "in3_input"] = errno.ENODATA
    meter = open_ina3221(tmp_path, clock)
    assert "sum of VDD_GPU_SOC + VDD_CPU_CV + VDDQ_VDD2_1V8AO (" in meter.source
    assert measure(meter, clock).energy_mj == pytest.approx(31_600 + 143_200 + 10_912, rel=0.01)


def test_no_permission(trees, clock, sensors, tmp_path):
    """Rights can be given: the message has the file and the command."""
    folder = trees.orin_nano()
    file = folder / "curr2_input"
    sensors.denied.add(file)
    with pytest.raises(EnergyError) as caught:
        open_ina3221(tmp_path, clock)
    assert f"no permission to read {file}" in str(caught.value)
    assert f"sudo chmod o+r {file}" in str(caught.value)


def test_all_channels_off(trees, clock, sensors, tmp_path):
    _, second = trees.agx_orin()
    first = second.parents[2] / "1-0040" / "hwmon" / "hwmon3"
    for i in (1, 2, 3):
        sensors.errors[first / f"in{i}_input"] = errno.ENODATA
    sensors.errors[second / "in2_input"] = errno.ENODATA
    with pytest.raises(EnergyError, match=r"no channel .* not read: VDD_GPU_SOC: .*; VDD_CPU"):
        open_ina3221(tmp_path, clock)


def test_rails_off_the_module_are_not_added(trees, clock, sensors, tmp_path):
    """IGX Orin measures the carrier board's inputs as well, beside the module's rails."""
    _, second = trees.agx_orin()
    (second / "in1_label").write_text("CVB_ATX_12V\n", encoding="utf-8")
    meter = open_ina3221(tmp_path, clock)
    assert "CVB_ATX_12V" in measure(meter, clock).rails_mj
    assert "CVB_ATX_12V" not in meter.source


def test_only_rails_off_the_module(clock, sensors, tmp_path, trees):
    _, second = trees.agx_orin()
    (second / "in2_label").write_text("CVB_ATX_5V\n", encoding="utf-8")
    (tmp_path / "sys/bus/i2c/devices/1-0040").unlink()
    with pytest.raises(EnergyError, match="only rails of the carrier board: CVB_ATX_5V"):
        open_ina3221(tmp_path, clock)


def test_rails_of_the_same_name(trees, clock, sensors, tmp_path):
    """They are numbered, and measured each on its own."""
    first, second = trees.agx_orin()
    for file in (first / "in3_label", second / "in2_label"):
        file.write_text("VDD_CPU_CV\n", encoding="utf-8")
    w = measure(open_ina3221(tmp_path, clock), clock)
    expected = {
        "VDD_GPU_SOC": 31_600,
        "VDD_CPU_CV": 143_200,
        "VDD_CPU_CV (2)": 49_680,
        "VDD_CPU_CV (3)": 10_912,
    }
    assert w.rails_mj == pytest.approx(expected)
    assert w.energy_mj == pytest.approx(sum(expected.values()))


def test_nothing_there(clock, sensors, tmp_path: Path):
    with pytest.raises(EnergyError, match="no channel below"):
        open_ina3221(tmp_path, clock)
