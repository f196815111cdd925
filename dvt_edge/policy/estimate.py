"""How likely every exit is to be right: what the solver maximises in place of right or wrong.

The best thresholds for a few hundred right-or-wrong answers fit those answers' luck: whoever tries
all thresholds finds the ones that happened to do well. What thresholds are worth on unseen images
is the mean, over the images that leave at each exit, of the probability of being right there. That
probability is estimated first, by one logistic regression per exit, and its mean is maximised.

Only the confidences that thresholds look at are regressed on, so not the last exit's: averaging
over the rest does not change the mean and removes its noise (Rao, 1945; Blackwell, 1947). The
regression is linear in the confidences' logits, with a ridge penalty (le Cessie and van
Houwelingen, Applied Statistics 41, 1992) whose strength is chosen by cross-validation. Bends at
:data:`KNOTS` and products of two logits are penalised :data:`CURVED` times as strongly: they come
in where there are enough records to tell that a straight line is wrong. Targets are softened by
1 / (N + 2) (Platt, 1999).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RIDGES = (300.0, 100.0, 30.0, 10.0, 3.0)
"""Strengths of the penalty to choose from: half of it times the squared coefficients is added to
the negative log-likelihood; features have the variance 1."""
CURVED = 10.0
"""How much more strongly bends and products are penalised."""
KNOTS = (0.2, 0.4, 0.6, 0.8, 0.9)
"""Quantiles of every confidence at which the slope may change."""
FOLDS = 5
MOST_TUNED = 5_000
"""Most records that the strength is chosen on; the regression itself uses all."""
_EDGE = 1e-3  # keeps logits finite: confidences of 0 and 1 become -6.9 and 6.9
_STEPS = 100  # far more than Newton's method takes
_ROWS = 128  # per matrix product: too few for BLAS to wait for threads that others keep busy


def estimate_right(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> Floats:
    """[N, K]: estimated probability, 0..1, that each exit answers each record rightly.

    ``confidence`` [N, K], finite, 0..1 (values beyond count as 0 or 1), and ``correct`` [N, K]. An
    exit that is always right, or never, is given just that. Deterministic; O(N), less than a second
    for 50,000 records of four exits.
    """
    right = np.asarray(correct, float)
    count = len(right)
    result = np.tile(right.mean(axis=0), (count, 1))
    varies = (right != right[0]).any(axis=0)
    if varies.any():
        seen = np.clip(np.asarray(confidence, float), 0, 1)[:, :-1]
        target = (right[:, varies] * count + 1) / (count + 2)
        features = _features(seen)
        penalty = np.where(np.arange(features.shape[1]) > seen.shape[1], CURVED, 1.0)
        if seen.shape[1]:
            ridge, start = _choose_ridge(features, penalty, target, seen)
        else:
            ridge, start = 0.0, None
        fit = _fit(features, ridge * penalty, target, np.ones_like(target), 1e-6, start)
        result[:, varies] = _probability(_logit(features, fit))
    return result


def _features(seen: Floats) -> Floats:
    """[N, D]: 1, the logits of ``seen`` [N, k], products of two, and what bends them."""
    logit = _standardised(np.log((seen + _EDGE) / (1 - seen + _EDGE)))
    first, second = np.triu_indices(seen.shape[1], 1)
    products = logit[:, first] * logit[:, second]
    bends = [np.maximum(logit - knot, 0) for knot in np.quantile(logit, KNOTS, axis=0)]
    return np.column_stack(
        [np.ones(len(seen)), logit, _standardised(products), *map(_standardised, bends)]
    )


def _standardised(values: Floats) -> Floats:
    spread = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(spread < 1e-9, 1.0, spread))


def _choose_ridge(
    features: Floats, penalty: Floats, target: Floats, seen: Floats
) -> tuple[float, Floats]:
    """The strength with the highest likelihood of records that the fit has not seen.

    And coefficients [K, D] near those that it leads to.
    """
    exits = target.shape[1]
    rows = np.arange(len(features))
    if len(rows) > MOST_TUNED:
        rows = np.linspace(0, len(rows) - 1, MOST_TUNED).astype(int)
    features = features[rows]
    # Records of equal confidence share a fold, so that no copy of a record predicts itself; folds
    # are spread evenly over the confidences and do not depend on the order of the records.
    fold = np.unique(seen[rows, 0], return_inverse=True)[1] % FOLDS
    held = np.repeat(fold[:, None] == np.arange(FOLDS), exits, axis=1)
    target = np.tile(target[rows], (1, FOLDS))  # [n, FOLDS * exits], as held
    fit = best_fit = np.zeros((target.shape[1], features.shape[1]))
    best, lowest = RIDGES[0], np.inf
    for ridge in RIDGES:
        fit = _fit(features, ridge * penalty, target, ~held * 1.0, 1e-2, fit)
        logit = _logit(features, fit)
        loss = float((np.logaddexp(0, logit) - target * logit)[held].sum())
        if loss < lowest:
            best, lowest, best_fit = ridge, loss, fit
    return best, best_fit.reshape(FOLDS, exits, -1).mean(axis=0)


def _fit(
    features: Floats,
    penalty: Floats,
    target: Floats,
    weight: Floats,
    tolerance: float,
    start: Floats | None = None,
) -> Floats:
    """[B, D]: coefficients of B penalised logistic regressions, until no logit moves by more.

    ``features`` [N, D], the first one 1 and not penalised, ``penalty`` [D], ``target`` and
    ``weight`` [N, B]. Newton's method with steps shortened so that each lowers the loss (Bach,
    Electronic Journal of Statistics 4, 2010).
    """
    size, problems = features.shape[1], target.shape[1]
    blocks = _blocks(features)
    turned = np.ascontiguousarray(blocks.transpose(0, 2, 1))  # (blocks, D, rows)
    ridge = np.append(1e-6, penalty[1:])  # something, so that no system is singular
    fit = np.zeros((problems, size)) if start is None else start
    for _ in range(_STEPS):
        p = _probability(_logit(features, fit))
        slope = (turned @ _blocks(weight * (target - p))).sum(axis=0).T - ridge * fit
        curvature = np.moveaxis(_blocks(weight * p * (1 - p)), 2, 0)[:, :, None, :]
        hessian = np.stack([((turned * c) @ blocks).sum(axis=0) for c in curvature])
        step = np.linalg.solve(hessian + np.diag(ridge), slope[..., None])[..., 0]
        move = np.abs(_logit(features, step)).max(axis=0)
        fit = fit + step * (np.log1p(move) / np.maximum(move, 1e-300))[:, None]
        if move.max() <= tolerance:
            break
    return fit


def _logit(features: Floats, fit: Floats) -> Floats:
    """[N, B]: ``features`` [N, D] times ``fit`` [B, D]."""
    products = _blocks(features) @ fit.T
    return np.asarray(products.reshape(-1, len(fit))[: len(features)])


def _blocks(values: Floats) -> Floats:
    """[n, rows, D]: ``values`` [N, D] in blocks of equally many rows, the last ones filled by 0."""
    missing = -len(values) % _ROWS
    padded = np.pad(values, ((0, missing), (0, 0))) if missing else values
    return padded.reshape(-1, _ROWS, values.shape[1])


def _probability(logit: Floats) -> Floats:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logit))  # without overflow
