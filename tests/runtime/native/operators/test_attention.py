"""Attention with reused relations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvt_edge.models.upsampling import relation_matrix
from dvt_edge.runtime.native import operator_library
from tests.runtime.native.operators.reference import (
    NAN,
    SETS,
    Array,
    attention_inputs,
    floats,
    run,
)

pytestmark = pytest.mark.skipif(
    operator_library.path() is None, reason=str(operator_library.unavailable())
)


def _attention_expected(
    inputs: Mapping[str, Array | None], heads: int, head: int, first: int = 0
) -> tuple[Array, Array]:
    """The mixed values [N, T, H h] and the logits [N, H, T, T], in double precision."""
    qkv, relations, upsample = inputs["qkv"], inputs["relations"], inputs["upsample"]
    assert qkv is not None
    images, tokens, _ = qkv.shape
    q, k, v = (
        qkv.astype(np.float64).reshape(images, tokens, 3, heads, head).transpose(2, 0, 3, 1, 4)
    )
    logits = q @ k.transpose(0, 1, 3, 2)
    if relations is not None:
        assert upsample is not None
        matrix = relation_matrix(upsample.shape[1], len(upsample)).astype(np.float64)
        logits = logits + matrix @ relations[:, first : first + heads] @ matrix.T
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(images, tokens, -1), logits


ATTENTION_SHAPES = [
    # images, grid, heads, head width, grid before
    (1, 3, 2, 64, 0),  # the demo
    (2, 6, 2, 64, 3),
    (1, 12, 2, 64, 6),
    (1, 7, 6, 64, 0),  # DeiT-S
    (1, 10, 6, 64, 7),
    (1, 14, 2, 64, 10),
    (1, 14, 4, 32, 7),
    (2, 4, 1, 32, 4),  # the same grid again
    (1, 5, 3, 96, 1),
    (1, 18, 1, 32, 17),  # a row of the grid is more than one vector
    (1, 1, 1, 32, 1),
]
TOLERANCE = {"half": 0.03, "single": 1e-4}
"""Of the mixed values before rounding, which are of the order of one; relative for logits."""


def _tolerance(name: str) -> float:
    return TOLERANCE["half" if name == "avx512_bf16" else "single"]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", ATTENTION_SHAPES)
def test_attention(name: str, shape: tuple[int, int, int, int, int]) -> None:
    images, grid, heads, head, source = shape
    tokens = 1 + grid * grid
    inputs = attention_inputs(images, tokens, heads, head, source)
    first = heads if source else 0
    expected, logits = _attention_expected(inputs, heads, head, first)
    scale, logit_scale = 60.0, 12.0
    mixed, codes = run(
        name,
        "Attention",
        inputs,
        ["upsample"],
        [np.int8, np.int8],
        heads=heads,
        head_width=head,
        first=first,
        scale=scale,
        logit_scale=logit_scale,
    )
    near = 0.5 + scale * _tolerance(name)
    assert np.abs(mixed - np.clip(scale * expected, -127, 127)).max() <= near
    near = 0.5 + logit_scale * _tolerance(name)
    assert np.abs(codes - np.clip(logit_scale * logits, -127, 127)).max() <= near


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("source", [0, 3])
def test_attention_of_the_class_token_alone(name: str, source: int) -> None:
    """The last layer where only the class is read: queries come from a tensor of their own."""
    inputs = attention_inputs(2, 37, 2, 64, source)
    attributes = {"heads": 2, "head_width": 64, "scale": 50.0}
    whole = run(name, "Attention", inputs, ["upsample"], [np.int8], threads=2, **attributes)[0]
    assert inputs["qkv"] is not None
    alone: dict[str, Array | None] = {
        "q": inputs["qkv"][:, :1, :128],
        "kv": inputs["qkv"][:, :, 128:],
        "relations": inputs["relations"],
        "upsample": inputs["upsample"],
    }
    (mixed,) = run(name, "Attention", alone, ["upsample"], [np.int8], **attributes)
    np.testing.assert_array_equal(mixed, whole[:, :1])


@pytest.mark.parametrize("name", SETS)
def test_attention_of_large_logits(name: str) -> None:
    """A softmax that is all on one token, and one over logits far from zero."""
    rng = np.random.default_rng(0)
    qkv = floats(rng, 1, 17, 96)
    qkv[0, :, :32] = 0
    qkv[0, :, 0] = 30
    qkv[0, :, 32] = -90
    qkv[0, 5, 32] = 90
    inputs = {"qkv": qkv, "same": qkv}
    (mixed,) = run(name, "Attention", inputs, [], [np.int8], heads=1, head_width=32, scale=40.0)
    near = 0.5 + 40 * 2**-8 * np.abs(qkv[0, 5, 64:]).max()
    assert np.abs(mixed[0] - np.clip(40 * qkv[0, 5, 64:], -127, 127)).max() <= near


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["q", "k", "v", "relations"])
def test_attention_nan(name: str, bad: float, part: str) -> None:
    """NaN and infinity become -128 in whatever depends on them, and nowhere else."""
    inputs = attention_inputs(1, 37, 2, 64, 3)
    qkv, relations = inputs["qkv"], inputs["relations"]
    assert qkv is not None
    assert relations is not None
    if part == "relations":
        relations[0, 0, 0, 0] = bad  # the class token's row, and column
    else:
        qkv[0, 4, {"q": 0, "k": 128, "v": 256}[part]] = bad
    mixed, codes = run(
        name,
        "Attention",
        inputs,
        ["upsample"],
        [np.int8, np.int8],
        heads=2,
        head_width=64,
        scale=40.0,
        logit_scale=10.0,
    )
    assert (mixed[0, :, 64:] != NAN).all()  # the other head
    assert (codes[0, 1] != NAN).all()
    if part == "v":
        assert (codes != NAN).all()
        assert (np.delete(mixed, 0, axis=2) != NAN).all()
        assert (mixed[0, :, 0] == NAN).all() or np.isinf(bad)
    if part == "q":
        assert (np.delete(mixed, 4, axis=1) != NAN).all()
        assert (mixed[0, 4, :64] == NAN).all()
    if part == "k" and np.isnan(bad):
        assert (mixed[0, :, :64] == NAN).all()
        assert (np.delete(codes[0, 0], 4, axis=1) != NAN).all()
        assert (codes[0, 0, :, 4] == NAN).all()
    if part == "relations" and np.isnan(bad):
        assert (mixed[0, 0, :64] == NAN).all()
        assert (mixed[0, 1:] != NAN).all()


@settings(deadline=None, max_examples=25)
@given(
    images=st.integers(1, 3),
    grid=st.integers(1, 9),
    coarser=st.integers(0, 4),
    heads=st.integers(1, 3),
    head=st.sampled_from([32, 64]),
    seed=st.integers(0, 9),
)
def test_attention_property(
    images: int, grid: int, coarser: int, heads: int, head: int, seed: int
) -> None:
    """Any grids: in all sets."""
    inputs = attention_inputs(images, 1 + grid * grid, heads, head, max(grid - coarser, 1), seed)
    attributes = {"heads": heads, "head_width": head, "scale": 50.0, "first": 1}
    expected, _ = _attention_expected(inputs, heads, head, 1)
    for name in SETS:
        (mixed,) = run(name, "Attention", inputs, ["upsample"], [np.int8], **attributes)
        near = 0.5 + 50 * _tolerance(name)
        assert np.abs(mixed - np.clip(50 * expected, -127, 127)).max() <= near, name
