"""The reuse upsampling as the constant matrix that it is. NumPy only.

The authors' release upsamples a reused grid by nearest neighbour to twice its size and then
average-pools adaptively to the finer grid. Both steps are linear and separable, so one matrix per
dimension says it all, and the exported graphs need nothing but a product with a constant.
Source: Wang et al., NeurIPS 2021 (arXiv 2105.15075), section 3.2 and the released code.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def upsampling_1d(source: int, target: int) -> npt.NDArray[np.float32]:
    """Matrix ``u`` [target, source] with ``u @ x`` = pooled nearest-neighbour upsampling of ``x``.

    Rows sum to one and have few non-zeros. When ``target`` equals ``source`` it is the identity.
    """
    doubled = np.repeat(np.eye(source), 2, axis=0)  # nearest neighbour: (2 * source, source)
    size = 2 * source
    rows = [
        doubled[(i * size) // target : -(-((i + 1) * size) // target)].mean(axis=0)
        for i in range(target)
    ]
    return np.stack(rows).astype(np.float32)


def feature_matrix(source: int, target: int) -> npt.NDArray[np.float32]:
    """Matrix [1 + target^2, 1 + source^2] for tokens: the class token's row and column are zero.

    The rest is kron(u, u), over row-major grids.
    """
    u = upsampling_1d(source, target)
    matrix = np.zeros((1 + target * target, 1 + source * source), np.float32)
    matrix[1:, 1:] = np.kron(u, u)
    return matrix


def relation_matrix(source: int, target: int) -> npt.NDArray[np.float32]:
    """Matrix ``P`` [1 + target^2, 1 + source^2]: as :func:`feature_matrix`, class token kept.

    Relations become ``P @ R @ P.T``.
    """
    matrix = feature_matrix(source, target)
    matrix[0, 0] = 1.0
    return matrix
