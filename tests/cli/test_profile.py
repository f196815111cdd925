"""``dvt-edge profile``: what it shows, writes and keeps, and what it finds wrong beforehand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt_edge.bundle.bundle import Bundle, file_sha256, write_records
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.manifest import COSTS, MEASUREMENT, RECORDS
from dvt_edge.bundle.measurement import Measurement
from dvt_edge.errors import EnergyError
from dvt_edge.policy import Records
from dvt_edge.runtime.runtime import Runtime
from tests.cli.conftest import Run, Write, error_line
from tests.conftest import edit_manifest

QUICK = ("--duration", "0.5", "--pace", "none")
ANYTHING = {"latency_ms": 1e6}


@pytest.fixture
def never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test fails where something is measured."""

    def measure(*arguments: object, **keywords: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("dvt_edge.cli.profile.measure", measure)


@pytest.mark.slow
def test_json(dvt_edge: Run, write_profile: Write, own_bundle: Path) -> None:
    """The whole measurement and the thresholds it gives; costs and measurement are kept."""
    path = write_profile(budget=ANYTHING)
    result = dvt_edge("profile", "--json", "--profile", path, "--duration", "0.6", "--pace", "100")
    assert (result.code, result.err) == (0, "")
    values = json.loads(result.out)
    assert values.keys() == {*("measurement", "costs", "budget", "solution", "problem", "promise")}
    costs = Costs.model_validate(values["costs"])
    measured = Measurement.model_validate(values["measurement"])
    assert [len(cost.stage_ms) for cost in costs.exits] == [1, 2, 3]
    assert measured.paced is not None
    assert measured.paced.fps == 100
    assert values["budget"]["latency_ms"] == 1e6
    assert values["problem"] is None
    assert 0 < values["solution"]["mean_ms"] <= 1e6
    assert 0 < values["solution"]["accuracy"] <= 1
    assert len(values["solution"]["thresholds"]) == 3
    assert sum(values["solution"]["exit_fraction"]) == pytest.approx(1)
    stored = json.loads((own_bundle / COSTS).read_text(encoding="utf-8"))
    assert stored == values["costs"]
    stored = json.loads((own_bundle / MEASUREMENT).read_text(encoding="utf-8"))
    assert stored == values["measurement"]
    assert Bundle(own_bundle).manifest.content_hash == costs.content_hash
    with Runtime(own_bundle) as runtime:
        assert runtime.costs == costs


@pytest.mark.slow
def test_json_file(dvt_edge: Run, write_profile: Write, tmp_path: Path) -> None:
    """Tables for people are printed as well."""
    file = tmp_path / "new" / "measured.json"
    result = dvt_edge(
        "profile", "--profile", write_profile(budget=ANYTHING), *QUICK, "--json", file
    )
    assert (result.code, result.err) == (0, "")
    assert json.loads(file.read_text(encoding="utf-8"))["measurement"]["paced"] is None
    assert "Latency of classify" in result.out
    assert result.out.endswith(f"JSON: {file}\n")


@pytest.mark.slow
def test_text(dvt_edge: Run, write_profile: Write, images: Path) -> None:
    """Tables of at most 100 columns, and a line for everything that has no table."""
    arguments = ("--duration", "0.6", "--pace", "50", "--data", images)
    result = dvt_edge("profile", "--profile", write_profile(budget=ANYTHING), *arguments)
    assert (result.code, result.err) == (0, "")
    assert max(len(line) for line in result.out.splitlines()) <= 100
    text = " ".join(result.out.split())
    for words in (
        "Latency of classify at batch 1, ms",
        "50 fps",
        "Parts of the last exit, ms",
        "preprocess",
        "decision",
        "Energy: ",
        "Memory: images and reuse tensors",
        "Warm-up: ",
        "Conditions before -> after: ",
        "Budget (mean latency 1e+06 ms): expected mean ",
        f"{images}: 4 images, ",
        "Exits by class",
        "trouser",
    ):
        assert words in text
    assert "\x1b" not in result.out


@pytest.mark.slow
def test_data(dvt_edge: Run, write_profile: Write, images: Path) -> None:
    """Exits, accuracy and exits by class, as the Runtime answers them."""
    path = write_profile(budget=ANYTHING)
    result = dvt_edge("profile", "--json", "--profile", path, *QUICK, "--data", images)
    data = json.loads(result.out)["measurement"]["data"]
    assert (data["images"], data["labelled"], data["unreadable"]) == (4, True, 0)
    assert sum(data["exit_fraction"]) == pytest.approx(1)
    assert len(data["exit_accuracy"]) == 3
    assert data["class_exit_fraction"].keys() == {"sandal", "trouser"}
    from dvt_edge.files.datasets import load_image

    with Runtime(path) as runtime:
        files = sorted(images.rglob("*.png"))
        answers = [(f, runtime.classify(load_image(f), color_order="rgb")) for f in files]
    at = [answer.exit_stage for _, answer in answers]
    assert data["exit_fraction"] == [at.count(k) / 4 for k in (1, 2, 3)]
    assert data["accuracy"] == sum(a.label == f.parent.name for f, a in answers) / 4


@pytest.mark.slow
def test_unlabelled_data(dvt_edge: Run, write_profile: Write, images: Path) -> None:
    """A flat folder has exits and no accuracy; a file that is no image is counted."""
    (images / "sandal" / "bad.png").write_bytes(b"x")
    path = write_profile(budget=ANYTHING)
    result = dvt_edge("profile", "--json", "--profile", path, *QUICK, "--data", images / "sandal")
    data = json.loads(result.out)["measurement"]["data"]
    assert (data["images"], data["unreadable"], data["labelled"]) == (2, 1, False)
    assert data["accuracy"] is data["exit_accuracy"] is None
    assert data["class_exit_fraction"] == {}


@pytest.mark.slow
def test_solved_for_the_pace(dvt_edge: Run, write_profile: Write, own_bundle: Path) -> None:
    """The costs are those at the pace, and the line says so."""
    arguments = ("--duration", "0.6", "--pace", "60", "--solve-for", "paced")
    result = dvt_edge("profile", "--profile", write_profile(budget=ANYTHING), *arguments)
    assert result.code == 0
    assert " ms at 60 fps, accuracy" in " ".join(result.out.split())
    with Runtime(own_bundle) as runtime:
        assert runtime.costs.paced_fps == 60


@pytest.mark.slow
def test_small_budget(dvt_edge: Run, write_profile: Write, own_bundle: Path) -> None:
    """The tables come nevertheless; the smallest possible budget is named, and then works."""
    before = (own_bundle / COSTS).read_bytes()
    path = write_profile(budget={"latency_ms": 1e-6})
    result = dvt_edge("profile", "--profile", path, *QUICK)
    assert result.code == 1
    assert "Latency of classify" in result.out
    found = re.search(r"budget of 1e-06 ms is smaller .* possible is (\S+) ms, with", result.err)
    assert found
    assert (own_bundle / COSTS).read_bytes() != before
    with Runtime(write_profile(budget={"latency_ms": float(found[1])})) as runtime:
        assert runtime.solution.cost <= float(found[1])


def test_small_budget_in_json(dvt_edge: Run, write_profile: Write) -> None:
    """The problem stands beside what was measured."""
    path = write_profile(budget={"latency_ms": 1e-6})
    result = dvt_edge("profile", "--json", "--profile", path, *QUICK)
    assert result.code == 1
    values = json.loads(result.out)
    assert values["solution"] is None
    assert "smallest possible is" in values["problem"]


@pytest.mark.slow
def test_costs_that_forbid_the_budget_are_replaced(
    dvt_edge: Run, write_profile: Write, own_bundle: Path
) -> None:
    """Costs measured on a busy machine do not keep the command from measuring again."""
    costs = json.loads((own_bundle / COSTS).read_text(encoding="utf-8"))
    for k, exit_ in enumerate(costs["exits"]):
        exit_["mean_ms"] = 1e7 * (k + 1)
    (own_bundle / COSTS).write_text(json.dumps(costs), encoding="utf-8")
    path = write_profile(budget=ANYTHING)
    assert dvt_edge("profile", "--json", "--profile", path, *QUICK).code == 0


def test_json_where_nobody_leaves_early(
    dvt_edge: Run, write_profile: Write, own_bundle: Path
) -> None:
    """An infinite threshold is null: JSON has no infinity."""
    old = Bundle(own_bundle).records()
    assert old.label is not None
    answers = np.repeat(old.label[:, None], old.exits, axis=1)
    answers[:, :-1] = (answers[:, :-1] + 1) % 10
    write_records(own_bundle / RECORDS, Records(old.confidence, answers, old.label))
    digest = file_sha256(own_bundle / RECORDS)
    edit_manifest(own_bundle, lambda manifest: manifest["files"].update({RECORDS: digest}))
    path = write_profile(budget=ANYTHING)
    result = dvt_edge("profile", "--json", "--profile", path, *QUICK)
    assert result.code == 0
    values = json.loads(result.out)
    assert values["solution"]["thresholds"] == [None, None, 0]
    assert values["solution"]["exit_fraction"] == [0, 0, 1]


@pytest.mark.slow
def test_declared_power(
    dvt_edge: Run, write_profile: Write, images: Path, monkeypatch: Any
) -> None:
    """Labelled wherever it is shown; predictions estimate by it, and an energy budget can be."""
    from dvt_edge.energy import UnavailableMeter

    monkeypatch.setattr(
        "dvt_edge.cli.profile.open_meter", lambda runs_on: UnavailableMeter("no sensor")
    )
    path = write_profile(budget=ANYTHING, energy={"watts": 5})
    result = dvt_edge("profile", "--profile", path, *QUICK)
    text = " ".join(result.out.split())
    assert "Declared energy per frame, mJ" in text
    assert "Energy: declared: energy.watts 5 W times measured time, because no sensor" in text
    assert "Warning: energy is declared, not measured" in text
    with Runtime(path) as runtime:
        table = runtime.costs.energy_mj
        assert table is not None
        frame = np.zeros((48, 48), np.uint8)
        answers = [runtime.classify(frame), *runtime.classify_batch([frame, frame])]
        assert [a.energy_mj for a in answers] == [table[a.exit_stage - 1] for a in answers]
        runtime.set_budget(latency_ms=None, energy_mj=table[1])
    image = next(images.rglob("*.png"))
    line = json.loads(dvt_edge("classify", "--json", "--profile", path, image).out)
    assert line["energy_mj"] == table[line["exit_stage"] - 1]


@pytest.mark.usefixtures("never_measured")
def test_declared_for_another_number_of_stages(dvt_edge: Run, write_profile: Write) -> None:
    """Found out before."""
    path = write_profile(energy={"watts": [1, 2]})
    message = error_line(dvt_edge("profile", "--profile", path))
    assert "energy.watts needs one figure, or one per stage: expected 3, found 2" in message


@pytest.mark.usefixtures("never_measured")
@pytest.mark.parametrize("option", ["--json", "--report"])
@pytest.mark.parametrize("name", ["file/x.html", "missing/../file/x.html", "/proc/x.html"])
def test_outputs_that_cannot_be_written(
    dvt_edge: Run, write_profile: Write, tmp_path: Path, option: str, name: str
) -> None:
    """Found out before anything is measured, and what was there stays."""
    (tmp_path / "file").write_text("here")
    path = tmp_path / name
    message = error_line(dvt_edge("profile", "--profile", write_profile(), option, path))
    assert f"{path}: cannot be written (" in message
    assert "choose another file" in message
    assert (tmp_path / "file").read_text() == "here"


@pytest.mark.usefixtures("never_measured")
def test_bundle_that_cannot_be_written(
    dvt_edge: Run, write_profile: Write, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The costs have to go somewhere."""

    def refuse(prefix: str, dir: Path) -> None:  # noqa: A002
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    message = error_line(dvt_edge("profile", "--profile", write_profile()))
    assert f"{own_bundle / COSTS}: cannot be written (Permission denied)" in message


@pytest.mark.usefixtures("never_measured")
def test_data_that_is_not_there(dvt_edge: Run, write_profile: Write, tmp_path: Path) -> None:
    """Found out before, as well as folders that are no classes."""
    message = error_line(
        dvt_edge("profile", "--profile", write_profile(), "--data", tmp_path / "no")
    )
    assert "no: no such folder" in message


@pytest.mark.usefixtures("never_measured")
def test_report_without_its_extra(
    dvt_edge: Run, write_profile: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out before."""
    for module in ("jinja2", "plotly"):
        monkeypatch.setitem(sys.modules, module, None)
    report = tmp_path / "r.html"
    message = error_line(dvt_edge("profile", "--profile", write_profile(), "--report", report))
    expected = "a report needs Jinja2, Plotly; install with pip install 'dvt-edge[report]'"
    assert expected in message


def test_report(
    dvt_edge: Run, write_profile: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the bundle, the profile, and what was measured."""
    given: list[Any] = []
    command = "dvt_edge.cli.profile"
    monkeypatch.setattr(f"{command}.collect", lambda *arguments: arguments)
    monkeypatch.setattr(f"{command}.write_report", lambda *arguments: given.extend(arguments))
    path, report = write_profile(budget=ANYTHING), tmp_path / "r.html"
    result = dvt_edge("profile", "--profile", path, *QUICK, "--report", report)
    assert result.code == 0
    assert result.out.endswith(f"Report: {report}\n")
    file, (bundle, profile, costs, measurement) = given
    assert file == report
    assert profile.output == bundle.folder
    assert isinstance(costs, Costs)
    assert isinstance(measurement, Measurement)


def test_foreign_costs_are_noted(
    dvt_edge: Run, write_profile: Write, own_bundle: Path, images: Path
) -> None:
    """``classify`` says what differs, and works."""
    costs = json.loads((own_bundle / COSTS).read_text(encoding="utf-8"))
    (own_bundle / COSTS).write_text(json.dumps(costs | {"machine": "a board"}), encoding="utf-8")
    result = dvt_edge("classify", "--profile", write_profile(budget=ANYTHING), images)
    assert result.code == 0
    assert result.err.startswith(f"note: the costs in {own_bundle / COSTS} are not used: they were")
    assert "on 'a board', this is '" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.slow
def test_sensors_that_fail(
    dvt_edge: Run, write_profile: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sensor that vanishes is a reason in the figures, and no end of the measurement."""
    from dvt_edge.energy import Meter

    class Gone(Meter):
        def start(self) -> Any:
            raise EnergyError("/sys/x: no such device; look at the kernel's log")

    monkeypatch.setattr("dvt_edge.cli.profile.open_meter", lambda runs_on: Gone("I2C"))
    result = dvt_edge("profile", "--profile", write_profile(budget=ANYTHING), *QUICK)
    assert (result.code, result.err) == (0, "")
    text = " ".join(result.out.split())
    assert "Energy: unavailable: /sys/x: no such device; look at the kernel's log" in text


@pytest.mark.usefixtures("never_measured")
@pytest.mark.parametrize("duration", ["nan", "0", "inf", "soon"])
def test_durations_that_are_none(dvt_edge: Run, write_profile: Write, duration: str) -> None:
    """NaN compares with nothing, so it has to be asked for."""
    result = dvt_edge("profile", "--profile", write_profile(), "--duration", duration)
    assert (result.code, result.out) == (2, "")
    assert "--duration" in result.err
