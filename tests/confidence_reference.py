"""What the confidence of an exit is, in NumPy: what the graphs' own is held to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.confidence import ConfidenceKind


def confidence(
    logits: npt.ArrayLike, kind: ConfidenceKind = "max_softmax", temperature: float = 1.0
) -> npt.NDArray[np.float64]:
    """Confidence [N] of one exit's ``logits`` [N, C], 0..1, higher is surer.

    With p the softmax of ``logits / temperature``: ``max_softmax`` is the largest p (1/C..1),
    ``margin`` the largest p less the second largest, ``entropy`` is 1 less the entropy of p over
    its largest possible value, log C. With one class all three are 1. A row with a logit that is
    NaN or infinite gets NaN, which reaches no threshold, so such an image never leaves early.
    """
    values = np.asarray(logits, float)
    finite = np.isfinite(values).all(axis=1)
    values = np.where(finite[:, None], values, 0.0)
    with np.errstate(over="ignore"):  # a difference too large for a float is probability 0
        shifted = (values - values.max(axis=1, keepdims=True)) / temperature
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
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
