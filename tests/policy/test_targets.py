"""Every key of a budget as a limit in milliseconds or millijoules per frame."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.errors import BudgetError
from dvt_edge.policy import ExitCosts, ExitLatency, Records, solve_budget
from dvt_edge.policy.targets import find_targets, mean_latency_ms
from dvt_edge.profile import BudgetConfig
from tests.conftest import made_records

MEAN = np.array([10.0, 20.0, 40.0])
LATENCY = ExitLatency(MEAN, MEAN, MEAN, MEAN * 1.2, MEAN * 2)
MEASURED = ExitCosts(
    LATENCY,
    energy_mj=np.array([60.0, 130.0, 280.0]),
    net_mj=np.array([30.0, 70.0, 160.0]),
    idle_mw=1500.0,
    fps=15.0,
)


@pytest.fixture(scope="module")
def records() -> Records:
    return made_records(500)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"latency_ms": 15}, [("latency_ms", "mean", 15.0, "ms")]),
        ({"latency_ms": 30, "statistic": "p99"}, [("latency_ms", "p99", 30.0, "ms")]),
        ({"fps": 40}, [("fps", "mean", 20.0, "ms")]),
        ({"fps": 40, "utilisation": 1.0}, [("fps", "mean", 25.0, "ms")]),
        ({"duty_cycle": 0.3}, [("duty_cycle", "mean", 20.0, "ms")]),
        ({"energy_mj": 100}, [("energy_mj", "mean", 100.0, "mJ")]),
        (  # 20 Wh / 8 h are 2.5 W, of which 1.0 W are left for ten frames a second
            {"battery": {"wh": 20, "hours": 8, "fps": 10}},
            [("battery", "mean", 100.0, "ms"), ("battery", "mean", 100.0, "mJ")],
        ),
        ({"max_stage": 2}, []),
    ],
)
def test_every_key_gives_its_limits(
    keys: dict[str, object], expected: list[tuple[str, str, float, str]]
) -> None:
    found = find_targets(MEASURED, BudgetConfig(**keys))
    assert [(t.key, t.statistic, t.unit) for t in found] == [(k, s, u) for k, s, _, u in expected]
    assert [t.most for t in found] == pytest.approx([most for _, _, most, _ in expected])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"fps": 100}, r"8 ms \(100 fps at 80 % utilisation\).* 10 ms.*; lower fps"),
        ({"duty_cycle": 0.1}, r"6\.667 ms \(busy 10 % .* at 15 fps\).*; raise duty_cycle"),
        (
            {"battery": {"wh": 20, "hours": 8, "fps": 60}},
            r"16\.67 mJ above idle .*battery\.fps",
        ),
        (
            {"battery": {"wh": 10, "hours": 8, "fps": 1}},
            r"lasts 6\.67 h at rest \(1\.5 W\)",
        ),
        ({"battery": {"wh": 900, "hours": 1, "fps": 200}}, "the battery's 200 fps"),
    ],
)
def test_what_cannot_be_kept_says_what_to_change(
    records: Records, keys: dict[str, object], words: str
) -> None:
    with pytest.raises(BudgetError, match=words):
        solve_budget(records, MEASURED, BudgetConfig(**keys))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"duty_cycle": 0.5}, "measured back to back"),
        ({"battery": {"wh": 20, "hours": 8, "fps": 10}}, r"energy\.watts and energy\.idle_watts"),
        ({"energy_mj": 5}, "none was measured"),
    ],
)
def test_what_was_not_measured_is_named(
    records: Records, keys: dict[str, object], words: str
) -> None:
    with pytest.raises(BudgetError, match=words):
        solve_budget(records, ExitCosts(LATENCY), BudgetConfig(**keys))


def test_all_limits_hold_at_once(records: Records) -> None:
    budget = BudgetConfig(
        latency_ms=45,
        statistic="p99",
        fps=30,
        utilisation=0.9,
        duty_cycle=0.4,
        energy_mj=150,
        battery={"wh": 20, "hours": 8, "fps": 10},
    )
    targets = find_targets(MEASURED, budget)
    assert len(targets) == 6
    assert mean_latency_ms(targets) == pytest.approx(400 / 15)
    found = solve_budget(records, MEASURED, budget)
    for target in targets:
        limit = target.limit(LATENCY, 3, 0.0)
        assert limit is not None
        assert found.exit_fraction @ limit.cost <= limit.most + 1e-9
    alone = solve_budget(records, MEASURED, BudgetConfig(energy_mj=150))
    assert found.accuracy <= alone.accuracy


def test_no_limit_on_the_mean() -> None:
    assert mean_latency_ms(find_targets(MEASURED, BudgetConfig(energy_mj=100))) is None
