from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dvt_edge import energy
from dvt_edge.energy import open_meter, opening
from dvt_edge.energy.nvml import NvmlMeter
from dvt_edge.errors import EnergyError


def _joules(meter, clock) -> float:
    with meter.window() as w:
        clock.advance(10)
    assert w.unavailable is None
    assert w.source == meter.source
    return w.energy_mj / 1000


@pytest.mark.parametrize(
    ("machine", "source", "joules"),
    [
        ("orin_nano", "INA3221 VDD_IN (module total)", 48.24),
        ("agx_orin", "INA3221 sum of VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 224.48),
        ("thor", "INA238 VIN", 234.568),
        ("xavier_nx_jetpack4", "INA3221 VDD_IN (module total)", 36.55),
    ],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_recorded_jetsons(trees, clock, sensors, tmp_path, machine, source, joules, as_text):
    """Each tree gives its joules to 1 %."""
    getattr(trees, machine)()
    meter = open_meter(str(tmp_path) if as_text else tmp_path, clock=clock)
    assert meter.unavailable is None
    assert meter.source.startswith(source)
    assert _joules(meter, clock) == pytest.approx(joules, rel=0.01)


def test_recorded_x86(trees, clock, sensors, tmp_path):
    [zone] = trees.x86()
    clock.on_time = lambda t: (zone / "energy_uj").write_text(f"{1e6 + 15e6 * t:.0f}\n")
    meter = open_meter(tmp_path, clock=clock)
    assert meter.source == "RAPL package-0"
    assert _joules(meter, clock) == pytest.approx(150, rel=0.01)


def test_a_machine_with_nothing(clock, sensors, tmp_path):
    """The reason lists what was looked for, and what can be done."""
    meter = open_meter(tmp_path, clock=clock)
    assert meter.source == "unavailable"
    for words in ("INA238: none", "INA3221: no", "RAPL: no", "energy.watts"):
        assert words in str(meter.unavailable)
    assert "NVML" not in str(meter.unavailable)  # a recorded tree has no driver
    with meter.window() as w:
        clock.advance(10)
    assert (w.energy_mj, w.rails_mj) == (None, None)
    assert w.unavailable == meter.unavailable


def test_no_permission(trees, clock, sensors, tmp_path):
    [zone] = trees.x86()
    sensors.denied.add(zone / "energy_uj")
    meter = open_meter(tmp_path, clock=clock)
    assert f"RAPL: no permission to read {zone}/energy_uj" in str(meter.unavailable)
    assert f"sudo chmod o+r {zone}/energy_uj" in str(meter.unavailable)


def test_an_unreadable_input_is_not_replaced_by_its_parts(trees, clock, sensors, tmp_path):
    """Thor's INA3221 rails are less than what the denied INA238 would show."""
    file = trees.thor() / "power1_input"
    sensors.denied.add(file)
    meter = open_meter(tmp_path, clock=clock)
    assert f"INA238: no permission to read {file}" in str(meter.unavailable)


@pytest.fixture
def jetson_free(monkeypatch):
    """This machine as one with NVML and RAPL."""

    def absent(*args):
        raise EnergyError("absent")

    monkeypatch.setattr(opening, "find_input", lambda root: None)
    monkeypatch.setattr(opening, "open_ina238", absent)
    monkeypatch.setattr(opening, "open_ina3221", absent)
    monkeypatch.setattr(opening, "NvmlMeter", lambda clock=None: "nvml")
    monkeypatch.setattr(opening, "RaplMeter", lambda root, clock=None: "rapl")


@pytest.mark.parametrize(
    ("runs_on", "expected"), [(None, "nvml"), ("gpu", "nvml"), ("cpu", "rapl")]
)
def test_what_the_work_runs_on(jetson_free, monkeypatch, runs_on, expected):
    """A GPU's counter does not see what a processor does, nor the other way round."""
    assert open_meter(runs_on=runs_on) == expected

    def broken(clock=None):
        raise EnergyError("broken")

    monkeypatch.setattr(opening, "NvmlMeter", broken)
    if runs_on == "gpu":
        assert "NVML: broken" in str(open_meter(runs_on=runs_on).unavailable)
    else:
        opened: object = open_meter(runs_on=runs_on)
        assert opened == "rapl"


def test_this_machine():
    """Whatever it is: a meter, or a reason."""
    meter = open_meter()
    assert (meter.unavailable is None) == (meter.source != "unavailable")


def test_public_names():
    assert NvmlMeter.__name__ not in energy.__all__
    assert energy.__all__ == sorted(energy.__all__)
    for name in energy.__all__:
        assert getattr(energy, name) is not None


def test_importing_pulls_in_no_vendor_library():
    """NVML is only looked for when a meter is opened."""
    code = (
        "import sys, dvt_edge.energy; print({'pynvml', 'torch', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


OURS = (
    "dvt_edge.energy",
    "dvt_edge.errors",
    "dvt_edge.machine.board",
    "dvt_edge.machine.clock",
    "dvt_edge.requirements",
)


@pytest.mark.parametrize(
    "path", sorted(Path(energy.__path__[0]).glob("*.py")), ids=lambda p: p.name
)
def test_meters_know_nothing_of_the_runtime(path):
    """The package needs NumPy, the machine's files and clock, the errors and itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            ours = name.startswith(OURS)
            assert ours or name.split(".")[0] in {"numpy", *sys.stdlib_module_names}, name
