"""Conditions of a measurement: reading them, storing them, and what counts as a change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dvt_edge.machine import conditions
from dvt_edge.machine.conditions import Conditions, changes, read_conditions

Root = Callable[..., Path]

CPU = "sys/devices/system/cpu"
STEADY = Conditions(
    power_mode="15W",
    governor="schedutil",
    cpu_mhz=(1500.0, 1500.0),
    gpu_mhz=600.0,
    temperatures_c={"tj-thermal": 50.0},
    throttle_events=3,
)


def _files(**changed: str) -> dict[str, str]:
    files = {
        f"{CPU}/cpu0/cpufreq/scaling_governor": "schedutil\n",
        f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
        f"{CPU}/cpu1/cpufreq/scaling_governor": "schedutil\n",
        f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "729600\n",
        f"{CPU}/cpu10/cpufreq/scaling_governor": "schedutil\n",
        f"{CPU}/cpu10/cpufreq/scaling_cur_freq": "115200\n",
        f"{CPU}/cpufreq/policy0/scaling_cur_freq": "1\n",
        "sys/class/devfreq/15340000.vic/cur_freq": "1\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "612000000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48093\n",
        "sys/class/thermal/thermal_zone1/type": "tj-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "49500\n",
        "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
        "sys/class/hwmon/hwmon3/oc3_event_cnt": "37\n",
    }
    return files | changed


def test_orin(board_root: Root) -> None:
    """All of it, with units converted and cores in their order."""
    assert read_conditions(board_root("orin-nano", _files())) == Conditions(
        power_mode="MAXN_SUPER",
        governor="schedutil",
        cpu_mhz=(1510.4, 729.6, 115.2),
        gpu_mhz=612.0,
        temperatures_c={"cpu-thermal": 48.093, "tj-thermal": 49.5},
        throttle_events=37,
    )


def test_thor_gpu(board_root: Root) -> None:
    """Thor's GPU has several clocks; the one of the compute units counts."""
    files = {
        "sys/class/devfreq/gpu-nvd-0/cur_freq": "1692000000",
        "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000",
    }
    assert read_conditions(board_root("thor", files)).gpu_mhz == 1575.0


def test_pc(board_root: Root) -> None:
    """Differing governors are all named; one type of several zones keeps the hottest."""
    files = {
        f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave",
        f"{CPU}/cpu1/cpufreq/scaling_governor": "performance",
        f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "2",
        f"{CPU}/cpu1/thermal_throttle/core_throttle_count": "5",
        "sys/class/thermal/thermal_zone0/type": "acpitz",
        "sys/class/thermal/thermal_zone0/temp": "61000",
        "sys/class/thermal/thermal_zone1/type": "acpitz",
        "sys/class/thermal/thermal_zone1/temp": "27800",
    }
    found = read_conditions(board_root("pc", files))
    assert found.governor == "performance, powersave"
    assert found.temperatures_c == {"acpitz": 61.0}
    assert (found.throttle_events, found.gpu_mhz, found.power_mode) == (7, None, None)


def test_empty(board_root: Root, tmp_path: Path) -> None:
    """Nothing to read is no error, nor is a root that is not there."""
    assert read_conditions(board_root("empty")) == Conditions()
    assert read_conditions(str(tmp_path / "gone")) == Conditions()


def test_this_machine() -> None:
    """The real root does not raise."""
    assert changes(read_conditions(), Conditions()) == []


@pytest.mark.parametrize("temperature", ["-256000", "hot", "", "1" * 5000])
def test_strange_temperature(board_root: Root, temperature: str) -> None:
    """A gated or malformed zone is left out, the others stay."""
    files = _files(**{"sys/class/thermal/thermal_zone0/temp": temperature})
    assert list(read_conditions(board_root("orin-nano", files)).temperatures_c) == ["tj-thermal"]


def test_gated_zone(board_root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zone whose part of the chip is off answers EAGAIN."""
    root = board_root("orin-nano", _files())
    read_text = Path.read_text

    def gated(path: Path, *arguments: str, **keywords: str) -> str:
        if path == root / "sys/class/thermal/thermal_zone0/temp":
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return read_text(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "read_text", gated)
    assert list(read_conditions(root).temperatures_c) == ["tj-thermal"]


def test_json_and_back() -> None:
    """Conditions are stored beside costs and in reports."""
    assert Conditions.model_validate_json(STEADY.model_dump_json()) == STEADY


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"power_mode": "MAXN_SUPER"}, "power mode changed from 15W to MAXN_SUPER"),
        ({"power_mode": None}, None),
        ({"governor": "performance"}, "governor changed from schedutil to performance"),
        ({"cpu_mhz": (1500.0, 1201.0)}, None),  # the mean moved by just less than 10 %
        ({"cpu_mhz": (1500.0, 1199.0)}, "CPU clock went from 1500 to 1350 MHz"),
        ({"cpu_mhz": (1800.0, 1501.0)}, "CPU clock went from 1500 to 1650 MHz"),
        ({"cpu_mhz": ()}, None),
        ({"cpu_mhz": (1500.0,)}, "2 CPU cores were on before, 1 after"),
        ({"gpu_mhz": 541.0}, None),
        ({"gpu_mhz": 306.0}, "GPU clock went from 600 to 306 MHz"),
        ({"gpu_mhz": None}, None),
        ({"temperatures_c": {"tj-thermal": 60.0}}, None),
        ({"temperatures_c": {"tj-thermal": 60.1}}, "tj-thermal rose from 50 to 60 degC"),
        ({"temperatures_c": {"tj-thermal": 20.0}}, None),
        ({"temperatures_c": {"new": 85.0}}, None),
        ({"temperatures_c": {"new": 85.5}}, "new is at 86 degC, above 85"),
        ({"throttle_events": 5}, "slowed itself down 2 times"),
        ({"throttle_events": 0}, None),  # counted from a restart on
    ],
)
def test_changes(changed: dict[str, object], words: str | None) -> None:
    """One warning for each change that matters, none for noise."""
    warnings = changes(STEADY, STEADY.model_copy(update=changed))
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


def test_clocks_from_zero() -> None:
    """A GPU that was off has no clock to divide by."""
    off = STEADY.model_copy(update={"gpu_mhz": 0.0})
    assert changes(off, off) == []
    assert "from 0 to 600" in changes(off, STEADY)[0]


def test_hot_and_risen_are_two_warnings() -> None:
    """They have different remedies."""
    hot = STEADY.model_copy(update={"temperatures_c": {"tj-thermal": conditions.HOT_C + 5}})
    assert len(changes(STEADY, hot)) == 2
