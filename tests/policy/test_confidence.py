from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.errors import DataError
from dvt_edge.policy.confidence import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature
from tests.confidence_reference import confidence

KINDS = ("max_softmax", "margin", "entropy")
P = np.array([0.7, 0.2, 0.1])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("max_softmax", 0.7),
        ("margin", 0.5),
        ("entropy", 1 + float((P * np.log(P)).sum()) / np.log(3)),
    ],
)
def test_the_definitions(kind, expected):
    assert confidence(np.log(P)[None], kind) == pytest.approx([expected])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([np.nan, 0, 0], np.nan),
        ([np.inf, 0, 0], np.nan),
        ([-np.inf, 0, 0], np.nan),
        ([1e308, -1e308, 0], 1.0),
        ([1e4, 0, 0], 1.0),
        ([5], 1.0),
    ],
)
def test_extreme_rows(kind, row, expected):
    found = confidence([row, row], kind, temperature=0.5)
    assert found == pytest.approx([expected, expected], nan_ok=True)
    assert not (found >= -np.inf).any() or np.isfinite(expected)  # NaN reaches no threshold


@pytest.mark.parametrize("kind", KINDS)
def test_range_order_and_temperature(kind):
    logits = np.random.default_rng(0).normal(0, 4, (500, 7))
    sharp, flat = confidence(logits, kind, 0.5), confidence(logits, kind, 5.0)
    assert ((sharp >= 0) & (sharp <= 1)).all()
    assert (sharp >= flat).all()
    assert confidence(np.zeros((1, 4)), kind) == pytest.approx(
        [0.25 if kind == "max_softmax" else 0.0]
    )
    assert confidence(np.zeros((0, 4)), kind).shape == (0,)


@pytest.mark.parametrize("true", [0.3, 1.0, 3.0])
def test_the_temperature_of_made_logits_is_found(true):
    rng = np.random.default_rng(1)
    honest = rng.normal(0, 2, (20_000, 6))
    p = np.exp(honest)
    p /= p.sum(axis=1, keepdims=True)
    label = (p.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    assert fit_temperature(honest * true, label) == pytest.approx(true, rel=0.05)


def test_the_optimum_beats_its_neighbours():
    rng = np.random.default_rng(2)
    logits, label = rng.normal(0, 3, (300, 4)), rng.integers(0, 4, 300)
    logits[np.arange(300), label] += 2

    def loss(t):
        z = logits / t
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        soft = 1 / 302
        return -((1 - soft) * log_p[np.arange(300), label] + soft * log_p.mean(axis=1)).mean()

    best = fit_temperature(logits, label)
    assert loss(best) <= min(loss(best * 1.01), loss(best / 1.01))


@pytest.mark.parametrize(
    ("logits", "label"),
    [
        ([[9.0, 0.0]], [0]),
        ([[9.0, 0.0]], [1]),
        ([[5.0]], [0]),
        ([[1e308, -1e308]], [0]),
        ([[0.0, 0.0]], [1]),
        ([[np.nan, 0.0], [2.0, 0.0]], [0, 0]),
    ],
)
def test_temperatures_stay_in_range(logits, label):
    t = fit_temperature(logits, np.array(label))
    assert MIN_TEMPERATURE * 0.999 <= t <= MAX_TEMPERATURE * 1.001


def test_always_right_on_few_images_is_not_taken_for_certain():
    logits = np.tile([6.0, 0.0, 0.0], (20, 1))
    t = fit_temperature(logits, np.zeros(20, int))
    assert 0.9 < confidence(logits, temperature=t)[0] < 0.999


@pytest.mark.parametrize("logits", [np.zeros((0, 3)), [[np.nan, 1.0]]])
def test_a_temperature_needs_finite_logits(logits):
    with pytest.raises(DataError, match="at least one image whose logits are all finite"):
        fit_temperature(logits, np.zeros(len(logits), int))
