"""Activation ranges: histograms that grow, and clipping that pays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from dvt_edge.converters.graphs.builder import GraphBuilder
from dvt_edge.converters.quantizing.calibration import BINS, MagnitudeHistogram, activation_ranges

Floats = npt.NDArray[np.float32]


def _histogram(*batches: object) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for values in batches:
        histogram.add(np.asarray(values, np.float32))
    return histogram


def _error(values: npt.NDArray[np.floating], clip: float) -> float:
    """Mean squared error of symmetric INT8 with the range ``clip``."""
    step = clip / 127
    return float(np.mean((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2))


def _normal(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def test_range_doubles_until_the_largest_value_fits() -> None:
    histogram = _histogram([1.0, -0.3], [-5.0])
    assert histogram.limit == 8.0
    assert len(histogram.counts) == BINS
    assert histogram.counts.sum() == 3
    centres = (np.flatnonzero(histogram.counts) + 0.5) * 8 / BINS
    np.testing.assert_allclose(centres, [0.3, 1, 5], atol=8 / BINS)


def test_smaller_values_leave_the_range() -> None:
    assert _histogram([4.0], [1.0, 0.1]).limit == 4.0


def test_growing_loses_nothing() -> None:
    """In parts with rising range or at once: the same counts."""
    values = _normal(5000)
    parts = [values * factor for factor in (0.01, 1.0, 37.0)]
    grown = _histogram(*parts)
    magnitudes = np.abs(np.concatenate(parts))
    expected, _ = np.histogram(magnitudes, BINS, (0, grown.limit))
    assert grown.counts.sum() == 15_000
    assert np.abs(np.cumsum(grown.counts) - np.cumsum(expected)).max() <= 2  # at bins' edges


def test_sign_does_not_matter() -> None:
    values = _normal(100)
    np.testing.assert_array_equal(_histogram(values).counts, _histogram(-values).counts)


@pytest.mark.parametrize("batches", [[], [[]], [[0.0]], [[0.0] * 10, [0.0, -0.0]]])
def test_nothing_but_zeros_clips_at_one(batches: list[list[float]]) -> None:
    assert _histogram(*batches).clipping_value() == 1.0


def test_zeros_first_do_not_stick() -> None:
    histogram = _histogram([0.0, 0.0], [3.0], [])
    assert histogram.limit == 3.0
    assert 0.2 * 3 <= histogram.clipping_value() <= 3.01


def test_outlier_is_clipped_and_that_lowers_the_error() -> None:
    values = np.append(_normal(100_000), np.float32(30.0))
    clip = _histogram(values).clipping_value()
    assert clip < 0.8 * 30
    assert _error(values, clip) < 0.7 * _error(values, 30.0)


def test_values_spread_evenly_are_not_clipped() -> None:
    values = np.linspace(-2, 2, 10_001, dtype=np.float32)
    assert _histogram(values).clipping_value() == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_clipping_value_is_near_the_best(scale: float) -> None:
    values = scale * np.concatenate([_normal(20_000), 8 * _normal(50, seed=1)])
    found = _error(values, _histogram(values).clipping_value())
    peak = float(np.abs(values).max())
    best = min(_error(values, peak * share) for share in np.linspace(0.05, 1, 96))
    assert found < 1.1 * best


def test_grown_range_does_not_stretch_the_candidates() -> None:
    """The range after doubling is up to twice what was seen; clipping goes by what was seen."""
    values = np.linspace(-1.1, 1.1, 2001, dtype=np.float32)
    clip = _histogram([1.0], values).clipping_value()
    assert clip == pytest.approx(1.1, rel=0.02)


@pytest.fixture
def two_layers() -> onnx.ModelProto:
    """x -> times 3 -> times 0.5, both as linears named after their factors."""
    g = GraphBuilder("two")
    one = np.eye(4, dtype=np.float32)
    y = g.linear(g.input("x", ["N", 4]), np.float32(3) * one, None, "three")
    g.output("y", g.linear(y, np.float32(0.5) * one, None, "half"), ["N", 4])
    return g.build()


def test_ranges_of_inputs_and_of_what_lies_between(two_layers: onnx.ModelProto) -> None:
    batches = [np.linspace(-limit, limit, 400, dtype=np.float32) for limit in (1.0, 2.0)]
    feeds = ({"x": batch.reshape(-1, 4)} for batch in batches)
    before = two_layers.SerializeToString()
    ranges = activation_ranges(two_layers, ["x", "three:0"], feeds)
    assert ranges.keys() == {"x", "three:0"}
    assert ranges["x"] == pytest.approx(2, rel=0.05)
    assert ranges["three:0"] == pytest.approx(6, rel=0.05)
    assert two_layers.SerializeToString() == before


def test_ranges_of_inputs_alone(two_layers: onnx.ModelProto) -> None:
    feeds = [{"x": np.ones((2, 4), np.float32)}]
    assert activation_ranges(two_layers, ["x"], feeds).keys() == {"x"}
