"""LayerNorm to codes, and Quantize."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.models.upsampling import feature_matrix, upsampling_1d
from dvt_edge.runtime.native import operator_library
from tests.runtime.native.operators.reference import (
    NAN,
    SETS,
    Array,
    floats,
    nearest_code,
    run,
)

pytestmark = pytest.mark.skipif(
    operator_library.path() is None, reason=str(operator_library.unavailable())
)


def _norm_expected(
    x: Array, gamma: Array, beta: Array, epsilon: float, context: Array | None = None
) -> Array:
    """The values before rounding, in double precision."""
    z = x.astype(np.float64)
    wide = len(gamma) - x.shape[-1]
    if wide:
        z = np.concatenate([z, np.zeros((*x.shape[:-1], wide)) if context is None else context], -1)
    d = z - z.mean(axis=-1, keepdims=True)
    y: Array = d / np.sqrt((d * d).mean(axis=-1, keepdims=True) + epsilon) * gamma + beta
    return y


NORM_SHAPES = [
    # images, grid, width, context width, grid before
    (1, 3, 128, 0, 0),
    (2, 6, 128, 48, 3),
    (1, 12, 128, 48, 6),
    (1, 10, 384, 48, 7),
    (3, 14, 256, 48, 10),
    (1, 2, 32, 16, 1),
    (1, 5, 16, 0, 0),
]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", NORM_SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_norm_quantize(name: str, shape: tuple[int, ...], threads: int) -> None:
    """Near NumPy, and equal to plain C++ bit for bit; all inputs there are."""
    images, grid, width, wide, source = shape
    rng = np.random.default_rng(0)
    tokens = 1 + grid * grid
    inputs: dict[str, Array | None] = {
        "x": floats(rng, images, tokens, width) + np.float32(0.3),
        "gamma": 30 * floats(rng, width + wide),
        "beta": 10 * floats(rng, width + wide),
        "residual": floats(rng, images, tokens, width),
        "context": None,
        "upsample": None,
    }
    context = None
    if source:
        coarse = floats(rng, images, 1 + source * source, wide)
        inputs["context"], inputs["upsample"] = coarse, upsampling_1d(source, grid)
        context = feature_matrix(source, grid).astype(np.float64) @ coarse
    constants = ["gamma", "beta", "upsample"]
    x, residual, gamma, beta = (inputs[k] for k in ("x", "residual", "gamma", "beta"))
    assert x is not None
    assert residual is not None
    assert gamma is not None
    assert beta is not None
    for first in (residual, residual[:1]):
        inputs["residual"] = first
        found = {}
        for which in (name, operator_library.PLAIN):
            found[which] = run(
                which,
                "NormQuantize",
                inputs,
                constants,
                [np.int8, np.float32],
                epsilon=1e-6,
                threads=threads,
            )
        codes, sums = found[name]
        np.testing.assert_array_equal(sums, x + first)
        expected = np.clip(_norm_expected(x + first, gamma, beta, 1e-6, context), -127, 127)
        assert np.abs(codes - expected).max() <= 0.501
        np.testing.assert_array_equal(codes, found[operator_library.PLAIN][0])
    inputs["residual"] = None
    (codes,) = run(name, "NormQuantize", inputs, constants, [np.int8], epsilon=1e-6)
    expected = np.clip(_norm_expected(x, gamma, beta, 1e-6, context), -127, 127)
    assert np.abs(codes - expected).max() <= 0.501


@pytest.mark.parametrize("name", SETS)
def test_norm_of_the_class_token_alone(name: str) -> None:
    """Its context is zero, with or without the others' at hand."""
    rng = np.random.default_rng(0)
    x = floats(rng, 2, 1, 64)
    gamma, beta = 30 * floats(rng, 96), floats(rng, 96)
    inputs: dict[str, Array | None] = {"x": x, "gamma": gamma, "beta": beta}
    (alone,) = run(name, "NormQuantize", inputs, ["gamma", "beta"], [np.int8], epsilon=1e-5)
    assert np.abs(alone - np.clip(_norm_expected(x, gamma, beta, 1e-5), -127, 127)).max() <= 0.501
    inputs |= {"none": None, "context": floats(rng, 2, 10, 32), "upsample": upsampling_1d(3, 6)}
    constants = ["gamma", "beta", "upsample"]
    (codes,) = run(name, "NormQuantize", inputs, constants, [np.int8], epsilon=1e-5)
    np.testing.assert_array_equal(codes, alone)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_norm_nan(name: str, bad: float) -> None:
    """NaN or infinity anywhere in a row, the context included, make all of it NaN."""
    rng = np.random.default_rng(0)
    x, context = floats(rng, 1, 37, 64), floats(rng, 1, 10, 32)
    x[0, 3, 63] = bad
    context[0, 9, 5] = bad  # the last token's corner of the finer grid depends on it
    inputs = {
        "x": x,
        "gamma": np.ones(96, np.float32),
        "beta": np.zeros(96, np.float32),
        "residual": None,
        "context": context,
        "upsample": upsampling_1d(3, 6),
    }
    constants = ["gamma", "beta", "upsample"]
    (codes,) = run(name, "NormQuantize", inputs, constants, [np.int8])
    assert (codes[0, 3] == NAN).all()
    assert (codes[0, 36] == NAN).all()
    assert (codes[0, [0, 1, 2, 4, 5, 6]] != NAN).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100, 70000])
def test_quantize(name: str, count: int) -> None:
    """To the nearest, ties to even, within -127 to 127; NaN becomes -128."""
    x = 40 * floats(np.random.default_rng(0), count)
    special = [0.5, 1.5, -0.5, 2.5, 1e30, -1e30, np.inf, -np.inf, np.nan, 63.5, -63.49]
    x[: len(special)] = special[:count]
    (codes,) = run(name, "Quantize", {"x": x}, [], [np.int8], scale=2.0)
    np.testing.assert_array_equal(codes, nearest_code(2 * x))
