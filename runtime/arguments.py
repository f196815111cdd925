"""Arguments of the Runtime, checked where they enter."""

from __future__ import annotations

from math import isfinite
from typing import TypeGuard

import numpy as np

from dvt_edge.errors import BudgetError, ConfigError
from dvt_edge.profile import BudgetConfig


def check_deadline(deadline_ms: object) -> None:
    """Raise :class:`~dvt_edge.errors.BudgetError` unless it is None or positive; infinity is."""
    if deadline_ms is not None and not _is_positive(deadline_ms):
        raise BudgetError(
            f"a deadline is a positive number of milliseconds, found {deadline_ms!r}; leave it out "
            "to run without one"
        )


def check_seconds(seconds: object) -> None:
    """Raise :class:`~dvt_edge.errors.ConfigError` unless it is a positive, finite number."""
    if not (_is_positive(seconds) and isfinite(seconds)):
        raise ConfigError(
            f"measure() takes a positive number of seconds, found {seconds!r}; give 1 or more"
        )


def check_wait(regroup_ms: object) -> None:
    """Raise :class:`~dvt_edge.errors.ConfigError` unless it is None, 0, or positive and finite."""
    if regroup_ms is None or (_is_number(regroup_ms) and regroup_ms == 0):
        return
    if not (_is_positive(regroup_ms) and isfinite(regroup_ms)):
        raise ConfigError(
            f"regroup_ms is a positive number of milliseconds, found {regroup_ms!r}; leave it out, "
            "or give 0, to let no frame wait"
        )


def check_budget(budget: object) -> None:
    """Raise :class:`~dvt_edge.errors.BudgetError` unless it is a whole budget."""
    if not isinstance(budget, BudgetConfig):
        raise BudgetError(
            "a budget is a BudgetConfig, or keys such as set_budget(latency_ms=5), found "
            f"{type(budget).__name__}"
        )


def _is_positive(value: object) -> TypeGuard[float]:
    """Whether it is a number above zero; NaN is not."""
    return _is_number(value) and value > 0


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number; True, which Python takes for 1, is none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
