"""Student's distribution, by its density."""

from __future__ import annotations

from math import atan, gamma, pi, sqrt

import numpy as np


def beyond_t(quantile: float, freedom: int) -> float:
    """Probability that Student's t of so many degrees of freedom exceeds ``quantile``."""
    # With t = sqrt(freedom) tan(x) the density is a power of the cosine, up to x = pi / 2.
    start, steps = atan(quantile / sqrt(freedom)), 20_000
    width = (pi / 2 - start) / steps
    middles = start + width * (np.arange(steps) + 0.5)
    scale = gamma((freedom + 1) / 2) / sqrt(pi) / gamma(freedom / 2)
    return float(scale * width * (np.cos(middles) ** (freedom - 1)).sum())
