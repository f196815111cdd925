"""Measured costs: kept with the bundle, trusted only where they were measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import (
    ENERGY_T,
    SESSION_ERROR,
    SESSION_SPREAD,
    SESSIONS_KEPT,
    SPREAD_WEIGHT,
    STUDENT_T,
    Costs,
    load_costs,
    stored_costs,
    with_earlier,
)
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.bundle.measurement import Bounds
from dvt_edge.errors import BundleError
from dvt_edge.policy.statistic import BOUND_ERROR
from tests.student import beyond_t


def test_round_trip(own_bundle: Path, known_costs: Callable[..., Costs]) -> None:
    """What is saved is loaded, and the bundle is still whole."""
    bundle = Bundle(own_bundle)
    costs = known_costs(bundle, (3.0, 5.0, 9.0))
    bundle.store(COSTS, costs)
    assert load_costs(Bundle(own_bundle)) == costs


def test_none_measured(own_bundle: Path) -> None:
    """Without the file there are no costs, and nothing to tell."""
    (own_bundle / COSTS).unlink()
    told: list[str] = []
    assert load_costs(Bundle(own_bundle), None, told.append) is None
    assert told == []
    with pytest.raises(BundleError, match="not known; measure with 'dvt-edge profile"):
        stored_costs(Bundle(own_bundle))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"machine": "x86_64, another processor, 64 cores"},
            "they were measured on 'x86_64, another processor, 64 cores', this is '",
        ),
        (
            {"content_hash": "0" * 64},
            "they were measured for other engines (000000000000, these are ",
        ),
        ({"exits": []}, "they are of 0 exits, the bundle has 3"),
        ({"exits": "x"}, "they cannot be read"),
        ({"unknown": 1}, "they cannot be read"),
    ],
    ids=["machine", "engines", "exits", "nonsense", "unknown"],
)
def test_others_are_refused(own_bundle: Path, change: dict[str, Any], reason: str) -> None:
    """Costs of another machine, of other stages, or that make no sense; what differs is told."""
    path = own_bundle / COSTS
    here = Costs.model_validate_json(path.read_text(encoding="utf-8")).machine
    assert load_costs(Bundle(own_bundle), here) is not None
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change))
    told: list[str] = []
    assert load_costs(Bundle(own_bundle), here, told.append) is None
    assert told[0].startswith(f"the costs in {path} are not used: {reason}")
    if "machine" in change:  # where it does not matter whose they are
        assert stored_costs(Bundle(own_bundle)).machine == change["machine"]


@pytest.mark.parametrize("data", [b"", b"garbage", b"\xff\xfe", b"null"])
def test_damaged_are_ignored(own_bundle: Path, data: bytes) -> None:
    """A damaged file counts as none: costs can be measured again."""
    (own_bundle / COSTS).write_bytes(data)
    assert load_costs(Bundle(own_bundle)) is None


def test_save_failure(
    own_bundle: Path, known_costs: Callable[..., Costs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be written is named."""

    def refuse(source: str, target: Path) -> None:
        raise PermissionError("read-only")

    bundle = Bundle(own_bundle)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(BundleError, match=r"costs\.json: cannot be written .*make the folder"):
        bundle.store(COSTS, known_costs(bundle))


@pytest.mark.parametrize(
    "measured", [(1.0, 2.0, 4.0), (2.0, 1.0, 4.0), (3.0, 2.0, 1.0), (1.0, 1.0, 1.0)], ids=str
)
def test_mean_increases(
    own_bundle: Path, known_costs: Callable[..., Costs], measured: tuple[float, ...]
) -> None:
    """Noise may not make a later exit cheaper; where nothing was reversed nothing changes."""
    mean = known_costs(Bundle(own_bundle), measured).mean_ms
    assert (np.diff(mean) > 0).all()
    np.testing.assert_allclose(mean, np.maximum.accumulate(measured), rtol=1e-5)
    if measured == (1.0, 2.0, 4.0):
        assert mean == [1.0, 2.0, 4.0]


def _session(costs: Costs, factor: float) -> Costs:
    exits = tuple(
        cost.model_copy(update={"mean_ms": factor * cost.mean_ms}) for cost in costs.exits
    )
    return costs.model_copy(update={"exits": exits})


def test_bounds_grow_with_what_sessions_differ_by(
    own_bundle: Path, known_costs: Callable[..., Costs]
) -> None:
    """The default for one session, the machine's own for many; a pace makes them differ more."""
    costs = known_costs(Bundle(own_bundle))
    paced = costs.model_copy(update={"paced_fps": 30.0})
    for made, kind in ((costs, "back to back"), (paced, "paced")):
        usual = SESSION_SPREAD[kind]
        assert made.session_spread == pytest.approx(usual)
        assert made.session_allowance == pytest.approx(3.747 * 2**0.5 * usual)
        found = made.exit_costs_at_most.latency
        assert found.mean / made.mean_ms == pytest.approx([1 + made.session_allowance] * 3)
    steady = paced
    for _ in range(SESSIONS_KEPT + 3):
        steady = with_earlier(paced, steady)
        Costs.model_validate(steady.model_dump())
    assert len(steady.earlier_mean_ms) == SESSIONS_KEPT
    assert steady.session_spread == pytest.approx(SESSION_SPREAD["paced"] * (4 / 12) ** 0.5)
    assert steady.session_allowance < 0.45 * paced.session_allowance
    wild = costs
    for factor in (1.3, 0.8, 1.2, 0.9):
        wild = with_earlier(_session(costs, factor), wild)
    assert wild.session_spread > 4 * costs.session_spread


def test_another_session_is_within_the_allowance(
    own_bundle: Path, known_costs: Callable[..., Costs]
) -> None:
    """As often as stated, for machines whose spread is drawn as the prior has it."""
    costs = known_costs(Bundle(own_bundle))
    rng = np.random.default_rng(0)
    for known in (0, 3):
        beyond = 0
        for _ in range(3000):
            spread = SESSION_SPREAD["back to back"] * (SPREAD_WEIGHT / rng.chisquare(4)) ** 0.5
            first, *others, another = 1 + spread * rng.standard_normal(known + 2)
            here = _session(costs, first).model_copy(
                update={"earlier_mean_ms": tuple((f, 2 * f, 4 * f) for f in others)}
            )
            beyond += another > first * (1 + here.session_allowance)
        assert beyond / 3000 < SESSION_ERROR + 0.006


@pytest.mark.parametrize("freedom", range(SPREAD_WEIGHT, SPREAD_WEIGHT + SESSIONS_KEPT + 1))
def test_students_quantiles(freedom: int) -> None:
    """There is one for every number of sessions; by the integral of the density."""
    quantile = STUDENT_T[freedom - SPREAD_WEIGHT]
    assert len(STUDENT_T) == SESSIONS_KEPT + 1
    assert beyond_t(quantile, freedom) == pytest.approx(SESSION_ERROR, rel=2e-3)


def test_students_quantile_of_the_energy() -> None:
    assert beyond_t(ENERGY_T, 3) == pytest.approx(BOUND_ERROR, rel=2e-3)


def test_bounds_of_one_exit_increase(own_bundle: Path, known_costs: Callable[..., Costs]) -> None:
    """Means from exit to exit, percentiles from one to the next; what is not known is infinite."""
    costs = known_costs(Bundle(own_bundle))
    bounds = (
        Bounds(mean_ms=3.0, p50_ms=2.0, p95_ms=None, p99_ms=None, independent_runs=20),
        Bounds(mean_ms=2.5, p50_ms=2.0, p95_ms=3.0, p99_ms=None, independent_runs=200),
        None,
    )
    exits = tuple(
        cost.model_copy(update={"at_most": bound})
        for cost, bound in zip(costs.exits, bounds, strict=True)
    )
    found = costs.model_copy(update={"exits": exits}).exit_costs_at_most.latency
    slower = 1 + costs.session_allowance
    assert found.mean == pytest.approx([3 * slower, 3 * slower, np.inf], rel=1e-5)
    assert found.mean[1] > found.mean[0]
    assert found.p50 == pytest.approx([2 * slower, 2 * slower, np.inf])
    assert found.p95 == pytest.approx([np.inf, 3 * slower, np.inf])
    assert np.isinf(found.p99).all()
    assert np.isinf(found.max).all()


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "another"},
        {"content_hash": "0" * 64},
        {"paced_fps": 15.0},
        {"frame_shape": (1080, 1920)},
        {"runs_per_exit": 10},
    ],
)
def test_sessions_of_another_kind_are_forgotten(
    own_bundle: Path, known_costs: Callable[..., Costs], change: dict[str, Any]
) -> None:
    costs = known_costs(Bundle(own_bundle))
    assert with_earlier(costs, costs.model_copy(update=change)).earlier_mean_ms == ()
    assert with_earlier(costs, None) == costs
    assert with_earlier(costs, costs).earlier_mean_ms == (tuple(costs.mean_ms),)


def test_costs_without_bounds_load_and_bound_nothing(own_bundle: Path) -> None:
    """As written before there were any, and by the quick measurement."""
    path = own_bundle / COSTS
    values = json.loads(path.read_text(encoding="utf-8"))
    for exit_ in values["exits"]:
        del exit_["at_most"]
    path.write_text(json.dumps(values), encoding="utf-8")
    costs = load_costs(Bundle(own_bundle))
    assert costs is not None
    assert np.isinf(costs.exit_costs_at_most.latency.mean).all()
    assert costs.seconds_needed("p99") < np.inf


def test_energy_bounds(own_bundle: Path, known_costs: Callable[..., Costs]) -> None:
    """Of a measured one by its standard errors, of a declared one by the latency."""
    costs = known_costs(Bundle(own_bundle))
    measured = costs.model_copy(
        update={"energy_mj": (1.0, 2.0, 3.0), "energy_error_mj": (0.01, 0.5, 0.01)}
    )
    found = measured.exit_costs_at_most.energy_mj
    assert found is not None
    session = 1 + costs.session_allowance
    assert found[:2] == pytest.approx([1.10215 * session, 7.1075 * session])
    assert found[2] > found[1]
    declared = costs.model_copy(update={"energy_mj": (1.0, 2.0, 3.0), "energy_declared": True})
    slower = costs.exit_costs_at_most.latency.mean / costs.mean_ms
    found = declared.exit_costs_at_most.energy_mj
    assert found == pytest.approx(slower * [1, 2, 3])
    unknown = costs.model_copy(update={"energy_mj": (1.0, 2.0, 3.0)})
    assert unknown.exit_costs_at_most.energy_mj is None
    assert costs.exit_costs_at_most.energy_mj is None


def test_net_energy_has_its_own_errors(own_bundle: Path, known_costs: Callable[..., Costs]) -> None:
    """The power at rest is measured too, with an error that the gross energy is free of."""
    energies = {"energy_mj": (2.0, 3.0, 4.0), "energy_error_mj": (0.0, 0.0, 0.0)}
    nets = {"net_mj": (1.0, 2.0, 3.0), "net_error_mj": (0.1, 0.1, 0.1)}
    costs = known_costs(Bundle(own_bundle))
    found = costs.model_copy(update=energies | nets).exit_costs_at_most
    session = 1 + costs.session_allowance
    assert found.energy_mj == pytest.approx(session * np.array([2, 3, 4]))
    assert found.net_mj == pytest.approx(session * np.array([2.0215, 3.0215, 4.0215]))


@pytest.mark.parametrize(
    ("energies", "bounds"),
    [({}, 6), ({"energy_mj": (1, 2, 3)}, 9), ({"energy_mj": (1, 2, 3), "net_mj": (1, 2, 3)}, 12)],
    ids=["latency", "energy", "a battery"],
)
def test_any_bound_may_be_wrong(
    own_bundle: Path, known_costs: Callable[..., Costs], energies: dict[str, Any], bounds: int
) -> None:
    """Of three exits the mean, one percentile, and energies; and sessions, once for all."""
    costs = known_costs(Bundle(own_bundle)).model_copy(update=energies)
    assert costs.bound_error == pytest.approx(SESSION_ERROR + bounds * BOUND_ERROR)


def test_how_long_to_measure(own_bundle: Path, known_costs: Callable[..., Costs]) -> None:
    """Half of the duration is paced, and the exits share it; of runs that are alike, more."""
    costs = known_costs(Bundle(own_bundle)).model_copy(update={"paced_fps": 30.0})
    assert costs.seconds_needed("mean") == 8
    assert costs.seconds_needed("p99") == 179
    assert costs.seconds_needed("max") == np.inf
    alike = tuple(
        cost.model_copy(
            update={
                "at_most": cost.at_most
                and cost.at_most.model_copy(update={"independent_runs": 450})
            }
        )
        for cost in costs.exits
    )
    half = costs.model_copy(update={"exits": alike})
    assert half.seconds_needed("p99") == 358
    assert half.seconds_needed("mean") == 8
    queue = costs.model_copy(update={"paced_fps": None})  # 7 ms for all exits in turn
    assert queue.seconds_needed("p99") == 13
