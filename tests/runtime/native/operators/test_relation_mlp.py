"""The relation MLP."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from dvt_edge.runtime.native import operator_library
from tests.runtime.native.operators.reference import (
    NAN,
    RELATION_CONSTANTS,
    SETS,
    Array,
    Floats,
    nearest_code,
    relation_inputs,
    run,
)

pytestmark = pytest.mark.skipif(
    operator_library.path() is None, reason=str(operator_library.unavailable())
)


def _relation_expected(given: Mapping[str, Array], zero_point: int) -> Floats:
    def product(w: Array, x: Array, scale: Array, bias: Array) -> Floats:
        sums = np.einsum("oc,nchw->nohw", w.astype(np.int64), x.astype(np.int64))
        y: Floats = sums.astype(np.float32) * scale[:, None, None] + bias[:, None, None]
        return y

    codes = nearest_code(product(given["w1"], given["x"], given["scale1"], given["bias1"]))
    hidden = given["table"][codes.astype(np.int64) + 128].astype(np.int64) - zero_point
    y = product(given["w2"], hidden, given["scale2"], given["bias2"])
    return np.where((given["x"] == NAN).any(axis=1, keepdims=True), np.float32(np.nan), y)


RELATION_SHAPES = [
    # images, channels in, hidden, out, tokens
    (1, 6, 18, 6, 10),  # the demo
    (2, 6, 30, 10, 37),
    (1, 72, 216, 72, 50),  # DeiT-S
    (1, 48, 144, 48, 50),
    (1, 84, 252, 84, 17),
    (3, 1, 1, 1, 1),
    (1, 5, 7, 3, 9),
    (1, 4, 8, 4, 8),
]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", RELATION_SHAPES)
@pytest.mark.parametrize("zero_point", [0, -101, 127])
def test_relation_mlp(name: str, shape: tuple[int, ...], zero_point: int) -> None:
    inputs = relation_inputs(*shape)
    inputs["x"][0, -1, -1, -1] = NAN
    expected = _relation_expected(inputs, zero_point)
    for threads in (1, 2):
        (y,) = run(
            name,
            "RelationMlp",
            inputs,
            RELATION_CONSTANTS,
            [np.float32],
            zero_point=zero_point,
            threads=threads,
        )
        np.testing.assert_array_equal(y, expected)
    assert np.isnan(y).sum() == shape[3]
