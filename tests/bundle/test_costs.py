"""Measured costs: kept with the bundle, trusted only where they were measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs, load_costs, stored_costs
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.errors import BundleError


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
        ({"exits": []}, "they were measured for other engines"),
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
