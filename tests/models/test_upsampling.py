"""The constant upsampling matrices against PyTorch's nearest upsampling and adaptive pooling."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dvt_edge.models.upsampling import (
    feature_matrix,
    relation_matrix,
    upsampling_1d,
)

SIZES = [(1, 1), (1, 2), (2, 3), (3, 3), (3, 6), (4, 7), (5, 6), (6, 12), (7, 10), (7, 14), (8, 9)]


def _released_upsampling(grid: Tensor, target: int) -> Tensor:
    """[..., source, source] -> [..., target, target] in the two steps of the authors' release."""
    source = grid.shape[-1]
    flat = grid.reshape(-1, 1, source, source)
    doubled = F.interpolate(flat, size=2 * source, mode="nearest")
    return F.adaptive_avg_pool2d(doubled, target).reshape(*grid.shape[:-2], target, target)


def _random(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_grid_matrix_is_the_released_upsampling(source: int, target: int) -> None:
    grids = _random(4, source, source)
    expected = _released_upsampling(torch.from_numpy(grids), target).numpy()
    found = feature_matrix(source, target)[1:, 1:] @ grids.reshape(4, -1, 1)
    np.testing.assert_allclose(found.reshape(4, target, target), expected, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_feature_matrix_drops_the_class_token(source: int, target: int) -> None:
    tokens = torch.from_numpy(_random(2, 1 + source * source, 3))  # (B, T', D)
    grid = tokens[:, 1:].transpose(1, 2).reshape(2, 3, source, source)
    finer = _released_upsampling(grid, target).flatten(2).transpose(1, 2)
    expected = torch.cat([torch.zeros(2, 1, 3), finer], dim=1)
    found = torch.from_numpy(feature_matrix(source, target)) @ tokens
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def _released_relations(relations: Tensor, target: int) -> Tensor:
    """Upsample one token axis after the other; the class row and column pass through."""
    for _ in range(2):
        source = round((relations.shape[-2] - 1) ** 0.5)
        columns = relations.transpose(-1, -2)  # the axis to upsample last
        grid = columns[..., 1:].reshape(*columns.shape[:-1], source, source)
        finer = _released_upsampling(grid, target).flatten(-2)
        relations = torch.cat([columns[..., :1], finer], dim=-1)  # transposed: next axis
    return relations


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_relation_matrix_pools_both_token_axes(source: int, target: int) -> None:
    tokens = 1 + source * source
    relations = torch.from_numpy(_random(2, 3, tokens, tokens))  # (B, L * H, T', T')
    matrix = torch.from_numpy(relation_matrix(source, target))
    expected = _released_relations(relations, target)
    found = matrix @ relations @ matrix.T
    assert found.shape == (2, 3, 1 + target * target, 1 + target * target)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[..., 0, 0], relations[..., 0, 0])


@pytest.mark.parametrize("source", range(1, 13))
def test_rows_sum_to_one_and_are_sparse(source: int) -> None:
    for target in range(source, 2 * source + 1):
        matrix = upsampling_1d(source, target)
        assert matrix.shape == (target, source)
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
        assert (matrix >= 0).all()
        assert np.count_nonzero(matrix, axis=1).max() <= 2
        np.testing.assert_allclose(feature_matrix(source, target)[1:, 1:].sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
def test_same_grid_is_the_identity(size: int) -> None:
    np.testing.assert_array_equal(upsampling_1d(size, size), np.eye(size))
    np.testing.assert_array_equal(relation_matrix(size, size), np.eye(1 + size * size))
