"""How sure an exit is of its answer, from its logits, and the temperature that makes it honest."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import ConfigError, DataError
from dvt_edge.policy.records import Floats

ConfidenceKind = Literal["max_softmax", "margin", "entropy"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Range that :func:`fit_temperature` searches."""


def confidence(
    logits: npt.ArrayLike, kind: ConfidenceKind = "max_softmax", temperature: float = 1.0
) -> Floats:
    """Confidence [N] of one exit's ``logits`` [N, C], 0..1, higher is surer.

    With p the softmax of ``logits / temperature``: ``max_softmax`` is the largest p (1/C..1),
    ``margin`` the largest p less the second largest, ``entropy`` is 1 less the entropy of p over
    its largest possible value, log C. With one class all three are 1. A row with a logit that is
    NaN or infinite gets NaN, which reaches no threshold, so such an image never leaves early.

    Raises :class:`~dvt_edge.errors.ConfigError` for an unknown kind or a temperature that is not
    positive and finite, :class:`~dvt_edge.errors.DataError` for logits not of shape [N, C], C >= 1.
    """
    if kind not in get_args(ConfidenceKind):
        known = ", ".join(get_args(ConfidenceKind))
        raise ConfigError(f"unknown confidence '{kind}'; choose one of {known}")
    if not np.isfinite(temperature) or temperature <= 0:
        raise ConfigError(f"a temperature is a positive number, found {temperature}; 1 is neutral")
    values = _check_logits(logits)
    finite = np.asarray(np.isfinite(values).all(axis=1))
    log_p = _log_softmax(np.where(finite[:, None], values, 0.0), 1 / temperature)
    p = np.exp(log_p)
    if kind == "max_softmax":
        result = p.max(axis=1)
    elif kind == "margin":
        top = np.sort(p, axis=1)[:, -2:]
        result = top[:, -1] - (top[:, 0] if p.shape[1] > 1 else 0.0)
    elif p.shape[1] == 1:
        result = np.ones(len(p))
    else:  # p log p is 0 where p is 0
        entropy = -(p * np.where(p > 0, log_p, 0.0)).sum(axis=1)
        result = 1 - entropy / np.log(p.shape[1])
    return np.where(finite, np.clip(result, 0.0, 1.0), np.nan)


def fit_temperature(logits: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """The temperature of one exit with the smallest negative log-likelihood of ``label`` [N].

    ``logits`` [N, C]; where labels are unknown, pass the last exit's predictions. Rows with logits
    that are not finite are left out. Temperature scaling as in Guo et al., "On calibration of
    modern neural networks", ICML 2017. The likelihood is concave in 1 / temperature, so bisection
    of its slope finds the optimum, here within
    :data:`MIN_TEMPERATURE` .. :data:`MAX_TEMPERATURE`. Targets are softened by 1 / (N + 2) (Platt,
    1999), so that an exit that is always right on few images does not get confidences of exactly 1.

    Raises :class:`~dvt_edge.errors.DataError` for shapes that do not fit together, labels outside
    0..C-1, and where no row is finite.
    """
    values, truth = _check_logits(logits), np.asarray(label)
    if truth.shape != values.shape[:1]:
        raise DataError(f"label must have shape [{len(values)}], found {list(truth.shape)}")
    if not np.issubdtype(truth.dtype, np.integer):
        raise DataError(f"labels are integer classes from 0, found {truth.dtype}")
    if len(truth) and (truth.min() < 0 or truth.max() >= values.shape[1]):
        raise DataError(
            f"labels must be in 0..{values.shape[1] - 1}, found {truth.min()}..{truth.max()}"
        )
    finite = np.isfinite(values).all(axis=1)
    values, truth = values[finite], truth[finite]
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
        p = np.exp(_log_softmax(values, np.exp(middle)))
        slope = ((p * values).sum(axis=1) - wanted).mean()  # of the loss, in 1 / temperature
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def _check_logits(logits: npt.ArrayLike) -> Floats:
    values = np.asarray(logits, float)
    if values.ndim != 2 or not values.shape[1]:
        raise DataError(
            f"logits must have shape [N, C] with at least one class, found {list(values.shape)}"
        )
    return values


def _log_softmax(values: Floats, scale: float) -> Floats:
    """[N, C]; ``values`` [N, C] are finite and are multiplied by ``scale`` > 0."""
    with np.errstate(over="ignore"):  # a difference too large for a float is probability 0
        shifted = (values - values.max(axis=1, keepdims=True)) * scale
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
