"""What an exit's confidence is, and the temperature that makes it honest."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import DataError

ConfidenceKind = Literal["max_softmax", "margin", "entropy"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Range that :func:`fit_temperature` searches."""


def fit_temperature(logits: npt.ArrayLike, label: npt.NDArray[np.integer]) -> float:
    """The temperature of one exit with the smallest negative log-likelihood of ``label`` [N].

    ``logits`` [N, C]; where labels are unknown, pass the last exit's predictions. Rows with logits
    that are not finite are left out. Temperature scaling as in Guo et al., "On calibration of
    modern neural networks", ICML 2017. The likelihood is concave in 1 / temperature, so bisection
    of its slope finds the optimum, here within
    :data:`MIN_TEMPERATURE` .. :data:`MAX_TEMPERATURE`. Targets are softened by 1 / (N + 2) (Platt,
    1999), so that an exit that is always right on few images does not get confidences of exactly 1.

    Raises :class:`~dvt_edge.errors.DataError` where no row is finite.
    """
    values = np.asarray(logits, float)
    finite = np.isfinite(values).all(axis=1)
    values, truth = values[finite], label[finite]
    if not len(values):
        raise DataError("a temperature needs at least one image whose logits are all finite")
    # Only differences between logits count; far below the largest they carry no probability.
    with np.errstate(over="ignore"):
        values = np.maximum(values - values.max(axis=1, keepdims=True), -1e6)
    soft = 1 / (len(values) + 2)
    wanted = (1 - soft) * values[np.arange(len(truth)), truth] + soft * values.mean(axis=1)
    low, high = np.log(1 / MAX_TEMPERATURE), np.log(1 / MIN_TEMPERATURE)
    for _ in range(50):
        middle = (low + high) / 2
        scaled = values * np.exp(middle)
        p = np.exp(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))
        slope = ((p * values).sum(axis=1) - wanted).mean()  # of the loss, in 1 / temperature
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))
