"""From bundle and measurement to the report's data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np
import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.measurement import Measurement
from dvt_edge.errors import BundleError, DataError
from dvt_edge.files.datasets import ArrayDataset, open_images
from dvt_edge.policy import solve
from dvt_edge.policy.authors import authors_thresholds
from dvt_edge.profile import Profile
from dvt_edge.report import ReportData, collect
from dvt_edge.report.data import CostKind
from tests.report.conftest import GROSS_MJ, NO_SENSOR


def test_is_json_and_back(full_data: ReportData) -> None:
    """Nothing in it is infinite, not a number, or of a type that JSON lacks."""
    text = full_data.model_dump_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert ReportData.model_validate_json(text) == full_data


def test_the_operating_point_is_the_solver_s(
    plain_data: ReportData, bundle: Bundle, costs: Costs
) -> None:
    """The slider starts where the runtime would be."""
    expected = solve(bundle.records(), costs.mean_ms, 1.2)
    point = plain_data.operating.point
    assert point is not None
    assert point.latency_ms == expected.cost <= 1.2
    assert point.accuracy == expected.accuracy
    assert point.exit_fraction == tuple(expected.exit_fraction)
    assert point.thresholds[-1] == 0  # -inf, for JSON
    assert plain_data.operating.start == {"latency": 1.2}
    assert plain_data.operating.budget == "mean latency 1.2 ms"


def test_the_frontier_rises(full_data: ReportData) -> None:
    """Cost increases along both curves, accuracy from end to end (counted, so not all the way), and
    no point is dearer than all stages."""
    kinds: dict[CostKind, str] = {"latency": "latency_ms", "energy": "energy_mj"}
    for kind, key in kinds.items():
        curve = full_data.frontiers[kind]
        assert 2 < len(curve) <= 300
        cost = [getattr(point, key) for point in curve]
        assert (np.diff(cost) > 0).all()
        assert curve[-1].accuracy > curve[0].accuracy
        assert cost[-1] <= getattr(full_data.single_exits[-1], key)


def test_points_add_up(full_data: ReportData, costs: Costs) -> None:
    """Every point's shares, costs and classes say the same."""
    images = np.array([row.images for row in full_data.classes])
    for point in (*full_data.frontiers["latency"], *full_data.frontiers["energy"]):
        shares = np.array(point.exit_fraction)
        assert shares.sum() == pytest.approx(1)
        assert point.latency_ms == pytest.approx(shares @ costs.mean_ms)
        assert point.energy_mj == pytest.approx(shares @ GROSS_MJ)
        counts = np.array(point.class_exits)
        assert (counts.sum(axis=1) == images).all()
        assert counts.sum(axis=0) / full_data.records == pytest.approx(shares)


def test_single_exits_and_authors(plain_data: ReportData, bundle: Bundle) -> None:
    """What ours is compared with: everybody at one exit, and the authors' rule."""
    records = bundle.records()
    assert [p.exit_fraction.index(1.0) for p in plain_data.single_exits] == [0, 1, 2]
    assert [p.accuracy for p in plain_data.single_exits] == list(records.accuracy)
    assert plain_data.single_exits[1].thresholds == (None, 0.0, 0.0)
    theirs = authors_thresholds(records, 20)
    assert any(p.thresholds[:2] == tuple(theirs[:2]) for p in plain_data.authors)
    assert len({p.thresholds for p in plain_data.authors}) == len(plain_data.authors)


def test_without_energy(plain_data: ReportData) -> None:
    """No energy is no zero: the reason is there instead."""
    assert plain_data.energy_unavailable == NO_SENSOR
    assert set(plain_data.frontiers) == {"latency"}
    assert {p.energy_mj for p in plain_data.authors} == {None}


def test_costs_decide_on_energy(
    bundle: Bundle, profile: Callable[..., Profile], costs: Costs, full_measurement: Measurement
) -> None:
    """The energy that budgets are solved with goes before the measurement's gross figures."""
    data = collect(
        bundle,
        profile(energy_mj=3.0),
        costs.model_copy(update={"energy_mj": (1.0, 2.0, 4.0)}),
        full_measurement,
    )
    assert [p.energy_mj for p in data.single_exits] == [1.0, 2.0, 4.0]
    assert data.operating.start["energy"] == 3.0
    assert data.operating.point is not None
    assert data.operating.point.energy_mj is not None
    assert data.operating.point.energy_mj <= 3.0


def test_energy_out_of_order(
    bundle: Bundle, profile: Callable[..., Profile], costs: Costs, full_measurement: Measurement
) -> None:
    """Where noise reverses two exits there is no curve by energy, and all else is there."""
    energy = full_measurement.energy.model_copy(update={"gross_mj": (5.0, 4.0, 16.0)})
    measured = full_measurement.model_copy(update={"energy": energy})
    data = collect(bundle, profile(latency_ms=1.2), costs, measured)
    assert set(data.frontiers) == {"latency"}
    assert data.energy_unavailable is None


def test_certificate(full_data: ReportData, plain_data: ReportData) -> None:
    """It is there with the budget's level."""
    assert full_data.certificate is not None
    assert full_data.certificate.delta == pytest.approx(0.1)
    assert full_data.certificate.cost_bound <= 1.8
    assert plain_data.certificate is None


def test_a_budget_that_cannot_be_kept(
    bundle: Bundle, profile: Callable[..., Profile], costs: Costs, measurement: Measurement
) -> None:
    """It is said; the rest of the report is there."""
    data = collect(bundle, profile(latency_ms=0.1), costs, measurement)
    assert data.operating.point is None
    assert data.operating.unavailable is not None
    assert "the smallest possible is" in data.operating.unavailable
    assert data.certificate is None
    assert data.operating.start == {"latency": 0.1}
    assert data.gallery


@pytest.mark.parametrize("what", ["costs", "measurement", "exits"])
def test_figures_of_other_stages(
    bundle: Bundle,
    profile: Callable[..., Profile],
    costs: Costs,
    measurement: Measurement,
    what: str,
) -> None:
    """Figures of another build are refused."""
    if what == "costs":
        costs = costs.model_copy(update={"content_hash": "0" * 64})
    elif what == "measurement":
        measurement = measurement.model_copy(update={"content_hash": "0" * 64})
    else:
        timing = measurement.back_to_back
        fewer = timing.model_copy(update={"exits": timing.exits[:2]})
        measurement = measurement.model_copy(update={"back_to_back": fewer})
    with pytest.raises(BundleError, match="measure again"):
        collect(bundle, profile(latency_ms=1.2), costs, measurement)


def test_energy_of_other_exits(
    bundle: Bundle, profile: Callable[..., Profile], costs: Costs, measurement: Measurement
) -> None:
    """Energy of two exits does not belong to three."""
    wrong = costs.model_copy(update={"energy_mj": (1.0, 2.0)})
    with pytest.raises(DataError, match="measured for 2 exits, latency for 3"):
        collect(bundle, profile(latency_ms=1.2), wrong, measurement)


def test_gallery_is_of_the_records_images(
    plain_data: ReportData, bundle: Bundle, profile: Callable[..., Profile]
) -> None:
    """Ten classes, each with its own images, easy ones right and early, hard ones later."""
    assert plain_data.gallery_unavailable is None
    assert {shown.name for shown in plain_data.gallery} == set(bundle.manifest.class_names)
    for shown in plain_data.gallery:
        assert 1 <= len(shown.easiest) <= 4
        assert 1 <= len(shown.hardest) <= 4
        assert all(image.right for image in shown.easiest)
        assert all(image.answer == shown.name for image in shown.easiest)
        assert all(image.uri.startswith("data:image/") for image in shown.easiest)
        assert max(i.exit_stage for i in shown.easiest) <= min(i.exit_stage for i in shown.hardest)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("missing", "no such folder"),
        ("fewer", "the data has changed"),
        ("relabelled", "the data has changed"),
        ("unlabelled", "the data has changed"),
    ],
)
def test_images_that_are_not_the_records(
    bundle: Bundle,
    profile: Callable[..., Profile],
    costs: Costs,
    measurement: Measurement,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    reason: str,
) -> None:
    """Without the right images, as on a board, the report says so and has none."""
    chosen = profile(latency_ms=1.2)
    data = open_images(chosen.calibration.data, bundle.manifest.class_names)
    assert data.labels is not None
    pixels, labels = np.zeros((len(data), 8, 8), np.uint8), list(data.labels)
    if change == "missing":
        gone = chosen.calibration.model_copy(update={"data": chosen.calibration.data / "gone"})
        chosen = chosen.model_copy(update={"calibration": gone})
    else:
        others = {
            "fewer": ArrayDataset(pixels[:50], labels[:50]),
            "relabelled": ArrayDataset(pixels, [9 - label for label in labels]),
            "unlabelled": ArrayDataset(pixels, None),
        }
        module = sys.modules["dvt_edge.report.collect"]  # the package's name is the function
        monkeypatch.setattr(module, "open_images", lambda *_: others[change])
    found = collect(bundle, chosen, costs, measurement)
    assert found.gallery == ()
    assert found.gallery_unavailable is not None
    assert reason in found.gallery_unavailable


def test_recorded_thresholds(
    bundle: Bundle, profile: Callable[..., Profile], costs: Costs, measurement: Measurement
) -> None:
    """An imported checkpoint's own thresholds are compared, and can be the budget."""
    imported = Bundle(bundle.folder)
    table = ((0.9, 0.8, "-inf"), ("inf", 0.5, "-inf"))
    imported.manifest = imported.manifest.model_copy(update={"recorded_thresholds": table})
    budget = profile(thresholds="recorded", point=2)
    data = collect(imported, budget, costs, measurement)
    assert [p.thresholds for p in data.recorded] == [(0.9, 0.8, 0.0), (None, 0.5, 0.0)]
    assert data.operating.point is not None
    assert data.operating.point.thresholds == (None, 0.5, 0.0)
    without = collect(bundle, budget, costs, measurement)
    assert without.operating.unavailable is not None
    assert "carries none" in without.operating.unavailable
